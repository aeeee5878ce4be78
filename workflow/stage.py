"""Stage the book's source in _build/source: the pages as they stand, the chapters as they were run, claims, benchmarks.

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

from hpatlib import claims

BUILT = ("html", ".doctrees", "jupyter_execute")
# Of a page, what others show or point at: titles, labels, captions' numbers, and which directives have them.
FRAME = re.compile(r"^(?:#{1,6} .*|\([^()\s]+\)=|:name:.*|[`:]{3,}\{(?:figure|table|list-table|math).*)$", re.M)


def staged(run: Path) -> dict[str, bytes]:
    """Path below the source → content."""
    files = {path.as_posix(): path.read_bytes() for path in Path("book").rglob("*") if path.is_file()}
    files["_config.yml"] = Path("_config.yml").read_bytes()
    for chapter in Path("notebooks").glob("*/*.md"):
        name = chapter.with_suffix(".ipynb")
        files[name.as_posix()] = (run / name.relative_to("notebooks")).read_bytes()
    files["book/claims.md"] = claims.page().encode()
    return files | measured.made(Path("benchmarks"))


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
