"""Stage the book's source in _build/source: the pages as they stand, the chapters as they were run, and the claims.

Usage: python workflow/stage.py FOLDER_OF_EXECUTED_CHAPTERS
"""

import shutil
import sys
from pathlib import Path

from hpatlib import claims

run, source = Path(sys.argv[1]), Path("_build/source")
shutil.rmtree(source, ignore_errors=True)  # a page or chapter that is gone must not survive here
shutil.rmtree("_build/html", ignore_errors=True)
shutil.copytree("book", source / "book")
shutil.copy("_config.yml", source)
for chapter in sorted(Path("notebooks").glob("*/*.md")):
    name = chapter.with_suffix(".ipynb")
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / name.relative_to("notebooks"), source / name)
(source / "book/claims.md").write_text(claims.page(), "utf-8")
