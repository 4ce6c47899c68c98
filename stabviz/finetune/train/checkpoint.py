"""Checkpoints on disk: whole or not at all, proved by hashes, and read without running any code.

    folder/step-00000123/   NAME.safetensors ..., state.json, manifest.json (written last: sizes and sha256 of
    the rest) folder/.writing-...     a checkpoint under way; one that a killed writer left is removed by the
    next write folder/step-...replaced an earlier checkpoint of the same step, for the instant in which the
    new one takes its name

A checkpoint gets its name only when every byte of it is on the disk, so a kill or a power cut at any instant
leaves the one before it as it was. One process writes to a folder; any number may read.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Collection
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

SCHEMA = "stabviz.checkpoint/1"
_MANIFEST, _STATE = "manifest.json", "state.json"
_STEP = re.compile(r"step-(\d{8,})(\.replaced)?")
_GROUP = re.compile(r"[A-Za-z0-9_]+")
_FILE = re.compile(r"[A-Za-z0-9_]+\.safetensors|state\.json")
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""What file managers leave in any folder they show; never read, so no reason to refuse a checkpoint."""
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_CHUNK = 1 << 24
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class CheckpointError(ValueError):
    """A checkpoint is not whole, not what its manifest says, or holds a file that is never read."""


def write_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict) -> Path:
    """Write groups of tensors and plain `state` to folder/step-XXXXXXXX, whole or not at all.

    A second write of a step replaces the first, which stays readable until the new one has its name.

    Raises: OSError in one line where the disk refuses, with every earlier checkpoint as it was;
            ValueError if a group's name is no plain word, or state holds what JSON would change on the way
    """
    folder = Path(folder)
    path = folder / _folder_name(step)
    for name in tensors:
        if not _GROUP.fullmatch(name):
            raise ValueError(f"write_checkpoint: tensors must have plain words as names; got {name!r}")
    state_bytes = _json_bytes(_encode(state, "state"))
    scratch = folder / f".writing-{path.name}-{os.getpid()}"
    with _one_line(
        f"write_checkpoint: step {step} was not saved to {folder}; earlier checkpoints are as they were"
    ):
        _make_folder(folder)
        _clean(folder)
        try:
            os.mkdir(scratch)
            files = {
                f"{name}.safetensors": _write_file(scratch / f"{name}.safetensors", _tensor_bytes(group))
                for name, group in tensors.items()
            }
            files[_STATE] = _write_file(scratch / _STATE, state_bytes)
            _write_file(scratch / _MANIFEST, _manifest_bytes(step, files))
            _sync_folder(scratch)
            _give_name(scratch, path)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return path


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest complete and undamaged checkpoint, and one line for each newer one that was passed
    over."""
    passed_over = []
    for path in _candidates(Path(folder)):
        try:
            _verified(path)
            return path, passed_over
        except CheckpointError as error:
            passed_over.append(f"passed over: {error}")
    return None, passed_over


def read_checkpoint(path: Path, device="cpu") -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Read what `write_checkpoint` wrote, from the very bytes whose hashes were checked; no code in it can
    run.

    Groups and tensors come back by name; the order inside a group is the file format's.
    Raises: CheckpointError that names the file which is missing, damaged, a stranger, or a pickle
    """
    path = Path(path)
    tensors, state = {}, {}
    for name, record in _manifest(path)["files"].items():
        content = _checked_bytes(path / name, record)
        try:
            if name == _STATE:
                state = json.loads(content, object_hook=_decode)
            else:
                group = safetensors.torch.load(content)
                tensors[name.removesuffix(".safetensors")] = {
                    key: value.to(device) for key, value in group.items()
                }
        except (ValueError, KeyError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path / name} must be what its ending says ({error})") from error
    return tensors, state


def prune_checkpoints(folder: Path, keep: int, also: Collection[int] = ()) -> list[Path]:
    """Remove what is older than the newest `keep` undamaged checkpoints, but not the steps `also`; return
    what went.

    Each one that is kept has been read and found whole first: where fewer than `keep` are, nothing is
    removed.
    """
    folder = Path(folder)
    if keep < 1:
        raise ValueError(f"prune_checkpoints: keep must be at least 1; got {keep!r}")
    n_whole, removed = 0, []
    with _one_line(f"prune_checkpoints: an old checkpoint in {folder} could not be removed"):
        for path in _candidates(folder, unfinished=False):
            if n_whole < keep:
                n_whole += _is_whole(path)
            elif int(_STEP.fullmatch(path.name)[1]) not in also:
                _remove(path)
                removed.append(path)
    return removed


def check_room(folder: Path, n_bytes: int) -> None:
    """Find out before training whether `folder` takes files, and `n_bytes` of them.

    Raises: OSError in one line: a read-only folder, a file in its place, too little free space
    """
    folder = Path(folder)
    with _one_line(f"check_room: {folder} must be a folder that can be written"):
        _make_folder(folder)
        probe = folder / f".probe-{os.getpid()}"
        try:
            _write_file(probe, b"\0" * 4096)
            os.replace(probe, folder / f".probed-{os.getpid()}")
        finally:
            for left in (probe, folder / f".probed-{os.getpid()}"):
                left.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OSError(
            errno.ENOSPC,
            f"check_room: {folder} must have room for {n_bytes:,} bytes of checkpoints; got "
            f"{free:,} free. Keep fewer, or choose another folder",
        )


def write_atomically(path: Path, content: bytes | str) -> Path:
    """Write one file, UTF-8 for text, so that a reader or a kill sees the old content or the new, nothing
    between.

    Raises: OSError in one line, with the old content as it was
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.writing")
    with _one_line(f"write_atomically: {path} was not written; what was there before is as it was"):
        _make_folder(path.parent)
        for left in path.parent.glob(f".{_escaped(path.name)}.*.writing"):
            left.unlink(missing_ok=True)
        try:
            _write_file(scratch, content.encode("utf-8") if isinstance(content, str) else content)
            os.replace(scratch, path)
            _sync_folder(path.parent)
        finally:
            scratch.unlink(missing_ok=True)
    return path


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write a new version of `folder` beside it, and exchange them once all of it is on the disk.

    A kill leaves the old version or the new; one between the two renames leaves the old as .NAME.old, which
    the next call gives its name back.

    Raises: OSError in one line, with the old version as it was
    """
    folder = Path(folder)
    new, old = (folder.with_name(f".{folder.name}.{age}") for age in ("new", "old"))
    with _one_line(f"replace_folder: {folder} was not written; what was there before is as it was"):
        _make_folder(folder.parent)
        if old.exists():
            shutil.rmtree(old) if folder.exists() else os.rename(old, folder)
        if new.exists():
            shutil.rmtree(new)
        os.mkdir(new)
        try:
            fill(new)
            for path in sorted(new.rglob("*"), reverse=True):
                _sync_folder(path) if path.is_dir() else _sync_file(path)
            _sync_folder(new)
            if folder.exists():
                os.rename(folder, old)
            os.rename(new, folder)
            _sync_folder(folder.parent)
        except BaseException:
            if old.exists() and not folder.exists():
                os.rename(old, folder)
            shutil.rmtree(new, ignore_errors=True)
            raise
        if old.exists():
            shutil.rmtree(old)
    return folder


# Writing


def _folder_name(step: int) -> str:
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"write_checkpoint: step must be an integer of at least 0; got {step!r}")
    return f"step-{step:08d}"


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, each entry on the disk before the next."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _write_file(path: Path, content: bytes) -> dict[str, Any]:
    """Write and fsync one file; return its manifest record. A short write, as near a full disk, is
    continued."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest[:_CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync_file(path: Path) -> None:
    """Put on the disk what another library has written."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
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


def _give_name(scratch: Path, path: Path) -> None:
    """Rename the finished folder. No system replaces a full folder in one call: an old one steps aside
    first."""
    aside = path.with_name(f"{path.name}.replaced")
    had_one = path.exists()
    if had_one:
        os.rename(path, aside)
    try:
        os.rename(scratch, path)
        _sync_folder(path.parent)
    except BaseException:
        if had_one and not path.exists():
            os.rename(aside, path)
        raise
    if had_one:
        _remove(aside)


def _clean(folder: Path) -> None:
    """Remove what killed writers left, and finish the replacement that one was killed in."""
    for left in sorted(folder.iterdir()):
        if left.name.startswith((".writing-", ".deleting-")):
            shutil.rmtree(left)
        elif left.name.endswith(".replaced") and _STEP.fullmatch(left.name):
            path = left.with_name(left.name.removesuffix(".replaced"))
            if not path.exists():
                os.rename(left, path)
            elif _is_whole(path):
                _remove(left)
            else:
                _remove(path)
                os.rename(left, path)


def _remove(path: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that a kill in between leaves no damaged one
    behind."""
    going = path.with_name(f".deleting-{path.name}-{os.getpid()}")
    os.rename(path, going)
    _sync_folder(path.parent)
    shutil.rmtree(going)


def _tensor_bytes(group: dict[str, Tensor]) -> bytes:
    """Return the safetensors form; tied or overlapping tensors are written out each, which the format asks
    for."""
    seen, plain = set(), {}
    for name, tensor in group.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if storage in seen else value
        seen.add(storage)
    return safetensors.torch.save(plain)


def _json_bytes(plain: Any) -> bytes:
    return (json.dumps(plain, allow_nan=False, indent=1) + "\n").encode("utf-8")


def _manifest_bytes(step: int, files: dict[str, dict]) -> bytes:
    """Return the manifest with a hash of itself, so that a flipped byte in it shows as well."""
    body = {"schema": SCHEMA, "step": step, "files": files}
    return _json_bytes(body | {"sha256": hashlib.sha256(_json_bytes(body)).hexdigest()})


def _encode(value: Any, where: str) -> Any:
    """Return `value` as strict JSON that reads back equal; NaN and infinity, which JSON lacks, as {"$float":
    name}."""
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return {"$float": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, list):
        return [_encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and "$float" not in value and all(isinstance(key, str) for key in value):
        return {key: _encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise ValueError(
        f"write_checkpoint: {where} must be None, a bool, a number, text, a list, or a dict with text "
        f"keys; got {value!r:.80}. JSON would change it or cannot hold it: convert it first"
    )


def _decode(plain: dict) -> Any:
    return _NON_FINITE[plain["$float"]] if plain.keys() == {"$float"} else plain


@contextmanager
def _one_line(what: str):
    """Say of an OSError what was being done and what is still safe, and keep its number and so its class."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        place = f" ({error.filename})" if error.filename else ""
        raise OSError(error.errno or errno.EIO, f"{what}: {reason}{place}") from error


# Reading


def _candidates(folder: Path, *, unfinished: bool = True) -> list[Path]:
    """Return what may be a checkpoint, the newest first; `unfinished` ones too, so that they can be named."""
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        name = path.name
        if unfinished and name.startswith(".writing-"):
            name = name.removeprefix(".writing-").rpartition("-")[0]
        if match := _STEP.fullmatch(name):
            found.append((int(match[1]), path.name == name, match[2] is None, path))
    return [path for *_, path in sorted(found, reverse=True)]


def _is_whole(path: Path) -> bool:
    try:
        _verified(path)
    except CheckpointError:
        return False
    return True


def _verified(path: Path) -> None:
    if path.name.startswith(".writing-"):
        raise CheckpointError(
            f"{path} must be finished; its writer was stopped before the checkpoint was whole"
        )
    for name, record in _manifest(path)["files"].items():
        _checked_bytes(path / name, record)


def _manifest(path: Path) -> dict[str, Any]:
    """Read the manifest and compare it with what lies in the folder, before any other file is opened."""
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise CheckpointError(f"{path} must be a checkpoint folder ({error.strerror})") from error
    if _MANIFEST not in {entry.name for entry in entries}:
        raise CheckpointError(f"{path / _MANIFEST} must exist: without it the checkpoint is not complete")
    manifest = _parsed_manifest(path / _MANIFEST)
    files = manifest["files"]
    for entry in entries:
        if Path(entry.name).suffix in _PICKLES:
            raise CheckpointError(
                f"{entry.path} must not be here: a pickle can run code when it is loaded. Only "
                "safetensors and JSON are read"
            )
        if entry.name not in files and entry.name != _MANIFEST and entry.name not in _LITTER:
            raise CheckpointError(
                f"{entry.path} must be in the manifest; it was not written with this checkpoint"
            )
        if entry.name in files and not entry.is_file(follow_symlinks=False):
            raise CheckpointError(f"{entry.path} must be a plain file")
    return manifest


def _parsed_manifest(path: Path) -> dict[str, Any]:
    raw = _bytes(path)
    try:
        manifest = json.loads(raw)
        schema, files = manifest["schema"], manifest["files"]
        whole = raw == _manifest_bytes(manifest["step"], files)
        names_fit = all(_FILE.fullmatch(name) for name in files) and _STATE in files
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} must be a manifest; it is damaged ({type(error).__name__})") from error
    if schema != SCHEMA:
        raise CheckpointError(f"{path} must have schema {SCHEMA!r}; got {schema!r:.60}")
    if not whole:
        raise CheckpointError(f"{path} must have the hash that it states; it is damaged")
    if not names_fit:
        raise CheckpointError(
            f"{path} must list {_STATE} and NAME.safetensors and nothing else; "
            f"got {sorted(files)!r:.120}. Only safetensors and JSON are read"
        )
    return manifest


def _checked_bytes(path: Path, record: dict[str, Any]) -> bytes:
    content = _bytes(path)
    if len(content) != record["bytes"]:
        raise CheckpointError(
            f"{path} must have {record['bytes']} bytes; got {len(content)}: it was cut or changed"
        )
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise CheckpointError(f"{path} must have the sha256 of its manifest; it was damaged or changed")
    return content


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path} must exist as a plain file; it is missing")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} must be readable ({error.strerror})") from error
