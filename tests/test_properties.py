"""Whatever is typed, and whatever lies in a file: one line that names it, no other exception, nothing written,
nothing executed, no memory that a file of that size can't fill"""
import contextlib
import io
import json
import pickle
import resource
import struct
import sys
import zipfile
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from overmem import data, runner, runs, scores
from overmem.autoattack import Ledger
from overmem.base import BadRequest, RunFailed
from overmem.cli import main
from overmem.core import digest, read_arrays
from overmem.ensembles import Outcomes
from overmem.expressions import as_objective, as_schedule, exported, make
from overmem.memorization import consistency
from overmem.metadata import read_metadata, seen
from overmem.pretrained import WEIGHTS, pretrained_resnet50
from overmem.records import kept_array, read_metrics, unsealed
from overmem.studies import read_row, write_row
from overmem.train import read_checkpoint, save_checkpoint

often, seldom = (
    settings(derandomize=True, deadline=None, database=None, max_examples=n, suppress_health_check=[
        HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]) for n in (300, 80))


# What is typed

class WouldRun(RunFailed): pass


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A home in which nothing trains: what is accepted is told, and stops"
    d, patch = tmp_path_factory.mktemp('home'), pytest.MonkeyPatch()
    def stop(*_, **__): raise WouldRun('would run')
    for k, v in dict(OVERMEM_HOME=d/'home', OVERMEM_DATA=d/'none', PATH=d/'bin').items(): patch.setenv(k, str(v))
    patch.setattr(runs, 'run', stop)
    patch.setattr(runner, 'run_many', stop)
    patch.setattr(scores, 'memorize', lambda study, models, *_, **__: (scores.check(study, models), stop()))
    patch.chdir(d)
    yield d
    patch.undo()


def said(home, *args):
    "(exit code, what is said on the error stream) of a command in this process"
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try: code = main(list(args)) or 0
        except SystemExit as e: code = e.code
    return code, err.getvalue()


def one_line(home, *args):
    "It is accepted, or refused in a line; nothing is written"
    code, err = said(home, *args)
    if code:
        assert (code in (1, 2) and err.startswith('overmem: ') and err.count('\n') == 1 and err.endswith('\n')
                and '(unexpected' not in err), (args, err)
    assert code != 1 or 'would run' in err, (args, err)
    assert not [f for f in home.rglob('*') if f.is_file()]
    return code


typed = st.text(st.characters(exclude_characters='\0', exclude_categories=['Cs'])
                | st.sampled_from('\udc80\udcff\n\x1b'), max_size=20)
numbers = st.sampled_from(['0', '1', '-1', '.1', '8/255', '1e999', '-1e999', '1e-999', '0/0', '1/0', '9'*400, '1_000',
                           'True', 'None', '1j', '...', 'b"x"', '"a"', '()', '{}', 'ce', 'margin', 'no_attack', 'zero'])
names = st.sampled_from(sorted(exported()))
calls = st.recursive(
    numbers | names,
    lambda inner: st.builds(
        lambda f, args, kw: f"{f}({', '.join([*args, *kw])})", names, st.lists(inner, max_size=3),
        st.lists(st.builds('{}={}'.format,
                           st.sampled_from(['eps', 'alpha', 'steps', 'K', 'n', 'q', 'start', 'loss', 'T']), inner),
                 max_size=2))
    | st.builds('({} {} {})'.format, inner, st.sampled_from('+-*/%@'), inner)
    | st.builds('[{}, {}]'.format, inner, inner) | st.builds('-{}'.format, inner), max_leaves=6)
# no network of a width or a depth that takes long to draw is among them: such a request is met
expressions = typed | calls | st.builds('{}({})'.format, names, typed)
whole = st.integers(-3, 50).map(str) | typed


@often
@given(expressions)
@example('"a"*9999999999')
@example('('*999)
@example('-'*99_999)
@example('bat(no_attack, "' + 'a'*5000 + '")')
def test_expressions(expr):
    for f in (make, as_objective, as_schedule, partial(make, K=10, ch=1, mean=(0.,), std=(1.,))):
        with contextlib.suppress(BadRequest, RunFailed): f(expr)


@often
@given(expressions, st.fixed_dictionaries({}, optional=dict(zip(
    ('-p', '--eps', '--classes', '--data', '--model', '--lr', '--aug', '--attack',
     '--epochs', '--n', '--bs', '--shrink', '--every', '--wd',
     '--device', '--precision', '--capture', '--best', '--name', '--seed'),
    (st.builds('{}={}'.format, st.sampled_from(['eps', 'alpha', 'q']), expressions) | typed, expressions,
     typed | st.lists(whole, max_size=3).map(','.join), st.sampled_from(['digits', 'cifar10', 'digit']) | typed,
     expressions, expressions, expressions,
     st.lists(st.sampled_from(['fgsm', 'pgd10', 'aa']), max_size=2).map(','.join) | typed,
     whole, whole, whole, whole, whole, whole, typed, typed, typed, typed, typed, whole)))))
@example('adv', {'--data': 'digits', '--eps': '"a"'})
@example('adv', {'--data': 'digits', '--aug': '3'})
@example('adv', {'--data': 'digits', '--epochs': '9'*30})
@example('adv', {'--data': 'digits', '--name': 'a/../../b'})
def test_train_is_typed(home, method, options):
    one_line(home, 'train', *(f'{k}{"" if k == "-p" else "="}{v}' for k, v in ({'--data': 'digits'} | options).items()),
             '--', method)


@seldom
@given(st.lists(st.sampled_from(['zg_curves', 'mat_*', 'all', '[', 'zg_curve']) | typed, max_size=2),
       st.lists(st.builds('{}={}'.format,
                          st.sampled_from(['epochs', 'eps', 'budget', 'seeds', 'device', 'force', 'jobs']),
                          numbers | typed) | typed, max_size=2),
       st.sampled_from(['smoke', 'laptop']) | typed, whole, typed, whole)
def test_run_is_typed(home, names, pairs, budget, seeds, device, jobs):
    one_line(home, 'run', *(f'-p{p}' for p in pairs), f'--budget={budget}', f'--seeds={seeds}', f'--device={device}',
             f'--jobs={jobs}', '--', *names)


@seldom
@given(st.sampled_from(['digits', 'mnist', ':', 'os:', ':x', '.x:y', 'os.path:nothing']) | typed,
       st.fixed_dictionaries({}, optional=dict(zip(
           ('--models', '--frac', '--n', '--classes', '--shrink', '--engine',
            '--model', '--epochs', '--lr', '--bs', '--aug', '--at-once', '--rank', '--world', '--wd'),
           (whole, numbers | typed, whole, typed | st.lists(whole, max_size=3).map(','.join), whole,
            st.sampled_from(['many', 'nearest']) | typed,
            expressions, whole, expressions, whole, expressions, whole, whole, whole, numbers)))))
def test_mem_is_typed(home, dataset, options):
    one_line(home, 'mem', f'--dataset={dataset}', *(f'{k}={v}' for k, v in options.items()))


@often
@given(st.lists(typed | st.sampled_from([
    'list', 'run', 'data', 'eval', 'groups', 'bench', '--get', '--', '--attack', 'aa', '--eps', '--metadata', '--root',
    '--steps', '--csv', '--executor', 'slurm', '--slurm', 'a=b', '=', 'x.csv', '.']), max_size=5))
@example(['mem', '--dataset', 'digits', '--executor', 'slurm', '--slurm', '=='])
@example(['eval', '\udc80', '--attack', 'aa'])
@example(['groups', '--metadata', '.', '--root', '.'])
@example(['data', '\n'])
def test_anything_is_typed(home, args):
    assume(not any(a.startswith('-') and 'v' in a for a in args) and not {'bench', 'report', 'list'} & {*args}
           and args[:2] != ['data', '--get'])  # what they do is tested elsewhere
    one_line(home, *args)


def test_what_is_right_is_met(home):
    "Or the tests above would pass for a command that refuses everything"
    assert (one_line(home, 'train', 'adv', '--data', 'digits') == one_line(home, 'run', 'mat_fig1')
            == one_line(home, 'mem', '--dataset', 'digits', '--model', 'linear(64)', '--models', '20') == 1)


# What lies in a file

class Mark:
    "Unpickled, it leaves a file"
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (open, (self.path, 'w'))


def arrays(**values):
    f = io.BytesIO()
    np.savez(f, **values)
    return f.getvalue()


def npy(a, **kw):
    f = io.BytesIO()
    np.save(f, a, **kw)
    return f.getvalue()


ROW = (dict(data='0', engine='nearest'), np.arange(20) % 2 > 0,
       Outcomes(*(np.ones(n, t) for n, t in ((20, np.int8), (5, np.int8), (20, np.float16), (5, np.float16)))))
TABLE = 'filename,split,y,a\n' + ''.join(f'{k}.png,{k % 3},{k//3 % 2},{k % 2}\n' for k in range(12))


def checkpoint_bytes(d, **meta):
    save_checkpoint(d/'c', torch.nn.Linear(3, 2), **meta)
    return (d/'c').read_bytes()


def row_bytes(d):
    write_row(d/'r', *ROW)
    return (d/'r').read_bytes()


def png(size=(5, 4)):
    f = io.BytesIO()
    Image.new('RGB', size, (9, 120, 7)).save(f, 'png')
    return f.getvalue()


def results(file):
    "Read as the folder of results of which it is the run.json"
    (file.parent/'verdict.json').write_text('[]')
    return runner.read_results(file.parent)


# name of the file -> (what reads it, what it holds when it is whole)
READERS = {
    'c.safetensors': (read_checkpoint, lambda d: checkpoint_bytes(d, config=dict(name='x'))),
    'metrics.jsonl': (read_metrics, lambda d: b'{"epoch": 1, "acc": 0.5}\n{"epoch": 2, "acc": NaN}\n'),
    'scores.npz': (lambda f: kept_array(str(f), 'tr_mem'),
                   lambda d: arrays(tr_mem=np.linspace(0, 1, 30), tr_labels=np.arange(30))),
    'scores.npy': (lambda f: kept_array(str(f)), lambda d: npy(np.linspace(0, 1, 30))),
    'row-00000.npz': (lambda f: read_row(f, *ROW[:2]), row_bytes),
    'c-scores.npz': (lambda f: consistency(f, np.arange(30) % 7),
                     lambda d: arrays(labels=np.arange(30) % 7, scores=np.linspace(0, 1, 30))),
    'aa.npz': (lambda f: Ledger.load(f, dict(n=3)),
               lambda d: arrays(run=np.zeros(3, int), step=np.zeros(3, int), delta=np.zeros(0), at=np.array((0, 0)),
                                about=json.dumps(dict(n=3)))),
    'DONE': (lambda f: unsealed(f.parent), lambda d: b'{"metrics.jsonl": "%s"}' % digest({}, '[]').encode()),
    'run.json': (results, lambda d: b'{"budget": "smoke", "device": "cpu", "code_version": "0", "wall_seconds": 1.5}'),
    'table.csv': (read_metadata, lambda d: TABLE.encode()),
    'image.png': (lambda f: seen(f, 8), lambda d: png()),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    d, patch = tmp_path_factory.mktemp('files'), pytest.MonkeyPatch()
    patch.setenv('OVERMEM_DATA', str(d))
    patch.setenv('OVERMEM_HOME', str(d))
    yield d
    patch.undo()


def refused(read, file):
    "What is read, or None if the file was refused by its name (or its folder's)"
    try: return read(file)
    except (BadRequest, RunFailed) as e:
        assert str(file.parent) in str(e) and '\n' not in str(e).strip(), e
        return None


@st.composite
def changes(draw):
    "A change of bytes: cut, a few bits turned, a piece replaced, put in, or repeated; or other bytes altogether"
    kind = draw(st.sampled_from(['cut', 'flip', 'piece', 'insert', 'other', 'repeat']))
    at, piece = draw(st.floats(0, 1)), draw(st.binary(max_size=30))
    bits = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4))
    def change(data):
        k = int(at*len(data))
        if kind == 'flip':
            data = bytearray(data)
            for where, bit in bits: data[int(where*len(data))] ^= 1 << bit
            return bytes(data)
        return dict(cut=data[:k], piece=data[:k] + piece + data[k + len(piece):], insert=data[:k] + piece + data[k:],
                    other=piece, repeat=data[:k]*2 + data[k:])[kind]
    return change


@pytest.mark.parametrize('name', READERS)
def test_files_are_damaged(folder, name):
    read, make_whole = READERS[name]
    whole, file = make_whole(folder), folder/name
    file.write_bytes(whole)
    assert read(file) is not None and refused(read, file) is not None
    @often
    @given(changes())
    def one(change):
        file.write_bytes(change(whole))
        refused(read, file)
    one()
    file.unlink()


@pytest.mark.parametrize('name', [*READERS, WEIGHTS])
def test_nothing_is_executed(folder, name):
    "Pickles, bare or as objects in arrays, are refused where they stand"
    read, file, mark = (READERS[name][0] if name in READERS else lambda f: pretrained_resnet50(),
                        folder/name, folder/'mark')
    for bad in (pickle.dumps(Mark(mark)), npy(np.array([Mark(mark)], object), allow_pickle=True),
                arrays(**{k: np.array([Mark(mark)], object) for k in ('tr_mem', 'about', 'labels', 'scores', 'run')})):
        file.write_bytes(bad)
        assert refused(read, file) in (None, []), name
        assert not mark.exists()
    torch.save(Mark(mark), file)
    assert refused(read, file) in (None, []) and not mark.exists()
    file.unlink()


def declared(shape, descr='<f8'):
    "The start of an .npy file of this shape, without numbers"
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, dict(descr=descr, fortran_order=False, shape=shape))
    return f.getvalue()


def bomb(name, n):
    "A zip whose member `name` unpacks to n MiB of zeros"
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z, z.open(name, 'w') as m:
        m.write(declared((n << 20,), '|b1'))
        for _ in range(n): m.write(bytes(1 << 20))
    return f.getvalue()


def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def test_no_memory_is_taken(folder):
    "Files that declare terabytes, or unpack to gigabytes, are refused while they are small"
    header = json.dumps(dict(x=dict(dtype='F32', shape=[1 << 38], data_offsets=[0, 1 << 40]))).encode()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, 'w') as z: z.writestr('tr_mem.npy', declared((10**13,)))
    hostile = {'scores.npy': [declared((10**13,)), declared((10**9,)) + bytes(800), declared((1 << 62, 1 << 62))],
               'scores.npz': [zipped.getvalue(), bomb('tr_mem.npy', 1100)],
               'c.safetensors': [struct.pack('<Q', len(header)) + header, struct.pack('<Q', 1 << 62) + header],
               'metrics.jsonl': [b'['*10**6 + b'\n'],
               'table.csv': [b'filename,split,y,a\na,0,999999999999,0\nb,1,0,0\nc,2,0,0\n',
                             b'filename,split,y,a\na,0,0,99999999999\nb,1,0,0\nc,2,0,0\n',
                             b'filename,split,y,a\na,0,1e300,0\nb,1,0,0\nc,2,0,0\n'],
               'image.png': [b'\x89PNG\r\n\x1a\n'
                             + chunk(b'IHDR', struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0))
                             + chunk(b'IDAT', zlib.compress(bytes(1 << 20))) + chunk(b'IEND', b'')]}
    before, (soft, hard) = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, hard))  # so that a failure here is not one of the machine
    for name, files in hostile.items():
        for k, bad in enumerate(files):
            (folder/name).write_bytes(bad)
            assert refused(READERS[name][0], folder/name) is None, (name, k)
        (folder/name).unlink()
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            < 300_000*(1 if sys.platform != 'darwin' else 1024))


jsons = st.recursive(st.none() | st.booleans() | st.integers(-2**40, 2**40) | st.floats() | st.text(max_size=8),
                     lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3),
                     max_leaves=5)
OURS = dict(name='x', data='digits', objective='adv()', model='linear(64)')
FIELDS = [*runs.Training.__dataclass_fields__]


@often
@given(st.text('{}[]"1,:', max_size=9) | jsons.map(json.dumps)
       | st.dictionaries(st.sampled_from(FIELDS), jsons, max_size=4).map(
           lambda c: json.dumps(dict(config=dict(OURS, **c)))))
@example(json.dumps(dict(config=dict(OURS, model='preact_resnet(50000)'))))
def test_a_checkpoint_of_a_stranger(folder, text):
    "Whole, with a digest that is right, and anything in its header"
    file, tensors = folder/'stranger.safetensors', dict(x=torch.zeros(2))
    save_file(tensors, file, dict(overmem=text, digest=digest(tensors, text)))
    assert refused(runs.restored, file) is None


@pytest.mark.parametrize('name', [n for n in data.SOURCES if data.SOURCES[n].files])
def test_data_sets_are_damaged(tmp_path, name):
    "Files with the right names and other content are refused by name, before anything in them is read"
    files, mark = data.SOURCES[name].files, tmp_path/'mark'
    for bad in (b'', b'PK', pickle.dumps(Mark(mark)), bytes(5000)):
        for f in files:
            (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path/f).write_bytes(bad)
        with pytest.raises(BadRequest, match='has the wrong checksum') as e: data.load(name, tmp_path)
        assert str(tmp_path) in str(e.value) and name in str(e.value) and not mark.exists()


def test_read_arrays_gives_back_what_was_saved(folder):
    @seldom
    @given(st.dictionaries(st.text('abc', min_size=1, max_size=3),
                           st.tuples(st.lists(st.integers(0, 3), max_size=3),
                                     st.sampled_from(['f4', 'i8', 'b1', 'U3', '>u2', 'c8']), st.booleans()),
                           max_size=3), st.booleans())
    def one(spec, compress):
        kept = {k: np.asarray(np.random.default_rng(0).integers(0, 2, shape), t, order='F' if fortran else 'C')
                for k, (shape, t, fortran) in spec.items()}
        (np.savez_compressed if compress else np.savez)(folder/'any.npz', **kept)
        found = read_arrays(folder/'any.npz')
        assert list(found) == list(kept) and all(
            found[k].dtype == v.dtype and np.array_equal(found[k], v) for k, v in kept.items())
    one()
