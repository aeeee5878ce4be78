"""The three documents: a folder each, with everything that is the document's own.

    published.toml   title, citation, printed numbers and tables, each with its place
    claims.toml      our falsifiable sentences about them, and their gates
    claims.lock      when each claim was written down, and the hash it had then
    profiles.toml    what smoke, laptop, study and paper mean for it
    quantities.py    the functions that claims are computed with, from outcomes alone
    study.py         what its chapters train and measure
    figures.py       what its chapters show

A document is found by its folder: nothing elsewhere in the library names one. Importing this needs no torch.
"""

import ast
import functools
import importlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

FOLDER = Path(__file__).parent
PARAMETERS = ("profile", "data", "seed")  # of every chapter


def check_parameters(namespace: Mapping[str, Any]) -> None:
    """Refuse whatever papermill gave a chapter besides its parameters, such as a misspelt one, before anything trains.

    A chapter calls this with ``locals()`` right behind its cell of parameters. Papermill puts a cell of its own there,
    "# Parameters", and IPython keeps the text of every cell in ``In``: names of a reader's own are left alone, and
    where there is no IPython, nothing was injected. Raises ``ValueError`` that names the others.
    """
    cells = [cell for cell in namespace.get("In", ()) if cell.startswith("# Parameters\n")]
    lines = ast.parse(cells[-1]).body if cells else []
    given = [ast.unparse(line.targets[0]) for line in lines if isinstance(line, ast.Assign)]
    if unknown := [name for name in given if name not in PARAMETERS]:
        raise ValueError(f"unknown parameter {', '.join(unknown)}: a chapter has {', '.join(PARAMETERS)}")


@functools.cache
def names() -> tuple[str, ...]:
    """The documents by the name of their folders, in the order of the book."""
    found = [path.parent.name for path in FOLDER.glob("*/published.toml")]
    return tuple(sorted(found, key=lambda name: (about(name)["order"], name)))


@functools.cache
def toml(document: str, file: str) -> dict[str, Any]:
    """One of a document's TOML files, as plain data; empty where it has none. Raises ``ValueError`` for an unknown
    document."""
    path = FOLDER / document / f"{file}.toml"
    if not (path.parent / "published.toml").is_file():
        known = ", ".join(sorted(p.parent.name for p in FOLDER.glob("*/published.toml")))
        raise ValueError(f"unknown document {document!r}: choose one of {known}")
    return tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}


def about(document: str) -> dict[str, Any]:
    """Title, citation key and place in the book."""
    return toml(document, "published")["document"]


def published(document: str) -> dict[str, dict[str, Any]]:
    """The numbers printed in a document: name → value, unit and where it stands."""
    return toml(document, "published").get("values", {})


def published_table(document: str, name: str) -> pd.DataFrame:
    """A table as the document prints it: rows by our names, columns its metrics, in [0, 1] where it has percent.

    Raises ``ValueError`` for a table that is not there.
    """
    tables = toml(document, "published").get("tables", {})
    if name not in tables:
        raise ValueError(f"no table {name!r} of {document!r}: choose one of {', '.join(tables) or 'none'}")
    table = tables[name]
    scale = 100 if table.get("unit") == "percent" else 1
    return pd.DataFrame.from_dict(table["rows"], orient="index", columns=table["metrics"]) / scale


def quantities(document: str) -> ModuleType:
    """The module whose functions compute a document's claims."""
    return importlib.import_module(f"{__name__}.{document}.quantities")
