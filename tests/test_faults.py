"""Workers die, the disk fills, a file is corrupted, data go away: the end is a complete, correct table,
or a line that names what is wrong; never a wrong number"""
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import struct
import subprocess
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import OVERMEM

from overmem.base import BadRequest, RunFailed
from overmem.cluster import executor
from overmem.data import load
from overmem.ensembles import Outcomes
from overmem.memo import compute, run_dir
from overmem.runs import Training, collect, resolved, restored, run_all, train_code, train_run
from overmem.studies import read_row, write_row
from overmem.train import read_checkpoint

SWEEP = ('run', 'zg_curves', '-p', 'epochs=6')
NAME = 'zg_curves'


def command(home, *args, wait=True, **env):
    p = subprocess.Popen(
        [OVERMEM, *map(str, args)],
        env=os.environ | dict(OVERMEM_HOME=str(home), OVERMEM_DATA=str(home/'data'), OMP_NUM_THREADS='1') | env,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=home)
    if wait: p.said = said(p)
    return p


def said(p):
    "What overmem says in the end, and tracebacks; a kernel and its interpreter may add remarks on their own death"
    return [l for l in p.communicate(timeout=300)[1].splitlines() if l.startswith(('overmem: ', 'Traceback'))]


def table(home, name=NAME): return pd.read_csv(next(home.glob(f'data/results/{name}/*/table.csv')))
def temporary(home): return [f for f in home.rglob('.*') if f.name[1:].rpartition('.')[2].isdigit()]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp('undisturbed')
    assert command(home, *SWEEP).said == []
    return home


def workers(pid):
    "Processes of `spread` below a command"
    def is_worker(c):
        try: return 'spawn_main' in ' '.join(c.cmdline())
        except psutil.Error: return False                                # it has just ended
    return [c for c in psutil.Process(pid).children(recursive=True) if is_worker(c)]


def test_killed_at_random(undisturbed, tmp_path):
    """kill -9 to a worker, or to the notebook's kernel, four times;
    the same command ends with the table of an undisturbed run"""
    rng, killed = random.Random(0), 0
    for round in range(4):
        p = command(tmp_path, *SWEEP, '--jobs', '2', wait=False)
        while p.poll() is None and not workers(p.pid): time.sleep(.05)
        time.sleep(rng.uniform(0, 4))
        victims = workers(p.pid) if rng.random() < .7 else psutil.Process(p.pid).children()
        for v in victims and [rng.choice(victims)]:
            with contextlib.suppress(psutil.NoSuchProcess): v.kill(); killed += 1
        line = said(p)
        assert p.returncode == bool(line) and len(line) <= 1, line
    assert killed >= 2
    assert command(tmp_path, *SWEEP, '--jobs', '2').said == []
    pd.testing.assert_frame_equal(table(tmp_path), table(undisturbed))


@pytest.fixture
def small_disk(tmp_path):
    "A folder on a disk of its own, small_disk(size) makes it smaller or larger"
    d = tmp_path/'disk'
    d.mkdir()
    if os.getuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16k', 'overmem-test', d],
                                     capture_output=True).returncode:
        pytest.skip('a file system cannot be mounted here')
    def resize(size): subprocess.run(['mount', '-o', f'remount,size={size}', d], check=True)
    resize.home = d
    yield resize
    subprocess.run(['umount', '-l', d], check=True)


def test_full_disk(undisturbed, small_disk):
    """A disk that is full at the start, in the first runs, in later ones: one line each time, nothing half-written;
    with room again, the table"""
    for size in ('16k', '300k', '1500k'):
        small_disk(size)
        p = command(small_disk.home, *SWEEP, '--jobs', '2')
        assert (p.returncode == 1 and len(p.said) == 1 and 'No space left on device' in p.said[0]
                and str(small_disk.home) in p.said[0]), p.said
        assert not list(small_disk.home.glob('data/results/*/*')) and not temporary(small_disk.home)
    small_disk('40m')
    assert command(small_disk.home, *SWEEP, '--jobs', '2').said == []
    pd.testing.assert_frame_equal(table(small_disk.home), table(undisturbed))


def test_full_disk_and_histories(small_disk):
    """Losses of each image are written page by page into a file whose room is taken at the start:
    a training is not ended by a signal later"""
    args = ('train', 'adv', '--data', 'digits', '--model', 'cnn(4)', '--epochs', '200', '--every', '200', '--n', '1000',
            '--n-test', '10', '--history')
    small_disk('500k')
    p = command(small_disk.home, *args)
    assert p.returncode == 1 and len(p.said) == 1 and 'No space left on device' in p.said[0], p.said
    assert not temporary(small_disk.home) and not list(small_disk.home.glob('data/runs/*/DONE'))


# What is on the disk changes

@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('OVERMEM_HOME', str(tmp_path))
    assert executor() == 'local'
    return tmp_path


TINY = Training('tiny', 'digits', 'adv(rs_fgsm(.1, .125))', 'cnn(4)', 'triangle(.1, 4)', epochs=4, n=256, n_test=100,
                attacks=dict(pgd='pgd(.1, .05, 2)'), precision='fp32', history=True, watch=dict(clean=''), best='pgd')
ROWS = [TINY, replace(TINY, seed=1)]
FILES = ('metrics.jsonl', 'losses.npy', 'right.npy', 'clean-train.npy', 'clean-test-right.npy', 'DONE', 'config.json',
         'last.safetensors', 'best.safetensors')


def flipped(data, at, bit=0): return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:]


def damages(data, n, rng):
    "Nothing, half of it, all but its end, one bit"
    yield b''
    yield data[:len(data)//2]
    yield data[:-1]
    for _ in range(n): yield flipped(data, rng.randrange(len(data)), rng.randrange(8))


def found(rows=ROWS):
    "All that is read from finished runs"
    dirs = run_all(rows)
    return collect(rows, dirs), [{f: np.load(d/f) for f in FILES if f.endswith('.npy')} for d in dirs]


def same(a, b):
    return a[0].equals(b[0]) and all(np.array_equal(x[f], y[f], equal_nan=x[f].dtype.kind == 'f')
                                     for x, y in zip(a[1], b[1]) for f in x)


def test_a_finished_run_is_corrupted(home):
    """Every file of it, gone, cut, or with a bit turned: named and refused, or of no consequence;
    without its folder it is done again"""
    whole, rng = found(), random.Random(0)
    d = run_dir(resolved(TINY), train_code(TINY))
    for name in FILES:
        data, refused = (d/name).read_bytes(), 0
        for bad in (None, *damages(data, 20, rng)):
            if bad is None: (d/name).unlink()
            else: (d/name).write_bytes(bad)
            try: assert same(found(), whole), (name, bad)
            except RunFailed as e:
                refused += 1
                assert str(d if name == 'DONE' else d/name) in str(e) and 'delete its folder' in str(e)
            (d/name).write_bytes(data)
        if name == 'metrics.jsonl' or name.endswith('.npy'): assert refused >= 20, (name, refused)
    shutil.rmtree(d)
    assert found()[0].drop(columns='seconds').equals(whole[0].drop(columns='seconds'))


def test_a_checkpoint_is_corrupted(home):
    "It is refused by name, or the network is the one that was saved"
    file, rng = train_run(TINY)/'last.safetensors', random.Random(1)
    weights, data = restored(file)[1].state_dict(), file.read_bytes()
    for bad in damages(data, 60, rng):
        file.write_bytes(bad)
        try: assert all(torch.equal(v, weights[k]) for k, v in restored(file)[1].state_dict().items())
        except BadRequest as e: assert str(file) in str(e)


class Killed(Exception): pass


class Bar:
    "Stands for a progress bar, and ends the run at its third update"
    def __init__(self): self.k, self.initial = 3, 0
    def set_postfix(self, row): pass
    def update(self, n=1):
        self.k -= 1
        if not self.k: raise Killed


@pytest.mark.parametrize('name', ['metrics.jsonl', 'losses.npy', 'clean-train-right.npy'])
def test_an_unfinished_run_is_corrupted(home, name):
    "A run that goes on from its checkpoint does not take over records that have changed"
    whole, d = found([TINY]), run_dir(resolved(TINY), train_code(TINY))
    shutil.rmtree(d)
    with pytest.raises(Killed): train_run(TINY, bar=Bar(), minutes=0)
    assert not (d/'DONE').exists() and read_checkpoint(d/'last.safetensors')[1]['epoch'] == 1
    data, rng = (d/name).read_bytes(), random.Random(2)
    start = data.index(b'"epoch"') if name == 'metrics.jsonl' else 128  # of the header, in which not every bit counts
    for _ in range(20):
        (d/name).write_bytes(flipped(data, rng.randrange(start, start + 200), rng.randrange(8)))
        with pytest.raises(RunFailed, match=f'{name} is damaged'): run_all([TINY])
    (d/name).write_bytes(data)
    again = found([TINY])
    assert (again[0].drop(columns='seconds').equals(whole[0].drop(columns='seconds'))
            and same((whole[0], again[1]), whole))


def some(c): return dict(x=np.arange(c['n'])/7, ok=np.arange(c['n']) % 3 == 0)


def test_computed_arrays_are_corrupted(home):
    config, rng = dict(name='some', n=300), random.Random(3)
    whole, file = compute(config, some, ['core']), next(home.glob('data/runs/some-*/arrays.npz'))
    data, refused = file.read_bytes(), 0
    for bad in damages(data, 300, rng):
        file.write_bytes(bad)
        try:
            assert ({k: v.tolist() for k, v in compute(config, some, ['core']).items()}
                    == {k: v.tolist() for k, v in whole.items()})
        except RunFailed as e:
            refused += 1
            assert str(file) in str(e)
    assert refused >= 280


def test_a_row_of_a_study_is_corrupted(home):
    "Refused by name, or read as it was written"
    rng, mask, about = random.Random(4), np.arange(100) % 3 > 0, dict(data='0123', engine='networks')
    told = Outcomes(np.arange(100, dtype=np.int8) % 2, np.ones(9, np.int8), np.linspace(0, 1, 100, dtype=np.float16),
                    np.zeros(9, np.float16))
    file, refused = home/'row-00000.npz', 0
    write_row(file, about, mask, told)
    data = file.read_bytes()
    for bad in damages(data, 300, rng):
        file.write_bytes(bad)
        try: assert all(np.array_equal(a, b) for a, b in zip(read_row(file, about, mask), told))
        except RunFailed as e:
            refused += 1
            assert str(file) in str(e) and 'trains that model again' in str(e)
    assert refused >= 150


def test_results_are_cut(undisturbed, tmp_path):
    "The scoreboard names the folder; the same command writes it anew, from runs that are finished"
    shutil.copytree(undisturbed/'data', tmp_path/'data')
    folder = tmp_path/'data'/'results'/NAME/'smoke'
    shutil.move(folder.parent/'custom', folder)  # as that of a budget, or the scoreboard would not look at it
    for name in ('run.json', 'verdict.json'):
        data = (folder/name).read_bytes()
        (folder/name).write_bytes(data[:-40])
        p = command(tmp_path, 'report')
        assert p.returncode == 1 and len(p.said) == 1 and str(folder) in p.said[0], p.said
        (folder/name).write_bytes(data)
    text = (folder/'table.csv').read_text()
    (folder/'table.csv').write_text(re.sub(r'[0-8](?=\D*$)', lambda digit: str(int(digit[0]) + 1), text, count=1))
    p = command(tmp_path, 'report')
    assert p.returncode == 1 and 'table.csv is not what the run left' in p.said[0], p.said
    shutil.rmtree(folder)
    assert command(tmp_path, *SWEEP).said == []
    pd.testing.assert_frame_equal(table(tmp_path), table(undisturbed))


# Data go away

SET = """
import overmem.data as d
d.SOURCES['mnist'] = d.SOURCES['mnist']._replace(files={files})
"""


@pytest.fixture
def small_set(tmp_path):
    "Digits in MNIST's files, and their checksums where every process of a command finds them; (folder, environment)"
    raw, sums = tmp_path/'sets'/'MNIST'/'raw', {}
    raw.mkdir(parents=True)
    for part, v, n in zip(('train', 't10k'), load('digits'), (300, 100)):
        x = np.kron(v.x[:n, 0].numpy(), np.ones((1, 3, 3), np.uint8))
        x = np.pad(x, ((0, 0), (2, 2), (2, 2)))
        (raw/f'{part}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 2051, *x.shape) + x.tobytes())
        (raw/f'{part}-labels-idx1-ubyte').write_bytes(
            struct.pack('>2i', 2049, n) + v.y[:n].numpy().astype(np.uint8).tobytes())
    for f in raw.iterdir(): sums[f'MNIST/raw/{f.name}'] = hashlib.md5(f.read_bytes()).hexdigest()
    (tmp_path/'site').mkdir()
    (tmp_path/'site'/'sitecustomize.py').write_text(SET.format(files=sums))
    return raw, dict(OVERMEM_DATA=str(tmp_path/'sets'), PYTHONPATH=os.pathsep.join(
        [str(tmp_path/'site'), *filter(None, [os.environ.get('PYTHONPATH')])]))


def test_data_go_away(small_set, tmp_path):
    """A data file is removed, or damaged, in the middle of a sweep: the set and the file are named,
    and with the file back the table is that of an undisturbed run"""
    (raw, env), args = small_set, ('run', 'zg_norm', '--jobs', '2')
    file = raw/'train-images-idx3-ubyte'
    whole, calm = file.read_bytes(), tmp_path/'calm'
    calm.mkdir()
    assert command(calm, *args, **env).said == []
    assert json.loads(next(calm.glob('data/results/zg_norm/*/run.json')).read_text())['stand_in'] is False
    for name, bad, says in (('gone', None, f'mnist is not in {tmp_path}/sets (no MNIST/raw/{file.name})'),
                            ('damaged', flipped(whole, 999),
                             f'mnist in {tmp_path}/sets is damaged (MNIST/raw/{file.name} has the wrong checksum)')):
        home = tmp_path/name
        home.mkdir()
        p = command(home, *args, wait=False, **env)
        while p.poll() is None and not list(home.glob('data/runs/*/DONE')): time.sleep(.01)
        if bad is None: file.unlink()
        else: file.write_bytes(bad)
        line = said(p)
        assert p.returncode == 2 and len(line) == 1 and says in line[0], line
        assert not list(home.glob('data/results/*/*')) and 1 <= len(list(home.glob('data/runs/*/DONE'))) < 6
        file.write_bytes(whole)
        assert command(home, *args, **env).said == []
        pd.testing.assert_frame_equal(table(home, 'zg_norm'), table(calm, 'zg_norm'))
