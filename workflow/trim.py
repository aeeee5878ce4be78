"""Take out of the built book what no page uses: of 2,000 icons in a script that every page loads, all but a dozen; and
mend two lists that Sphinx writes as no screen reader expects them.

Usage: python workflow/trim.py FOLDER_OF_HTML
"""

import re
import sys
from pathlib import Path

ICON = re.compile(
    r'(?:"(?P<quoted>[\w-]+)"|(?P<plain>[A-Za-z_]\w*)):'
    r'\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?'
)
SIGNATURE = re.compile(r'<dt class="sig .*?</dt>', re.S)
USED = re.compile(r"\bfa-([a-z0-9-]+)")


def icons(html: Path) -> set[str]:
    """Names of icons that pages, the theme's scripts and its styles mention."""
    files = [*html.rglob("*.html"), *html.glob("_static/scripts/*.js"), *html.glob("_static/*.js")]
    texts = (file.read_text("utf-8") for file in files if file.name != "fontawesome.js")
    return {name for text in texts for name in USED.findall(text)}


def trimmed(script: str, used: set[str]) -> str:
    """The script with the icons of ``used`` alone. Raises ``ValueError`` where it does not look as it should."""
    found = list(ICON.finditer(script))
    if len(found) < 500:
        return script  # trimmed before
    parts, place = [], 0
    for icon in found:
        if (icon["quoted"] or icon["plain"]) not in used:
            parts.append(script[place : icon.start()])
            place = icon.end()
    kept = re.sub(r"\],\}", "]}", "".join([*parts, script[place:]]))  # the last of a list has no comma behind it
    if not used & {m["quoted"] or m["plain"] for m in ICON.finditer(kept)}:
        raise ValueError("no icon that the book uses is in the theme's script: has its form changed?")
    return kept


def mended(page: str) -> str:
    """Parameters are lines of a signature, not answers of a list without questions; a citation is no list's item."""

    def lines(found: re.Match[str]) -> str:
        return re.sub(
            "</d[ld]>", "</div>", found[0].replace("<dl>", '<div class="sig-lines">').replace("<dd>", "<div>")
        )

    return SIGNATURE.sub(lines, page).replace('<div role="list" class="citation-list">', '<div class="citation-list">')


def main(html: Path) -> None:
    for path in html.rglob("*.html"):
        page = path.read_text("utf-8")
        if (better := mended(page)) != page:
            path.write_text(better, "utf-8")
    path = html / "_static/scripts/fontawesome.js"
    path.write_text(trimmed(path.read_text("utf-8"), icons(html)), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
