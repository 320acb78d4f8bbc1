"The book in a browser, without a network: every page, on screen and phone, by light and dark, by mouse and keyboard"
import ast
import csv
import fcntl
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import pytest
from conftest import ROOT

SCREEN, PHONE = (1280, 800), (390, 844)
# a page of each kind
SAMPLE = ('index', 'paper_zerograd', '30_zerograd', '36_mat', 'zg_curves', 'search', '_modules/overmem/zerograd')
VERDICTS = ('reproduced', 'direction only', 'not testable at this budget', 'not reproduced')
BUDGETS = ('laptop', 'gpu', 'full')


@pytest.fixture(scope='session')
def site():
    "The folder of the book; it is built first where it is missing or older than what it is made from"
    sys.path.insert(0, str(ROOT/'tools'))
    from book import outdated
    with open(ROOT/'tools'/'book.py') as lock:                           # by one process
        fcntl.flock(lock, fcntl.LOCK_EX)
        if outdated(ROOT/'_site'): subprocess.run([sys.executable, ROOT/'tools'/'book.py', 'site'], check=True)
    return ROOT/'_site'


class Page(HTMLParser):
    "What a page links to, what it loads, and the names that others may link to"
    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        if tag == 'a' and 'href' in a: self.links.append(a['href'])
        if tag in ('script', 'img', 'source', 'iframe') and a.get('src'): self.loads.append(a['src'])
        if tag == 'link' and a.get('rel') in ('stylesheet', 'preload', 'icon', 'modulepreload'):
            self.loads.append(a['href'])


@pytest.fixture(scope='session')
def pages(site):
    "{path: Page} of all of the book"
    return {p: Page(p) for p in sorted(site.rglob('*.html')) if '_static' not in p.relative_to(site).parts}


def test_links_lead_somewhere(pages):
    "Every link within the book has a page at its end, and the place on it"
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            if link.split(':')[0] in ('http', 'https', 'mailto'): continue
            url, anchor = urldefrag(link)
            target = (path.parent/unquote(url.partition('?')[0])).resolve() if url else path
            if not target.exists() or anchor and target in pages and unquote(anchor) not in pages[target].ids:
                broken.append((path.name, link))
    assert broken == []


def test_nothing_comes_from_elsewhere(site, pages):
    "Scripts, styles, fonts and pictures are files of the book"
    assert [(p.name, u) for p, page in pages.items() for u in page.loads if '//' in u] == []
    assert [f.name for f in site.rglob('*.css')
            if 'url(http' in (text := f.read_text(encoding='utf-8')).replace('"', '').replace("'", '')
            or '@importhttp' in text.replace(' ', '')] == []


def test_exported_names_have_entries(pages):
    "Every exported function and class has an entry that leads to its source, and a line in the index"
    ids, links = {i for page in pages.values() for i in page.ids}, {l for page in pages.values() for l in page.links}
    index = next(page for p, page in pages.items() if p.name == 'api.html')
    for path in (ROOT/'overmem').glob('[!_]*.py'):
        tree, module = ast.parse(path.read_text()), path.stem
        public = next(ast.literal_eval(n.value) for n in tree.body
                      if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__')
        defined = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))} & set(public)
        assert {n for n in public if f'overmem.{module}.{n}' not in ids} == set(), module
        assert {n for n in defined if f'_modules/overmem/{module}.html#{n}' not in links} == set(), module
        assert {n for n in public
                if not any(l.endswith(f'#overmem.{module}.{n}') for l in index.links)} == set(), module


def test_what_opens_has_a_name(site):
    "Everything that folds out says what it is, in words or to a screen reader"
    for page in site.glob('*.html'):
        for attributes, inside in re.findall(r'<summary([^>]*)>(.*?)</summary>', page.read_text(), re.S):
            assert 'aria-label' in attributes or re.sub('<[^>]*>', '', inside).strip(), page.name


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='session')
def address(site):
    "Where the book is served on this machine"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


@pytest.fixture(scope='session')
def chromium(address):
    "A headless Chromium that reaches this machine and no other"
    binary, driver = (next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None),
                      shutil.which('chromedriver'))
    if not (binary and driver): pytest.skip('no browser here (Debian: chromium and chromium-driver)')
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability('goog:loggingPrefs', dict(browser='ALL'))
    for a in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu',
              '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'):
        options.add_argument(a)
    browser = webdriver.Chrome(options, Service(driver))
    browser.set_script_timeout(30)
    yield browser
    browser.quit()


@pytest.fixture
def browse(chromium, address):
    "Open a page: browse('index', size=PHONE, mode='dark'); returns the browser when pictures and mathematics are there"
    def call(name, size=SCREEN, mode='light'):
        chromium.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                                 dict(width=size[0], height=size[1], deviceScaleFactor=1, mobile=size == PHONE))
        chromium.get(f'{address}/{name}.html')
        chromium.execute_async_script(SETTLED, mode)
        return chromium
    yield call
    chromium.execute_script('localStorage.clear()')


def until(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(browser, 10).until(condition)


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains
    ActionChains(browser).send_keys(*keys).perform()


SETTLED = '''const [mode, done] = arguments;
document.documentElement.dataset.theme = document.documentElement.dataset.mode = mode;
document.querySelectorAll('img').forEach(i => i.loading = 'eager');
document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>');
Promise.all([window.MathJax?.startup?.promise, ...[...document.images].map(i => i.decode().catch(e => e))]).then(() => done());'''

FAULTS = r'''const faults = [], outside = n => !n.parentElement.closest('pre, code, script, style, mjx-container');
for (const i of document.images) if (!i.naturalWidth) faults.push('no picture: ' + i.src);
for (const m of document.querySelectorAll('.math')) if (!m.querySelector('mjx-container')) faults.push('not typeset: ' + m.textContent);
for (const e of document.querySelectorAll('mjx-merror, [data-mjx-error]')) faults.push('wrong mathematics: ' + e.textContent);
const walk = document.createTreeWalker(document.querySelector('article') || document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) if (outside(walk.currentNode) && /\\[a-zA-Z]+|\\[([]|\$\$|\$[^$ ]+\$/.test(walk.currentNode.data)) faults.push('raw TeX: ' + walk.currentNode.data);
if (document.documentElement.scrollWidth > innerWidth) faults.push('wider than the screen: ' + document.documentElement.scrollWidth);
if (!document.querySelector('h1') || !document.title) faults.push('no title');
return faults;'''


@pytest.mark.parametrize('part', range(4))
def test_pages(part, site, pages, chromium, browse):
    "Every page loads on a phone without an error, a missing picture, raw TeX, or a need to scroll sideways"
    faults = {}
    for path in list(pages)[part::4]:
        name = str(path.relative_to(site).with_suffix(''))
        found = (browse(name, PHONE).execute_script(FAULTS)
                 + [e['message'] for e in chromium.get_log('browser') if e['level'] == 'SEVERE'])
        if found: faults[name] = found
    assert faults == {}


def test_mathematics_is_typeset(browse):
    "The equations of a chapter are drawn, with the fonts of the book"
    browser = browse('30_zerograd')
    wide = browser.execute_script("return [...document.querySelectorAll('article .math mjx-container')]"
                                  ".map(m => m.getBoundingClientRect().width)")
    assert len(wide) > 20 and min(wide) > 0
    assert browser.execute_script("return [...document.fonts]"
                                  ".some(f => f.family.startsWith('MJXTEX') && f.status == 'loaded')")


@pytest.mark.parametrize('size', (SCREEN, PHONE), ids=('screen', 'phone'))
def test_landing(size, browse):
    "What was claimed, what held and where to begin are seen without scrolling; the numbers are those of the results"
    browser = browse('index', size)
    seen = browser.execute_script(
        """return [...document.querySelectorAll('table.papers th, table.papers td, .start a.first')].map(e => {
        const r = e.getBoundingClientRect(), top = document.elementFromPoint(r.x + r.width/2, r.y + r.height/2);
        return [e.innerText, r.top >= 0 && r.left >= 0 && r.right <= innerWidth && r.bottom <= innerHeight && e.contains(top)]; })""")
    assert [text for text, visible in seen if not visible] == []
    rows = browser.execute_script(
        "return [...document.querySelectorAll('table.papers tbody tr')]"
        ".map(r => [r.querySelector('a').href, ...[...r.querySelectorAll('td')].map(d => d.innerText)])")
    found = {r[0].rpartition('paper_')[2].removesuffix('.html'): [0 if n == '–' else int(n) for n in r[1:5]]
             for r in rows}
    assert found == counts_from_files()
    if size == SCREEN:  # the two commands
        assert all(e.rect['y'] + e.rect['height'] <= size[1]
                   for e in browser.find_elements('css selector', '.highlight')[:2])


def counts_from_files():
    """{paper: [claims of the paper by verdict]}, straight from verdict.json; of several verdicts on a claim
    at its largest budget the weakest counts"""
    with open(ROOT/'data'/'reference'/'claims.csv', newline='') as f:
        claims = [r for r in csv.DictReader(f) if r['by'] == 'paper']
    found = {}
    for path in (ROOT/'data'/'results').glob('*/*/verdict.json'):
        if path.parent.name not in BUDGETS: continue
        for v in json.loads(path.read_text()):
            found.setdefault((v['spec'], v['id']), []).append(
                (BUDGETS.index(path.parent.name), VERDICTS.index(v['verdict'])))
    now = Counter((r['spec'], max(found[r['spec'], r['id']])[1]) for r in claims if (r['spec'], r['id']) in found)
    return {s: [now[s, k] for k in range(4)] for s in dict.fromkeys(r['spec'] for r in claims)}


def test_search(browse):
    "By keyboard: search for `zerograd` and find its chapter"
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    browser = browse('index')
    ActionChains(browser).key_down(Keys.CONTROL).send_keys('k').key_up(Keys.CONTROL).perform()
    until(browser, lambda b: b.switch_to.active_element.get_attribute('type') == 'search')
    press(browser, 'zerograd', Keys.ENTER)
    until(browser, lambda b: 'search.html?q=zerograd' in b.current_url
          and any('30_zerograd.html' in a.get_attribute('href')
                  for a in b.find_elements('css selector', '#search-results li a')))


FOCUS = '''const a = document.activeElement, e = a.matches('summary') && a.firstElementChild || a, s = getComputedStyle(e), r = e.getBoundingClientRect();
return {tag: e.tagName, text: (e.innerText || e.ariaLabel || e.title || '').trim(), href: e.getAttribute('href') || '', inside: !!e.closest('article'),
        marked: parseFloat(s.outlineWidth) > 0 && s.outlineStyle != 'none' || s.boxShadow != 'none', seen: r.width > 0 && r.height > 0 && r.right > 0 && r.left < innerWidth}'''


def test_keyboard(browse):
    "Tab goes from the skip link to the search, through the chapters, to the text; what has the focus is marked"
    from selenium.webdriver.common.keys import Keys
    browser, stops = browse('index'), []
    while len(stops) < 120 and not (stops and stops[-1]['inside'] and 'guide.html' in stops[-1]['href']):
        press(browser, Keys.TAB)
        stops.append(browser.execute_script(FOCUS))
    assert 'Skip to main content' in stops[0]['text']
    search, chapter, text = (next((k for k, s in enumerate(stops) if f(s)), None)
                             for f in (lambda s: 'Search' in s['text'],
                                       lambda s: s['href'] == 'paper_dom.html' and not s['inside'],
                                       lambda s: s['inside']))
    assert 0 < search < chapter < text
    assert [s for s in stops if s['tag'] != 'BODY' and not (s['marked'] and s['seen'])] == []
    browse('index'); press(browser, Keys.TAB, Keys.ENTER)
    assert browser.current_url.endswith('#main-content')


def test_dark_stays(browse):
    "The button turns the light off; it stays off on the next page, where figures keep their white ground"
    from selenium.webdriver.common.by import By
    browser = browse('index')
    theme = lambda: browser.execute_script('return document.documentElement.dataset.theme')
    for button in ('.theme-switch-button', '.theme-change-button[data-mode=dark]'):
        next(b for b in browser.find_elements(By.CSS_SELECTOR, button) if b.is_displayed()).click()
    assert theme() == 'dark'
    browser.get(browser.current_url.rpartition('/')[0] + '/zg_curves.html')
    assert theme() == 'dark' and browser.execute_script(
        'return getComputedStyle(document.body).backgroundColor') != 'rgb(255, 255, 255)'
    grounds = browser.execute_script("return [...document.querySelectorAll('article img')]"
                                     ".map(i => getComputedStyle(i).backgroundColor + getComputedStyle(i).filter)")
    assert grounds and set(grounds) == {'rgb(255, 255, 255)none'}


CONTRAST = '''const ctx = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = c => { ctx.clearRect(0, 0, 1, 1); ctx.fillStyle = c; ctx.fillRect(0, 0, 1, 1); const d = ctx.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3]/255]; };
const over = (a, b) => [0, 1, 2].map(k => a[k]*a[3] + b[k]*(1 - a[3])).concat(1);
const ground = e => { if (!e) return [255, 255, 255, 1]; const c = rgba(getComputedStyle(e).backgroundColor); return c[3] == 1 ? c : over(c, ground(e.parentElement)); };
const light = c => [.2126, .7152, .0722].reduce((s, w, k) => { const v = c[k]/255; return s + w*(v <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4); }, 0);
const bad = {}, walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, r = e.getBoundingClientRect();
    if (!walk.currentNode.data.trim() || e.closest('script, style, noscript, svg, dialog:not([open])') || !e.checkVisibility({visibilityProperty: true, opacityProperty: true}) || r.width < 2 || r.height < 2) continue;
    const s = getComputedStyle(e), back = ground(e), [a, b] = [light(over(rgba(s.color), back)), light(back)].sort((x, y) => y - x), size = parseFloat(s.fontSize);
    if ((a + .05)/(b + .05) < (size >= 24 || size >= 18.66 && s.fontWeight >= 700 ? 3 : 4.5)) bad[`${e.tagName}.${e.className} ${s.color} on ${back}`] = walk.currentNode.data.trim().slice(0, 40);
}
return bad;'''


@pytest.mark.parametrize('mode', ('light', 'dark'))
def test_contrast(mode, browse):
    "All text, links, code and table heads stand out from their ground by the 4.5 to 1 of WCAG AA (3 to 1 where large)"
    assert {name: bad for name in SAMPLE if (bad := browse(name, mode=mode).execute_script(CONTRAST))} == {}
