"""Writing files so that a reader never sees half of one, and nothing is lost or left behind."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

# Names of files that are being written; see `write_atomically`.
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
# A process that still writes one of some kilobytes after this is no more.
_LEFT_BEHIND_AFTER = 3600  # seconds
_PATIENCE = 2.0  # seconds for readers to close a file

# What an artist reads in place of the system's words, and what to do.
_CAUSES = {
    errno.ENOSPC: "the disk is full. Free some space there",
    errno.EDQUOT: "your share of the disk is used up. Free some space there",
    errno.EROFS: "the disk is read-only. Save to another place, or make it writable",
    errno.EACCES: "ComfyUI may not write there. Give it the right to, or save to another place",
    errno.EPERM: "ComfyUI may not write there. Give it the right to, or save to another place",
    errno.ENAMETOOLONG: "the name is too long. Use a shorter one",
    errno.ENOTDIR: "a part of the name is a file and not a folder. Use another name",
    errno.EEXIST: "a part of the name is a file and not a folder. Use another name",
    errno.EISDIR: "there is a folder of that name. Use another name",
    errno.EIO: "the disk does not answer. See whether it is still connected",
    errno.ENODEV: "the disk is gone. See whether it is still connected",
    errno.ESTALE: "the network folder is gone. See whether it is still connected",
}


def cause(error: OSError) -> str:
    """What keeps a file from being written, and what to do."""
    known = _CAUSES.get(error.errno or 0)
    return f"{known or error.strerror or error}."


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`: afterwards `path` holds all of it, or, after an error, what it held.

    The folder is created when it is missing. Raises OSError when the disk does not take it.
    """
    partial = _written(path, data)
    try:
        replace_file(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_new(paths: Iterable[Path], data: bytes) -> Path:
    """Write `data` to the first of `paths`, all in one folder, that is not there; return it.

    Two processes that do so at the same time write two files. Raises as `write_atomically`.
    """
    partial: Path | None = None
    try:
        for path in paths:
            partial = partial or _written(path, data)
            if _moved_to_new(partial, path):
                return path
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _moved_to_new(partial: Path, path: Path) -> bool:
    """Give the file `partial` the name `path`; False when something has that name."""
    try:
        os.link(partial, path)
        return True
    except FileExistsError:
        return False
    except (OSError, NotImplementedError):
        pass  # a file system without hard links, such as exFAT
    try:
        with path.open("xb"):  # the name is ours now
            pass
    except FileExistsError:
        return False
    try:
        replace_file(partial, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def replace_file(partial: Path, path: Path) -> None:
    """Give the file `partial` the name `path`, also where another file has it.

    Windows refuses that while anybody reads the other file, which lasts a moment: a virus scanner
    as well. Raises OSError where it lasts longer than `_PATIENCE`.
    """
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            os.replace(partial, path)
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > give_up:
                raise
        time.sleep(0.02)


def _written(path: Path, data: bytes) -> Path:
    """A file of another name beside `path` that holds all of `data`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    # In the same folder, because a rename is atomic only within one file system.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def _sweep(folder: Path) -> None:
    """Delete what processes that were killed while writing have left in a folder."""
    try:
        for entry in os.scandir(folder):
            if _PARTIAL.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age > _LEFT_BEHIND_AFTER:
                    os.unlink(entry.path)
    except OSError:
        pass  # somebody else's, or gone meanwhile: no reason not to write
