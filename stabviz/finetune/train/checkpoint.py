"""Checkpoints on disk: whole or not at all, proved by hashes, and read without running any code.

    folder/step-00000123/         NAME.safetensors ..., state.json, and manifest.json, written last:
                                  sizes and sha256 of the rest
    folder/.writing-...           one under way; what a killed writer left goes with the next write
    folder/step-...replaced       an earlier one of the same step, while the new one takes its name

A checkpoint gets its name only when every byte of it is on the disk, so a kill or a power cut at any instant
leaves the one before it as it was. One process writes to a folder; any number may read.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from stabviz.files import dumps, loads, make_folder, one_line, sync_folder, write_file

SCHEMA = "stabviz.checkpoint/1"
_MANIFEST, _STATE = "manifest.json", "state.json"
_STEP = re.compile(r"step-(\d{8,})(\.replaced)?")
_GROUP = re.compile(r"[A-Za-z0-9_]+")
_FILE = re.compile(r"[A-Za-z0-9_]+\.safetensors|state\.json")
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""What file managers leave in any folder they show; never read, so no reason to refuse a checkpoint."""
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


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
    state_bytes = _json_bytes(state, "write_checkpoint: state")
    scratch = folder / f".writing-{path.name}-{os.getpid()}"
    with one_line(
        f"write_checkpoint: step {step} was not saved to {folder}; earlier checkpoints are as they were"
    ):
        make_folder(folder)
        _clean(folder)
        try:
            os.mkdir(scratch)
            files = {
                f"{name}.safetensors": _written(scratch / f"{name}.safetensors", _tensor_bytes(group))
                for name, group in tensors.items()
            }
            files[_STATE] = _written(scratch / _STATE, state_bytes)
            # Last: a folder without it was never finished. Each file is on the disk before the next begins.
            write_file(scratch / _MANIFEST, _manifest_bytes(step, files))
            # The names too, before the rename: a power cut could keep the folder and lose what is in it.
            sync_folder(scratch)
            _give_name(scratch, path)
        except BaseException:  # KeyboardInterrupt too: it may come in the middle of a write
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return path


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint, and one line for each newer one that was passed over."""
    passed_over: list[str] = []
    for path in _candidates(Path(folder)):
        try:
            _verified(path)
            return path, passed_over
        except CheckpointError as error:
            passed_over.append(f"passed over: {error}")
    return None, passed_over


def read_checkpoint(path: Path, device="cpu") -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Read a checkpoint from the very bytes whose hashes were checked; no code in it can run.

    Groups and tensors come back by name; the order inside a group is the file format's.
    Raises: CheckpointError that names the file which is missing, damaged, a stranger, or a pickle
    """
    path = Path(path)
    tensors, state = {}, {}
    for name, record in _manifest(path)["files"].items():
        # parsed from these bytes, not read again: a file could change after its hash was checked
        content = _checked_bytes(path / name, record)
        try:
            if name == _STATE:
                state = loads(content)
            else:
                group = safetensors.torch.load(content)
                tensors[name.removesuffix(".safetensors")] = {
                    key: value.to(device) for key, value in group.items()
                }
        except (ValueError, KeyError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path / name} must be what its ending says ({error})") from error
    return tensors, state


def prune_checkpoints(folder: Path, keep: int, also: Collection[int] = ()) -> list[Path]:
    """Remove all but the newest `keep` undamaged checkpoints and the steps `also`; return what went.

    Each one that is kept has been read and found whole first: where fewer than `keep` are, nothing is
    removed.
    """
    folder = Path(folder)
    if keep < 1:
        raise ValueError(f"prune_checkpoints: keep must be at least 1; got {keep!r}")
    n_whole, removed = 0, []
    with one_line(f"prune_checkpoints: an old checkpoint in {folder} could not be removed"):
        for path in _candidates(folder, unfinished=False):
            if n_whole < keep:
                n_whole += _is_whole(path)
            elif (named := _STEP.fullmatch(path.name)) and int(named[1]) not in also:
                _remove(path)
                removed.append(path)
    return removed


def check_room(folder: Path, n_bytes: int) -> None:
    """Find out before training whether `folder` takes files, and `n_bytes` of them.

    Raises: OSError in one line: a read-only folder, a file in its place, too little free space
    """
    folder = Path(folder)
    with one_line(f"check_room: {folder} must be a folder that can be written"):
        make_folder(folder)
        probe = folder / f".probe-{os.getpid()}"
        try:
            write_file(probe, b"\0" * 4096)
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


# Writing


def _folder_name(step: int) -> str:
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"write_checkpoint: step must be an integer of at least 0; got {step!r}")
    return f"step-{step:08d}"


def _give_name(scratch: Path, path: Path) -> None:
    """Rename the finished folder. No system replaces a full one in one call: the old one steps aside."""
    aside = path.with_name(f"{path.name}.replaced")
    had_one = path.exists()
    if had_one:
        os.rename(path, aside)
    try:
        os.rename(scratch, path)
        sync_folder(path.parent)
    except BaseException:
        if had_one and not path.exists():
            os.rename(aside, path)
        raise
    if had_one:  # only now: until the new name was on the disk, this was the checkpoint
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
    """Remove a checkpoint; it loses its name first, so that a kill leaves no damaged one behind."""
    going = path.with_name(f".deleting-{path.name}-{os.getpid()}")
    os.rename(path, going)
    sync_folder(path.parent)  # the name is gone from the disk before the first file is
    shutil.rmtree(going)


def _tensor_bytes(group: dict[str, Tensor]) -> bytes:
    """Return the safetensors form, which asks that tied or overlapping tensors are written out each."""
    seen, plain = set(), {}
    for name, tensor in group.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if storage in seen else value
        seen.add(storage)
    return safetensors.torch.save(plain)


def _json_bytes(plain: Any, where: str = "manifest") -> bytes:
    return (dumps(plain, where, indent=1) + "\n").encode("utf-8")


def _written(path: Path, content: bytes) -> dict[str, Any]:
    """Write one file; return its manifest record."""
    write_file(path, content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _manifest_bytes(step: int, files: dict[str, dict]) -> bytes:
    """Return the manifest with a hash of itself, so that a flipped byte in it shows as well."""
    body = {"schema": SCHEMA, "step": step, "files": files}
    return _json_bytes(body | {"sha256": hashlib.sha256(_json_bytes(body)).hexdigest()})


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
        manifest = loads(raw)
        schema, files = manifest["schema"], manifest["files"]
        # written again and compared whole: a change of white space or an extra key shows too
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
