"Wrappers of one paper around objectives of others: what each notebook tests alone, together"
import pytest
import torch
from overmem.attacks import kl_to, near, pgd, rs_fgsm, to_clean
from overmem.bat import bat
from overmem.core import Batch, seeded
from overmem.dom import dom_da, dom_da_masked, dom_re, dom_re_own, lowest, remove_group, remove_known, remove_random
from overmem.groups import GroupDRO
from overmem.models import preact_resnet
from overmem.objectives import adv, gairat, mart, trades

EPS = 8/255
INNER = dict(natural=adv(), rs_fgsm=adv(rs_fgsm(EPS, 1.25*EPS)),
             trades=trades(to_clean(pgd(EPS, EPS/2, 2, loss=kl_to, start=near))), mart=mart(pgd(EPS, EPS/2, 2)),
             gairat=gairat(EPS, EPS/2, 2, begin=0), bat=bat(pgd(EPS, EPS/2, 2), torch.linspace(0, .5, 32)))
DOM = dict(dom_re=lambda o: dom_re(o, 2.3, 0), adaptive=lambda o: dom_re(o, lowest(.4), 0),
           own=lambda o: dom_re_own(o, lowest(.4), 0), random=lambda o: remove_random(o, 2.3, 0),
           group=lambda o: remove_group(o, 2.3, 0, 'original'), known=lambda o: remove_known(o, 2.3, 0, 32),
           dom_da=lambda o: dom_da(o, 2.3, 0, lambda x: x.flip(-1), iters=1),
           masked=lambda o: dom_da_masked(o, 2.3, 0, lambda x: x.flip(-1), iters=1))


def batch(n=32):
    with seeded(0):
        return Batch(torch.arange(n), torch.rand(n, 3, 8, 8), torch.randint(10, (n,)), torch.randint(2, (n,)))


def network():
    with seeded(0): return preact_resnet(4)


@pytest.mark.parametrize('inner', INNER)
@pytest.mark.parametrize('dom', DOM)
def test_dom_around_an_objective(dom, inner):
    "Its weights multiply those of the objective, images that it changes are what is attacked, and a gradient comes out"
    net, b = network(), batch()
    with seeded(1): plain = INNER[inner](net, b, 1.)
    with seeded(1): s = DOM[dom](INNER[inner])(network(), b, 1.)
    s.loss.backward()
    if dom in ('dom_re', 'adaptive', 'own', 'random', 'group', 'known'):
        assert 0 < (s.w == 0).sum() < len(b.y)
        if plain.w is None: assert set(s.w.tolist()) == {0., 1.}
        else: assert s.w.max() > 1  # the weights of GAIRAT or BAT are still in there
    else:
        x = s.x.detach()
        moved = (x - b.x).abs().flatten(1).max(1).values > EPS + 1e-5
        assert 0 < moved.sum() < len(b.y)                                # flipped, and attacked from there
        flipped = torch.where(moved.view(-1, 1, 1, 1), b.x.flip(-1), b.x)
        assert (x - flipped).abs().max() <= EPS + 1e-5


def test_groups_weigh_what_dom_keeps():
    "GroupDRO around DOM_RE sees the losses that DOM_RE leaves; DOM_RE around GroupDRO takes weights away afterwards"
    b = batch()
    outer, inner = GroupDRO(dom_re(adv(), 2.3, 0), 2, .1), dom_re(GroupDRO(adv(), 2, .1), 2.3, 0)
    with seeded(1): keep = dom_re(adv(), 2.3, 0)(network(), b, 1.).w
    for o in (outer, inner):
        s = o(network(), b, 1.)
        assert torch.equal(s.w == 0, keep == 0)
        s.loss.backward()
    assert set(inner.state) == set(outer.state) == {'q'} and not torch.equal(outer.state['q'], inner.state['q'])
