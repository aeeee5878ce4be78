"""Files that are either whole or absent."""

import os
import tempfile
from pathlib import Path


def write(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path``: beside it first, flushed to the disk, then renamed over it."""
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
