"""Our attacks beside those of torchattacks: python tools/independent.py [--n 400] [--nets mnist cifar10] [--ensemble]

Image by image: both attack the same images of the same network, in batches of 128, and where they are timed
(--ensemble) on the same number of threads, taking turns; ours as that many processes of one thread. What they return
is judged by neither: a perturbation counts if it obeys the threat model and the network, shown it once more in float32,
errs. torchattacks 3.5.1 pins old packages and gets an environment of its own, which borrows torch from this one.
Tables go to data/results/independent.
"""
import argparse
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
PIN = 'torchattacks==3.5.1'
BS = 128
ROBUST = dict(model='preact_resnet(16, (1, 1, 1), stem=2)', epochs=30, wd=0.)
NETS = dict(                      # configuration of the training run, and the radius
    cifar10=(ROBUST | dict(data='cifar10', objective='pgd(8/255, 4/255, 3)', lr='triangle(.2, 15, 5)', epochs=15,
                           n=10_000, aug='crop_flip(4)', wd=5e-4), '8/255'),
    mnist=(ROBUST | dict(data='mnist', objective='ramp(pgd, 16, eps=.3, alpha=.1, steps=5)', lr='triangle(.1, 30, 15)',
                         n=5000), '.3'),
    digits=(ROBUST | dict(model='cnn(16)', data='digits', objective='pgd(.15, .075, 3)', lr='triangle(.1, 20, 5)',
                          epochs=20), '.15'))
PAPER = dict(steps=100, targets=9, queries=5000)
BRIEF = dict(steps=20, targets=3, queries=300)


def ours(name: str, eps: float, steps: int, targets: int, queries: int):
    "The attack of this package"
    from overmem import attacks as a, strong as s
    return dict(fgsm=lambda: a.fgsm(eps), rs_fgsm=lambda: a.rs_fgsm(eps, 1.25*eps), pgd=lambda: a.pgd(eps, eps/4, 20),
                apgd_ce=lambda: s.apgd(eps, steps), apgd_t=lambda: s.apgd_t(eps, steps, targets),
                fab_t=lambda: s.fab_t(eps, steps, targets), square=lambda: s.square(eps, queries))[name]()


def theirs(name: str, net, eps: float, seed: int, steps: int, targets: int, queries: int):
    "The attack of torchattacks with the same settings"
    import torchattacks as t
    return dict(fgsm=lambda: t.FGSM(net, eps=eps), rs_fgsm=lambda: t.FFGSM(net, eps=eps, alpha=1.25*eps),
                pgd=lambda: t.PGD(net, eps=eps, alpha=eps/4, steps=20),
                apgd_ce=lambda: t.APGD(net, eps=eps, steps=steps, seed=seed),
                apgd_t=lambda: t.APGDT(net, eps=eps, steps=steps, n_classes=targets + 1, seed=seed),
                fab_t=lambda: t.FAB(net, eps=eps, steps=steps, multi_targeted=True, n_classes=targets + 1, seed=seed),
                square=lambda: t.Square(net, eps=eps, n_queries=queries, seed=seed))[name]()


EACH = ('fgsm', 'rs_fgsm', 'pgd', 'apgd_ce', 'apgd_t', 'fab_t', 'square')
PARTS = ('apgd_ce', 'apgd_t', 'fab_t', 'square')                         # of the standard ensemble


def attack(side: str, name: str, net, x, y, eps: float, seed: int, numbers: dict):
    "Perturbations (n,C,H,W) found by one side"
    from overmem.autoattack import autoattack
    torch.manual_seed(seed)
    batches = list(zip(x.split(BS), y.split(BS)))
    if name == 'ensemble' and side == 'ours':
        return autoattack(net, x, y, eps, 'standard', BS, seed, keep=True, jobs=torch.get_num_threads()).delta
    if side == 'ours': return torch.cat([ours(name, eps, **numbers)(net, v, k) for v, k in batches])
    if name != 'ensemble': them = theirs(name, net, eps, seed, **numbers)
    else:
        from torchattacks import MultiAttack
        them = MultiAttack([theirs(k, net, eps, seed, **numbers) for k in PARTS])
    return torch.cat([them(v, k) for v, k in batches]) - x


def work(side, todo, checkpoint, n, eps, seed, numbers, threads, part, parts):
    """In a process of its own: attacks by one side on one of so many parts of the images that are right;
    what each broke and the seconds it took. todo {name: file}"""
    from overmem.attacks import project
    from overmem.data import floats
    from overmem.runs import restored
    torch.set_num_threads(threads)
    _, net, te = restored(checkpoint, n)
    x, y = floats(te.x), te.y
    with torch.no_grad(): right = net(x).argmax(1) == y
    x, y = x[right].tensor_split(parts)[part], y[right].tensor_split(parts)[part]
    if side == 'theirs': __import__('torchattacks')                      # not on the clock
    for name, out in todo.items():
        began = time.perf_counter()
        delta = attack(side, name, net, x, y, eps, seed, numbers)
        seconds = time.perf_counter() - began
        allowed = project(delta, x, eps)
        with torch.no_grad(): broken = net(x + allowed).argmax(1) != y
        np.savez(out, broken=broken.numpy(), seconds=seconds, outside=(delta - allowed).abs().amax().item())
        print(f'{side} {name}: {broken.sum()} of {len(y)} in {seconds:.1f} s', flush=True)


def environment(folder: Path) -> Path:
    """The Python of an environment with torchattacks and its pins, which finds everything else in this one;
    RuntimeError if it cannot be made"""
    python = folder/'bin'/'python'
    if not (folder/'ready').exists():
        try: venv.create(folder, with_pip=True, clear=True)
        except subprocess.CalledProcessError as e:
            raise RuntimeError(f'no environment with pip can be made: {e}') from None
        here = subprocess.run([python, '-c', 'import site; print(site.getsitepackages()[0])'], capture_output=True,
                              text=True, check=True).stdout.strip()
        (Path(here)/'borrowed.pth').write_text(
            'import site; ' + '; '.join(f'site.addsitedir({p!r})' for p in sys.path if p.endswith('-packages')) + '\n')
        got = subprocess.run([python, '-m', 'pip', 'install', '-q', PIN], capture_output=True, text=True)
        tried = subprocess.run([python, '-c', 'import torchattacks'], capture_output=True, text=True, env=_env())
        if got.returncode or tried.returncode:
            raise RuntimeError(
                f'{PIN} cannot be installed: '
                f'{((got.stderr if got.returncode else tried.stderr).strip() or "no reason given").splitlines()[-1]}')
        (folder/'ready').touch()
    return python


def _env(): return os.environ | dict(PYTHONPATH=str(ROOT), PYTHONWARNINGS='ignore')


def found(python: Path, folder: Path, side: str, names, checkpoint: Path, n: int, eps: float, seed: int = 0,
          numbers: dict = PAPER, part: int = 0, parts: int = 1) -> dict:
    "{name: what it broke, seconds} from one process, or from what an earlier call left in `folder`"
    from overmem.memo import code_hash
    files = {k: folder/(f'{checkpoint.parent.name}-'
                        f'{code_hash("strong", "autoattack")[:8] if side != "theirs" else PIN}-{n}-{eps:.4f}-'
                        f'{k}-{side}-{seed}-{part}of{parts}-{"-".join(map(str, numbers.values()))}.npz')
             for k in names}
    todo = {k: str(f) for k, f in files.items() if not f.exists()}
    call = (f'import sys; sys.path.insert(0, {str(ROOT/"tools")!r}); from pathlib import Path; '
            f'import independent as i; i.work({side!r}, {todo}, Path({str(checkpoint)!r}), {n}, {eps}, {seed}, '
            f'{numbers}, {torch.get_num_threads()}, {part}, {parts})')
    if todo: subprocess.run([python if side == 'theirs' else sys.executable, '-c', call], env=_env(), check=True)
    return {k: dict(np.load(f)) for k, f in files.items()}


def network(name: str) -> tuple:
    "(checkpoint, eps) of a small robustly trained network; it is trained once"
    from overmem.expressions import make
    from overmem.runs import Training, run_all
    config, eps = NETS[name]
    c = Training(f'independent-{name}',
                 **dict(config, seed=0, n_test=1000, attacks=dict(pgd20=f'pgd({eps}, ({eps})/4, 20)'), every=5))
    return run_all([c])[0]/'last.safetensors', make(eps)


def each(python, folder, checkpoint, eps, n, names=EACH, numbers=PAPER) -> pd.DataFrame:
    "A row for each attack: robust accuracy by both, whom they broke, and how far two seeds of ours are apart"
    a, b, again = (found(python, folder, side, names, checkpoint, n, eps, seed, numbers)
                   for side, seed in (('ours', 0), ('theirs', 0), ('ours', 1)))
    def row(k):
        u, t, v = (r[k]['broken'] for r in (a, b, again))
        return dict(attack=k, images=n, right=len(u), eps=eps, ours=(len(u) - u.sum())/n, theirs=(len(u) - t.sum())/n,
                    both=(u & t).sum(), only_ours=(u & ~t).sum(), only_theirs=(t & ~u).sum(),
                    two_seeds=(u ^ v).sum(), ours_outside=a[k]['outside'], theirs_outside=b[k]['outside'])
    return pd.DataFrame([row(k) for k in names])


def ensemble(python, folder, checkpoint, eps, n, parts=2, rounds=2) -> pd.DataFrame:
    "The ensemble by both sides on parts of the images, in turns, each part several times: a row for each pair of runs"
    rows = []
    for k in range(parts*rounds):
        part = k % parts
        for old in folder.glob(f'*-{n}-*-ensemble-*'): old.unlink()       # timings are of one session
        r = {side: found(python, folder, side, ['ensemble'], checkpoint, n, eps, part=part, parts=parts)['ensemble']
             for side in (('theirs', 'ours'), ('ours', 'theirs'))[(k + k//parts) % 2]}
        a, b = r['ours']['broken'], r['theirs']['broken']
        rows.append(dict(part=part, right=len(a), eps=eps, ours_stand=(~a).sum(), theirs_stand=(~b).sum(),
                         only_ours=(a & ~b).sum(), only_theirs=(b & ~a).sum(),
                         ours_seconds=r['ours']['seconds'], theirs_seconds=r['theirs']['seconds'],
                         times_faster=r['theirs']['seconds']/r['ours']['seconds']))
    return pd.DataFrame(rows)


def save(table: pd.DataFrame, name: str):
    "Write a table, with device and versions"
    from overmem.base import results_dir
    from overmem.experiment import code_version, device_name
    path = results_dir()/'independent'/f'{name}.csv'
    path.parent.mkdir(parents=True, exist_ok=True)
    table.assign(device=device_name('cpu'), torch=torch.__version__, code=code_version()).to_csv(
        path, index=False, float_format='%.5g')
    print(table.to_string(index=False, float_format='%.4g'), path, sep='\n', flush=True)


def main():
    "Parse the command line and make the tables"
    from overmem.base import runs_dir
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--n', type=int, default=400, help='test images, the first n')
    p.add_argument('--nets', nargs='+', default=['mnist', 'cifar10'], choices=list(NETS))
    p.add_argument('--ensemble', action='store_true',
                   help='time the standard ensemble instead of comparing attack by attack')
    a = p.parse_args()
    folder = runs_dir()/'independent'
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder/'env')
    for net in a.nets:
        checkpoint, eps = network(net)
        if a.ensemble: save(ensemble(python, folder, checkpoint, eps, a.n), f'{net}-ensemble')
        else: save(each(python, folder, checkpoint, eps, a.n), net)


if __name__ == '__main__': main()
