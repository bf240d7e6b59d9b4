"""Downloads that resume, retry and check what came before it takes its name."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 16
FIRST_WAIT = 0.5  # seconds, doubled after every failure without progress
TRANSIENT = (408, 425, 429)  # besides 5xx
BUSY_SIDE = (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException)

Report = Callable[[int, int | None], None]


class DownloadError(Exception):
    """A file that could not be had; the message names its address and the reason."""


class _TransientError(Exception):
    """A failure that another attempt may not meet."""


def download(
    url: str,
    target: Path,
    *,
    sha256: str,
    size: int | None = None,
    retries: int = 4,
    timeout: float = 20.0,
    progress: bool = True,
) -> Path:
    """Fetches one file over HTTP into `target`, which appears whole and checked or not at all.

    What has come is kept in a hidden `.part` file beside the target, from which the next attempt, or the next call,
    goes on. A file put together so that has the wrong checksum is fetched once more from its start, before the address
    is held to serve another one. Processes that want the same target wait for the one that fetches it.

    Args:
        url: Address, of http or https.
        target: Path of the file; its folder is made. A file that is there with the right checksum is returned as it is.
        sha256: Expected SHA-256 of what the address serves, hexadecimal.
        size: Expected length in bytes, where known: a longer answer is cut off instead of read to its end.
        retries: Attempts without progress after which to give up, besides the first.
        timeout: Longest silence of the server, in seconds.
        progress: Whether to show bytes, rate and time left; never where the standard error is not a terminal.

    Returns:
        The target.

    Raises:
        DownloadError: The address cannot be reached, does not have the file, or serves another one.
        OSError: The file cannot be written.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"download: url must be an address of http or https, got {url!r}; give the file's address.")
    if _is_there(target, sha256):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with _alone(part) as file:
        if _is_there(target, sha256):  # fetched by the process that was waited for
            part.unlink(missing_ok=True)
            return target
        with _shown(target.name, progress) as report:
            in_parts = _fetch(url, file, size, retries, timeout, report)
            if in_parts and _digest(file) != sha256:  # an earlier part may be damaged, or of another file
                file.truncate(0)
                _fetch(url, file, size, retries, timeout, report)
        file.flush()
        os.fsync(file.fileno())
        found = _digest(file)
        if found != sha256:
            part.unlink()
            raise DownloadError(
                f"{url} serves another file than the published one (SHA-256 expected {sha256}, found {found})"
            )
        part.replace(target)
    return target


def _is_there(target: Path, sha256: str) -> bool:
    if not target.is_file():
        return False
    with target.open("rb") as file:
        return _digest(file) == sha256


def _digest(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """Opens the part file once no other process has it."""
    while True:
        with part.open("a+b") as file:
            _lock(file)
            # While this process waited, the file may have got the target's name, or have been removed.
            if part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat()):
                try:
                    yield file
                finally:
                    if part.exists() and not _length(file):
                        part.unlink()
                return


def _lock(file: BinaryIO) -> None:
    """Waits for the file's lock, which goes with the file's closing; nothing where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX)


def _fetch(url: str, file: BinaryIO, size: int | None, retries: int, timeout: float, report: Report) -> bool:
    """Makes attempts until the file is complete; those that brought it further than any before are free.

    Returns:
        Whether some of it was there before the last attempt.
    """
    failures, furthest = 0, _length(file)
    while True:
        try:
            return _attempt(url, file, size, timeout, report)
        except _TransientError as error:
            failures = 1 if _length(file) > furthest else failures + 1
            furthest = max(furthest, _length(file))
            if failures > retries:
                raise DownloadError(f"{url} cannot be fetched ({error}; {failures} attempts)") from None
        time.sleep(FIRST_WAIT * 2 ** (failures - 1))


def _attempt(url: str, file: BinaryIO, size: int | None, timeout: float, report: Report) -> bool:
    """Fetches what the file lacks; whether it had something that was kept."""
    have = _length(file)
    if size is not None and have > size:
        file.truncate(0)
        have = 0
    if have and have == size:
        return True
    headers = {"User-Agent": "nagjax", "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with _opened(url, headers, timeout, file) as response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            file.truncate(0)
            raise _TransientError("the server sent another part than the one asked for")
        if response.status != 206:  # the whole file: the server does not know of parts
            file.truncate(0)
            have = 0
        kept = have > 0
        announced = response.headers.get("Content-Length")
        total = have + int(announced) if announced else size
        report(have, total)
        while chunk := _read(response):
            file.write(chunk)
            have += len(chunk)
            report(have, total)
            if size is not None and have > size:
                break  # the checksum will say so
        file.flush()
        if total is not None and have < total:
            raise _TransientError(f"cut off after {have:,} of {total:,} bytes")
    return kept


def _opened(url: str, headers: dict[str, str], timeout: float, file: BinaryIO) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # nothing after what is there: it is complete, or of another file
                file.truncate(0)
                raise _TransientError("the server's file is not longer than the part at hand") from None
            reason = f"HTTP {error.code} {error.reason}"
            if error.code >= 500 or error.code in TRANSIENT:
                raise _TransientError(reason) from None
            raise DownloadError(f"{url} cannot be fetched ({reason})") from None
    except urllib.error.URLError as error:
        reason = error.reason
        # An absent name, network or listener is how being offline looks: no use in waiting.
        offline = isinstance(reason, (socket.gaierror, ssl.SSLCertVerificationError, ConnectionRefusedError))
        if isinstance(reason, BUSY_SIDE) and not offline:
            raise _TransientError(_said(reason)) from None
        raise DownloadError(f"{url} cannot be reached ({_said(reason)})") from None
    except BUSY_SIDE as error:
        raise _TransientError(_said(error)) from None


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)
    except BUSY_SIDE as error:
        raise _TransientError(_said(error)) from None


def _said(error: object) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


@contextlib.contextmanager
def _shown(name: str, progress: bool) -> Iterator[Report]:
    """Gives the function that shows how far a download is."""
    if not (progress and sys.stderr.isatty()):
        yield lambda have, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda have, total: bar.update(task, completed=have, total=total)
