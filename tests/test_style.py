"The rules of style that a machine can check: layers, lengths, docstrings, metadata, notebooks"
import ast
import configparser
import json
import re
import statistics
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT

LAYERS = ('base | core cluster | data models parallel plots | attacks augment distributed records | memo strong | '
          'autoattack objectives | evaluate train | '
          'zerograd fastat dom bat groups subsets memorization xrm mat benchmarks pretrained | expressions | runs | '
          'single_step experiment ensembles toys metadata | overfitting proxies studies sweeps runner doctor bench '
          'boards commands | scores longtail discovery scoreboard | benign | cli')
LEVEL = {m: k for k, ms in enumerate(LAYERS.split('|')) for m in ms.split()}
METHODS = {'zerograd', 'fastat', 'dom', 'bat', 'groups', 'memorization', 'subsets', 'xrm', 'mat'}
MODULES = sorted(p for p in (ROOT/'overmem').glob('[!_]*.py'))
TREES = {p.stem: ast.parse(p.read_text()) for p in MODULES}
NOTEBOOKS = sorted((ROOT/'nbs').rglob('*.ipynb'))
EXPERIMENTS = sorted((ROOT/'nbs'/'experiments').glob('*.ipynb'))


def imported(node, pkg='overmem'):
    "Modules of the package that an import statement names, however it is written"
    if isinstance(node, ast.Import): return [a.name.split('.')[1] for a in node.names if a.name.startswith(f'{pkg}.')]
    if not isinstance(node, ast.ImportFrom): return []
    inside = (node.module if node.level
              else (node.module or '').removeprefix(f'{pkg}.') if (node.module or '').split('.')[0] == pkg else None)
    if node.level and not node.module or node.module == pkg: return [a.name for a in node.names]
    return [inside.split('.')[0]] if inside else []


@pytest.mark.parametrize('name', TREES)
def test_layers(name):
    "Imports within the package go to a strictly lower layer; methods are mutually unaware"
    assert name in LEVEL, f'{name} has no layer'
    for n in ast.walk(TREES[name]):
        for m in imported(n):
            assert m not in LEVEL or LEVEL[m] < LEVEL[name], f'{name} may not import {m}'


def test_layer_check_sees_every_form():
    for text in ('from .mat import mat', 'from overmem.mat import mat', 'import overmem.mat', 'from . import mat',
                 'from overmem import mat'):
        assert imported(ast.parse(text).body[0]) == ['mat'], text


def functions(tree): return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def test_length():
    "No function over 40 lines; the median is at most 8"
    sizes = {f'{m}.{f.name}': f.end_lineno - f.lineno + 1 for m, t in TREES.items() for f in functions(t)}
    assert {k: v for k, v in sizes.items() if v > 40} == {}
    assert statistics.median(sizes.values()) <= 8
    assert {m: n for m in TREES if (n := (ROOT/'overmem'/f'{m}.py').read_text().count('\n')) > 400} == {}


def code_of(path):
    "[(where, source)] of a Python file, or of the code cells of a notebook"
    if path.suffix == '.py': return [(path.name, path.read_text())]
    return [(f"{path.name} {c['id']}", ''.join(c['source'])) for c in json.loads(path.read_text())['cells']
            if c['cell_type'] == 'code']


def test_line_length():
    "No line of code is longer than 120 characters; HTML, JavaScript and tables inside a string of several lines may be"
    long = []
    for path in [*NOTEBOOKS, *ROOT.glob('tests/*.py'), *ROOT.glob('tools/**/*.py')]:
        for where, source in code_of(path):
            strings = (n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Constant, ast.JoinedStr)))
            inside = {k for n in strings if n.end_lineno > n.lineno for k in range(n.lineno, n.end_lineno + 1)}
            lines = enumerate(source.splitlines(), 1)
            long += [f'{where} line {k}' for k, l in lines if len(l) > 120 and k not in inside]
    assert long == []


@pytest.mark.parametrize('name', TREES)
def test_docstrings(name):
    "Every exported name longer than one line says what it is"
    public = next(ast.literal_eval(n.value) for n in TREES[name].body
                  if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__')
    silent = [n.name for n in TREES[name].body
              if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in public and n.end_lineno > n.lineno
              and not ast.get_docstring(n)]
    assert silent == []


def test_no_names_to_avoid():
    "One word per thing (a selection that can be told mechanically)"
    avoid = {'epsilon', 'attack_iters', 'X_adv', 'fake_imgs', 'training_t',
             'corrcl', 'y_hat', 'args_strength', 'adv_acc'}
    for m, t in TREES.items():
        used = ({n.id for n in ast.walk(t) if isinstance(n, ast.Name)}
                | {a.arg for n in ast.walk(t) if isinstance(n, ast.arguments) for a in n.args})
        assert not used & avoid, (m, used & avoid)


def test_importing_does_nothing():
    "No device choice, seed, download or plot at import: module level holds definitions only"
    for m, t in TREES.items():
        calls = [ast.unparse(n) for n in t.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
        assert calls == [], (m, calls)


def test_metadata_agrees():
    "pyproject.toml, settings.ini and the package say the same"
    ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT/'settings.ini')
    ini, toml = ini['DEFAULT'], tomllib.loads((ROOT/'pyproject.toml').read_text())
    project, nbdev = toml['project'], toml['tool']['nbdev']
    assert project['name'] == ini['lib_name'] and project['description'] == ini['description']
    assert project['requires-python'] == f">={ini['min_python']}"
    assert (nbdev['lib_path'] == ini['lib_path'] and nbdev['doc_path'] == ini['doc_path']
            and nbdev['tst_flags'] == ini['tst_flags'])
    assert nbdev['allowed_cell_metadata_keys'] == ini['allowed_cell_metadata_keys'].split()
    assert f'__version__ = "{ini["version"]}"' in (ROOT/'overmem'/'__init__.py').read_text()


def test_citation_agrees():
    "CITATION.cff has what its format demands, and says what settings.ini says; every paper that is re-run is in it"
    ini, cff = (configparser.ConfigParser(delimiters=['='], interpolation=None),
                yaml.safe_load((ROOT/'CITATION.cff').read_text()))
    ini.read(ROOT/'settings.ini')
    assert ({'cff-version', 'title', 'message', 'authors'} <= set(cff) and cff['cff-version'] == '1.2.0'
            and cff['type'] == 'software' and cff['license'] == 'Apache-2.0')
    assert ([cff[k] for k in ('title', 'version', 'abstract')]
            == [ini['DEFAULT'][k] for k in ('lib_name', 'version', 'description')]
            and cff['authors'] == [dict(name=ini['DEFAULT']['author'])])
    assert all(r['type'] and r['title'] and all('family-names' in a for a in r['authors']) for r in cff['references'])
    assert ({'2310.08847', '2103.15476', '2106.04794', '2412.07684', '2309.16748', '2008.03703'}
            <= {r['url'].rsplit('/')[-1] for r in cff['references']})


def test_constraints_cover_requirements():
    "Every requirement is pinned in constraints.txt"
    ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT/'settings.ini')
    need = {re.split(r'[><=]', r)[0] for k in ini['DEFAULT'] if k.endswith('requirements')
            for r in ini['DEFAULT'][k].split()}
    pinned = {l.split('==')[0] for l in (ROOT/'constraints.txt').read_text().splitlines() if '==' in l}
    assert need <= pinned, need - pinned


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_form(path):
    "Cell ids, no execution counts, no error outputs, and no traces of a machine"
    nb = json.loads(path.read_text())
    assert nb['nbformat'] == 4 and nb['nbformat_minor'] >= 5
    ids = [c['id'] for c in nb['cells']]
    assert len(set(ids)) == len(ids)
    for c in nb['cells']:
        if c['cell_type'] != 'code': continue
        assert c['execution_count'] is None
        assert not any(o['output_type'] == 'error' for o in c['outputs'])
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_form(path):
    "Committed without outputs; a literal description with rules and four costs; one parameters cell of standard names"
    from overmem.runner import STANDARD, describe, parameters
    assert all(not c.get('outputs') for c in json.loads(path.read_text())['cells'])
    e = describe(path)
    assert e['name'] == path.stem and set(e['cost']) == {'smoke', 'laptop', 'gpu', 'full'}
    assert (e['paper'] in ('dom', 'zerograd', 'bat', 'memorization', 'mat')
            and (e['claims'] or 'No claim of the paper' in path.read_text()))  # one without claims says so
    assert [p.name for p in parameters(path)][:len(STANDARD)] == list(STANDARD)


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.parent.name == 'nbs' and p.stem != 'index'],
                         ids=lambda p: p.stem)
def test_imports_have_cells_of_their_own(path):
    "The site runs cells that import, and no others: what else they hold would miss what comes before"
    for c in json.loads(path.read_text())['cells']:
        text = ''.join(l for l in c['source'] if not l.startswith(('%', '!')))
        if c['cell_type'] != 'code' or text.startswith(('#| export', '#| hide')): continue
        imports = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(text).body]
        assert all(imports) or not any(imports), c['id']


def test_claims_have_one_owner():
    from overmem.runner import describe
    owned = [(d['paper'], c['id']) for d in map(describe, EXPERIMENTS) for c in d['claims']]
    assert len(set(owned)) == len(owned)


def test_nothing_of_this_machine_is_committed():
    "No absolute paths of a machine in any tracked text file"
    names = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split()
    pattern = re.compile(r'(?<![\w.])/(?:work|root|home|tmp|Users)/[\w.-]+/[\w./-]+')
    found = {n: m.group(0) for n in names
             if (ROOT/n).suffix in ('.py', '.md', '.ipynb', '.json', '.toml', '.ini', '.txt', '.yml', '.svg', '')
             and (ROOT/n).is_file()
             for m in [pattern.search((ROOT/n).read_text(errors='replace'))] if m}
    assert found == {}


def test_experiments_use_what_they_import(tmp_path):
    for p in EXPERIMENTS:
        (tmp_path/f'{p.stem}.py').write_text('\n'.join(
            ''.join(c['source']) for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code'))
    r = subprocess.run([sys.executable, '-m', 'pyflakes', tmp_path], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
