"""Pages of the book from notebooks: what is hidden goes, every exported name gets an entry with its signature,
comments and a link to its source"""
import ast
import inspect
import re
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import nbformat
from fastcore.docments import docments

GROUPS = dict(Foundations=('00_', '01_', '02_', '03_', '04_'),
              Parts=('10_', '11_', '12_', '13_', '14_', '20_', '21_', '22_', '23_'),
              Methods=('30_', '31_', '32_', '33_', '34_', '35_', '36_'),
              Machinery=('37_', '38_', '39_', '40_', '41_', '42_', '43_', '44_', '45_'))
DIRECTIVE = re.compile(r'^#\|[ \t]*(\w+):?[ \t]*(\S*)', re.M)
SPECIAL = re.compile(r'([\\*_\[\]<>${}])')


def group(stem: str) -> str:
    return next((g for g, heads in GROUPS.items() if stem.startswith(heads)), 'More')


def chapter(path: Path):
    "(notebook ready for Sphinx, its module or None, what it is about, [(exported name, what it is in a paragraph)])"
    nb = nbformat.read(path, 4)
    name = {k: v for c in nb.cells if c.cell_type == 'code' for k, v in DIRECTIVE.findall(c.source)}.get('default_exp')
    module = import_module(f'overmem.{name}') if name else None
    out, names = [], []
    for c in nb.cells:
        directives = {k for k, _ in DIRECTIVE.findall(c.source)} if c.cell_type == 'code' else set()
        if directives & {'hide', 'default_exp'}: continue
        if 'export' in directives:
            if only_imports(c.source): continue
            entries = list(documented(c.source, module))
            names += [e[:2] for e in entries]
            if entries: out.append(nbformat.v4.new_markdown_cell('\n\n'.join(text for *_, text in entries)))
            if group(path.stem) != 'Methods': c.metadata['tags'] = ['hide-input']
        out.append(readable(c))
    nb.cells = described([c for c in out if c.source.strip() or c.get('outputs')])
    if module: nb.cells.insert(1, nbformat.v4.new_markdown_cell(fenced('py:module', module.__name__)))
    return nb, name, nb.cells[0].source.partition('\n> ')[2], names


def only_imports(source: str) -> bool:
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body)


def readable(c):
    "Directives go; what a cell wrote to stderr too"
    if c.cell_type == 'code':
        c.source = '\n'.join(l for l in c.source.split('\n') if not l.lstrip().startswith('#|'))
        c.outputs = [o for o in c.get('outputs', []) if o.get('name') != 'stderr']
    return c


def described(cells):
    "A picture's alternative text is what the text before it says"
    said = ''
    for c in cells:
        if c.cell_type == 'markdown': said = c.source
        elif any('image/png' in o.get('data', {}) or 'image/svg+xml' in o.get('data', {})
                 for o in c.get('outputs', [])):
            c.metadata['mystnb'] = dict(image=dict(alt=plain(said)))
    return cells


def plain(markdown: str) -> str:
    "The first 300 characters or so of a text, without its markup"
    text = ' '.join(re.sub(r'```.*?```|^#.*$|[*`$|>]|\[([^]]*)\]\([^)]*\)', r'\1', markdown, flags=re.S | re.M).split())
    return text if len(text) <= 300 else text[:300].rpartition(' ')[0] + ' …'


def fenced(directive: str, argument: str, body: str = '', **options) -> str:
    "A MyST directive; its fence is longer than any within"
    fence = '`'*(max([2, *map(len, re.findall(r'`{3,}', body))]) + 1)
    return '\n'.join([f'{fence}{{{directive}}} {argument}', *(f':{k}: {v}' for k, v in options.items()),
                      '', body, fence])


def documented(source: str, module):
    "(name, first paragraph, entry) of every public function, class and constant that a cell defines"
    for n in ast.parse(source).body:
        for name in sorted(defines(n) & set(module.__all__)):
            line = (escaped(' '.join((ast.get_docstring(n) or '').partition('\n\n')[0].split())) if hasattr(n, 'name')
                    else constant(n, source))
            yield name, line, entry(n, name, line, getattr(module, name), module.__name__)


def defines(n) -> set:
    "The names that a statement binds"
    return {n.name} if hasattr(n, 'name') else {
        t.id for target in getattr(n, 'targets', ()) for t in ast.walk(target) if isinstance(t, ast.Name)}


def entry(n, name, line, obj, module) -> str:
    "The MyST directive that documents a definition"
    if isinstance(n, ast.Assign): return fenced('py:data', name, line, module=module)
    if isinstance(n, ast.ClassDef):
        return fenced('py:class', name + signature(n), '\n\n'.join([prose(n), table(obj), *members(n)]), module=module)
    return fenced('py:function', name + signature(n), f'{prose(n)}\n\n{table(obj)}', module=module)


def members(cls):
    "Entries of the public methods and properties that say what they do"
    for n in cls.body:
        if (not isinstance(n, ast.FunctionDef) or n.name.startswith('_') and n.name != '__call__'
                or not ast.get_docstring(n)): continue
        is_property = any(getattr(d, 'id', '') in ('property', 'cached_property') for d in n.decorator_list)
        yield fenced('py:property' if is_property else 'py:method', n.name + ('' if is_property else signature(n)),
                     prose(n))


def signature(n) -> str:
    "'(eps: float, steps: int = 1) -> Attack', as the source has it"
    if isinstance(n, ast.FunctionDef):
        args = n.args
        for a in (args.posonlyargs, args.args): a[:] = [x for x in a if x.arg not in ('self', 'cls')]
        return f'({ast.unparse(args)})' + (f' -> {ast.unparse(n.returns)}' if n.returns else '')
    init = next((m for m in n.body if getattr(m, 'name', '') == '__init__'), None)
    if init: return signature(init).partition(' -> ')[0]
    fields = [ast.unparse(m) for m in n.body if isinstance(m, ast.AnnAssign)]
    return f"({', '.join(fields)})" if fields else ''


def table(obj) -> str:
    "Markdown table of the comments behind the arguments, '' where there are none"
    try: notes = {k: v for k, v in docments(obj, returns=False).items() if v and k != 'self'}
    except (TypeError, ValueError, OSError): return ''
    rows = [f'| `{k}` | {cell(escaped(v))} |' for k, v in notes.items()]
    return '\n'.join(['| argument | meaning |', '|---|---|', *rows]) if rows else ''


def prose(n) -> str: return escaped(inspect.cleandoc(ast.get_docstring(n) or ''))


def constant(n, source) -> str:
    "What a constant is: the comment behind it or, if there is none, right above it, else its value if short"
    lines = source.splitlines()
    behind = lines[n.end_lineno - 1].encode()[n.end_col_offset:].decode().partition('#')[2]
    above = [l[1:].strip() for l in takewhile(lambda l: re.match('#[^|]', l), reversed(lines[:n.lineno - 1]))]
    comment, value = behind.strip() or ' '.join(reversed(above)), ast.unparse(n.value)
    return escaped(comment) or (f'`{value}`' if len(value) <= 100 and '`' not in value else 'See the code.')


def escaped(text: str) -> str:
    "Plain text as markdown; `code` stays code"
    parts = text.split('`')
    if len(parts) % 2 == 0: return SPECIAL.sub(r'\\\1', text).replace('`', '\\`')
    return '`'.join(p if k % 2 else SPECIAL.sub(r'\\\1', p) for k, p in enumerate(parts))


def cell(text: str) -> str: return ' '.join(text.split()).replace('|', '\\|')


def api(modules) -> str:
    "The page that lists every exported name; modules: [(name, about, [(exported name, line)])]"
    lines = ['# API', '',
             'Every exported name, by module; each leads to its entry in the chapter that explains it, '
             'and from there to its source. All names in one alphabet: {ref}`genindex`.', '']
    for module, about, names in modules:
        lines += [f'## {module}', '', about, '', '| name | what it is |', '|---|---|',
                  *(f'| {{py:obj}}`{n} <overmem.{module}.{n}>` | {cell(line)} |' for n, line in names), '']
    return '\n'.join(lines)
