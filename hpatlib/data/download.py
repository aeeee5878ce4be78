"""Files from the web that are whole and as they should be, or not there at all; archives that stay in their folder."""

import hashlib
import os
import shutil
import stat
import zipfile
from http.client import HTTPException  # no OSError, as storing() would take for the disk's
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from hpatlib._files import storing

TIMEOUT = 30.0  # seconds without a byte
MOST = 8 << 30  # bytes of a file, and of all that an archive holds
MEMBERS = 1_000_000  # files in an archive


class _AtHome(HTTPRedirectHandler):
    """Follows a redirect only to the host that was asked."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        here, there = urlsplit(req.full_url), urlsplit(newurl)
        if (here.scheme, here.netloc) != (there.scheme, there.netloc):
            raise URLError(f"it redirects to {there.scheme}://{there.netloc}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, path: Path, *, checksum: str = "", timeout: float = TIMEOUT) -> Path:
    """Fetch ``url`` to ``path``, which is there afterwards with this ``checksum`` (such as "md5:…"; "": not known).

    What a broken connection has brought stays beside it as ``<name>.part``; where a checksum can tell that both halves
    are of one file, the next call asks for the rest alone. Raises ``StorageError``, and ``RuntimeError`` for a server
    that refuses, stalls for ``timeout`` seconds, or sends a page, less than it promised, another file or elsewhere.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, part, resume=bool(checksum), timeout=timeout)
        if checksum:
            _check(part, checksum)
    except (URLError, TimeoutError, ConnectionError, HTTPException, ValueError) as error:
        if isinstance(error, ValueError | HTTPError):  # of no use for going on
            part.unlink(missing_ok=True)
        reason = getattr(error, "reason", None) or error
        said = f"{error.code} {reason}" if isinstance(error, HTTPError) else str(reason) or type(reason).__name__
        raise RuntimeError(f"Fetching {url} failed ({said}): try again online, or put it at {path}.") from error
    with storing(path):
        os.replace(part, path)
    return path


def _receive(url: str, part: Path, *, resume: bool, timeout: float) -> None:
    from tqdm import tqdm

    have = part.stat().st_size if resume and part.is_file() else 0
    request = Request(url, headers={"User-Agent": "hpatlib"} | ({"Range": f"bytes={have}-"} if have else {}))
    try:
        opened = build_opener(_AtHome).open(request, timeout=timeout)
    except HTTPError as error:
        if have and error.code == 416:  # nothing is left to send: the checksum decides
            return
        raise
    with opened as answer:
        if answer.headers.get_content_type() == "text/html":
            raise ValueError("it answers with a page, not with a file")
        begin = have if answer.status == 206 else 0  # a server may well send all of it again
        if begin and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {begin}-"):
            raise ValueError("it sends another part than was asked for")
        length = answer.headers.get("Content-Length")
        due = begin + int(length) if length and length.isdecimal() else None
        if (due or 0) > MOST:
            raise ValueError(f"it sends {due} bytes, expected at most {MOST}")
        with (
            storing(part),
            open(part, "ab" if begin else "wb") as file,
            tqdm(total=due, initial=begin, desc=part.stem, unit="B", unit_scale=True, delay=2) as bar,
        ):
            while block := _block(answer):
                file.write(block)
                bar.update(len(block))
                if file.tell() > (due or MOST):
                    raise ValueError(f"it sends more than {due or MOST} bytes")
            file.flush()
            os.fsync(file.fileno())
            if due is not None and file.tell() < due:
                raise HTTPException(f"it ended after {file.tell()} of {due} bytes")


def _block(answer) -> bytes:  # type: ignore[no-untyped-def]
    try:
        return answer.read(1 << 18)
    except OSError as error:  # of the network, not of the disk
        raise HTTPException(str(error) or type(error).__name__) from error


def _check(part: Path, checksum: str) -> None:
    algorithm, _, expected = checksum.partition(":")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise ValueError(f"it sends another file: its {algorithm} is {found}, expected {expected}")


def unpack(archive: Path, folder: Path) -> Path:
    """The files of a zip in ``folder``, which is there afterwards with all of them, and was not before.

    Raises ``ValueError`` for what is no whole zip, for members that would land elsewhere, links, and more bytes than
    ``MOST`` or files than ``MEMBERS``; ``StorageError``.
    """
    beside = folder.with_name(f"{folder.name}.tmp")
    try:
        with storing(folder):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            with zipfile.ZipFile(archive) as packed:
                _check_members(archive, packed.infolist())
                for member in packed.infolist():
                    packed.extract(member, beside)  # no more than its stated size, which was checked
            os.rename(beside, folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{archive} is no whole zip archive ({error}): fetch it again.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _check_members(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in "".join(name.parts[:1]):
            raise ValueError(f"{archive} would write to {member.filename!r}, outside its folder: do not use it.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"{archive} holds a link, {member.filename!r}: do not use it.")
    if len(members) > MEMBERS or (size := sum(member.file_size for member in members)) > MOST:
        found = f"{len(members)} files" if len(members) > MEMBERS else f"{size} bytes"
        raise ValueError(f"{archive} would unpack to {found}, expected at most {MEMBERS} and {MOST}: do not use it.")
