"Build the book (Sphinx with myst-nb, no Quarto) and the README from the notebooks: python tools/book.py [site|readme]"
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT/'data'/'results'
INPUTS = ('nbs', 'overmem', 'tools', 'data/results', 'data/reference', 'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')


def write_chapters(src: Path) -> dict:
    "A page for each component notebook, for `start`, and the API's; returns {caption: [page]}"
    from chapters import GROUPS, api, chapter, group
    pages, modules = {g: [] for g in GROUPS}, []
    for p in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        nb, module, about, names = chapter(p)
        nbformat.write(nb, src/p.name)
        pages.setdefault(group(p.stem), []).append(p.stem)
        if module: modules.append((module, about, names))
    nbformat.write(chapter(ROOT/'nbs'/'start.ipynb')[0], src/'start.ipynb')
    (src/'api.md').write_text(api(modules))
    return pages


def write_results(src: Path, pages: dict):
    "Landing page, papers, experiments and scoreboard"
    import papers
    runs, readme = papers.best_runs(), (ROOT/'README.md').read_text()
    for name, (budget, *_) in runs.items(): shutil.copy(RESULTS/name/budget/'figure.svg', src/f'{name}.svg')
    for name in papers.experiments():
        nbformat.write(experiment_page(name, runs, papers.facts(name, runs)), src/f'{name}.ipynb')
    for p in papers.PAPERS: (src/f'paper_{p}.md').write_text(papers.paper_page(p, runs))
    for f in RESULTS.glob('*.svg'): shutil.copy(f, src)
    (src/'scoreboard.md').write_text(papers.scoreboard(RESULTS/'SCOREBOARD.md'))
    tocs = (dict(Start=['start', 'guide', 'scoreboard'], Papers=[f'paper_{p}' for p in papers.PAPERS]) | pages
            | dict(Reference=['api', 'contributing', 'changelog']))
    (src/'index.md').write_text(papers.landing(readme, (src/'summary.svg').exists(),
                                               [papers.hidden_toc(names, g) for g, names in tocs.items()]))


def experiment_page(name: str, runs: dict, facts: str):
    "The executed notebook of the best budget there is, else the notebook as it stands; `facts` go under its title"
    from chapters import described, readable
    done = RESULTS/name/runs[name][0]/'notebook.ipynb' if name in runs else ROOT/'nbs'/'experiments'/f'{name}.ipynb'
    nb = nbformat.read(done, 4)
    nb.cells = described([readable(c) for c in nb.cells])
    title, _, rest = nb.cells[0].source.partition('\n')
    nb.cells[0].source = f'{title}\n\n{facts}\n\n{rest.strip()}'
    for c in nb.cells:
        if c.cell_type == 'markdown': c.source = c.source.replace('](../', '](')
    return nb


def write_guide(src: Path):
    "README, CONTRIBUTING and CHANGELOG as pages"
    shutil.copytree(ROOT/'nbs'/'images', src/'images')
    guide = re.sub(r'^# overmem$', '# Guide', (ROOT/'README.md').read_text(), count=1, flags=re.M)
    for old, new in {'nbs/images/': 'images/', 'data/results/SCOREBOARD.md)': 'scoreboard.md)',
                     'data/results/summary.png)': 'summary.svg)', 'CONTRIBUTING.md)': 'contributing.md)'}.items():
        guide = guide.replace(old, new)
    (src/'guide.md').write_text(guide)
    for name in ('contributing', 'changelog'): shutil.copy(ROOT/f'{name.upper()}.md', src/f'{name}.md')


def site(out: Path):
    "The book as HTML in `out`; a warning of Sphinx is an error"
    os.environ['OVERMEM_HOME'] = str(ROOT)
    with tempfile.TemporaryDirectory() as tmp:
        src, html = Path(tmp)/'src', Path(tmp)/'html'
        src.mkdir()
        write_results(src, write_chapters(src))
        write_guide(src)
        subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html',
                        '-d', Path(tmp)/'doctrees', '-c', ROOT/'tools'/'layout', src, html], check=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(html, out)
    print(f'{len(list(out.glob("*.html")))} pages in {out}')


def outdated(out: Path) -> bool:
    "Whether the book is missing, or older than something it is made from"
    if not (out/'index.html').exists(): return True
    files = (f for i in INPUTS for f in [ROOT/i, *(ROOT/i).rglob('*')] if f.is_file() and '__pycache__' not in f.parts)
    return max(f.stat().st_mtime for f in files) > (out/'index.html').stat().st_mtime


def tables() -> dict:
    "Markdown of the committed measurements that the README shows"
    from overmem.bench import markdown_agreement, markdown_steps, saved
    found = dict(steps=(markdown_steps, saved('steps')), agreement=(markdown_agreement, saved('agreement')))
    return {k: '*not measured yet*' if t is None else f(t) for k, (f, t) in found.items()} | dict(total=total())


def total(budget='laptop') -> str:
    "What all results at a budget took, a sentence"
    from overmem.runner import all_results
    runs = [r for _, b, r, _ in all_results() if b == budget]
    wall, work = (sum(f(r) for r in runs)/3600
                  for f in (lambda r: r['wall_seconds'], lambda r: r.get('process_seconds') or r['wall_seconds']))
    return (f"The {len(runs)} experiments that have run at `{budget}` took {wall:.1f} hours in all, "
            "the sum over their `run.json`; with the trainings that an interrupted command or another experiment "
            f"had finished before, each time they are used, {work:.1f} hours of computing.")


def readme(path: Path = ROOT/'README.md'):
    "README.md from nbs/index.ipynb, and its picture from the results"
    nb = nbformat.read(ROOT/'nbs'/'index.ipynb', 4)
    nb.cells = [c for c in nb.cells if '#| hide' not in c.source]
    body, _ = MarkdownExporter().from_notebook_node(nb)
    body = (re.sub(r'\n{3,}', '\n\n', body).strip().replace('](images/', '](nbs/images/')
            .replace('](../data/', '](data/').replace('src="images/', 'src="nbs/images/'))
    for mark, text in tables().items(): body = body.replace(f'<!-- table: {mark} -->', text)
    shown = RESULTS/'zg_curves'/'laptop'/'figure.png'
    if shown.exists(): shutil.copy(shown, ROOT/'nbs'/'images'/'zg_curves.png')
    path.write_text(f'<!-- Written by tools/book.py from nbs/index.ipynb; edit that. -->\n\n{body}\n')


if __name__ == '__main__':
    if sys.argv[1:] == ['readme']: readme()
    else: site(ROOT/'_site')
