"""The book as a reader meets it: pages in a browser without a network, and the files around it that must agree."""

import functools
import http.server
import re
import subprocess
import threading
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import hpatlib
from hpatlib import records

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "book/_toc.yml").read_text("utf-8"))
ENTRIES = [chapter for part in TOC["parts"] for chapter in part["chapters"]]
CARDS = [path.relative_to(ROOT).with_suffix("").as_posix() for path in sorted((ROOT / "book/data").glob("*.md"))]
FILES = [TOC["root"], *(file for entry in ENTRIES for file in ([entry["file"]] if "file" in entry else CARDS))]
PAGES = [file.removesuffix(".ipynb") for file in FILES]


@pytest.fixture(scope="module")
def html() -> Path:
    if not (HTML / "index.html").is_file():
        pytest.skip("the book is not built: run `make book` first")
    return HTML


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def address(html):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=html))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# What a reader would stumble over: formulas that are not drawn or not understood, pictures that are missing or mute.
FAULTS = r"""() => {
  const article = document.querySelector("article.bd-article"), faults = [];
  if (!article) return ["no article"];
  for (const formula of article.querySelectorAll(".math")) {
    const box = formula.querySelector("math")?.getBoundingClientRect();
    if (!box || formula.checkVisibility() && !(box.width && box.height))
      faults.push("not drawn: " + formula.textContent.slice(0, 60));
    if (/[\\&]/.test(formula.textContent) || formula.querySelector("merror"))
      faults.push("not understood: " + formula.textContent.slice(0, 60));
  }
  for (const image of article.querySelectorAll("img")) {
    const name = image.src.slice(0, 60);
    if (!image.alt.trim()) faults.push("no alt text: " + name);
    if (!image.complete || !image.naturalWidth) faults.push("not shown: " + name);
  }
  const text = article.cloneNode(true);
  text.querySelectorAll("code, pre, script").forEach(element => element.remove());
  if (/\\[(\[]/.test(text.textContent)) faults.push("raw TeX in the text");
  return faults;
}"""


@pytest.mark.parametrize("page", PAGES)
def test_page_reads_well_without_a_network(page, browser, address):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    faults = []

    def local_only(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            faults.append(f"asked for {route.request.url}")
            route.abort()

    context.route("**/*", local_only)
    tab = context.new_page()
    tab.on("console", lambda message: faults.append(f"console: {message.text}") if message.type == "error" else None)
    tab.on("pageerror", lambda error: faults.append(f"script: {error}"))
    tab.on("response", lambda answer: faults.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)
    answer = tab.goto(f"{address}/{page}.html", wait_until="load")
    assert answer is not None and answer.ok, f"{page}.html does not load"
    faults += tab.evaluate(FAULTS)
    for width in (1280, 420):
        tab.set_viewport_size({"width": width, "height": 900})
        wider = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if wider > 1:
            faults.append(f"at a width of {width} px the page is {wider} px too wide")
    context.close()
    assert not faults, "\n".join([f"{page}.html:", *faults])


def axe_violations(tab) -> list[str]:
    """What axe-core calls critical or serious, a line a rule."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [v for v in found if v["impact"] in ("critical", "serious")]
    return [f"{v['impact']} {v['id']}, {len(v['nodes'])} times: {v['nodes'][0]['html'][:120]}" for v in serious]


def opened(browser, url: str, width: int, theme: str):
    """A page in a window of its own, in a theme."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    context.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    tab = context.new_page()
    tab.goto(url, wait_until="load")
    return tab


@pytest.mark.book
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_accessible_wide_and_narrow(page, theme, browser, address):
    tab = opened(browser, f"{address}/{page}.html", 1400, theme)
    found = axe_violations(tab)
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_timeout(400)  # the theme lets the keyboard reach what scrolls only 300 ms after a change
    found += axe_violations(tab)
    tab.context.close()
    assert found == []


CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]

# The smallest text of an article, in px as the reader sees it: drawings shrink theirs.
SMALLEST = """() => {
  const walker = document.createTreeWalker(document.querySelector(".bd-article"), NodeFilter.SHOW_TEXT);
  let smallest = Infinity;
  while (walker.nextNode()) {
    const text = walker.currentNode, element = text.parentElement;
    if (!text.textContent.trim() || !element.checkVisibility() || element.closest("math")) continue;
    const matrix = element.closest("svg") ? element.getScreenCTM() : {a: 1, b: 0};
    smallest = Math.min(smallest, parseFloat(getComputedStyle(element).fontSize) * Math.hypot(matrix.a, matrix.b));
  }
  return smallest;
}"""
# What paper would cut off: it cannot be scrolled.
CUT = """[...document.querySelectorAll(".bd-article :is(pre, table, figure, svg, .hpat-scroll, .output, .math)")]
  .filter(e => e.checkVisibility() && getComputedStyle(e).display !== "inline" && e.scrollWidth > e.clientWidth + 1)
  .map(e => `${e.tagName}.${e.className}, ${e.scrollWidth} px in ${e.clientWidth}: ${e.textContent.slice(0, 60)}`)"""
PAPER = {"width": 688, "height": 1017}  # A4 within its margins of 14 mm, in px


@pytest.mark.book
@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_answers_at_once_is_legible_on_a_phone_and_fits_on_paper(page, browser, address):
    tab = opened(browser, f"{address}/{page}.html", 1400, "light")
    bottom = tab.evaluate("document.querySelector('.hpat-answer').getBoundingClientRect().bottom")
    first = "document.querySelector('.bd-article figure.hpat, .bd-article table.hpat').getBoundingClientRect().top"
    top = tab.evaluate(first) if records.best(page.removeprefix("notebooks/")) else 0
    tab.set_viewport_size({"width": 390, "height": 844})
    smallest = tab.evaluate(SMALLEST)
    tab.set_viewport_size(PAPER)
    tab.emulate_media(media="print")
    cut = tab.evaluate(CUT)
    sheets = len(re.findall(rb"/Type\s*/Page\b", tab.pdf(format="A4")))
    tab.context.close()
    assert cut == []
    assert bottom <= 900 and top <= 1350 and smallest >= 9 and sheets <= 5


def test_the_claims_page_is_short_and_sifts_without_a_server(browser, html):
    tab = opened(browser, (html / "book/claims.html").as_uri(), 1400, "light")
    rows = tab.locator(".hpat-row:visible")
    shown = rows.count()
    assert shown > 0 and tab.evaluate("document.documentElement.scrollHeight") <= 6 * 900
    asked = tab.locator(".hpat-filter input[value=inconclusive]")  # what is undecided is one click away
    assert tab.locator(".hpat-row[data-verdict=inconclusive]:visible").count() == 0
    asked.check()
    assert rows.count() - shown == tab.locator(".hpat-row[data-verdict=inconclusive]:visible").count() > 0
    asked.uncheck()
    tab.locator(".hpat-filter input[value=contradicted]").uncheck()
    assert rows.count() < shown and tab.locator(".hpat-row[data-verdict=contradicted]:visible").count() == 0
    tab.evaluate("location.hash = 'fig6-curve-30'")
    assert tab.locator("#fig6-curve-30").get_attribute("open") is not None  # a link opens its row, sifted or not
    tab.context.close()


def test_content_is_near_for_the_keyboard(browser, address):
    tab = opened(browser, f"{address}/{CHAPTERS[0]}.html", 1400, "light")
    reached = False
    for _ in range(3):
        tab.keyboard.press("Tab")
        reached |= "main-content" in (tab.evaluate("document.activeElement.getAttribute('href')") or "")
    tab.context.close()
    assert reached


WEIGHT = 1_500_000  # bytes that a page needs, without its pictures and uncompressed
PICTURES = re.compile(r"<svg\b.*?</svg>|data:[a-z]+/[\w+.-]+[;,][^\"']*", re.S)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_light(page, html):
    path = html / f"{page}.html"
    text = path.read_text("utf-8")
    links = re.findall(r'<(?:script|link)[^>]*?(?:src|href)="([^"]+\.(?:js|css))[^"]*"', text)
    files = {(path.parent / link).resolve() for link in links if "://" not in link}
    files -= {(html / "searchindex.js").resolve()}  # asked for by the search page alone
    weight = len(PICTURES.sub("", text).encode()) + sum(file.stat().st_size for file in files)
    assert weight <= WEIGHT, sorted((file.stat().st_size, file.name) for file in files)[-6:]


@pytest.mark.parametrize("word", ["MixBN", "STBO", "label leaking", "co-occurrence"])
def test_search_finds_a_chapter_before_the_reference(word, browser, address):
    tab = opened(browser, f"{address}/search.html?q={word}", 1400, "light")
    tab.wait_for_selector("ul.search li a")
    found = [link.get_attribute("href") or "" for link in tab.locator("ul.search li a").all()]
    tab.context.close()
    pages = [link for link in found if "book/notation" not in link]  # what a word means may come before all
    assert "notebooks/" in pages[0]


def test_every_page_was_written(html):
    assert [page for page in PAGES if not (html / f"{page}.html").is_file()] == []
    assert f"{TOC['root']}.html" in (html / "index.html").read_text("utf-8")


def test_every_chapter_is_in_the_table_of_contents():
    chapters = {path.relative_to(ROOT).with_suffix(".ipynb").as_posix() for path in ROOT.glob("notebooks/*/*.md")}
    assert chapters == {file for file in FILES if file.startswith("notebooks/")}


def test_every_markdown_image_has_alt_text():
    sources = [*ROOT.glob("*.md"), *ROOT.glob("book/**/*.md"), *ROOT.glob("notebooks/**/*.md")]
    mute = [path.name for path in sources if re.search(r"!\[\s*\]\(", path.read_text("utf-8"))]
    bare = [
        path.name
        for path in sources
        for block in re.findall(r"^[`:]{3,}\{(?:image|figure)\}[^\n]*\n((?::.*\n)*)", path.read_text("utf-8"), re.M)
        if not re.search(r"^:alt: \S", block, re.M)
    ]
    assert mute + bare == []


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_conda_environment_agrees_with_the_package():
    project = _project()
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    plain = [package for package in wanted if isinstance(package, str)]
    (python,) = (package.split("=", 1)[1] for package in plain if package.startswith("python="))
    assert SpecifierSet(project["requires-python"]).contains(f"{python}.0")
    assert "pytorch-cpu" in plain, "Binder has no GPU and little memory: the CPU build of torch"
    (pip,) = (package["pip"] for package in wanted if isinstance(package, dict))
    assert pip == ["-e .[book]"] and "book" in project["optional-dependencies"]


def test_citation_agrees_with_the_package():
    project, citation = _project(), yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == hpatlib.__version__ and project["dynamic"] == ["version"]
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    assert citation["repository-code"] == project["urls"]["Repository"]


def test_the_address_of_the_repository_is_the_same_everywhere():
    address = _project()["urls"]["Repository"]
    owner, name = address.removeprefix("https://github.com/").split("/")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    written = {
        found
        for path in listed
        if Path(path).suffix in {".md", ".yml", ".cff", ".toml", ".ipynb", ".py", ".yaml"} and (ROOT / path).is_file()
        for found in re.findall(rf"github\.com[/:][\w.-]+/{name}\b", (ROOT / path).read_text("utf-8"))
    }
    assert written == {f"github.com/{owner}/{name}"}
    command = ["git", "config", "--get-regexp", r"^remote\..*\.url$"]
    remotes = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    names = set(re.findall(r"github\.com[/:][\w.-]+/([\w.-]+?)(?:\.git)?$", remotes, re.M))
    assert names <= {name}, "a fork keeps the name; a repository that was renamed needs its address changed here"


# Written in pieces, so that this file does not name what it looks for.
PRIVATE = re.compile(
    "|".join(
        [
            r"(?<![\w.~])/(work|root|home|Users|opt)/\w",
            r"py" + r"pi\.org",
            r"python" + r"hosted",
            r"index-url[= ]+\S*:/",
        ]
    )
)


def test_no_file_names_a_machine_or_a_package_index():
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    found = []
    for path in (ROOT / name for name in done.stdout.splitlines()):
        if path.is_file():
            text = path.read_bytes().decode("utf-8", errors="ignore")
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in PRIVATE.finditer(text)]
    assert found == []
