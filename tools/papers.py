"""Pages of the book from results: the landing page, a chapter for each paper, what stands above an experiment,
the scoreboard"""
import html
import re
from pathlib import Path
from typing import NamedTuple

from overmem.runner import BUDGETS, all_results, describe, experiments, number
from overmem.scoreboard import LOOKS, judged, listed, rebuilt, summary_counts

SHORT = {'not testable at this budget': 'not testable', 'not judged yet': 'not judged'}
WIDE = '---\nhtml_theme.sidebar_secondary.remove: true\n---\n'          # no contents beside the page
LEAD = ('Networks memorize: sometimes harmlessly, sometimes at the price of all robustness. This workbook explains '
        'the papers that say so, builds their methods, re-runs their figures, and says of every claim whether it held.')


class Paper(NamedTuple):
    name: str           # what the chapter is called
    about: str          # its subject, a line
    reference: str      # markdown
    claims: str         # what it claims, a paragraph
    chapters: tuple     # notebooks that explain what it proposes, and what its experiments share


PAPERS = dict(
    dom=Paper('DOM', 'over-memorization behind three kinds of overfitting',
        'R. Lin, C. Yu, B. Han, T. Liu, *On the Over-Memorization During Natural, Robust and Catastrophic '
        'Overfitting*, ICLR 2024, [arXiv 2310.08847](https://arxiv.org/abs/2310.08847).',
        'Natural, robust and catastrophic overfitting share one behaviour, the paper argues: when overfitting begins, '
        'a block of training samples suddenly gets a very low loss, and the network goes on predicting them with '
        'confidence even when they are taken out of training. In adversarial training the loss of the clean image '
        'gives such a sample away, though the network never trains on it. DOM (distraction over-memorization) '
        'therefore watches the clean loss: after half of the training, samples below a threshold are left out of the '
        'update (DOM_RE) or augmented until their loss rises (DOM_DA). The reported effect is a smaller gap between '
        'best and last epoch in natural training, less decay of robustness in multi-step adversarial training, and no '
        'collapse in single-step training.',
        ('31_dom', '12_augment', '40_overfitting')),
    zerograd=Paper('ZeroGrad', 'why one-step training collapses, and a cheap cure',
        'Golgooni, Saberi, Eskandar, Rohban, *ZeroGrad: Mitigating and Explaining Catastrophic Overfitting in FGSM '
        'Adversarial Training*, March 2021, [arXiv 2103.15476](https://arxiv.org/abs/2103.15476). '
        'Journal version: *ZeroGrad: Costless conscious remedies for catastrophic overfitting in the FGSM adversarial '
        'training*, Intelligent Systems with Applications 19, 200258 (2023).',
        'Adversarial training on one-step attacks (FGSM) is far cheaper than on PGD, but can collapse: within about an '
        'epoch accuracy under PGD falls to nothing while accuracy under FGSM shoots up. The paper holds the small '
        'elements of the input gradient responsible, to which the sign gives the same full step as to the large, '
        'reliable ones. The cure is to give them no step. ZeroGrad finds them by their magnitude, the lowest share q '
        'of each image; MultiGrad finds them by their instability, as elements whose sign differs between random '
        'points of the ε-ball. Neither needs a regularizer, and ZeroGrad costs almost what FGSM training costs.',
        ('30_zerograd', '32_fastat', '39_single_step')),
    bat=Paper('BAT', 'atypical images in adversarial training',
        'H. Xu, X. Liu, W. Wang, W. Ding, Z. Wu, Z. Liu, A. Jain, J. Tang, *Towards the Memorization Effect of Neural '
        'Networks in Adversarial Training*, June 2021, [arXiv 2106.04794](https://arxiv.org/abs/2106.04794).',
        'Many training images are atypical: a network gets them right only if it was trained on them. In natural '
        'training, fitting them helps atypical test images and costs typical ones nothing. In adversarial training, '
        'the paper claims, it buys only clean accuracy on atypical test images, never robust accuracy, and it lowers '
        'both on typical ones, because some atypical images look like another class and pull the classes together. '
        'Benign adversarial training (BAT) gives such images a smaller weight and keeps typical images of different '
        'classes apart with a discrimination loss; its clean accuracy at the last epoch is said to be above every '
        'rival’s, at a robustness close to the best stopped early.',
        ('32_bat', '40_benign')),
    memorization=Paper('Memorization scores', 'who is memorized, and why',
        'V. Feldman, C. Zhang, *What Neural Networks Memorize and Why: Discovering the Long Tail via Influence '
        'Estimation*, NeurIPS 2020, [arXiv 2008.03703](https://arxiv.org/abs/2008.03703). '
        'The theory: V. Feldman, *Does Learning Require Memorization? A Short Tale about a Long Tail*, STOC 2020, '
        '[arXiv 1906.05271](https://arxiv.org/abs/1906.05271).',
        'A training label is memorized if the network predicts it with the image in the training set and not without. '
        'Where many kinds of images are represented by one or a few examples, fitting labels that nothing else implies '
        'is needed for the best test accuracy: that is the theory. The paper estimates, from the same few thousand '
        'networks trained on random subsets, how memorized every training image is and how much it influences every '
        'test image. It finds that memorized images matter more for test accuracy than as many random ones, that there '
        'are many pairs in which one training image decides a similar test image, and mostly one only; that the scores '
        'agree between networks of similar accuracy; and that memorization happens in the representation, not in the '
        'last layer.',
        ('33_memorization', '33_subsets', '39_ensembles', '39_studies', '39_scores', '39_proxies', '40_longtail')),
    mat=Paper('MAT and XRM', 'shortcuts, and exceptions learned by heart',
        'R. Bayat, M. Pezeshki, E. Dohmatob, D. Lopez-Paz, P. Vincent, *The Pitfalls of Memorization: When '
        'Memorization Hurts Generalization*, ICLR 2025, [arXiv 2412.07684](https://arxiv.org/abs/2412.07684). '
        'M. Pezeshki, D. Bouchacourt, M. Ibrahim, N. Ballas, P. Vincent, D. Lopez-Paz, *Discovering Environments with '
        'XRM*, ICML 2024, [arXiv 2309.16748](https://arxiv.org/abs/2309.16748).',
        'A network fits the majority through an easy shortcut first; what happens to the exceptions decides whether it '
        'generalizes. If the inputs hold noise of their own, the exceptions can be memorized one by one, the gradient '
        'towards the right feature vanishes, and the minority stays wrong at test time: neither shortcut nor '
        'memorization alone does it, both together do. Memorization-aware training (MAT) adds to the logits what a '
        'model that has not memorized an example would predict, so that nothing is left to learn of what the shortcut '
        'explains. Those held-out predictions come from XRM: twin networks, each trained on one half, that push each '
        'other into the shortcut by flipping labels, without any annotation of groups. MAT is said to raise the '
        'accuracy of the worst group on four benchmarks and to lower the self-influence of minority examples; and a '
        'toy regression shows memorization that is good, bad and ugly.',
        ('36_mat', '35_xrm', '34_groups', '39_toys', '39_sweeps', '37_benchmarks', '37_metadata', '40_discovery')))


def best_runs() -> dict:
    "{experiment: (budget, run, verdicts)} of the largest budget above smoke that has results"
    found = {}
    for name, budget, run, verdicts in sorted(all_results(), key=lambda r: BUDGETS.index(r[1])):
        if budget != 'smoke': found[name] = budget, run, verdicts
    return found


def css(word: str) -> str: return f"verdict v-{SHORT.get(word, word).replace(' ', '-')}"
def chip(word: str, n='') -> str:
    return f'<span class="{css(word)}">{f"<b>{n}</b> " if n else ""}{SHORT.get(word, word)}</span>'
def bar(counts: dict) -> str:
    return ('<span class="bar" aria-hidden="true">'
            f"""{''.join(f'<i class="{css(w)}" style="flex:{n}"></i>' for w, n in counts.items() if n)}</span>""")
def cell(text) -> str: return ' '.join(str(text).split()).replace('|', '\\|').replace('<', '&lt;')
def rows(*lines) -> list: return [f"| {' | '.join(line)} |" for line in (lines[0], ['---']*len(lines[0]), *lines[1:])]
def hidden_toc(names, caption='') -> str:
    return ('```{toctree}\n:hidden:\n' + (f':caption: {caption}\n' if caption else '') + '\n' + '\n'.join(names)
            + '\n```\n')
def reported(v: dict) -> str: return 'not reported' if v['paper'] is None else f"{v['paper']:g}"
def measured(v: dict) -> str: return f"{number(v)}<br><small>{cell(v['quantity'])}</small>"


def count_table(counts: dict) -> str:
    "HTML table of {paper: {verdict: number}}: a row for each paper, leading to its chapter, a column for each verdict"
    total = {w: sum(c[w] for c in counts.values()) for w in LOOKS}
    words = [w for w in LOOKS if total[w] or w != 'not judged yet']
    numbers = lambda c: ''.join(f'<td>{c[w] or "–"}</td>' for w in words)
    head = ''.join(f'<th scope="col">{chip(w)}</th>' for w in words)
    body = ''.join(f'<tr><th scope="row"><a href="paper_{p}.html">{PAPERS[p].name}</a> '
                   f'<span class="about">{html.escape(PAPERS[p].about)}</span>{bar(c)}</th>{numbers(c)}</tr>'
                   for p, c in counts.items())
    return ('<table class="papers"><thead><tr>'
            f'<th scope="col">{sum(total.values())} claims of the papers</th>{head}</tr></thead><tbody>{body}</tbody>'
            f'<tfoot><tr><th scope="row">all</th>{numbers(total)}</tr></tfoot></table>')


def landing(readme: str, figure: bool, tocs) -> str:
    "What was claimed, what held, the two commands, where to begin"
    legend = ''.join(f'<dt>{chip(w)}</dt><dd>{look.means}</dd>' for w, look in LOOKS.items())
    commands = re.findall(r'```sh\n(python3 -m venv .*?)\n```', readme, re.S)
    return f'''{WIDE}# overmem

{LEAD}

{count_table(summary_counts())}

<p class="start"><a class="first" href="start.html">Start here</a> <a href="guide.html">Guide</a> <a href="30_zerograd.html">A method</a> <a href="zg_curves.html">An experiment</a> <a href="scoreboard.html">All verdicts</a> <a href="api.html">API</a></p>

Run the main job, and run the tests, each in a fresh clone:

```sh
{commands[0]}
```

```sh
{commands[1]}
```

## Every claim

{"![A column for each paper, in it a cell for each claim, coloured and marked by its verdict](summary.svg){.wide}"
 if figure else ''}

<dl class="legend">{legend}</dl>

Each claim stands with the verdict of the largest budget it was run at; its rule was written down before the run and stands in its experiment. The [guide](guide.md) says what each budget may claim.

{''.join(tocs)}'''


def paper_page(paper: str, runs: dict) -> str:
    "Reference, claims with verdicts, figures and tables, chapters and experiments of a paper"
    p, found, counts = PAPERS[paper], judged(), {w: n for w, n in summary_counts()[paper].items() if n}
    about = {n: d for n, path in experiments().items() if (d := describe(path))['paper'] == paper}
    total = (f'<p class="total"><b>{sum(counts.values())} claims</b> '
             f'<span class="counts">{" ".join(chip(w, n) for w, n in counts.items())}</span></p>')
    return WIDE + '\n'.join([
        f'# {p.name}', '', f'> {p.about[0].upper()}{p.about[1:]}', '', p.reference, '',
        f'**What it claims.** {p.claims}', '', total, bar(counts), '',
        '## Claims and verdicts', '', *claim_rows(paper, found), '',
        '## Explained in', '', *(f'- {{doc}}`{c}`' for c in p.chapters), '',
        '## Figures and tables', '', *figure_rows(paper, about), '',
        '## Experiments', '',
        *rows(['experiment', 'shows', 'budget'],
              *([f'[{n}]({n}.ipynb)', cell(d['shows']), runs[n][0] if n in runs else 'not run']
                for n, d in about.items())), '',
        hidden_toc(about)])


def claim_rows(paper: str, found: dict) -> list:
    "Table of a paper's claims, in the order of the paper; `found` is what `judged` found"
    lines = []
    for r in (r for r in listed('claims') if r['spec'] == paper):
        says = cell(r['claim']) + (' *(asked by us)*' if r['by'] == 'us' else '')
        done = [[chip(v['verdict']), measured(v), reported(v), f'[{n}]({n}.ipynb)']
                for v, n, _ in found.get((paper, r['id']), ())]
        lines += [[r['id'], says, *d] for d in done or [[chip('not judged yet'), '', '', '']]]
    return rows(['claim', 'says', 'verdict', 'value ± std (seeds)', 'in the paper', 'experiment'], *lines)


def figure_rows(paper: str, about: dict) -> list:
    "Table of a paper's figures and tables, and where each is rebuilt; about: {experiment: its description}"
    makers = rebuilt(about)
    return rows(['in the paper', 'shows', 'rebuilt by'],
                *([r['item'], cell(r['shows']), ', '.join(f'[{n}]({n}.ipynb)' for n in makers[paper, r['item']])
                   or f"not rebuilt: {cell(r['reason']) or 'no experiment yet'}"]
                  for r in listed('figures') if r['spec'] == paper))


def facts(name: str, runs: dict) -> str:
    "What stands under the title of an experiment: paper, verdicts, command, and what it was run on"
    e = describe(experiments()[name])
    paper = f"An experiment on [{PAPERS[e['paper']].name}](paper_{e['paper']}.md). {cell(e['shows'])}."
    if name not in runs: return f'{paper} Not run yet: `overmem run {name} --budget laptop`.'
    budget, run, verdicts = runs[name]
    seconds = run.get('process_seconds') or run['wall_seconds']
    took = f'{seconds:.0f} seconds' if seconds < 120 else f'{seconds/60:.0f} minutes'
    ran = (f"`overmem run {name} --budget {budget}`, on {run['device']}: {took} of computing; "
           f"code {run['code_version']}.")
    table = (rows(['claim', 'says', 'verdict', 'value ± std (seeds)'],
                  *([v['id'], cell(v['claim']), chip(v['verdict']), number(v)] for v in verdicts)) if verdicts else [])
    return '\n'.join([paper, '', f"![{e['shows']}]({name}.svg){{.wide}}", '', *table, '', ran])


def scoreboard(board: Path) -> str:
    "The committed scoreboard; what it links among the results leads to the experiment's page"
    if not board.exists(): return '# Scoreboard\n\nNothing has been run yet.\n'
    text = re.sub(rf"\]\((?:\./)?(\w+)/(?:{'|'.join(BUDGETS)})/[^)]*\)", r'](\1.ipynb)',
                  board.read_text(encoding='utf-8'))
    return WIDE + text.replace('](summary.png)', '](summary.svg){.wide}')
