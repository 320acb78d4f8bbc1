"""Our attacks against those of torchattacks, image by image, in an environment of its own
(tools/independent.py makes the table on real data)"""
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT/'tools'))
import independent


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    "A row for each attack, on a small network trained robustly on digits; skipped if torchattacks cannot be installed"
    folder = tmp_path_factory.mktemp('independent')
    try: python = independent.environment(folder/'env')
    except RuntimeError as e: pytest.skip(str(e))
    with pytest.MonkeyPatch.context() as m:
        m.setenv('OVERMEM_HOME', str(folder))
        m.setenv('OVERMEM_DATA', str(folder))
        checkpoint, eps = independent.network('digits')
        return independent.each(python, folder, checkpoint, eps, 300, numbers=independent.BRIEF).set_index('attack')


@pytest.mark.parametrize('name', independent.EACH)
def test_agrees_with_torchattacks(table, name):
    "The same images fall, up to what two seeds of one implementation differ by; neither leaves the threat model"
    r = table.loc[name]
    noise = 0 if name == 'fgsm' else 3 + 2*r.two_seeds
    assert r.right > 200 and .05 < r.ours < r.right/r.images - .05       # something falls and something stands
    assert r.ours_outside < 1e-6 and r.theirs_outside < 1e-5
    assert r.only_theirs <= noise, r
    # their squares never reach the last row and column, which is a quarter of an image of 8 x 8
    if name != 'square': assert r.only_ours <= noise, r
