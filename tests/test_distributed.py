"One training in several processes (gloo, on this machine) against the same training in one"
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from overmem.attacks import kl_to, near, pgd, rs_fgsm, to_clean
from overmem.bat import bat
from overmem.core import seed_all, seeded
from overmem.data import Replay, TensorLoader, crop_flip
from overmem.dom import dom_da, dom_da_masked, dom_re, lowest, remove_group, remove_known
from overmem.fastat import free_at, grad_align
from overmem.groups import GroupDRO
from overmem.mat import mat_in_batch
from overmem.models import preact_resnet
from overmem.objectives import adv, attached, gairat, mart, trades
from overmem.records import read_metrics
from overmem.train import constant, fit, read_checkpoint, sgd
from overmem.xrm import XRM, Twins
from overmem.zerograd import multigrad, zerograd

EPS, N = 8/255, 21                                                       # batches of 8, 8 and 5
INNER = pgd(EPS, EPS/2, 2)
METHODS = dict(
    natural=lambda: adv(), rs_fgsm=lambda: adv(rs_fgsm(EPS, 1.25*EPS)), pgd=lambda: adv(INNER),
    zerograd=lambda: adv(zerograd(EPS, q=.35)), multigrad=lambda: adv(multigrad(EPS)),
    grad_align=lambda: grad_align(EPS), free_at=lambda: free_at(EPS, 2, 8, (3, 8, 8)),
    trades=lambda: trades(to_clean(pgd(EPS, EPS/2, 2, loss=kl_to, start=near))), mart=lambda: mart(INNER),
    gairat=lambda: gairat(EPS, EPS/2, 2, begin=0), bat=lambda: bat(INNER, torch.linspace(0, .5, N)),
    dom_re=lambda: dom_re(adv(INNER), lowest(.4), 0), known=lambda: remove_known(adv(), 2.3, 0, N),
    group=lambda: remove_group(adv(), 2.3, 0), dom_da=lambda: dom_da(adv(), lowest(.1), 0, crop_flip(2), iters=2),
    masked=lambda: dom_da_masked(adv(), lowest(.4), 0, crop_flip(1), iters=2), group_dro=lambda: GroupDRO(adv(), 2, .1),
    mat=lambda: mat_in_batch(torch.linspace(-1, 1, 10*N, dtype=torch.double).view(N, 10), 1., 10),
    xrm=lambda: XRM(torch.arange(N) % 10, torch.arange(N) % 2 == 0, 10))


def trained(name) -> dict:
    """What three updates leave: weights, running averages, the method's state, losses as `record` sees them,
    accuracies as `after_epoch` does; in float64"""
    with seeded(0):
        x, y, g = torch.rand(N, 3, 8, 8, dtype=torch.double), torch.randint(10, (N,)), torch.randint(2, (N,))
    seed_all(3)
    net, seen, objective = (
        (Twins(preact_resnet(4), preact_resnet(4)) if name == 'xrm' else preact_resnet(4)).double(),
        [], METHODS[name]())
    loader = TensorLoader(x, y, g, bs=8, aug=crop_flip(2))
    fit(net, Replay(loader, 2) if name == 'free_at' else loader, attached(objective, net), sgd(net), constant(.1), 1,
        lambda e, b, s: seen.append(torch.stack([s.losses, b.i.double()])), [lambda e, m: seen.append(m.eval()(x))])
    return net.state_dict() | getattr(objective, 'state', {}) | dict(
        seen=torch.cat([v.flatten() for v in seen]), random=torch.get_rng_state())


def process(rank, world, store, out):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=world)
    torch.save({name: trained(name) for name in METHODS}, f'{out}-{rank}')
    dist.destroy_process_group()


@pytest.fixture(scope='module', params=[2, 3])
def apart(request, tmp_path_factory):
    """What each process found; with three, the last one's share of a batch of five,
    or of a few memorized images, may be a single image or none"""
    d = tmp_path_factory.mktemp('apart')
    mp.spawn(process, (request.param, d/'store', d/'found'), request.param)
    return [torch.load(f'{d}/found-{r}') for r in range(request.param)]


@pytest.mark.parametrize('name', METHODS)
def test_several_processes_train_what_one_trains(name, apart):
    "Up to the order of summation, whatever the method takes from its batch; and all of them the same, bit for bit"
    alone = trained(name)
    for found in apart:
        assert found[name].keys() == alone.keys()
        for k, v in alone.items():
            assert torch.equal(found[name][k], apart[0][name][k]), k
            assert (found[name][k].double() - v.double()).abs().max() < 1e-9, k


def test_shares_differ(apart):
    "The comparison above would find a process whose share is not counted: the methods do differ from each other"
    assert len({found['seen'].sum().item() for found in apart[0].values()}) == len(METHODS)


def torchrun(home, *args, processes=2, restarts=0):
    return subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', str(processes),
         '--max-restarts', str(restarts), '-m', 'overmem', *map(str, args)],
        env=dict(os.environ, OVERMEM_HOME=str(home), OMP_NUM_THREADS='1'),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


RUN = ('train', 'adv(pgd(8/255, 4/255, 2))', '--data', 'digits', '--n-train', 500, '--n-test', 200, '--epochs', 8,
       '--model', 'preact_resnet(8)', '--aug', 'crop_flip(1)', '--precision', 'fp32', '--best', 'pgd10', '--history',
       '--save-every', 0)


def metrics(home):
    return [{k: v for k, v in r.items() if k != 'seconds'} for f in home.glob('data/runs/*/metrics.jsonl')
            for r in read_metrics(f)]


def ended(p) -> tuple:
    "(stdout, stderr) of torchrun, of which nothing stays behind"
    try: return p.communicate(timeout=300)
    finally:
        if p.returncode is None: os.killpg(p.pid, signal.SIGKILL)


def finished(p):
    out, err = ended(p)
    assert p.returncode == 0, err
    return out


def test_torchrun(tmp_path):
    """Metrics of two processes equal those of one; a killed process is replaced,
    and the run ends where it would have ended"""
    alone = subprocess.run([sys.executable, '-m', 'overmem', *map(str, RUN)],
                           env=dict(os.environ, OVERMEM_HOME=str(tmp_path/'one'), OMP_NUM_THREADS='1'),
                           capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    said = finished(torchrun(tmp_path/'two', *RUN))
    assert said.count('epoch ') == 8 and said.count('last.safetensors') == 1           # one of them speaks
    one, two = metrics(tmp_path/'one'), metrics(tmp_path/'two')
    assert len(one) == 8
    assert one[0]['train_loss'] == pytest.approx(two[0]['train_loss'], abs=1e-4)
    # in float32 a gradient near zero may change its sign, and an image its side
    for a, b in zip(one, two, strict=True): assert a == pytest.approx(b, abs=.02)
    killed = torchrun(tmp_path/'killed', *RUN, '--force', restarts=1)
    while len(metrics(tmp_path/'killed')) < 3 and killed.poll() is None: time.sleep(.05)
    second = int(subprocess.check_output(['pgrep', '-P', str(killed.pid)], text=True).split()[-1])
    os.kill(second, signal.SIGKILL)
    assert 'continuing after epoch' in finished(killed)
    assert metrics(tmp_path/'killed') == two
    weights = [read_checkpoint(next((tmp_path/k).glob('data/runs/*/best.safetensors')))[0] for k in ('two', 'killed')]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items() if k.startswith('model'))


def test_what_torchrun_cannot_do_is_said_once(tmp_path):
    for args, says in ((('train', 'adv()', '--data', 'digits', '--shrink', 3), 'does not divide'),
                       (('list',), 'torchrun is for `train`'),
                       (('train', 'adv()', '--data', 'digits', '--device', 'cuda:1'), 'a GPU of its own'),
                       (('train', 'adv()', '--data', 'digits', '--n-train', 300, '--lr', 'constant(1e30)',
                         '--name', 'wild'), 'the loss became')):
        p = torchrun(tmp_path, *args)
        _, err = ended(p)
        lines = [l for l in err.splitlines() if l.startswith('overmem: ')]
        assert p.returncode == 1 and len(lines) == 1 and says in lines[0], err
    assert {d.name.partition('-')[0] for d in tmp_path.glob('data/runs/*')} == {'wild'}
