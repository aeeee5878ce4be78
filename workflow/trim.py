"""Take out of the built book what no page uses: of 2,000 icons in a script that every page loads, all but a dozen.

Usage: python workflow/trim.py FOLDER_OF_HTML
"""

import re
import sys
from pathlib import Path

ICON = re.compile(
    r'(?:"(?P<quoted>[\w-]+)"|(?P<plain>[A-Za-z_]\w*)):'
    r'\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\](?P<comma>,?)'
)
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
    gone = [m for m in found if (m["quoted"] or m["plain"]) not in used]
    parts, place = [], 0
    for m in gone:
        parts.append(script[place : m.start()])
        place = m.end()
        if not m["comma"]:  # the last of its list leaves no comma behind
            parts[-1] = parts[-1].rstrip(",")
    kept = "".join([*parts, script[place:]])
    if not used & {m["quoted"] or m["plain"] for m in ICON.finditer(kept)}:
        raise ValueError("no icon that the book uses is in the theme's script: has its form changed?")
    return kept


def main(html: Path) -> None:
    path = html / "_static/scripts/fontawesome.js"
    path.write_text(trimmed(path.read_text("utf-8"), icons(html)), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
