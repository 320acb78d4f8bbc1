"Tests run in a home of their own, with no data sets unless they ask"
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OVERMEM = Path(sys.executable).parent/'overmem'


@pytest.fixture
def overmem(tmp_path):
    "Run the command in a fresh home: overmem('run', 'x') -> CompletedProcess"
    def call(*args, data=None, **env):
        data = tmp_path/'data' if data is None else data
        return subprocess.run([OVERMEM, *map(str, args)], capture_output=True, text=True, cwd=tmp_path, timeout=900,
                              env=os.environ | dict(OVERMEM_HOME=str(tmp_path), OVERMEM_DATA=str(data)) | env)
    call.home = tmp_path
    return call


@pytest.fixture
def refused(overmem):
    "Assert that a command ends with `code` and one line on stderr that holds `says`, and leaves no results"
    def check(*args, code=2, says='', **env):
        r = overmem(*args, **env)
        assert r.returncode == code, r.stderr
        # a dying kernel's own remark
        lines = [l for l in r.stderr.strip().splitlines() if not l.startswith('[IPKernelApp]')]
        assert len(lines) == 1 and lines[0].startswith('overmem: '), r.stderr
        assert says in lines[0], lines[0]
        assert not list(overmem.home.glob('data/results/*/*'))
    return check
