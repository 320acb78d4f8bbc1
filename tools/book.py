"Build the book (Sphinx with myst-nb, no Quarto) and the README from the notebooks: python tools/book.py [site|readme]"
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
CONF = '''
project, extensions, html_theme = 'overmem', ['myst_nb', 'sphinx.ext.mathjax'], 'sphinx_book_theme'
nb_execution_mode, myst_enable_extensions = 'off', ['dollarmath', 'amsmath', 'colon_fence']
exclude_patterns, html_title, suppress_warnings = ['_build'], 'overmem', ['myst.header', 'misc.highlighting_failure', 'myst.xref_missing']
'''
GROUPS = dict(Foundations=('00_', '01_', '02_', '03_', '04_'), Parts=('10_', '11_', '12_', '13_', '14_', '20_', '21_', '22_', '23_'), Methods=('30_', '31_', '32_', '33_', '34_', '35_', '36_'), Machinery=('37_', '38_', '39_', '40_', '41_', '42_', '43_', '44_'))


def processed(folder: Path) -> Path:
    "nbdev's own rendering of the notebooks: hidden cells gone, signatures with their comments as tables"
    from nbdev.quarto import proc_nbs
    proc_nbs(n_workers=0, force=True)
    out = ROOT/'_proc'
    shutil.move(out, folder/'proc')
    return folder/'proc'


def readable(nb):
    "Front matter becomes a heading, directives go, hidden sources are tagged for myst-nb"
    for c in nb.cells:
        if c.cell_type == 'raw': c.update(cell_type='markdown', source=_front(c.source))
        if c.cell_type != 'code': continue
        c.outputs = [_clean(o) for o in c.get('outputs', [])]
        if 'echo: false' in c.source: c.metadata['tags'] = ['remove-input']
        c.source = '\n'.join(l for l in c.source.split('\n') if not l.lstrip().startswith('#|'))
    nb.cells = [c for c in nb.cells if c.source.strip() or c.get('outputs')]
    return nb


def _front(text):
    meta = dict(re.findall(r'^(title|description): (.*)$', text, re.M))
    unquote = lambda s: s.strip().strip('"\'')
    return f"# {unquote(meta.get('title', ''))}" + (f"\n\n> {unquote(meta['description'])}" if 'description' in meta else '')


def _clean(output):
    "Markdown produced by show_doc holds rules and Quarto attributes that nothing else reads"
    md = output.get('data', {}).get('text/markdown')
    if md: output['data']['text/markdown'] = re.sub(r'\{(target|\.)[^}]*\}', '', re.sub(r'^---$', '', md, flags=re.M))
    return output


def experiment_pages(src: Path) -> list:
    "A page per experiment: the executed notebook of the best budget there is, else the notebook as it stands"
    names = []
    for p in sorted((ROOT/'nbs'/'experiments').glob('*.ipynb')):
        done = [ROOT/'data'/'results'/p.stem/b/'notebook.ipynb' for b in ('full', 'gpu', 'laptop')]
        nb = nbformat.read(next((d for d in done if d.exists()), p), 4)
        nbformat.write(readable(nb), src/f'{p.stem}.ipynb')
        names.append(p.stem)
    return names


def toc(title: str, names) -> str:
    return f'```{{toctree}}\n:maxdepth: 1\n:caption: {title}\n\n' + '\n'.join(names) + '\n```\n'


def site(out: Path):
    "The book as HTML in `out`; a warning of Sphinx is an error"
    with tempfile.TemporaryDirectory() as tmp:
        src, proc = Path(tmp)/'src', processed(Path(tmp))
        src.mkdir()
        pages = {}
        for p in sorted(proc.glob('[0-9]*.ipynb')):
            nbformat.write(readable(nbformat.read(p, 4)), src/p.name)
            pages[p.stem] = next((g for g, heads in GROUPS.items() if p.stem.startswith(heads)), 'More')
        experiments = experiment_pages(src)
        board = ROOT/'data'/'results'/'SCOREBOARD.md'
        (src/'scoreboard.md').write_text(re.sub(r'\]\([^)]*\)', ']', board.read_text()).replace('[', '').replace(']', '') if board.exists() else '# Scoreboard\n\nNothing has been run yet.\n')
        shutil.copytree(ROOT/'nbs'/'images', src/'images', dirs_exist_ok=True)
        index = (ROOT/'README.md').read_text().replace('nbs/images/', 'images/')
        tocs = [toc('Results', ['scoreboard', *experiments])] + [toc(g, [p for p in pages if pages[p] == g]) for g in dict.fromkeys(pages.values())]
        (src/'index.md').write_text(index + '\n' + '\n'.join(tocs))
        (src/'conf.py').write_text(CONF)
        subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html', src, Path(tmp)/'html'], check=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(Path(tmp)/'html', out)
    print(f'{len(list(out.glob("*.html")))} pages in {out}')


def tables() -> dict:
    "Markdown of the committed measurements that the README shows"
    from overmem.bench import markdown_agreement, markdown_steps, saved
    found = dict(steps=(markdown_steps, saved('steps')), agreement=(markdown_agreement, saved('agreement')))
    return {k: '*not measured yet*' if t is None else f(t) for k, (f, t) in found.items()}


def readme(path: Path = ROOT/'README.md'):
    "README.md from nbs/index.ipynb, and its picture from the results"
    nb = nbformat.read(ROOT/'nbs'/'index.ipynb', 4)
    nb.cells = [c for c in nb.cells if '#| hide' not in c.source]
    body, _ = MarkdownExporter().from_notebook_node(nb)
    body = re.sub(r'\n{3,}', '\n\n', body).strip().replace('](images/', '](nbs/images/').replace('src="images/', 'src="nbs/images/')
    for mark, text in tables().items(): body = body.replace(f'<!-- table: {mark} -->', text)
    shown = ROOT/'data'/'results'/'zg_curves'/'laptop'/'figure.png'
    if shown.exists(): shutil.copy(shown, ROOT/'nbs'/'images'/'zg_curves.png')
    path.write_text(f'<!-- Written by tools/book.py from nbs/index.ipynb; edit that. -->\n\n{body}\n')


if __name__ == '__main__':
    if sys.argv[1:] == ['readme']: readme()
    else: site(ROOT/'_site')
