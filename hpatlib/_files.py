"""Files that are either whole or absent, who may write them, and what to say where the disk does not let us."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any


class StorageError(OSError):
    """A file or folder that cannot be written or read: one sentence with the path and what to do."""


def home() -> Path:
    """The folder for what the library keeps: $HPAT_HOME, else runs/ of the checkout, else ~/.cache/hpatlib."""
    if chosen := os.environ.get("HPAT_HOME"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[1]
    return checkout / "runs" if (checkout / "pyproject.toml").is_file() else Path.home() / ".cache" / "hpatlib"


@lru_cache
def source() -> str:
    """Sixteen hexadecimal digits that follow from the library's own files: other ones, other digits."""
    digest, package = hashlib.blake2b(digest_size=8), Path(__file__).parent
    for path in sorted(path for kind in ("py", "toml") for path in package.rglob(f"*.{kind}")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the operating system says while something is put at ``path`` into a ``StorageError``."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        said = error.strerror or str(error)
        raise StorageError(
            f"{path} cannot be written ({said}): make room or allow it there, or name another folder "
            "(HPAT_HOME for models, decoded images and chapters, HPAT_RECORDS for records, --output for notebooks)"
        ) from error


def write(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path``: beside it first, flushed to the disk, then renamed over it.

    Whoever may write the same file at the same time holds ``alone`` around this. Raises ``StorageError``.
    """
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, 0o644)  # mkstemp lets only the owner read
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
    return path


def sweep(path: Path) -> None:
    """Remove what a process that died while it wrote ``path`` has left beside it: call it ``alone``."""
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink(missing_ok=True)


@contextmanager
def alone(path: Path, waiting: Callable[[str], None] | None = None, *, locks: Path | None = None) -> Iterator[None]:
    """Hold the lock of ``path``, which a process that dies lets go; ``waiting`` is told who has it, once.

    The lock lies in the folder ``locks`` (default: ``home()/locks``, as the folder of ``path`` may be one to be
    committed). Raises ``StorageError``.
    """
    from filelock import FileLock, Timeout

    name = hashlib.blake2b(str(path.expanduser().resolve()).encode(), digest_size=8).hexdigest()
    lock = (locks or home() / "locks") / f"{name}.lock"
    owner = lock.with_suffix(".owner")
    with storing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                with suppress(OSError):
                    waiting(f"process {owner.read_text()}")
            held.acquire()
        try:
            owner.write_text(str(os.getpid()))
        except BaseException:
            held.release()
            raise
    try:
        yield
    finally:
        with suppress(OSError):
            owner.unlink(missing_ok=True)
        held.release()


def sealed(about: dict[str, Any]) -> bytes:
    """``about`` as JSON that carries a checksum of itself."""
    return json.dumps({**about, "checksum": _checksum(about)}, indent=1, ensure_ascii=False).encode()


def unsealed(path: Path) -> dict[str, Any]:
    """What ``sealed`` made of, without its checksum. Raises ``ValueError`` where the file is missing or damaged."""
    try:
        about = json.loads(path.read_bytes())
        checksum = about.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is missing, damaged, or of an earlier version ({error!r})") from error
    if checksum != _checksum(about):
        raise ValueError(f"{path} is damaged: its content does not have the checksum that stands in it")
    return about


def _checksum(about: dict[str, Any]) -> str:
    text = json.dumps(about, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
