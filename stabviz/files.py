"""Files that are whole or not at all, JSON with one spelling of what is not finite, and locks.

A reader, a kill or a power cut sees the old content of a file or the new, nothing between: bytes go to a
hidden file beside it, onto the disk, and only then take the name. Imports nothing of ours.
"""

import errno
import glob
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_CHUNK = 1 << 24
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


# JSON


def dumps(value: Any, where: str = "value", *, indent: int | None = None) -> str:
    """Return `value` as strict JSON that `loads` reads back equal; NaN is {"$float": "NaN"}, so is infinity.

    Raises: ValueError that names the place of what JSON would change on the way, such as a tuple
    """
    return json.dumps(_plain(value, (where,)), allow_nan=False, indent=indent)


def loads(text: str | bytes) -> Any:
    """Read what `dumps` wrote, and the bare NaN and Infinity that older versions left in scores."""
    return json.loads(text, object_hook=_non_finite)


def as_number(value: Any) -> Any:
    """Return the float that a text of older versions names ("NaN", "inf"), anything else as it is."""
    if value == "inf":
        return math.inf
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _plain(value: Any, where: tuple) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return {"$float": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, list):
        return [_plain(item, (*where, i)) for i, item in enumerate(value)]
    if isinstance(value, dict) and "$float" not in value and all(isinstance(key, str) for key in value):
        return {key: _plain(item, (*where, key)) for key, item in value.items()}
    place = where[0] + "".join(f"[{key!r}]" for key in where[1:])
    raise ValueError(
        f"{place} must be None, a bool, a number, text, a list, or a dict with text keys; got {value!r:.80}. "
        "JSON would change it or cannot hold it: convert it first"
    )


def _non_finite(plain: dict) -> Any:
    return _NON_FINITE.get(plain["$float"], plain) if plain.keys() == {"$float"} else plain


# Whole or not at all


def write_atomically(path: str | Path, content: bytes | str | Callable[[Path], object]) -> Path:
    """Write one file: bytes, text as UTF-8, or what a function writes to the path that it is given.

    Raises: OSError in one line, with the old content as it was
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.writing")
    with one_line(f"write_atomically: {path} was not written; what was there before is as it was"):
        make_folder(path.parent)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.writing"):
            if _is_abandoned(left):
                left.unlink(missing_ok=True)
        try:
            if callable(content):
                content(scratch)
                sync_file(scratch)
            else:
                write_file(scratch, content.encode("utf-8") if isinstance(content, str) else content)
            os.replace(scratch, path)
            sync_folder(path.parent)
        finally:
            scratch.unlink(missing_ok=True)
    return path


def replace_folder(folder: str | Path, fill: Callable[[Path], object]) -> Path:
    """Let `fill` write a new version of `folder` beside it, and exchange them once all of it is on the disk.

    A kill leaves the old version or the new; one between the two renames leaves the old as .NAME.old, which
    the next call gives its name back. One process at a time writes a folder.

    Raises: OSError in one line, with the old version as it was
    """
    folder = Path(folder)
    new, old = (folder.with_name(f".{folder.name}.{age}") for age in ("new", "old"))
    with one_line(f"replace_folder: {folder} was not written; what was there before is as it was"):
        make_folder(folder.parent)
        if old.exists():
            shutil.rmtree(old) if folder.exists() else os.rename(old, folder)
        if new.exists():
            shutil.rmtree(new)
        os.mkdir(new)
        try:
            fill(new)
            for path in sorted(new.rglob("*"), reverse=True):
                sync_folder(path) if path.is_dir() else sync_file(path)
            sync_folder(new)
            # No system replaces a full folder in one call, so the old one steps aside first.
            if folder.exists():
                os.rename(folder, old)
            os.rename(new, folder)
            sync_folder(folder.parent)
        except BaseException:
            if old.exists() and not folder.exists():
                os.rename(old, folder)
            shutil.rmtree(new, ignore_errors=True)
            raise
        if old.exists():
            shutil.rmtree(old)
    return folder


def write_file(path: Path, content: bytes) -> None:
    """Write one file and put it on the disk; a short write, as near a full disk, is continued."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest[:_CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, each entry on the disk before the next."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_file(path: Path) -> None:
    """Put on the disk what another library has written."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Put the names in `folder` on the disk; Windows and some network file systems offer no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Say of an OSError what was being done and what is still safe, and keep its number and so its class."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        place = f" ({error.filename})" if error.filename else ""
        raise OSError(error.errno or errno.EIO, f"{what}: {reason}{place}") from error


def _is_abandoned(scratch: Path) -> bool:
    """Whether the writer of this hidden file is gone; one that still writes keeps it."""
    named = re.search(r"\.(\d+)\.\d+\.writing$", scratch.name)
    if os.name == "nt" or not named:  # there, asking after a process by signal 0 would end it
        return time.time() - scratch.stat().st_mtime > 3600
    try:
        os.kill(int(named[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, and belongs to someone else
        return False
    return False


# Locks


@contextmanager
def locked(path: str | Path, patience_s: float = 10.0) -> Iterator[None]:
    """Keep other threads and processes out while one changes `path`, by a lock on NAME.lock beside it.

    The operating system frees the lock of a process that was killed. The empty file stays: to remove it would
    take the lock from whoever waits for it.

    Raises: TimeoutError, an OSError, if another holds the lock for longer than `patience_s`
    """
    path = Path(path)
    make_folder(path.parent)
    lock = FileLock(path.with_name(path.name + ".lock"), timeout=patience_s)
    try:
        lock.acquire()
    except Timeout as error:
        raise TimeoutError(
            f"locked: another process has held {lock.lock_file} for more than {patience_s:g} s; end it first"
        ) from error
    try:
        yield
    finally:
        lock.release()
