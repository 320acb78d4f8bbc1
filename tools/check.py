"Everything that must hold before a change lands: python tools/check.py [step ...]"
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
os.environ['PATH'] = f'{BIN}{os.pathsep}{os.environ["PATH"]}'
ONE_THREAD = os.environ | dict(OMP_NUM_THREADS='1')                      # for steps that fill the cores with processes


def sh(*args, **kw):
    subprocess.run([str(a) for a in args], cwd=ROOT, check=True, **kw)


def unchanged(what: str, *paths):
    "What a tool has just rewritten must equal what is committed or staged"
    sh('git', '--no-pager', 'diff', '--exit-code', '--stat', '--', *paths)
    new = subprocess.run(['git', 'ls-files', '--others', '--exclude-standard', '--', *paths], cwd=ROOT,
                         capture_output=True, text=True).stdout.split()
    if new: sys.exit(f'{what}: not committed: {", ".join(new)}')


def export():
    "The package is what the notebooks export, and the README what its notebook says"
    sh(BIN/'nbdev-export')
    sh(sys.executable, 'tools/book.py', 'readme')
    unchanged('export', 'overmem', 'README.md')


def clean():
    "Notebooks are committed clean"
    sh(BIN/'nbdev-clean')
    unchanged('clean', 'nbs')


def flakes():
    sh(sys.executable, '-m', 'pyflakes', *sorted(p.relative_to(ROOT) for p in ROOT.glob('overmem/[!_]*.py')),
       'tools', 'tests')
def notebooks(): sh(BIN/'nbdev-test', '--n-workers', os.cpu_count() or 1, env=ONE_THREAD)
def site(): sh(sys.executable, 'tools/book.py', 'site')
def tests():  # tests/test_site.py opens the site
    sh(sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', '-n', '2', '--durations', '10', env=ONE_THREAD)


STEPS = dict(export=export, clean=clean, flakes=flakes, notebooks=notebooks, site=site, tests=tests)

if __name__ == '__main__':
    for name in sys.argv[1:] or STEPS:
        began = time.time()
        print(f'== {name}: {STEPS[name].__doc__ or ""}', flush=True)
        try: STEPS[name]()
        except subprocess.CalledProcessError as e: sys.exit(f'FAILED: {name} ({" ".join(map(str, e.cmd[:4]))} ...)')
        print(f'== {name}: ok, {time.time() - began:.0f} s', flush=True)
