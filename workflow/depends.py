"""What each chapter depends on, definition by definition, so that a change reruns the chapters that it can change.

From the names in a chapter's code cells we follow every name that hpatlib defines: functions, classes, constants, and
what a module does when it is imported. What cannot be followed counts as a whole module, or as the whole library.
Annotations lead nowhere (who holds an object has called what made it) but where msgspec makes objects from them.
Docstrings and comments count for nothing. Verdicts are followed by their value: what a chapter's table of claims says
now, which new records, other claims and their correction may change.

A chapter's file under ``_build/depends`` names all of it, a line each, and is written only when it changes.
"""

import ast
import functools
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

EVERYTHING = "*"  # in a module
ON_IMPORT = ""  # what a module does when it is imported
FIELDS = "@"  # behind the name of a class: what its fields are made of
# What these return for a chapter stands in its file, in place of the code and of all the records that they read.
BY_VALUE = {("hpatlib.claims", "ledger"), ("hpatlib.claims", "check")}
DYNAMIC = {"__import__", "exec", "eval", "globals"}  # may lead anywhere
RUNNER = ("hpatlib.cli", "execute")

Node = tuple[str, str]  # a module, and a name in it
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n((?::[^\n]*\n)*)(.*?)^```\s*$", re.M | re.S)


def digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


@dataclass
class Module:
    """``defined``: name → the statements that bind it; ``links``: imported name → module, and the name in it (None: the
    module itself)."""

    defined: dict[str, list[ast.stmt]] = field(default_factory=dict)
    links: dict[str, tuple[str, str | None]] = field(default_factory=dict)


@functools.cache
def parse(source: str, name: str) -> Module:
    """The names of a module, each with the statements that decide it."""
    module = Module({ON_IMPORT: []})
    for statement in ast.parse(source).body:
        bound: list[str] = []
        match statement:
            case ast.Import() | ast.ImportFrom():
                module.links |= dict(imported(statement, name))
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.Expr(value=ast.Constant()):
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                bound = [statement.name]
            case ast.Assign(targets=targets) if all(isinstance(t, ast.Name | ast.Tuple) for t in targets):
                bound = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=target)):
                bound = [target]
        for each in bound or [ON_IMPORT]:
            module.defined.setdefault(each, []).append(statement)
    return module


def imported(statement: ast.stmt, module: str) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Name → where it comes from, of one import."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            root = alias.name.split(".")[0]
            yield (alias.asname, (alias.name, None)) if alias.asname else (root, (root, None))
    elif isinstance(statement, ast.ImportFrom):
        if statement.level:
            raise ValueError(f"{module} imports relatively, line {statement.lineno}: write the whole name, hpatlib.…")
        for alias in statement.names:
            yield alias.asname or alias.name, (statement.module or "", alias.name)


def imports(call: ast.Call) -> re.Pattern[str]:
    """Which modules ``import_module(…)`` may import, as far as its argument tells."""
    match call.args[:1]:
        case [ast.Constant(value=str(name))]:
            return re.compile(re.escape(name))
        case [ast.JoinedStr(values=parts)]:
            return re.compile("".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in parts))
    return re.compile(".*")


class Library:
    """Every module below ``folder`` (``hpatlib/``), and who uses what."""

    def __init__(self, folder: Path) -> None:
        self.modules: dict[str, Module] = {}
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            self.modules[name] = parse(path.read_text("utf-8"), name)
        self._uses = functools.cache(self._find_uses)
        self.content = functools.cache(self._read)

    def node(self, module: str, name: str) -> Node | str | None:
        """What ``name`` in ``module`` is: a node, a module by its name, or None where it is not ours."""
        seen = set()
        while module in self.modules and (module, name) not in seen:
            seen.add((module, name))
            if name in self.modules[module].defined:
                return module, name
            if f"{module}.{name}" in self.modules:
                return f"{module}.{name}"
            if name not in self.modules[module].links:
                return module, EVERYTHING
            module, target = self.modules[module].links[name]
            if target is None:
                return module if module in self.modules else None
            name = target
        return None

    def uses(self, node: Node) -> set[Node]:
        """The nodes that a node names."""
        return self._uses(*node)

    def _find_uses(self, module: str, name: str) -> set[Node]:
        here = self.modules[module]
        if name == EVERYTHING:
            return {(module, each) for each in here.defined} | {(module, ON_IMPORT)}
        found: set[Node] = {(module, ON_IMPORT)}
        if name.endswith(FIELDS):
            classes = [each for each in here.defined[name[:-1]] if isinstance(each, ast.ClassDef)]
            fields = [inner.annotation for each in classes for inner in each.body if isinstance(inner, ast.AnnAssign)]
            for annotation in fields:
                found |= self.named(annotation, module)
            return found | self.fields_of(found)
        if name == ON_IMPORT:  # importing a module imports what it imports
            targets = [self.node(source, each) if each else source for source, each in here.links.values()]
            modules = {target if isinstance(target, str) else target[0] for target in targets if target}
            found |= {(each, ON_IMPORT) for each in modules if each in self.modules}
        for statement in here.defined.get(name, []):
            found |= self.named(statement, module)
            for inner in ast.walk(statement):
                if isinstance(inner, ast.Call) and ast.unparse(inner.func).startswith("msgspec."):
                    found |= self.fields_of(self.named(inner, module))
            if isinstance(statement, ast.ClassDef) and not any(
                "dataclass" in ast.unparse(d) for d in statement.decorator_list
            ):
                found |= self.fields_of([(module, name)])  # it may be a msgspec.Struct
        return found - {(module, name)}

    def fields_of(self, nodes: Iterable[Node]) -> set[Node]:
        """Beside each class among ``nodes``, its fields."""
        kinds = {(m, n): self.modules[m].defined.get(n, []) for m, n in nodes}
        return {(m, n + FIELDS) for (m, n), kind in kinds.items() if any(isinstance(k, ast.ClassDef) for k in kind)}

    def named(self, tree: ast.AST, module: str) -> set[Node]:
        """The nodes that the code in ``tree``, a part of ``module``, names."""
        here, links, found = self.modules[module], dict(self.modules[module].links), set()
        for inner in ast.walk(tree):
            if isinstance(inner, ast.Import | ast.ImportFrom):  # within a function
                links |= dict(imported(inner, module))
        todo: list[ast.AST] = [tree]
        while todo:
            root = inner = todo.pop()
            chain: list[str] = []
            while isinstance(root, ast.Attribute):
                chain.insert(0, root.attr)
                root = root.value
            if isinstance(inner, ast.Call) and "import_module" in ast.unparse(inner.func):
                found |= {(each, EVERYTHING) for each in self.modules if imports(inner).fullmatch(each)}
            if not isinstance(root, ast.Name):
                unread = [getattr(inner, "annotation", None), getattr(inner, "returns", None)]
                todo += [child for child in ast.iter_child_nodes(inner) if child not in unread]
                continue
            if not isinstance(root.ctx, ast.Load):
                continue
            if root.id in DYNAMIC:
                found |= {(each, EVERYTHING) for each in self.modules}
            target: Node | str | None = (module, root.id) if root.id in here.defined else None
            if root.id in links:
                source, each = links[root.id]
                target = self.node(source, each) if each else source
            while isinstance(target, str) and target in self.modules and chain:
                target = self.node(target, chain.pop(0))
            if isinstance(target, tuple):
                found.add(target)
            elif target in self.modules:  # the module itself is handed on
                found.add((target, EVERYTHING))
        return found

    def reach(self, nodes: Iterable[Node]) -> set[Node]:
        """``nodes`` and all that they lead to."""
        todo, reached = list(nodes), set()
        while todo:
            node = todo.pop()
            if node not in reached and node not in BY_VALUE:
                reached.add(node)
                todo += self.uses(node)
        return reached

    def _read(self, module: str, name: str) -> tuple[str, frozenset[str]]:
        """A digest of the definition, less its docstrings, and the strings in it."""
        texts, strings = [], set()
        for statement in self.modules[module].defined.get(name, []):
            for inner in ast.walk(statement):
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(
                    inner
                ):
                    inner.body = inner.body[1:] or [ast.Pass()]
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    strings.add(inner.value)
            texts.append(ast.unparse(statement))
        return digest(*texts) if texts else "", frozenset(strings)


def chapter_code(source: Path) -> str:
    """The code that a chapter runs."""
    cells = CELL.findall(source.read_text("utf-8"))
    return "\n".join(code for options, code in cells if "nbval-skip" not in options)


def reached(library: Library, code: str) -> set[Node]:
    """Every node that ``code`` leads to."""
    module = parse(code, "chapter")
    library.modules["chapter"] = module
    nodes = library.named(ast.parse(code), "chapter")
    del library.modules["chapter"]
    return library.reach([*(node for node in nodes if node[0] != "chapter"), RUNNER])


def lines(root: Path, profile: str) -> dict[str, list[str]]:
    """Chapter → what it depends on, a line each; ``root``: the checkout."""
    library = Library(root / "hpatlib")
    sources = {
        path.relative_to(root / "notebooks").with_suffix("").as_posix(): path
        for path in sorted((root / "notebooks").glob("*/*.md"))
    }
    verdicts = judged(root, library, sources)
    shared = [f"{path.name} {digest(path.read_bytes())}" for path in sorted((root / "hpatlib").rglob("*.mplstyle"))]
    found = {}
    for chapter, source in sources.items():
        code = chapter_code(source)
        nodes = reached(library, code)
        contents = {node: library.content(*node) for node in nodes}
        strings = {value for node in ast.walk(ast.parse(code)) if isinstance(value := getattr(node, "value", 0), str)}
        strings |= {string for _, inner in contents.values() for string in inner}
        documents = {node[0].split(".")[2] for node in nodes if node[0].startswith("hpatlib.documents.")}
        told = [f"{module}.{name} {content}" for (module, name), (content, _) in contents.items() if content]
        for document in sorted(documents):
            folder = root / "hpatlib/documents" / document
            if (folder / "published.toml").is_file():
                told.append(f"{document}/published.toml {digest((folder / 'published.toml').read_bytes())}")
                settings = tomllib.loads((folder / "profiles.toml").read_text("utf-8"))[profile]
                told.append(f"{document}/profiles.toml [{profile}] {digest(json.dumps(settings, sort_keys=True))}")
        for shown in sorted(strings & sources.keys()):  # the chapters whose records it reads
            told += [f"evidence/{shown}/{path.name} {digest(path.read_bytes())}" for path in evidence(root, shown)]
        told.append(f"verdicts {verdicts[chapter]}")
        found[chapter] = sorted(told) + shared
    return found


def evidence(root: Path, chapter: str = "") -> list[Path]:
    """The files of a chapter's committed records, or of all."""
    return sorted(path for path in (root / "evidence" / chapter).rglob("*") if path.is_file())


def judged(root: Path, library: Library, chapters: Iterable[str]) -> dict[str, str]:
    """Chapter → a digest of what it says of its claims: their tables, hashes and words.

    Judging reads all records, so it is done again only when they, the claims or the code that judges have changed.
    """
    documents = sorted((root / "hpatlib/documents").rglob("*.toml")) + sorted((root / "hpatlib").rglob("*.lock"))
    code = set().union(*(library.reach(library.uses(node)) for node in BY_VALUE if node[0] in library.modules))
    decided_by = [f"{path.relative_to(root)} {digest(path.read_bytes())}" for path in [*evidence(root), *documents]]
    decided_by += [f"{node} {library.content(*node)[0]}" for node in sorted(code)]
    decided_by.append(digest(Path(__file__).read_bytes()))  # and how a digest is made
    key, cache = digest(*decided_by, sorted(chapters)), root / "_build/depends/verdicts.json"
    kept = json.loads(cache.read_text()) if cache.is_file() else {}
    if kept.get("key") != key:
        from hpatlib import claims

        try:
            ledger = claims.ledger()
            hashes = {claim.id: claims.hashed(document, claim) for document, claim in claims.all_claims()}
            tables = {name: [j for j in ledger if j.claim.chapter == name] for name in chapters}
            shown = {
                name: [claims.table(of).to_dict("records"), [(hashes[j.claim.id], j.claim) for j in of]]
                for name, of in tables.items()
            }
        except ValueError as error:  # the chapters, and `hpat verify`, say so
            shown = {name: str(error) for name in chapters}
        kept = {"key": key, "verdicts": {name: digest(table) for name, table in shown.items()}}
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(kept, indent=1))
    return kept["verdicts"]


def write(root: Path, profile: str, folder: Path) -> None:
    """Bring the files below ``folder``, one a chapter, up to date; one that says the same stays untouched."""
    for chapter, found in lines(root, profile).items():
        path, text = folder / f"{chapter}.txt", "\n".join(found) + "\n"
        if not path.is_file() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
