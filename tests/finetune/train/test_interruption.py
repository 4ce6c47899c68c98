"""Promise 6: SIGTERM and Ctrl-C, whenever they come, save and leave with a documented code; the rest is
exact.

This file is a program too: it imports everything once, then forks for each scenario, which runs the command
line.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STOPPED, INTERRUPTED = 75, 130
PATIENCE = 120
"""Seconds after which a scenario that has not ended is taken for one that never will."""


# The program


def strike(number):
    """Signal this process: the handler runs before the next line."""
    os.kill(os.getpid(), number)


def at_call(function, n, then):
    """Return `function`, which on its n-th call does `then` first."""
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == n:
            then()
        return function(*args, **kwargs)

    return wrapped


def before_the_objective(n, then):
    """At the n-th micro-batch of the run."""
    from stabviz.finetune.tasks import KINDS

    kind = KINDS["classes"]
    objective = lambda *args: at_call(kind.objective(*args), n, then)  # noqa: E731
    KINDS["classes"] = dataclasses.replace(kind, objective=objective)


def in_a_step(number, n=17):
    """In the forward pass of a micro-batch: three to a step, so that call 17 is inside of step 5."""
    before_the_objective(n, lambda: strike(number))


def twice_in_a_step(number):
    """Somebody presses Ctrl-C again at once."""
    before_the_objective(17, lambda: [strike(number), strike(number)])


def in_an_evaluation(number):
    from stabviz.finetune import evaluation

    evaluation._labelled = at_call(evaluation._labelled, 2, lambda: strike(number))


def in_writing_the_best_weights(number):
    from transformers import PreTrainedModel

    PreTrainedModel.save_pretrained = at_call(PreTrainedModel.save_pretrained, 1, lambda: strike(number))


def in_a_wait_for_data(number, n=44):
    """The wait would last: only a signal that ends it at once lets the program leave in time."""
    from stabviz.finetune.data.encode import TokenRows

    TokenRows.__getitem__ = at_call(
        TokenRows.__getitem__, n, lambda: [strike(number), time.sleep(10 * PATIENCE)]
    )


def in_the_first_wait_for_data(number):
    in_a_wait_for_data(number, n=3)


def in_a_wait_for_a_worker(number):
    """A worker hangs, and tells the program around; then all processes of the group are signalled, as by a
    terminal."""
    from stabviz.finetune.data.encode import TokenRows

    TokenRows.__getitem__ = at_call(TokenRows.__getitem__, 20, lambda: [ready(), time.sleep(10 * PATIENCE)])


def in_a_step_beside_workers(number):
    """The whole group is signalled in mid-step."""
    before_the_objective(17, lambda: [ready(), time.sleep(1)])


def in_a_save(number):
    """In the second checkpoint: each has five files, and two were written before the first."""
    from stabviz.finetune.train import checkpoint

    checkpoint.write_file = at_call(checkpoint.write_file, 10, lambda: strike(number))


def in_the_last_save(number):
    """A run that stops of itself is writing what it has reached."""
    from stabviz.finetune.train import checkpoint, loop

    loop.Training.go_on = at_the_end(
        loop.Training.go_on,
        lambda: setattr(checkpoint, "write_file", at_call(checkpoint.write_file, 2, lambda: strike(number))),
    )


def at_the_end(function, then):
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        finally:
            then()

    return wrapped


def killed_in_a_step(number):
    """The machine's memory ran out, say: no save, and the checkpoint of step 4 has to do."""
    in_a_step(signal.SIGKILL)


def ready():
    Path(os.environ["READY"]).touch()


def scenario(job):
    """Run the command line in this process, with its fault planted; never return."""
    import torch

    from stabviz.cli.main import main

    os.setsid()
    torch.set_num_threads(1)
    with open(job["said"], "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    code = 1
    try:
        globals()[job["moment"]](job["signal"])
        code = main(["finetune", "--config", job["config"]])
    finally:
        sys.exit(code)


def outcome(job):
    """Fork for a scenario; return its exit code (negative: the signal that ended it), and whom it left
    behind."""
    os.environ["READY"] = job["said"] + ".ready"
    child = os.fork()
    if child == 0:
        scenario(job)
    began, sent, status = time.time(), False, 0
    while time.time() < began + PATIENCE:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if not sent and os.path.exists(os.environ["READY"]):
            os.killpg(child, job["signal"])
            sent = True
        time.sleep(0.02)
    else:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"code": "never", "left": []}
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.time() - began,
        "left": group_after(child),
    }


def group_after(child):
    """Return whether processes of the scenario's group outlive it by more than a few seconds, and end
    them."""
    for _ in range(150):
        try:
            os.killpg(child, 0)
        except ProcessLookupError:
            return False
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-child, os.WNOHANG)
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    return True


def program(path):
    import datasets  # noqa: F401
    import transformers.models.bert.modeling_bert  # noqa: F401
    from sklearn import metrics  # noqa: F401

    import stabviz.cli.main  # noqa: F401
    import stabviz.finetune.run  # noqa: F401
    from stabviz.views import report

    report.html_report = lambda *args, **kwargs: (
        "<html>drawn elsewhere</html>"
    )  # it takes longer than the training
    jobs = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps([outcome(job) for job in jobs]))


# The tests

SCENARIOS = {
    "term-step": (in_a_step, signal.SIGTERM, STOPPED, {}),
    "int-step": (in_a_step, signal.SIGINT, STOPPED, {}),
    "int-twice": (twice_in_a_step, signal.SIGINT, INTERRUPTED, {}),
    "term-evaluation": (in_an_evaluation, signal.SIGTERM, STOPPED, {}),
    "int-evaluation": (in_an_evaluation, signal.SIGINT, STOPPED, {}),
    "term-best": (in_writing_the_best_weights, signal.SIGTERM, STOPPED, {}),
    "term-wait": (in_a_wait_for_data, signal.SIGTERM, STOPPED, {}),
    "int-wait": (in_a_wait_for_data, signal.SIGINT, STOPPED, {}),
    "int-first-wait": (in_the_first_wait_for_data, signal.SIGINT, STOPPED, {}),
    "int-wait-worker": (in_a_wait_for_a_worker, signal.SIGINT, STOPPED, {"workers": 2}),
    "term-step-workers": (in_a_step_beside_workers, signal.SIGTERM, STOPPED, {"workers": 2}),
    "term-save": (in_a_save, signal.SIGTERM, STOPPED, {}),
    "int-save": (in_a_save, signal.SIGINT, STOPPED, {}),
    "term-last-save": (in_the_last_save, signal.SIGTERM, STOPPED, {"stop_after": 6}),
    "kill-step-workers": (killed_in_a_step, signal.SIGKILL, -signal.SIGKILL, {"workers": 2}),
}
REACHED = {
    "term-step": 6,
    "int-step": 6,
    "int-twice": 4,
    "term-evaluation": 10,
    "int-evaluation": 10,
    "term-best": 5,
    "term-wait": 5,
    "int-wait": 5,
    "int-first-wait": 0,
    "term-save": 4,
    "int-save": 4,
    "term-last-save": 6,
    "kill-step-workers": 4,
    "term-step-workers": 6,
}
"""Updates that a restart begins with: those made when the signal came, the step under way included."""
SETTINGS = {"steps": 14, "save_every": 4, "evaluate_every": 5}


@pytest.fixture(scope="module")
def uninterrupted(go, config_of, everything, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    go(config_of(out, **SETTINGS))
    return everything(out)


@pytest.fixture(scope="module")
def outcomes(config_of, tmp_path_factory):
    """Run every scenario once, one after the other, in one program."""
    folder = tmp_path_factory.mktemp("interrupted")
    jobs = []
    for name, (moment, number, _, settings) in SCENARIOS.items():
        config = config_of(folder / name, **SETTINGS, **settings)
        path = folder / f"{name}.json"
        path.write_text(json.dumps(config.as_dict()))
        jobs.append(
            {
                "moment": moment.__name__,
                "signal": int(number),
                "config": str(path),
                "said": str(folder / f"{name}.txt"),
            }
        )
    (folder / "jobs").write_text(json.dumps(jobs))
    subprocess.run(
        [sys.executable, __file__, str(folder / "jobs")],
        check=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads((folder / "jobs").read_text())
    return {
        name: result | {"out": folder / name, "said": (folder / f"{name}.txt").read_text()}
        for name, result in zip(SCENARIOS, found, strict=True)
    }


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_that_is_told_to_stop_leaves_as_documented_and_goes_on_to_the_bit(
    name, outcomes, uninterrupted, go, config_of, assert_equal_to_the_bit
):
    found = outcomes[name]
    assert found["code"] == SCENARIOS[name][2], found["said"]
    assert not found["left"], "no worker outlives its run"
    if SCENARIOS[name][2] == STOPPED:
        assert f"python -m stabviz resume {found['out']}" in found["said"]
        assert "Traceback" not in found["said"]
    if name in REACHED:
        assert newest_updates(found["out"]) == REACHED[name]
    go(config_of(found["out"], **SETTINGS), resume=True)
    assert_equal_to_the_bit(found["out"], uninterrupted)


def newest_updates(out):
    from stabviz.finetune.train.checkpoint import newest_checkpoint, read_checkpoint

    return read_checkpoint(newest_checkpoint(out / "checkpoints")[0])[1]["progress"]["updates"]


if __name__ == "__main__":
    program(sys.argv[1])
