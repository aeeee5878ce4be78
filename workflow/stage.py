"""Stage the book's source in _build/source: the pages as they stand, the chapters as they were run and their figures
numbered, the pages that verdicts make, and the benchmarks.

Usage: python workflow/stage.py FOLDER_OF_EXECUTED_CHAPTERS

Only what changed is written, so that Sphinx reads only that again. Where a change may show on other pages too (a title,
a label, which pages there are, the settings), or where the last build did not come to its end, what Sphinx built before
is deleted, and so it starts anew. Whoever builds then moves `frame.built.json` to `frame.json`.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import measured
import pages

BUILT = ("html", ".doctrees", "jupyter_execute")
# Of a page, what others show or point at: titles, labels, captions' numbers, and which directives have them.
FRAME = re.compile(r"^(?:#{1,6} .*|\([^()\s]+\)=|:name:.*|[`:]{3,}\{(?:figure|table|list-table|math).*)$", re.M)


def staged(run: Path) -> dict[str, bytes]:
    """Path below the source → content."""
    files = {path.as_posix(): path.read_bytes() for path in Path("book").rglob("*") if path.is_file()}
    files |= {path.name: path.read_bytes() for path in (Path("_config.yml"), Path("workflow/mathml.py"))}
    places = numbers(Path("book"))
    for chapter in Path("notebooks").glob("*/*.md"):
        name = chapter.with_suffix(".ipynb")
        content = (run / name.relative_to("notebooks")).read_bytes()
        files[name.as_posix()] = numbered(content, places.get(name.as_posix(), 0))
    return files | measured.made(Path("benchmarks")) | pages.made(Path("notebooks"))


def numbers(book: Path) -> dict[str, int]:
    """Page → its number in the table of contents, as readers see it in the margin."""
    return {name: place for place, name in enumerate(pages.listed(book / "_toc.yml"), start=1)}


SHOWN = re.compile(r'(<(?:figure|table)[^>]* id="((?:fig|tab)-[\w-]+)".*?<span class="hpat-number">)(</span>)', re.S)
REFERRED = re.compile(r"\[(?:figure|table)\]\(#((?:fig|tab)-[\w-]+)\)")


def numbered(notebook: bytes, chapter: int) -> bytes:
    """A chapter with "Figure 7.1" and "Table 7.2" where its figures and tables, and links to them, wait for numbers."""
    content = json.loads(notebook)
    given: dict[str, str] = {}
    counted = {"fig": 0, "tab": 0}

    def number(found: re.Match[str]) -> str:
        name, kind, shown = found[2], found[2][:3], found[1]
        counted[kind] += 1
        told = f"{'Figure' if kind == 'fig' else 'Table'} {chapter}.{counted[kind]}"
        if name in given:  # of the run, where the record's stands above it: two with one id would be one to a link
            shown = shown.replace(f'id="{name}"', f'id="{name}-run"', 1)
        given.setdefault(name, told)
        return f"{shown}{told}. {found[3]}"

    for output in (o for cell in content["cells"] for o in cell.get("outputs", [])):
        data = output.get("data", {})
        if "text/html" in data:
            data["text/html"] = SHOWN.sub(number, "".join(data["text/html"]))
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            source = "".join(cell["source"])
            cell["source"] = REFERRED.sub(
                lambda found: f'<a href="#{found[1]}">{given.get(found[1], found[0])}</a>', source
            )
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


def frame(files: dict[str, bytes]) -> str:
    """What a change must leave alone for only the changed pages to be built again."""
    found = []
    for name, content in sorted(files.items()):
        if name.endswith(".md"):
            found.append([name, *FRAME.findall(content.decode())])
        elif name.endswith(".ipynb"):
            cells = json.loads(content)["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
            found.append([name, *FRAME.findall(text)])
        elif not name.startswith("book/made/"):
            found.append([name, content.hex()])
    return json.dumps(found)


def main(run: Path, build: Path = Path("_build")) -> None:
    source, kept = build / "source", build / "frame.json"
    files = staged(run)
    now = frame(files)
    if not kept.is_file() or kept.read_text("utf-8") != now:
        for folder in BUILT:
            shutil.rmtree(build / folder, ignore_errors=True)
    kept.unlink(missing_ok=True)  # until a build of this has succeeded
    for path in [path for path in source.rglob("*") if path.is_file()]:
        if path.relative_to(source).as_posix() not in files:  # a page or chapter that is gone must not survive here
            path.unlink()
    for name, content in files.items():
        path = source / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (build / "frame.built.json").write_text(now, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
