"""Promises 3, 4, 5 and 13 of the loop: a kill, a damaged file, a pickle and a full disk cost no earlier
checkpoint."""

import errno
import hashlib
import json
import math
import os
import pickle
import resource
import shutil
import signal
import stat
import tempfile
from pathlib import Path

import pytest
import torch

from stabviz.files import replace_folder, write_atomically
from stabviz.finetune.train import checkpoint
from stabviz.finetune.train.checkpoint import (
    CheckpointError,
    check_room,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)

WRITES = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")
"""Every call of os through which checkpoint.py and files.py change the disk."""


def content(step):
    """Return tensors and state of one step: several dtypes, a tied pair, a scalar, an empty one, NaN."""
    generator = torch.Generator().manual_seed(step)
    tied = torch.randn(3, 5, generator=generator)
    tensors = {
        "model": {
            "head.weight": tied,
            "tied.weight": tied,
            "empty": torch.zeros(0, 3),
            "norm": torch.rand(7, generator=generator).bfloat16(),
        },
        "optimizer": {
            "exp_avg": torch.randn(5, 2, generator=generator).t(),
            "count": torch.tensor(step),
            "nan": torch.tensor([math.nan, -0.0, math.inf]),
        },
        "random": {"generator": generator.get_state()[:64]},
    }
    return tensors, {"step": step, "loss_nats": 0.1 * step, "order": [3, 1, 2], "best": None, "name": "é"}


def fingerprint(tensors, state):
    """Return a hash of every byte, dtype, shape and name: equal means equal to the bit, NaN and -0.0 too."""
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for group in sorted(tensors):
        for name, value in sorted(tensors[group].items()):
            digest.update(f"{group} {name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def loaded(folder):
    """Return the fingerprint of what a restart would load, None for a fresh start."""
    path, _ = newest_checkpoint(folder)
    return None if path is None else fingerprint(*read_checkpoint(path))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# A process that dies at its n-th change of the disk


class Fault:
    """Replace the calls in WRITES by ones that count themselves, and strike at the n-th."""

    def __init__(self, n, strike):
        self.n, self.strike, self.count = n, strike, 0
        self.real = {name: getattr(os, name) for name in WRITES}
        self.paths, self.unsynced, self.unnamed, self.renamed = {}, set(), set(), []

    def arm(self):
        for name in WRITES:
            setattr(os, name, self.counted(name))

    def counted(self, name):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.n:
                self.struck = name
                self.strike(self, name, args)
            target = args[1] if name in ("rename", "replace") else args[0]
            before = Path(target).read_bytes() if name == "replace" and os.path.isfile(target) else None
            is_new = name == "open" and args[1] & os.O_CREAT and not os.path.exists(target)
            result = self.real[name](*args, **kwargs)
            self._remember(name, args, result, before, is_new)
            return result

        return call

    def _remember(self, name, args, result, before, is_new):
        """Keep what a power cut at this instant may undo: bytes and names that no fsync has put on the
        disk."""
        if name == "open":
            self.paths[result] = os.fspath(args[0])
            self.unnamed |= {os.fspath(args[0])} if is_new else set()
        elif name == "write":
            self.unsynced.add(self.paths[args[0]])
        elif name == "fsync":
            path = self.paths[args[0]]
            self.unsynced.discard(path)
            self.unnamed = {name for name in self.unnamed if os.path.dirname(name) != path}
            self.renamed = [move for move in self.renamed if os.path.dirname(move[1]) != path]
        elif name in ("rename", "replace"):
            self.renamed.append((os.fspath(args[0]), os.fspath(args[1]), before))
            self.follow(*self.renamed[-1][:2])

    def follow(self, old, new):
        self.unsynced = {path.replace(old, new) for path in self.unsynced}
        self.unnamed = {path.replace(old, new) for path in self.unnamed}


def kill(fault, name, args):
    """SIGKILL before the call."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_half_way(fault, name, args):
    """SIGKILL after half of the bytes of a write, or half of a folder's removal."""
    if name == "write":
        fault.real["write"](args[0], args[1][: len(args[1]) // 2])
    kill(fault, name, args)


def cut_power(fault, name, args):
    """SIGKILL, and the disk loses all that it may: bytes that were not synced, names whose folder was not."""
    for old, new, before in reversed(fault.renamed):
        if os.path.exists(new) and not os.path.exists(old):
            fault.real["rename"](new, old)
            fault.follow(new, old)
        if before is not None:
            Path(new).write_bytes(before)
    for path in fault.unnamed | fault.unsynced:
        if os.path.exists(path):
            fault.real["unlink"](path) if path in fault.unnamed else os.truncate(path, 0)
    kill(fault, name, args)


def dies_at(n, strike, job):
    """Run `job` in a child that strikes at its n-th change of the disk; return False once it outlives its
    job."""
    child = os.fork()
    if child == 0:
        try:
            Fault(n, strike).arm()
            job()
            os._exit(0)
        finally:
            os._exit(9)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def deaths(start, strike, job, tmp_path):
    """Yield (n, folder) for every n at which the job can die, each from a fresh copy of what `start`
    wrote."""
    origin = tmp_path / "origin"
    start(origin)
    n, alive = 1, False
    while not alive:
        folder = tmp_path / f"death-{n}"
        shutil.copytree(origin, folder) if origin.exists() else None
        alive = not dies_at(n, strike, lambda folder=folder: job(folder))
        yield n, folder
        shutil.rmtree(folder, ignore_errors=True)
        n += 1


@pytest.mark.parametrize("strike", [kill, kill_half_way, cut_power])
def test_write_checkpoint_killed_at_any_instant_keeps_the_one_before(strike, tmp_path):
    def job(folder):
        write_checkpoint(folder, 20, *content(20))
        prune_checkpoints(folder, 1)

    old, new = fingerprint(*content(10)), fingerprint(*content(20))
    seen = []
    for n, folder in deaths(lambda folder: write_checkpoint(folder, 10, *content(10)), strike, job, tmp_path):
        seen.append(loaded(folder))
        assert seen[-1] in (old, new), f"killed at change {n}: {names(folder)}"
        for path in folder.glob("step-*"):
            read_checkpoint(path)  # what has the name of a checkpoint is one
        write_checkpoint(folder, 20, *content(20))  # the restart reaches step 20 again
        prune_checkpoints(folder, 1)
        assert loaded(folder) == new
        assert names(folder) == ["step-00000020"], f"killed at change {n}: leftovers"
    first_new = seen.index(new)
    assert set(seen[first_new:]) == {new}, "once it is there, the new one stays"
    assert first_new > 10, "kills fell into the write"
    assert len(seen) > first_new + 5, "and into the pruning"


@pytest.mark.parametrize("strike", [kill, cut_power])
def test_write_checkpoint_of_the_same_step_killed_at_any_instant_has_the_old_or_the_new(strike, tmp_path):
    old, new = fingerprint(*content(10)), fingerprint(*content(11))
    seen = []
    for n, folder in deaths(
        lambda folder: write_checkpoint(folder, 10, *content(10)),
        strike,
        lambda folder: write_checkpoint(folder, 10, *content(11)),
        tmp_path,
    ):
        seen.append(loaded(folder))
        assert seen[-1] in (old, new), f"killed at change {n}: {names(folder)}"
        write_checkpoint(folder, 12, *content(12))
        assert loaded(folder) == fingerprint(*content(12))
        assert names(folder) == ["step-00000010", "step-00000012"], f"killed at change {n}: leftovers"
        shutil.rmtree(folder / "step-00000012")
        assert loaded(folder) == seen[-1], "cleaning up keeps the one that a restart would have loaded"
    assert seen[0] == old
    assert seen[-1] == new


def test_write_checkpoint_first_of_all_killed_at_any_instant_is_there_or_is_not(tmp_path):
    new = fingerprint(*content(10))
    seen = [
        loaded(folder / "checkpoints")
        for _, folder in deaths(
            lambda folder: None,
            kill,
            lambda folder: write_checkpoint(folder / "checkpoints", 10, *content(10)),
            tmp_path,
        )
    ]
    assert seen[0] is None
    assert seen[-1] == new
    assert set(seen) == {None, new}


@pytest.mark.parametrize("strike", [kill, kill_half_way, cut_power])
def test_write_atomically_killed_at_any_instant_leaves_old_or_new(strike, tmp_path):
    def job(folder):
        write_atomically(folder / "scores.json", "newer")
        for name in ("returned", "later"):
            os.mkdir(folder / name)

    seen = []
    for _, folder in deaths(
        lambda folder: write_atomically(folder / "scores.json", "old"), strike, job, tmp_path
    ):
        seen.append((folder / "scores.json").read_text())
        assert seen[-1] == "newer" or not (folder / "returned").exists(), "what has returned stays"
        write_atomically(folder / "scores.json", "newest")
        assert set(names(folder)) <= {"later", "returned", "scores.json"}
    assert seen[0] == "old"
    assert seen[-1] == "newer"
    assert set(seen) == {"old", "newer"}


@pytest.mark.parametrize("strike", [kill, cut_power])
def test_replace_folder_killed_at_any_instant_leaves_old_or_new_whole(strike, tmp_path):
    def fill(words):
        def write(folder):
            (folder / "deep").mkdir()
            for path in (folder / "config.json", folder / "deep" / "weights"):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)  # unsynced, as other libraries write
                os.write(descriptor, words.encode())
                os.close(descriptor)

        return write

    def job(folder):
        replace_folder(folder / "best", fill("newer"))
        for name in ("returned", "later"):
            os.mkdir(folder / name)

    seen = []
    for n, folder in deaths(
        lambda folder: replace_folder(folder / "best", fill("old")), strike, job, tmp_path
    ):
        there = folder / "best" if (folder / "best").exists() else folder / ".best.old"
        found = {(there / name).read_text() for name in ("config.json", "deep/weights")}
        assert found in ({"old"}, {"newer"}), f"killed at change {n}"
        seen += found
        assert found == {"newer"} or not (folder / "returned").exists(), "what has returned stays"
        replace_folder(folder / "best", fill("newest"))
        assert (folder / "best" / "config.json").read_text() == "newest"
        assert set(names(folder)) <= {"best", "later", "returned"}
    assert set(seen) == {"old", "newer"}


def test_replace_folder_refused_keeps_the_old_version(tmp_path):
    def fill(folder):
        (folder / "half").write_text("new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    replace_folder(tmp_path / "best", lambda folder: (folder / "whole").write_text("old"))
    with pytest.raises(
        OSError, match="replace_folder: .*best was not written; what was there before is as it was: No"
    ):
        replace_folder(tmp_path / "best", fill)
    assert names(tmp_path) == ["best"]
    assert names(tmp_path / "best") == ["whole"]
    (tmp_path / "best").rename(tmp_path / ".best.old")  # as a kill between the two renames leaves it
    with pytest.raises(OSError, match="No space left"):
        replace_folder(tmp_path / "best", fill)
    assert names(tmp_path) == ["best"]


# What comes back


def test_read_checkpoint_returns_what_was_written_to_the_bit(tmp_path):
    tensors, state = content(3)
    path = write_checkpoint(tmp_path / "a" / "b", 3, tensors, state)
    assert path == tmp_path / "a" / "b" / "step-00000003"
    back, back_state = read_checkpoint(path)
    assert fingerprint(back, back_state) == fingerprint(tensors, state)
    assert list(back_state) == list(state)


def test_read_checkpoint_gives_nan_and_infinity_of_the_state_back_from_strict_json(tmp_path):
    state = {
        "losses": [1.5, math.nan, math.inf, -math.inf],
        "n": 2**70,
        "share": 0.1 + 0.2,
        "nested": {"a": [{}]},
    }
    path = write_checkpoint(tmp_path, 1, {}, state)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads((path / "state.json").read_text(), parse_constant=refuse)
    back = read_checkpoint(path)[1]
    assert math.isnan(back["losses"][1])
    assert back["losses"][2:] == [math.inf, -math.inf]
    assert {**back, "losses": 0} == {**state, "losses": 0}


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [(1, 2)]}, r"state\['a'\]\[0\]"),
        ({"a": {1: 2}}, r"state\['a'\]"),
        ({"a": torch.ones(1)}, r"state\['a'\]"),
        ({"$float": "NaN"}, "state must"),
        ({"a": Path("x")}, r"state\['a'\]"),
    ],
)
def test_write_checkpoint_refuses_a_state_that_json_would_change(state, where, tmp_path):
    with pytest.raises(ValueError, match=where):
        write_checkpoint(tmp_path, 1, {}, state)
    assert names(tmp_path) == []


def test_write_checkpoint_refuses_a_name_or_a_step_that_leads_elsewhere(tmp_path):
    with pytest.raises(ValueError, match=r"tensors must have plain words as names; got '\.\./model'"):
        write_checkpoint(tmp_path, 1, {"../model": {}}, {})
    with pytest.raises(ValueError, match="step must be an integer of at least 0; got -1"):
        write_checkpoint(tmp_path, -1, {}, {})


def test_write_checkpoint_of_a_changing_tensor_is_a_snapshot(tmp_path):
    weight = torch.ones(3)
    path = write_checkpoint(tmp_path, 1, {"model": {"w": weight}}, {})
    weight.add_(1)
    assert read_checkpoint(path)[0]["model"]["w"].tolist() == [1, 1, 1]
    read_checkpoint(path)[0]["model"]["w"].add_(5)  # nor does a change of what was read reach the file
    assert read_checkpoint(path)[0]["model"]["w"].tolist() == [1, 1, 1]


# Damage


def test_newest_checkpoint_names_and_passes_over_one_flipped_byte_wherever_it_is(tmp_path):
    write_checkpoint(tmp_path, 1, *content(1))
    whole = fingerprint(*content(1))
    path = write_checkpoint(tmp_path, 2, {"model": {"w": torch.arange(6.0)}}, {"step": 2})
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        for i in range(len(good)):
            file.write_bytes(good[:i] + bytes([good[i] ^ (1 << i % 8)]) + good[i + 1 :])
            found, passed_over = newest_checkpoint(tmp_path)
            assert found == tmp_path / "step-00000001", f"{file.name}, byte {i}"
            assert len(passed_over) == 1
            assert "step-00000002" in passed_over[0]
        assert str(file) in passed_over[0]
        assert "\n" not in passed_over[0]
        with pytest.raises(CheckpointError, match=file.name):
            read_checkpoint(path)
        assert loaded(tmp_path) == whole
        file.write_bytes(good)
    assert newest_checkpoint(tmp_path) == (path, [])


@pytest.mark.parametrize("length", [0, 1, -1, None])
def test_newest_checkpoint_names_and_passes_over_a_file_that_is_cut_short(length, tmp_path):
    write_checkpoint(tmp_path, 1, *content(1))
    path = write_checkpoint(tmp_path, 2, *content(2))
    assert names(path) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
    ]
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        file.unlink() if length is None else file.write_bytes(good[:length])
        found, passed_over = newest_checkpoint(tmp_path)
        assert found == tmp_path / "step-00000001"
        assert len(passed_over) == 1
        assert str(file) in passed_over[0]
        file.write_bytes(good)
    assert newest_checkpoint(tmp_path) == (path, [])


def test_newest_checkpoint_names_each_that_it_passes_over(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, *content(step))
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    (tmp_path / "step-00000002" / "state.json").write_text("{}")
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".writing-step-00000004-77")
    found, passed_over = newest_checkpoint(tmp_path)
    assert found == tmp_path / "step-00000001"
    assert [line.split(str(tmp_path))[1][:27] for line in passed_over] == [
        "/.writing-step-00000004-77 ",
        "/step-00000003/manifest.jso",
        "/step-00000002/state.json m",
    ]


def test_newest_checkpoint_of_nothing_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    assert newest_checkpoint(tmp_path / "absent") == (None, [])
    write_checkpoint(tmp_path, 1, *content(1))
    (tmp_path / "step-00000001" / "state.json").unlink()
    (tmp_path / "step-notes").mkdir()
    found, passed_over = newest_checkpoint(tmp_path)
    assert found is None
    assert len(passed_over) == 1


# Code


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def rewrite_manifest(path):
    """Do what an attacker would: make the manifest agree with whatever lies in the folder."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in path.iterdir()
        if file.name != "manifest.json"
    }
    (path / "manifest.json").write_bytes(checkpoint._manifest_bytes(2, files))


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "pytorch_model.bin",
        "training_args.bin",
        "model.pth",
        "state.pkl",
        "model.ckpt",
        "random.pickle",
        "model.safetensors",
        "state.json",
        "more.json",
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_read_checkpoint_runs_no_code_of_a_planted_pickle(name, listed, tmp_path):
    marker = tmp_path / "code-ran"
    poison = pickle.dumps(Malicious(marker))
    pickle.loads(poison)
    assert marker.is_dir(), "the pickle is live: whoever unpickles it runs its code"
    marker.rmdir()
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, 1, *content(1))
    path = write_checkpoint(folder, 2, *content(2))
    (path / name).write_bytes(poison)
    if listed:
        rewrite_manifest(path)
    with pytest.raises(CheckpointError, match=name) as caught:
        read_checkpoint(path)
    if Path(name).suffix in (".pt", ".bin", ".pth", ".pkl", ".ckpt", ".pickle") and not listed:
        assert "a pickle can run code" in str(caught.value)
    found, passed_over = newest_checkpoint(folder)
    if not (
        listed and name in ("model.safetensors", "state.json")
    ):  # a listed hash shows only when it is parsed
        assert found == folder / "step-00000001"
        assert name in passed_over[0]
    assert not marker.exists()


def test_read_checkpoint_leaves_its_folder_for_no_manifest(tmp_path):
    path = write_checkpoint(tmp_path / "run", 2, *content(2))
    (tmp_path / "elsewhere.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    record = json.loads((path / "manifest.json").read_bytes())["files"]
    for name in ("../../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors")):
        files = record | {name: record["model.safetensors"]}
        (path / "manifest.json").write_bytes(checkpoint._manifest_bytes(2, files))
        with pytest.raises(
            CheckpointError, match="must list state.json and NAME.safetensors and nothing else"
        ):
            read_checkpoint(path)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    (path / "manifest.json").write_bytes(checkpoint._manifest_bytes(2, record))
    with pytest.raises(CheckpointError, match="model.safetensors must be a plain file"):
        read_checkpoint(path)


def test_newest_checkpoint_is_not_put_off_by_a_file_manager(tmp_path):
    path = write_checkpoint(tmp_path, 2, *content(2))
    (path / ".DS_Store").write_bytes(b"\0")
    assert newest_checkpoint(tmp_path) == (path, [])


# Pruning


def test_prune_checkpoints_keeps_the_newest_whole_ones(tmp_path):
    for step in range(1, 7):
        write_checkpoint(tmp_path, step, *content(step))
    (tmp_path / "step-00000005" / "state.json").write_text("{}")
    removed = prune_checkpoints(tmp_path, 2)
    assert names(tmp_path) == ["step-00000004", "step-00000005", "step-00000006"]
    assert [path.name for path in removed] == ["step-00000003", "step-00000002", "step-00000001"]
    assert loaded(tmp_path) == fingerprint(*content(6))


def test_prune_checkpoints_keeps_what_it_is_told_to(tmp_path):
    for step in range(1, 6):
        write_checkpoint(tmp_path, step, *content(step))
    removed = prune_checkpoints(tmp_path, 1, also=[2, 4])
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    assert len(removed) == 2


def test_prune_checkpoints_never_takes_the_only_good_one(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, *content(step))
    for step in (2, 3):
        (tmp_path / f"step-0000000{step}" / "model.safetensors").write_bytes(b"")
    assert prune_checkpoints(tmp_path, 1) == []
    assert loaded(tmp_path) == fingerprint(*content(1))
    (tmp_path / "step-00000001" / "state.json").unlink()
    assert prune_checkpoints(tmp_path, 1) == [], "where none is good nothing is removed"
    with pytest.raises(ValueError, match="keep must be at least 1; got 0"):
        prune_checkpoints(tmp_path, 0)


# Disks that refuse


def refusal(job):
    """Return what the OSError says that `job` ends in, None if it ends well."""
    try:
        job()
    except OSError as error:
        return str(error)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_write_checkpoint_on_a_full_disk_says_so_and_loses_nothing(number, tmp_path, monkeypatch):
    """Refuse the n-th change of the disk, for every n of a write."""

    def refuse(fault, name, args):
        raise OSError(number, os.strerror(number))

    write_checkpoint(tmp_path, 1, *content(1))
    old, new = fingerprint(*content(1)), fingerprint(*content(2))
    for n in range(1, 1000):
        fault = Fault(n, refuse)
        with monkeypatch.context() as patch:
            for name in WRITES:
                patch.setattr(os, name, fault.counted(name))
            said = refusal(lambda: write_checkpoint(tmp_path, 2, *content(2)))
        if said is None:
            break
        assert said.startswith(f"[Errno {number}] write_checkpoint: step 2 was not saved to {tmp_path}")
        assert os.strerror(number) in said
        assert "\n" not in said
        assert loaded(tmp_path) in (old, new), f"refused at {n}, {fault.struck}"
        assert not [name for name in names(tmp_path) if name.startswith(".")], (
            f"refused at {n}, {fault.struck}"
        )
        shutil.rmtree(tmp_path / "step-00000002", ignore_errors=True)
    assert n > 15
    assert loaded(tmp_path) == new


def test_write_checkpoint_refused_in_the_middle_of_a_replacement_gives_the_old_its_name_back(
    tmp_path, monkeypatch
):
    write_checkpoint(tmp_path, 1, *content(1))
    real = os.rename

    def rename(old, new):
        if ".writing-" in str(old):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="step 1 was not saved"):
        write_checkpoint(tmp_path, 1, *content(2))
    assert names(tmp_path) == ["step-00000001"]
    assert loaded(tmp_path) == fingerprint(*content(1))


def test_write_checkpoint_past_a_real_limit_of_the_system_loses_nothing(tmp_path):
    """A limit on file size refuses as a full disk does: first with a short write, then with an error."""
    write_checkpoint(tmp_path, 1, *content(1))
    big = {"model": {"w": torch.zeros(50_000)}}
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            write_checkpoint(tmp_path, 2, big, {})
        except OSError as error:
            said = str(error)
            os._exit(
                7 if error.errno == errno.EFBIG and "step 2 was not saved" in said and "\n" not in said else 8
            )
        finally:
            os._exit(9)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7
    assert names(tmp_path) == ["step-00000001"]
    assert loaded(tmp_path) == fingerprint(*content(1))
    assert write_checkpoint(tmp_path, 2, big, {}) == newest_checkpoint(tmp_path)[0]


def test_write_checkpoint_completes_short_writes(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:97]))
    write_checkpoint(tmp_path, 1, *content(1))
    assert loaded(tmp_path) == fingerprint(*content(1))


def outcome_without_privileges(job):
    """Run `job` in a child that is not root; return the class and the text of what it raised."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)
            job()
        except OSError as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def read_only():
    """A folder that others may read and nobody may write, outside pytest's own, which is closed to others."""
    folder = Path(tempfile.mkdtemp())
    write_checkpoint(folder, 1, *content(1))
    folder.chmod(0o555)
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    folder.chmod(0o755)
    (folder / "step-00000001").chmod(0o755)
    shutil.rmtree(folder)


def test_check_room_names_a_read_only_folder(read_only):
    said = outcome_without_privileges(lambda: check_room(read_only, 1))
    assert said.startswith(
        f"PermissionError: [Errno 13] check_room: {read_only} must be a folder that can be written"
    )
    assert "\n" not in said
    said = outcome_without_privileges(lambda: check_room(read_only / "new", 1))
    assert said.startswith("PermissionError")


def test_write_checkpoint_to_a_read_only_folder_loses_nothing(read_only):
    said = outcome_without_privileges(lambda: write_checkpoint(read_only, 2, *content(2)))
    assert said.startswith(
        f"PermissionError: [Errno 13] write_checkpoint: step 2 was not saved to {read_only}"
    )
    assert loaded(read_only) == fingerprint(*content(1))


def test_check_room_names_a_read_only_file_system(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        OSError, match="check_room: .* must be a folder that can be written: Read-only file system"
    ):
        check_room(tmp_path, 1)


def test_check_room_names_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match="check_room: .* must be a folder that can be written: File exists"):
        check_room(tmp_path / "run" / "checkpoints", 1)


def test_check_room_counts_bytes_and_leaves_nothing(tmp_path):
    check_room(tmp_path / "deep" / "folder", 1000)
    assert names(tmp_path / "deep" / "folder") == []
    with pytest.raises(OSError, match="must have room for 1,000,000,000,000,000,000 bytes") as caught:
        check_room(tmp_path, 10**18)
    assert caught.value.errno == errno.ENOSPC


def test_write_atomically_refused_keeps_the_old(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "a[1].json", "old")
    with monkeypatch.context() as patch:

        def refuse(*args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fsync", refuse)
        with pytest.raises(
            OSError, match=r"write_atomically: .*a\[1\]\.json was not written; .*: No space left"
        ):
            write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a[1].json"]
    write_atomically(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_write_checkpoint_works_where_folders_cannot_be_synced(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_checkpoint(tmp_path, 1, *content(1))
    assert loaded(tmp_path) == fingerprint(*content(1))
