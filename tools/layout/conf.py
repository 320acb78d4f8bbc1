"""Sphinx configuration of the book: MathJax from a package instead of the network, and names in `code` linked to where
they are defined"""
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

project, html_theme = 'overmem', 'sphinx_book_theme'
extensions = ['myst_nb', 'sphinx.ext.mathjax', 'sphinx.ext.viewcode']
nb_execution_mode, nb_code_prompt_show, nb_code_prompt_hide = 'off', 'Show the code', 'Hide the code'
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'attrs_inline']
exclude_patterns, suppress_warnings = ['_build'], ['myst.header', 'misc.highlighting_failure']
add_module_names, python_maximum_signature_line_length = False, 88
viewcode_line_numbers, viewcode_follow_imported_members = True, False
html_title, html_favicon, html_copy_source, html_show_copyright = 'overmem', 'favicon.svg', False, False
html_static_path, html_css_files = ['../../nbs/styles.css'], ['styles.css']
html_context = dict(default_mode='auto')
html_theme_options = dict(search_bar_text='Search the book', use_download_button=False, navigation_with_keys=False,
                          show_toc_level=2, navbar_persistent=[], logo=dict(text='overmem'),
                          pygments_light_style='a11y-high-contrast-light',
                          pygments_dark_style='a11y-high-contrast-dark')
mathjax_path, mathjax3_config = 'mathjax/tex-chtml-full.js', dict(options=dict(enableMenu=False), chtml=dict(scale=.95))


class LinkNames(SphinxPostTransform):
    """`zerograd` or `zerograd()` in a chapter leads to the definition, if one module alone has the name or this chapter
    defines it; on other pages only `names_like_this` do, and no name of an argument or field does"""
    default_priority = 5

    def run(self, **kwargs):
        found = {}
        for full, o in self.env.domains['py'].objects.items():
            if not o.aliased: found.setdefault(full.rpartition('.')[2], []).append((full, o))
        for node in list(self.document.findall(nodes.literal)):
            name = re.fullmatch(r'(?:overmem\.)?(\w{3,})(?:\(\))?', node.astext())
            hits = found.get(name[1], []) if name else []
            hits = [h for h in hits if h[1].docname == self.env.docname] or hits
            above = {type(a) for a in ancestors(node)}
            if (len(hits) != 1 or above & {nodes.reference, nodes.title, addnodes.desc_signature}
                    or above >= {nodes.table, addnodes.desc_content}): continue
            if name[1] == 'full': continue  # a budget
            if '_' not in name[1] and not self.env.docname[:2].isdigit(): continue
            full, o = hits[0]
            node.replace_self(make_refnode(self.app.builder, self.env.docname, o.docname, o.node_id,
                                           node.deepcopy(), full))


def ancestors(node):
    while node := node.parent: yield node


def copy_mathjax(app, error):
    "The one file of MathJax that holds everything, and its fonts"
    if error: return
    src = Path(find_spec('sphinx-mathjax-offline').submodule_search_locations[0])/'static'/'mathjax'
    out = app.outdir/'_static'/'mathjax'
    fonts = Path('output/chtml/fonts/woff-v2')
    shutil.copytree(src/fonts, out/fonts, dirs_exist_ok=True)
    shutil.copy(src/'tex-chtml-full.js', out)


def name_arrows(app, error):
    "The arrows that open a part of the contents say what they open to those who don't see them"
    for page in app.outdir.glob('*.html'):
        text = page.read_text(encoding='utf-8')
        named = re.sub(r'(>([^<]+)</a><details[^>]*>)<summary>', r'\1<summary aria-label="Below \2">', text)
        if named != text: page.write_text(named, encoding='utf-8')


def setup(app):
    app.add_post_transform(LinkNames)
    for last in (copy_mathjax, name_arrows): app.connect('build-finished', last)
