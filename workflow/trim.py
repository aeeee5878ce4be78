"""Take out of the built book what no page uses: of 2,000 icons in a script that every page loads, all but a dozen.

Usage: python workflow/trim.py FOLDER_OF_HTML
"""

import re
import sys
from pathlib import Path

ICON = re.compile(
    r'(?:"(?P<quoted>[\w-]+)"|(?P<plain>[A-Za-z_]\w*)):'
    r'\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?'
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
    parts, place = [], 0
    for icon in found:
        if (icon["quoted"] or icon["plain"]) not in used:
            parts.append(script[place : icon.start()])
            place = icon.end()
    kept = re.sub(r"\],\}", "]}", "".join([*parts, script[place:]]))  # the last of a list has no comma behind it
    if not used & {m["quoted"] or m["plain"] for m in ICON.finditer(kept)}:
        raise ValueError("no icon that the book uses is in the theme's script: has its form changed?")
    return kept


def main(html: Path) -> None:
    path = html / "_static/scripts/fontawesome.js"
    path.write_text(trimmed(path.read_text("utf-8"), icons(html)), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
