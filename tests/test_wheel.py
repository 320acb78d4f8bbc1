"Installed without a clone: a wheel in a fresh environment, used in an empty folder"
import csv
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    d = tmp_path_factory.mktemp('wheel')
    shutil.copytree(ROOT, d/'copy',
                    ignore=shutil.ignore_patterns('.git', '.venv', '_site', '_proc', 'runs', 'build', '*.egg-info'))
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', d, d/'copy'],
                   check=True)
    shutil.rmtree(d/'copy')
    return next(d.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """installed('list') -> CompletedProcess: commands of an environment that has this wheel, and finds what it needs,
    but no clone, where these tests do"""
    d, home = tmp_path_factory.mktemp('environment'), tmp_path_factory.mktemp('empty')
    venv.create(d, with_pip=False, symlinks=True)
    site = next(d.glob('lib/python*/site-packages'))
    subprocess.run([sys.executable, '-m', 'pip', '--python', d/'bin'/'python', 'install', '-q', '--no-deps',
                    '--no-index', wheel], check=True)
    # found behind what is installed here; .pth files there, as of a clone, are not looked at
    (site/'needed.pth').write_text('\n'.join({sysconfig.get_path(k) for k in ('purelib', 'platlib')}))
    env = {k: v for k, v in os.environ.items() if not k.startswith(('OVERMEM_', 'PYTHON', 'VIRTUAL_ENV'))}
    def call(*args):
        return subprocess.run([d/'bin'/args[0], *args[1:]], cwd=home, env=env, capture_output=True, text=True,
                              timeout=300)
    call.site, call.home, call.version = site, home, wheel.name.split('-')[1]
    return call


def test_what_it_holds(wheel):
    "Modules, experiment notebooks, the papers' numbers; nothing that was run"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert ({'overmem/attacks.py', *(f'overmem/experiments/{p.name}' for p in ROOT.glob('nbs/experiments/*.ipynb')),
             *(f'overmem/reference/{p.name}' for p in ROOT.glob('data/reference/*.csv'))} <= names)
    assert {n.partition('/')[0].partition('-')[0] for n in names} == {'overmem'}


def test_an_experiment_in_an_empty_folder(installed):
    "Nothing comes from the clone; table, verdicts, figure and notebook are there, and say which version made them"
    version = installed('overmem', '--version')
    assert version.returncode == 0 and version.stdout.split()[-1] == installed.version, version.stderr
    where = installed(
        'python', '-c', "import overmem; from overmem.base import packaged; "
                        "print(overmem.__file__, packaged('experiments'), packaged('reference'), sep='\\n')")
    assert where.stdout.split() == [str(installed.site/'overmem'/f)
                                    for f in ('__init__.py', 'experiments', 'reference')], where.stderr
    listed = installed('overmem', 'list')
    assert listed.returncode == 0 and all(
        p.stem in listed.stdout for p in ROOT.glob('nbs/experiments/*.ipynb')), listed.stderr
    r = installed('overmem', 'run', 'mat_fig1', '--budget', 'smoke')
    assert r.returncode == 0, r.stderr
    out = installed.home/'data'/'results'/'mat_fig1'/'smoke'
    assert {p.name for p in out.iterdir()} == {'table.csv', 'figure.svg', 'figure.png', 'verdict.json', 'run.json',
                                               'notebook.ipynb'}
    about, verdicts, table = (json.loads((out/'run.json').read_text()), json.loads((out/'verdict.json').read_text()),
                              list(csv.DictReader((out/'table.csv').open())))
    assert (about['code_version'] == installed.version and about['stand_in'] is False and about['images_trained'] > 0
            and {v['verdict'] for v in verdicts} == {'not testable at this budget'}
            and any(float(v['mean']) > 0 for v in table))
    notebook = (out/'notebook.ipynb').read_text()
    assert str(installed.site) not in notebook and str(installed.home) not in notebook
    report = installed('overmem', 'report')
    board = installed.home/'data'/'results'/'SCOREBOARD.md'
    assert report.returncode == 0 and str(board) in report.stdout and 'mat_fig1' in board.read_text(), report.stderr
    assert sorted(p.name for p in installed.home.iterdir()) == ['data']
