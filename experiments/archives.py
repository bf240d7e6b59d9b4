"""Unpacking of archives that may hold files and folders, and nothing that leaves their folder."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

TAR = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")

DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    RuntimeError,  # zipfile: encrypted, or packed in a way it does not know
)


class ArchiveError(Exception):
    """An archive that is damaged, or holds what no data set needs."""


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks a .tar, .tar.gz, .tar.xz, .tar.bz2 or .zip archive into a new folder, whole or not at all.

    Args:
        archive: The archive; its kind is told by its name.
        folder: The folder to make; its parent is made too.

    Returns:
        The folder.

    Raises:
        ArchiveError: The archive is damaged, or has a member that is no file or folder (a link, a device) or whose
            path is absolute or leads out of the folder; or the folder is already there.
    """
    if folder.exists():
        raise ArchiveError(f"{archive.name} cannot be unpacked: {folder} is already there; remove it or use it")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if archive.name.endswith(".zip"):
            _unzip(archive, partial)
        elif archive.name.endswith(TAR):
            _untar(archive, partial)
        else:
            raise ArchiveError(f"{archive.name} is no archive of a known kind: {', '.join(TAR)}, .zip")
        partial.replace(folder)
    except DAMAGE as error:
        raise ArchiveError(f"{archive.name} is damaged ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            _check(archive, member.name, plain=member.isreg() or member.isdir())
            tar.extract(member, folder, filter="data")
        while tar.fileobj and tar.fileobj.read(1 << 20):
            pass  # the checksum of the compression stands behind the last member


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            # The upper half of the attributes is the mode of Unix, 0 where the archive was made elsewhere.
            kind = stat.S_IFMT(member.external_attr >> 16)
            # `filename` has been cleaned for this system; `orig_filename` is what the archive says.
            _check(archive, member.orig_filename, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
            zipped.extract(member, folder)


def _check(archive: Path, name: str, *, plain: bool) -> None:
    """Refuses what the data filter of tarfile, or zipfile, would repair in silence, and every link."""
    if not plain:
        raise ArchiveError(f"{archive.name} is refused: {name!r} is neither a file nor a folder")
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise ArchiveError(f"{archive.name} is refused: {name!r} leads out of its folder")
