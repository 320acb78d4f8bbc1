"The command line as a user meets it: what works, and what is refused in one line"
import csv
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import OVERMEM, ROOT
from safetensors import safe_open

NAMES = sorted(p.stem for p in (ROOT/'nbs'/'experiments').glob('*.ipynb'))
TINY = ('--data', 'digits', '--model', 'cnn(4)', '--epochs', '3', '--n', '256', '--n-test', '100', '--eps', '.1')


def test_help_imports_no_torch():
    code = ("import sys; from click.testing import CliRunner; from overmem.cli import cli; "
            "assert CliRunner().invoke(cli, ['--help']).exit_code == 0; assert 'torch' not in sys.modules")
    subprocess.run([OVERMEM.parent/'python', '-c', code], check=True)


def test_list_and_report(overmem):
    r = overmem('list')
    assert r.returncode == 0 and all(n in r.stdout for n in NAMES) and 'laptop' in r.stdout
    r = overmem('report')
    results = overmem.home/'data'/'results'
    board = (results/'SCOREBOARD.md').read_text()
    assert r.returncode == 0 and all(f'| {n} | not run |' in board for n in NAMES) and (results/'summary.svg').exists()
    assert ('BAT            13 claims: 13 not judged yet' in r.stdout
            and r.stdout.splitlines()[-2:] == [str(results/'SCOREBOARD.md'), str(results/'summary.png')])


@pytest.mark.parametrize('name', NAMES)
def test_experiment_at_smoke(overmem, name):
    "Every experiment runs without any data set, leaves every file, and claims nothing"
    r = overmem('run', name, '--budget', 'smoke', OVERMEM_PROGRESS='lines')
    assert r.returncode == 0, r.stderr
    out = overmem.home/'data'/'results'/name/'smoke'
    assert {p.name for p in out.iterdir()} == {'table.csv', 'figure.svg', 'figure.png', 'verdict.json', 'run.json',
                                               'notebook.ipynb'}
    about, verdicts = json.loads((out/'run.json').read_text()), json.loads((out/'verdict.json').read_text())
    assert about['budget'] == 'smoke' and about['wall_seconds'] > 0 and about['images_trained'] > 0
    assert {v['verdict'] for v in verdicts} <= {'not testable at this budget'}
    assert (str(overmem.home) not in (out/'notebook.ipynb').read_text()
            and str(ROOT) not in (out/'notebook.ipynb').read_text())
    assert sum(p.stat().st_size for p in out.iterdir()) < 1_000_000
    assert (overmem('report').returncode == 0
            and f'[{name}]({name}/smoke/notebook.ipynb) | [smoke]('
                in (overmem.home/'data'/'results'/'SCOREBOARD.md').read_text())


def test_two_at_a_time_and_a_pattern(overmem):
    r = overmem('run', 'mat_fig?', '-p', 'seeds=1', '--jobs', '2')
    assert r.returncode == 0, r.stderr
    assert len(list((overmem.home/'data'/'results').glob('mat_fig*/smoke/verdict.json'))) == 2


@pytest.mark.parametrize('args, says', [
    (('run', 'mat_fig11'), "did you mean 'mat_fig1'?"),
    (('run', 'xyz_*'), "no experiment 'xyz_*'"),
    (('run', 'mat_fig1', '--budget', 'labtop'), "did you mean 'laptop'?"),
    (('run', 'mat_fig1', '-p', 'epoch=3'), "did you mean 'epochs'?"),
    (('run', 'mat_fig1', '-p', 'epochs=many'), 'expected a whole number'),
    (('run', 'mat_fig1', '-p', 'epochs'), 'key=value'),
    (('run', 'mat_fig1', '-p', 'budget=labtop'), "did you mean 'laptop'?"),
    (('run', 'mat_fig1', '--device', 'gpu'), "no device 'gpu'"),
    (('run', 'zg_curves', '--budget', 'laptop'), 'overmem data cifar10 --get'),
    (('run', 'mat_fig1', '--jobs', '0'), '--jobs'),
    (('rnu',), "did you mean 'run'?"),
    (('run', 'mat_fig1', '--bugdet', 'smoke'), '--budget'),
    (('data', 'cifar1O'), "did you mean 'cifar10'?"),
    (('data', '--get'), '--get needs the name'),
    (('train', 'zerogard'), "did you mean 'zerograd'?"),
    (('train', 'rs_fgsm', '-p', 'alhpa=1'), "did you mean 'alpha'?"),
    (('train', 'adv(rs_fgsm(.1, .1)', '--data', 'digits'), 'not an expression'),
    (('train', 'rs_fgsm', '-p', 'alpha', '--data', 'digits'), 'key=value'),
    (('train', 'zerograd_cifar10', '-p', 'q=.9'), 'takes no -p'),
    (('train', 'adv', '--data', 'digits', '--model', 'cnn(4'), 'not an expression'),
    (('train', 'adv', '--data', 'digits', '--model', 'cnm(4)'), "did you mean 'cnn'?"),
    (('train', 'adv', '--data', 'digits', '--model', 'cnn'), 'no network'),
    (('train', 'adv', '--data', 'digits', '--lr', 'constant'), 'no learning rate'),
    (('train', 'adv', '--data', 'digits', '--eps', 'abc'), "nothing exported is called 'abc'"),
    (('train', 'adv', '--data', 'digits', '--epochs', '0'), 'epochs=0: at least 1'),
    (('train', 'adv', '--data', 'digits', '--model', 'mlp(60)'), "'mlp(60)' does not take images of 1 x 8 x 8"),
    (('train', 'adv', '--data', 'digits', '--aug', 'crop_flip(400)'), "'crop_flip(400)' cannot change images of 1 x 8"),
    (('train', 'adv', '--data', 'digits', '--seed', '9'*30), 'less than 2**63'),
    (('train', 'adv', '--data', 'digits', '--bs', '0'), 'bs=0'),
    (('train', 'adv', '--data', 'digits', '--every', '0'), 'every=0'),
    (('train', 'adv', '--data', 'digits', '--shrink', '9'), 'does not divide'),
    (('run', 'mat_fig1', '--seeds', '-1'), 'cannot be negative'),
    (('run', 'mat_fig1', '-p', 'epochs=-5'), 'cannot be negative'),
    (('run', 'mat_fig1', '-p', 'jobs=2'), '--jobs'),
    (('run', 'mat_fig1', '-p', 'device=gpu'), "no device 'gpu'"),
    (('run', 'zg_curves', '--budget', 'laptop', '--jobs', '2'), 'overmem data cifar10 --get'),
    (('run', 'zg_curves', '-p', 'eps=8/'), 'not an expression'),
    (('train', 'adv(open("x"))', '--data', 'digits'), "nothing exported is called 'open'"),
    (('train', 'adv', '--attack', 'pgd11'), "did you mean 'pgd10'?"),
    (('train', 'adv', '--data', 'mnist'), 'overmem data mnist --get'),
    (('train', 'adv', '--data', 'digits', '--precision', 'fp16'), 'there are fp32, bf16 and auto'),
    (('train', 'adv', '--data', 'digits', '--capture', 'grahp'), 'there are auto, off, graph and compiled'),
    (('bench', '--budget', 'labtop'), "did you mean 'laptop'?"),
    (('bench', '--agreement', '--budget', 'labtop'), "did you mean 'laptop'?"),
    (('bench', '--steps', 'pdg10'), "did you mean 'pgd10'?"),
    (('bench', '--model', 'preact_resnt(4)', '--steps', 'natural'), "did you mean 'preact_resnet'?"),
    (('mem', '--dataset', 'mnits'), "did you mean 'mnist'?"),
    (('mem', '--dataset', 'cifar10'), 'overmem data cifar10 --get'),
    (('mem', '--dataset', 'digits', '--models', '1'), 'at least two'),
    (('mem', '--dataset', 'digits', '--frac', '.713'), 'denominator'),
    (('mem', '--dataset', 'digits', '--engine', 'netwroks'), "did you mean 'networks'?"),
    (('mem', '--dataset', 'digits', '--model', 'mpl(64)'), "did you mean 'mlp'?"),
    (('mem', '--dataset', 'digits', '--rank', '2', '--world', '2'), 'ranks go from 0'),
    (('mem', '--dataset', 'digits', '--shrink', '3'), 'does not divide'),
    (('mem', '--dataset', 'mine:load', '--model', 'mine:net'), 'run this where mine.py lies'),
    (('mem', '--dataset', 'digits', '--epochs', '0'), 'epochs=0: at least 1'),
    (('mem', '--dataset', 'digits', '--n', '-5'), 'cannot be negative'),
    (('mem', '--dataset', 'digits', '--frac', 'nan'), 'denominator'),
    (('mem', '--dataset', 'digits', '--model', 'mlp(60)'), 'does not take images of 1 x 8 x 8'),
    (('eval', 'nowhere.safetensors', '--eps', '8'), 'a radius lies between 0 and 1'),
    (('eval', 'nowhere.safetensors', '--attack', 'sqare'), "did you mean 'square'?"),
    (('eval', 'nowhere.safetensors'), 'no checkpoint at nowhere.safetensors'),
])
def test_refused(overmem, refused, args, says):
    refused(*args, says=says)
    assert not [d for d in overmem.home.glob('data/runs/*') if d.name != 'notebooks']        # and nothing was begun


def test_no_gpu(refused):
    import torch
    if torch.cuda.is_available(): pytest.skip('this machine has a GPU')
    refused('run', 'mat_fig1', '--device', 'cuda', says='overmem doctor')
    refused('train', 'adv', '--data', 'digits', '--device', 'cuda', says='torch sees no GPU')


def test_no_slurm(refused):
    refused('run', 'mat_fig1', '--executor', 'slurm', says='no Slurm here', PATH=str(OVERMEM.parent))
    refused('run', 'mat_fig1', '--slurm', 'gres=gpu:1', says='--slurm goes with --executor slurm')
    refused('mem', '--dataset', 'digits', '--executor', 'slurm', '--slurm', 'gpu', says='write KEY=VALUE')


def test_damaged_data(overmem, refused, tmp_path):
    "A truncated file is named; at smoke too, where only *missing* data are replaced"
    raw = tmp_path/'sets'/'MNIST'/'raw'
    raw.mkdir(parents=True)
    for f in ('train-images', 't10k-images'): (raw/f'{f}-idx3-ubyte').write_bytes(b'cut')
    for f in ('train-labels', 't10k-labels'): (raw/f'{f}-idx1-ubyte').write_bytes(b'cut')
    assert 'damaged' in overmem('data', 'mnist', data=tmp_path/'sets').stdout
    refused('run', 'zg_norm', says='has the wrong checksum', data=tmp_path/'sets')


def test_unwritable_folder(refused, tmp_path):
    if os.geteuid() == 0: pytest.skip('root may write anywhere')
    (tmp_path/'data').mkdir(mode=0o500)
    refused('run', 'mat_fig1', says='OVERMEM_HOME')


def test_home_is_a_file(overmem, tmp_path):
    "A home that can hold no folder (works for root as well)"
    (tmp_path/'data').write_text('in the way')
    r = overmem('run', 'mat_fig1')
    assert r.returncode == 2 and 'OVERMEM_HOME' in r.stderr and len(r.stderr.strip().splitlines()) == 1, r.stderr


def test_failing_notebook_keeps_earlier_results(overmem, tmp_path):
    from overmem.base import RunFailed
    from overmem.runner import execute
    bad = tmp_path/'bad.ipynb'
    nb = json.loads((ROOT/'nbs'/'experiments'/'mat_fig1.ipynb').read_text())
    nb['cells'][-1]['source'] = 'raise RuntimeError("boom")'
    bad.write_text(json.dumps(nb))
    old = tmp_path/'data'/'results'/'bad'/'smoke'/'verdict.json'
    old.parent.mkdir(parents=True)
    old.write_text('[]')
    os.environ['OVERMEM_HOME'] = str(tmp_path)
    try:
        with pytest.raises(RunFailed, match='boom.*earlier results are untouched'):
            execute('bad', bad, dict(budget='smoke', epochs=2))
    finally: del os.environ['OVERMEM_HOME']
    assert old.read_text() == '[]'
    assert list((tmp_path/'data'/'runs'/'notebooks').glob('bad-smoke-*.ipynb'))


def test_train_then_eval(overmem):
    r = overmem('train', 'rs_fgsm', '-p', 'alpha=.125', *TINY)
    assert r.returncode == 0, r.stderr
    assert 'epoch   3/3' in r.stdout
    ckpt = r.stdout.strip().splitlines()[-1]
    again = overmem('train', 'rs_fgsm', '-p', 'alpha=.125', *TINY)
    assert again.stdout.strip().splitlines() == [ckpt]                      # finished: not repeated
    e = overmem('eval', ckpt, '--attack', 'fgsm,cw', '--eps', '.1', '--n', '50')
    assert e.returncode == 0, e.stderr
    acc = json.loads(open(ckpt.replace('.safetensors', '.eval.json')).read())['accuracy']
    assert set(acc) == {'clean', 'fgsm', 'cw'} and acc['fgsm'] <= acc['clean']
    for says, *wrong in (('no evaluation attack', '--attack', 'autoattack'), ('cannot be computed', '--eps', '1/0'),
                         ('no checkpoint', 'missing.safetensors')):
        r = overmem('eval', ckpt, *wrong)
        assert r.returncode == 2 and says in r.stderr and len(r.stderr.strip().splitlines()) == 1, r.stderr
    two = overmem('eval', ckpt, ckpt, '--attack', 'fgsm', '--eps', '.1', '--n', '50', '--csv', overmem.home/'table.csv')
    rows = list(csv.DictReader(open(overmem.home/'table.csv')))
    assert (two.returncode == 0 and len(rows) == 2 and float(rows[0]['fgsm']) == round(acc['fgsm'], 5)
            and rows[0]['seed'] == '0'), two.stderr


def test_a_run_of_ones_own_has_its_own_folder(overmem):
    "Parameters that are not the budget's claim nothing and leave the budget's results alone"
    assert overmem('run', 'mat_fig1', '-p', 'epochs=20').returncode == 0
    results = overmem.home/'data'/'results'/'mat_fig1'
    assert [d.name for d in results.iterdir()] == ['custom']
    assert ({v['verdict'] for v in json.loads((results/'custom'/'verdict.json').read_text())}
            == {'not testable at this budget'})
    assert (results/'custom'/'notebook.ipynb').exists()


def test_a_strangers_checkpoint_calls_only_makers(overmem, refused, tmp_path):
    import torch
    from overmem.train import save_checkpoint
    victim = tmp_path/'victim'
    config = dict(name='x', data='digits', objective='adv()', model=f"save_checkpoint('{victim}', linear(2))")
    save_checkpoint(tmp_path/'x.safetensors', torch.nn.Linear(1, 1), epoch=1, config=config)
    refused('eval', tmp_path/'x.safetensors', says="nothing exported is called 'save_checkpoint'")
    assert not victim.exists()
    save_checkpoint(tmp_path/'y.safetensors', torch.nn.Linear(1, 1), epoch=1,
                    config=config | dict(model='cnn(4)', future=1))
    refused('eval', tmp_path/'y.safetensors', says='another version')


def test_damaged_checkpoint_is_refused(overmem, refused):
    ckpt = overmem.home/'x.safetensors'
    ckpt.write_bytes(b'\x10\0\0\0\0\0\0\0{"a": nonsense}')
    refused('eval', ckpt, says='damaged or no checkpoint')


def test_nan_loss(refused): refused('train', 'adv', *TINY, '--lr', 'constant(1e12)', code=1, says='learning rate')


def left_behind(run):
    "Everything a run leaves that does not depend on the clock: metrics, histories, and all tensors of its checkpoint"
    rows = [{k: v for k, v in json.loads(l).items() if k != 'seconds'}
            for l in (run/'metrics.jsonl').read_text().splitlines()]
    with safe_open(run/'last.safetensors', 'np') as f: tensors = {k: f.get_tensor(k).tobytes() for k in f.keys()}
    return rows, {n: (run/n).read_bytes() for n in ('losses.npy', 'right.npy')}, tensors


@pytest.mark.parametrize('objective', ['adv(rs_fgsm(.1, .125))', 'dom_re(adv(rs_fgsm(.1, .125)), 2., 10)'])
def test_killed_at_random_moments(overmem, objective):
    """kill -9 at three random moments, most of them in the middle of an epoch;
    the same command goes on, and leaves bit for bit what an undisturbed run leaves"""
    args = ('train', objective, *TINY, '--precision', 'fp32', '--epochs', '40', '--bs', '16', '--history',
            '--save-every', '0.0005', '--name', 'killed')
    env = os.environ | dict(OVERMEM_HOME=str(overmem.home), OVERMEM_DATA=str(overmem.home))
    run, saved = None, []
    for _ in range(3):
        p = subprocess.Popen([OVERMEM, *args], env=env, stdout=subprocess.PIPE, text=True)
        first = p.stdout.readline()                                      # 'continuing after epoch' or an epoch
        assert 'epoch' in first
        time.sleep(random.uniform(0, .6))
        p.send_signal(signal.SIGKILL)
        p.wait()
        run, = (overmem.home/'data'/'runs').iterdir()
        assert not (run/'DONE').exists(), 'the machine is too fast for this test: more epochs are needed'
        if (run/'last.safetensors').exists():
            with safe_open(run/'last.safetensors', 'np') as f: meta = json.loads(f.metadata()['overmem'])
            saved.append((meta['epoch'], meta['done']))
    assert saved == sorted(saved) and saved[-1] > (0, 0)
    assert overmem(*args).returncode == 0
    resumed = left_behind(run)
    assert overmem(*args, '--force').returncode == 0
    whole = left_behind(run)
    assert resumed == whole and len(whole[0]) == 40


def test_altered_checkpoint_of_an_unfinished_run(overmem, refused):
    "A checkpoint cut short, altered by a bit, or of another configuration is refused by name; nothing is lost"
    train = lambda *a: overmem('train', 'adv', *TINY, '--name', 'x', *a)
    assert train().returncode == 0 and train('--seed', '1').returncode == 0
    one, two = sorted((overmem.home/'data'/'runs').glob('x-*'))
    good, seed = (one/'last.safetensors').read_bytes(), json.loads((one/'config.json').read_text())['seed']
    again = lambda says: refused('train', 'adv', *TINY, '--name', 'x', '--seed', seed, says=says)
    (one/'DONE').unlink()
    for bad in (good[:len(good)//2], good[:-40] + bytes([good[-40] ^ 4]) + good[-39:]):
        (one/'last.safetensors').write_bytes(bad)
        again('last.safetensors is damaged')
    (one/'last.safetensors').write_bytes((two/'last.safetensors').read_bytes())
    again(f'belongs to another configuration: its seed is {1 - seed}, not {seed}')
    (one/'last.safetensors').write_bytes(good)
    assert train('--seed', seed).returncode == 0 and (one/'DONE').exists()


def test_bench(overmem):
    "The table of steps, its file, and the comparison of accuracies"
    r = overmem('bench', '--steps', 'rs_fgsm,zerograd', '--bs', '8', '--model', 'preact_resnet(4, (1, 1))')
    assert r.returncode == 0, r.stderr
    path = Path(r.stdout.split()[-1])
    rows = list(csv.DictReader(path.open()))
    assert ([x['step'] for x in rows] == ['rs_fgsm', 'zerograd']
            and all(float(x['ratio']) > 0 and x['device'] for x in rows))
    r = overmem('bench', '--agreement', '--jobs', '2')
    assert r.returncode == 0 and 'trades_pgd2  pgd10' in r.stdout, r.stderr


@pytest.mark.parametrize('jobs', (1, 2))
def test_autoattack_killed_and_resumed(overmem, jobs):
    "kill -9 in the middle of AutoAttack; the same command goes on, and leaves what an undisturbed evaluation leaves"
    assert overmem('train', 'pgd', '-p', 'alpha=.05', '-p', 'steps=3', *TINY,
                   '--epochs', '12', '--name', 'aa').returncode == 0
    run, = (overmem.home/'data'/'runs').glob('aa-*')
    args = ('eval', run/'last.safetensors', '--attack', 'pgd10,aa', '--n', '60', '--eps', '.1', '--jobs', jobs)
    env = os.environ | dict(OVERMEM_HOME=str(overmem.home), OVERMEM_DATA=str(overmem.home))
    p = subprocess.Popen([OVERMEM, *map(str, args)], env=env, stdout=subprocess.DEVNULL)
    def begun(f):
        with np.load(f) as saved: return saved['at'].any()
    while not any(begun(f) for f in run.glob('last.aa-*.npz')):  # until a batch is done
        assert p.poll() is None
        time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert (not (run/'last.eval.json').exists()
            and {f.stem.partition('0.10000')[2] for f in run.glob('last.aa-*.npz')}
                <= ({''} if jobs == 1 else {'-1of2', '-2of2'}))
    results = lambda: {k: v.tolist() for k, v in np.load(run/'last.eval.npz').items()}
    r = overmem(*args)
    assert r.returncode == 0 and 'apgd_t' in r.stdout, r.stderr
    resumed = results()
    for f in run.glob('last.aa-*.npz'): f.unlink()
    assert overmem(*args).returncode == 0
    assert results() == resumed and sum(resumed['aa']) <= sum(resumed['pgd10'])
    assert ({b for b, ok in zip(resumed['aa_by'], resumed['aa']) if ok} <= {-1}
            and json.loads((run/'last.eval.json').read_text())['attacks']['aa'].startswith('autoattack'))


MEM = ('mem', '--dataset', 'digits', '--model', 'mlp(64, (64,))', '--models', '30',
       '--epochs', '10', '--lr', 'constant(.1)', '--bs', '32')


def test_a_shard_killed_and_started_again(overmem):
    "kill -9 to one of two shards; started again it trains only what is missing; the scores are those of one process"
    folders = lambda: [*(overmem.home/'data'/'runs').glob('mem-digits-*')]
    rows = lambda: {f.name: f.stat().st_mtime_ns for d in folders() for f in d.glob('row-*.npz')}
    p = subprocess.Popen([OVERMEM, *MEM, '--rank', '0', '--world', '2'],
                         env=os.environ | dict(OVERMEM_HOME=str(overmem.home), OVERMEM_DATA=str(overmem.home)))
    while len(rows()) < 3 and p.poll() is None: time.sleep(.01)
    p.send_signal(signal.SIGKILL)
    p.wait()
    first = rows()
    assert 3 <= len(first) < 15 and all(int(n[4:9]) % 2 == 0 for n in first), first
    r = overmem(*MEM, '--rank', '1', '--world', '2')
    assert r.returncode == 0 and 'shard 1 of 2 is done' in r.stdout, r.stderr
    r = overmem(*MEM, '--rank', '0', '--world', '2')
    assert r.returncode == 0 and 'reliability' in r.stdout, r.stderr
    assert len(rows()) == 30 and all(rows()[n] == t for n, t in first.items())
    found = Path(r.stdout.strip().splitlines()[-1])
    assert {f.name for f in found.iterdir()} >= {
        'scores.npz', 'summary.json', 'most_memorized.csv', 'most_memorized.png', 'pairs.csv',
        'high_infl_pairs_infl0.15_mem0.25.npz'}
    again = overmem(*MEM, '--force', '--jobs', '2', '--out', overmem.home/'again')
    assert again.returncode == 0, again.stderr
    a, b = np.load(found/'scores.npz'), np.load(overmem.home/'again'/'scores.npz')
    assert set(a) == set(b) and all(np.array_equal(a[k], b[k], equal_nan=a[k].dtype.kind == 'f') for k in a)
    folder, = folders()
    (folder/'row-00004.npz').write_bytes((folder/'row-00005.npz').read_bytes())
    r = overmem(*MEM)
    assert r.returncode == 2 and 'row-00004.npz belongs to another study: its subset' in r.stderr, r.stderr


def test_memorization_of_ones_own_data_and_network(overmem):
    (overmem.home/'mine.py').write_text("""
import torch
from torch import nn
from overmem.data import Images
def load():
    x = torch.randint(256, (60, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = (x.float().mean((1, 2, 3)) > 127).long()
    return (x[:40], y[:40]), Images(x[40:], y[40:])
class Net(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(16, 2))
def network(): return Net()
""")
    args = ('mem', '--dataset', 'mine:load', '--models', '20', '--epochs', '3')
    for more in (('--model', 'mine:network'), ('--model', 'mine:network', '--jobs', '2', '--force'),
                 ('--model', 'mine:Net'), ('--engine', 'nearest')):
        r = overmem(*args, *more)
        assert r.returncode == 0 and '20 models, each on 70% of 40 images' in r.stdout, r.stderr
    folders = lambda: {d.name for d in (overmem.home/'data'/'runs').glob('mem-mine-load-*')}
    before, text = folders(), (overmem.home/'mine.py').read_text()
    (overmem.home/'mine.py').write_text(text.replace('nn.Linear(16, 2)', 'nn.Linear(16, 3)'))  # another network,
    assert overmem(*args, '--model', 'mine:network').returncode == 0 and len(folders() - before) == 1  # other models


def test_scores_overwrite_nothing(overmem, refused):
    (overmem.home/'mine').mkdir()
    (overmem.home/'mine'/'thesis.txt').write_text('mine')
    args = ('mem', '--dataset', 'digits', '--engine', 'nearest', '--models', '20')
    refused(*args, '--out', 'mine', says='holds thesis.txt')
    assert (overmem.home/'mine'/'thesis.txt').read_text() == 'mine'
    refused(*args, '--out', '.', says='choose another --out')
    for _ in range(2): assert overmem(*args, '--out', 'new').returncode == 0


def test_benign_training_reads_scores(overmem, refused):
    "The file of `overmem mem` is what `bat` asks for; scores of other images are refused"
    assert overmem('mem', '--dataset', 'digits', '--n', '150', '--classes', '3,8', '--engine', 'nearest',
                   '--models', '20', '--out', 'found').returncode == 0
    args = ('train', "bat(in_eval(pgd(.1, .05, 2)), 'found/scores.npz')", '--data', 'digits', '--model', 'cnn(4)',
            '--epochs', '1', '--attack', 'fgsm')
    r = overmem(*args, '--n', '150', '--classes', '3,8')
    assert r.returncode == 0 and 'last.safetensors' in r.stdout, r.stderr
    refused(*args, '--n', '99', '--classes', '3,8', says='knows 150 training images')
    refused(*args, '--n', '150', '--classes', '8,3', says='images with other labels')
    refused(*args, '--classes', '3;8', says='as in 0,3,5')


def test_groups_of_ones_own_images(overmem, refused):
    """A table and a folder of images: environments, who learns best with them, pictures;
    what is wrong with a table in one line"""
    import numpy as np
    from PIL import Image
    rng, rows, images = np.random.default_rng(0), [], overmem.home/'images'
    images.mkdir()
    for k in range(300):
        core, split = k % 2, ('train', 'val', 'test')[k//2 % 3]
        y = core ^ int(rng.random() < .25)                               # labels are noisy, or nobody would be wrong
        a = y ^ int(rng.random() < .15)
        Image.fromarray((rng.random((12, 10, 3))*40
                         + 120*np.array([core/2, a, 0])).astype(np.uint8)).save(images/f'{k}.png')
        rows.append(f'{k}.png,{split},{y},{a}')
    def table(text): (overmem.home/'my.csv').write_text(text)
    table('filename,split,y,a\n' + '\n'.join(rows))
    args = ('groups', '--metadata', 'my.csv', '--root', 'images', '--size', '8', '--model', 'cnn(8)', '--combs', '2',
            '--steps', '300')
    r = overmem(*args)
    assert (r.returncode == 0 and 'GroupDRO, annotated groups' in r.stdout
            and 'environment 1 holds' in r.stdout), r.stdout + r.stderr
    out = overmem.home/'data'/'runs'/'groups-my'
    assert (len((out/'environments.csv').read_text().splitlines()) == 301
            and (out/'environments.png').stat().st_size > 1000)
    refused('groups', '--metadata', 'my.csv', '--root', 'nowhere', says='nowhere is no folder')
    refused(*args, '--combs', '0', says='combs=0: at least 1')
    table('filename,split,y\n' + '\n'.join(','.join(v.split(',')[:3]) for v in rows))
    r = overmem(*args, '--out', 'found')
    assert (r.returncode == 0 and 'annotated groups' not in r.stdout and 'no attribute is annotated' in r.stdout
            and (overmem.home/'found'/'results.csv').exists()), r.stdout + r.stderr
    table('file,split,y\n1.png,0,0\n')
    refused(*args, says="no column 'filename'")
    table('filename,split,y,a\n' + '\n'.join(rows) + '\nnone.png,test,0,0')
    refused(*args, says='1 of 301 images are not in')


def test_board(overmem, refused):
    "What TensorBoard reads is what the run recorded"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    refused('board', says='train something first')
    assert overmem('train', 'rs_fgsm', '-p', 'alpha=.125', *TINY, '--name', 'tiny').returncode == 0
    refused('board', 'tony-*', says="no run 'tony-*'")
    r = overmem('board', 'tiny-*', '--logdir', 'log')
    assert r.returncode == 0 and '3 epochs of 1 runs' in r.stdout and 'tensorboard --logdir log' in r.stdout, r.stderr
    run, = (overmem.home/'data'/'runs').glob('tiny-*')
    rows, events = ([json.loads(l) for l in (run/'metrics.jsonl').read_text().splitlines()],
                    EventAccumulator(str(overmem.home/'log'/run.name)))
    events.Reload()
    assert set(events.Tags()['scalars']) == {*rows[0]} - {'epoch'}
    for k in events.Tags()['scalars']:
        assert ([(e.step, np.float32(e.value)) for e in events.Scalars(k)]
                == [(r['epoch'], np.float32(r[k])) for r in rows]), k


def test_doctor(overmem):
    r = overmem('doctor')
    assert r.returncode == 0 and 'torchvision' in r.stdout and 'overmem data cifar10 --get' in r.stdout
