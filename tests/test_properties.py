"Whatever is typed, and whatever lies in a file: one line that names it, no other exception, nothing written, nothing executed, no memory that a file of that size can't fill"
import contextlib
import io
import json
import os
import pickle
import resource
import struct
import sys
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
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

often, seldom = (settings(derandomize=True, deadline=None, database=None, max_examples=n, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]) for n in (500, 100))


# What is typed

class WouldRun(RunFailed): pass


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A home in which nothing trains: what is accepted is told, and stops"
    d, patch = tmp_path_factory.mktemp('home'), pytest.MonkeyPatch()
    def stop(*_, **__): raise WouldRun('would run')
    for k, v in dict(OVERMEM_HOME=d/'home', OVERMEM_DATA=d/'none', PATH=d/'bin').items(): patch.setenv(k, str(v))
    patch.setattr(runs, 'run', stop); patch.setattr(runner, 'run_many', stop); patch.setattr(scores, 'memorize', lambda study, models, *_, **__: (scores.check(study, models), stop()))
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
    if code: assert code in (1, 2) and err.startswith('overmem: ') and err.count('\n') == 1 and err.endswith('\n') and '(unexpected' not in err, (args, err)
    assert code != 1 or 'would run' in err, (args, err)
    assert not [f for f in home.rglob('*') if f.is_file()]
    return code


typed = st.text(st.characters(exclude_characters='\0', exclude_categories=['Cs']) | st.sampled_from('\udc80\udcff\n\x1b'), max_size=20)
numbers = st.sampled_from(['0', '1', '-1', '.1', '8/255', '1e999', '-1e999', '1e-999', '0/0', '1/0', '9'*400, '1_000', 'True', 'None', '1j', '...', 'b"x"', '"a"', '()', '{}', 'ce', 'margin', 'no_attack', 'zero'])
names = st.sampled_from(sorted(exported()))
calls = st.recursive(numbers | names, lambda inner: st.builds(lambda f, args, kw: f"{f}({', '.join([*args, *kw])})", names, st.lists(inner, max_size=3), st.lists(st.builds('{}={}'.format, st.sampled_from(['eps', 'alpha', 'steps', 'K', 'n', 'q', 'start', 'loss', 'T']), inner), max_size=2))
                     | st.builds('({} {} {})'.format, inner, st.sampled_from('+-*/%@'), inner) | st.builds('[{}, {}]'.format, inner, inner) | st.builds('-{}'.format, inner), max_leaves=6)
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
    ('-p', '--eps', '--classes', '--data', '--model', '--lr', '--aug', '--attack', '--epochs', '--n', '--bs', '--shrink', '--every', '--wd', '--device', '--precision', '--capture', '--best', '--name', '--seed'),
    (st.builds('{}={}'.format, st.sampled_from(['eps', 'alpha', 'q']), expressions) | typed, expressions, typed | st.lists(whole, max_size=3).map(','.join), st.sampled_from(['digits', 'cifar10', 'digit']) | typed, expressions, expressions, expressions,
     st.lists(st.sampled_from(['fgsm', 'pgd10', 'aa']), max_size=2).map(','.join) | typed, whole, whole, whole, whole, whole, whole, typed, typed, typed, typed, typed, whole)))))
@example('adv', {'--data': 'digits', '--eps': '"a"'})
@example('adv', {'--data': 'digits', '--aug': '3'})
@example('adv', {'--data': 'digits', '--epochs': '9'*30})
@example('adv', {'--data': 'digits', '--name': 'a/../../b'})
def test_train_is_typed(home, method, options):
    one_line(home, 'train', *(f'{k}{"" if k == "-p" else "="}{v}' for k, v in ({'--data': 'digits'} | options).items()), '--', method)


@seldom
@given(st.lists(st.sampled_from(['zg_curves', 'mat_*', 'all', '[', 'zg_curve']) | typed, max_size=2), st.lists(st.builds('{}={}'.format, st.sampled_from(['epochs', 'eps', 'budget', 'seeds', 'device', 'force', 'jobs']), numbers | typed) | typed, max_size=2),
       st.sampled_from(['smoke', 'laptop']) | typed, whole, typed, whole)
def test_run_is_typed(home, names, pairs, budget, seeds, device, jobs):
    one_line(home, 'run', *(f'-p{p}' for p in pairs), f'--budget={budget}', f'--seeds={seeds}', f'--device={device}', f'--jobs={jobs}', '--', *names)


@seldom
@given(st.sampled_from(['digits', 'mnist', ':', 'os:', ':x', '.x:y', 'os.path:nothing']) | typed, st.fixed_dictionaries({}, optional=dict(zip(
    ('--models', '--frac', '--n', '--classes', '--shrink', '--engine', '--model', '--epochs', '--lr', '--bs', '--aug', '--at-once', '--rank', '--world', '--wd'),
    (whole, numbers | typed, whole, typed | st.lists(whole, max_size=3).map(','.join), whole, st.sampled_from(['many', 'nearest']) | typed, expressions, whole, expressions, whole, expressions, whole, whole, whole, numbers)))))
def test_mem_is_typed(home, dataset, options):
    one_line(home, 'mem', f'--dataset={dataset}', *(f'{k}={v}' for k, v in options.items()))


@often
@given(st.lists(typed | st.sampled_from(['list', 'run', 'data', 'eval', 'groups', 'bench', '--get', '--', '--attack', 'aa', '--eps', '--metadata', '--root', '--steps', '--csv', '--executor', 'slurm', '--slurm', 'a=b', '=', 'x.csv', '.']), max_size=5))
@example(['mem', '--dataset', 'digits', '--executor', 'slurm', '--slurm', '=='])
@example(['eval', '\udc80', '--attack', 'aa'])
@example(['groups', '--metadata', '.', '--root', '.'])
@example(['data', '\n'])
def test_anything_is_typed(home, args):
    assume(not any(a.startswith('-') and 'v' in a for a in args) and not {'bench', 'report', 'list'} & {*args} and args[:2] != ['data', '--get'])      # what they do is tested elsewhere
    one_line(home, *args)
