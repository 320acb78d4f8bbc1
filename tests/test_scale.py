"Rows as jobs of a real Slurm cluster of one node (tools/slurm.sh): answers, refusals, killed rows, a node that dies"
import math
import os
import shutil
import subprocess
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest

import overmem.cluster
from overmem.base import BadRequest, RunFailed
from overmem.cluster import use
from overmem.parallel import spread

from conftest import OVERMEM, ROOT

NEEDED = ('sbatch', 'slurmctld', 'slurmd', 'munged')


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    "A cluster that is there for these tests alone"
    missing = [p for p in NEEDED if not shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if missing: pytest.skip(f"no {missing[0]}: apt-get install slurm-wlm munge")
    if os.getuid(): pytest.skip('only root can start a Slurm cluster')
    d = tmp_path_factory.mktemp('slurm')
    env = dict(os.environ, PATH=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    subprocess.run([ROOT/'tools'/'slurm.sh', 'up', d], check=True, env=env)
    yield d/'slurm.conf'
    subprocess.run([ROOT/'tools'/'slurm.sh', 'down', d], check=True, env=env)


@pytest.fixture
def slurm(cluster, tmp_path, monkeypatch):
    "The work of `spread` goes to the cluster; its folder is the home of this test"
    for k in ('OVERMEM_EXECUTOR', 'OVERMEM_SLURM'): monkeypatch.setenv(k, '')
    monkeypatch.setenv('SLURM_CONF', str(cluster))
    monkeypatch.setenv('OVERMEM_HOME', str(tmp_path))
    use('slurm')
    return tmp_path


def shell(script): return [partial(subprocess.check_output, text=True), [['sh', '-c', script]], 1]


def test_answers_come_back_in_order(slurm):
    ticks = []
    assert spread(math.sqrt, [1, 4, 9], 2, lambda: ticks.append(1)) == [1, 2, 3] and ticks
    assert spread(math.sqrt, [], 2) == []


def test_a_failure_names_the_row_and_its_log(slurm):
    with pytest.raises(RunFailed, match='1 of 2 runs failed; the first, root of -1: ValueError: .*; '
                                        'its log is .*log.err'):
        spread(math.sqrt, [4, -1], 2, told='root of {}'.format)


def test_a_refusal_comes_back_as_it_is(slurm):
    from overmem.data import check_classes
    with pytest.raises(BadRequest) as e: spread(partial(check_classes, 'cifar10'), [(99,)], 1)
    assert '99' in str(e.value)


def test_a_row_that_is_killed_is_sent_again(slurm, monkeypatch):
    "Without memory, say: the first time it kills its own process, and leaves no answer"
    monkeypatch.setattr(overmem.cluster, 'GRACE', 4.)
    mark = slurm/'been here'
    assert (spread(*shell(f'[ -e "{mark}" ] && echo back || {{ touch "{mark}"; kill -9 $PPID; sleep 9; }}'))
            == ['back\n'])


def test_a_row_that_is_always_killed_is_told(slurm, monkeypatch):
    monkeypatch.setattr(overmem.cluster, 'GRACE', 4.)
    monkeypatch.setattr(overmem.cluster, 'TRIES', 2)
    with pytest.raises(RunFailed, match='killed 2 times; its log is'): spread(*shell('kill -9 $PPID; sleep 9'))


def test_what_sbatch_refuses_is_told(slurm):
    use('slurm', dict(partition='nowhere'))
    with pytest.raises(BadRequest, match='sbatch refuses the jobs: .*partition'): spread(math.sqrt, [1], 1)
    use('slurm', {'time': 'soon'})
    with pytest.raises(BadRequest, match='is no time'): spread(math.sqrt, [1], 1)
    use('slurm', {'time': '0:30:00', 'cpus-per-task': '2', 'job-name': 'mine'})
    assert spread(math.sqrt, [1], 1) == [1]


def test_why_jobs_wait_is_said_once(slurm, cluster, capsys):
    class Enough(Exception): pass
    ticks = []
    def tick():
        ticks.append(1)
        if len(ticks) > 6: raise Enough
    use('slurm', dict(begin='now+1hour'))
    with pytest.raises(Enough): spread(math.sqrt, [1, 4], 2, tick)
    assert capsys.readouterr().err.count('Slurm lets 2 jobs wait: BeginTime') == 1
    assert not queue(cluster, 'PENDING')  # nothing is left behind


def scontrol(cluster, *args):
    return subprocess.run(['scontrol', *args], env=dict(os.environ, SLURM_CONF=str(cluster)),
                          capture_output=True, text=True)
def queue(cluster, state):
    return subprocess.run(['squeue', '--noheader', '--array', '--format=%i', f'--states={state}'],
                          env=dict(os.environ, SLURM_CONF=str(cluster)), capture_output=True, text=True).stdout.split()


def test_a_node_dies_in_the_middle(cluster, tmp_path):
    "The table is that of an undisturbed run on one machine"
    def run(home, *more):
        return subprocess.Popen([OVERMEM, 'run', 'zg_curves', '--budget', 'smoke', '-p', 'epochs=6', *more],
                                env=dict(os.environ, OVERMEM_HOME=str(home), SLURM_CONF=str(cluster),
                                         OMP_NUM_THREADS='1'), stderr=subprocess.PIPE, text=True)
    node, until = subprocess.check_output(['hostname', '-s'], text=True).strip(), time.time() + 300
    # jobs of other tests, which have answered, and are still ending
    while queue(cluster, 'PENDING,RUNNING,COMPLETING'): time.sleep(.5)
    apart, alone = run(tmp_path/'cluster', '--executor', 'slurm', '--jobs', '2'), run(tmp_path/'here')
    while not queue(cluster, 'RUNNING') and time.time() < until and apart.poll() is None: time.sleep(.2)
    cut = queue(cluster, 'RUNNING')
    assert cut, apart.stderr.read() if apart.poll() is not None else 'no row was sent'
    scontrol(cluster, 'update', f'NodeName={node}', 'State=DOWN', 'Reason=test')
    time.sleep(2)
    assert set(cut) <= set(queue(cluster, 'PENDING'))                       # Slurm has put them back
    time.sleep(5)                                                           # until what ran there is gone
    while apart.poll() is None and time.time() < until:
        scontrol(cluster, 'update', f'NodeName={node}', 'State=RESUME')
        # or they would wait for two minutes
        for j in queue(cluster, 'PENDING'): scontrol(cluster, 'update', f'JobId={j}', 'StartTime=now')
        time.sleep(2)
    for p in (apart, alone): assert p.wait(200) == 0, p.stderr.read()
    tables = [pd.read_csv(next((tmp_path/k).rglob('table.csv'))) for k in ('cluster', 'here')]
    pd.testing.assert_frame_equal(*tables)


def test_memorization_scores_from_a_cluster(cluster, tmp_path):
    "`overmem mem --executor slurm`: the scores are those of one machine"
    def mem(home, *more):
        return subprocess.run([OVERMEM, 'mem', '--dataset', 'digits', '--n', '300', '--n-test', '100', '--models', '6',
                               '--epochs', '2', '--model', 'preact_resnet(4)', '--shrink', '1',
                               '--out', home/'scores', *more],
                              env=dict(os.environ, OVERMEM_HOME=str(home), SLURM_CONF=str(cluster),
                                       OMP_NUM_THREADS='1'), capture_output=True, text=True)
    for p in (mem(tmp_path/'cluster', '--executor', 'slurm', '--jobs', '2'), mem(tmp_path/'here')):
        assert p.returncode == 0, p.stderr
    assert (list((tmp_path/'cluster'/'data'/'runs'/'slurm').iterdir())
            and not (tmp_path/'here'/'data'/'runs'/'slurm').exists())
    apart, alone = (np.load(tmp_path/k/'scores'/'scores.npz') for k in ('cluster', 'here'))
    assert (set(apart) == set(alone)
            and all(np.array_equal(apart[k], alone[k], equal_nan=alone[k].dtype.kind == 'f') for k in alone))
