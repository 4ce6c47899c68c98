"""Train all runs of an experiment: in batches, step by step; what they measured is joined to Traces."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from stabviz.lab.engine import RunBatch
from stabviz.lab.experiment import Experiment
from stabviz.lab.problems import problem_of
from stabviz.lab.threads import Threads
from stabviz.trace import Trace

NUMBERS_TOGETHER = 2**20
"""Size of the largest intermediate result of the runs that are trained as one batch on a CPU: 4 MB of
float32."""


class Trained(NamedTuple):
    """What `train(..., keep_params=True)` returns."""

    trace: Trace
    params: list[dict[str, Tensor]]
    """One dict per run, as `init_transformer` makes them; a frozen run keeps those of its last good step."""
    configs: list[Any]
    """One per run: what `transformer_logits(params[r], tokens_BL, configs[r])` and its like take; None for a
    surface."""


@overload
def train(
    experiment: Experiment,
    *,
    device: str | None = ...,
    measure: bool = ...,
    keep_params: Literal[False] = ...,
) -> Trace: ...


@overload
def train(
    experiment: Experiment, *, device: str | None = ..., measure: bool = ..., keep_params: Literal[True]
) -> Trained: ...


def train(experiment, *, device=None, measure=True, keep_params=False):
    """Train all runs to the end and return their Trace; with keep_params also the trained parameters.

    Raises: what `stream` raises
    Lesson: 00-start-here

    >>> from stabviz.lab import grid
    >>> plain = dict(optimizer="sgd", schedule="constant", warmup_steps=0)
    >>> trace = train(grid("bowl", **plain, lr=[0.1, 3.0], steps=40))
    >>> [bool(loss < 1) for loss in trace.final()]
    [True, False]
    >>> trace, params, _ = train(grid("bowl", **plain, lr=[0.5], steps=2), keep_params=True)
    >>> params[0]["position"]
    tensor([2.5000])
    """
    batches: list[tuple[list[int], RunBatch]] = []
    *_, trace = _stream(experiment, experiment.runs[0].steps, None, device, measure, batches)
    if note := trace.config.get("note"):
        warnings.warn(note, stacklevel=2)
    if not keep_params:
        return trace
    by_run = {r: (batch, place) for rows, batch in batches for place, r in enumerate(rows)}
    placed = [by_run[r] for r in range(len(experiment.runs))]
    return Trained(
        trace=trace,
        params=[batch.params_of(place) for batch, place in placed],
        configs=[batch.problem.config for batch, _ in placed],
    )


def stream(
    experiment: Experiment,
    *,
    every: int = 10,
    cancelled: Callable[[], bool] | None = None,
    device: str | None = None,
    measure: bool = True,
) -> Iterator[Trace]:
    """Train all runs together and yield the Trace so far, every `every` steps and at the end.

    A run whose loss or gradient goes non-finite is recorded and frozen at that step (or what its knob
    `on_non_finite` says); its neighbours do not notice. `cancelled` is asked before each step; when it
    answers True, what was done is yielded and the run is over. `measure=False` leaves only loss, rate and
    gradient norm.

    Shapes: signals (R, steps so far), R in the order of experiment.runs
    Raises: ValueError if every < 1, or for a function of yours that cannot be used; RuntimeError if the
            device asked for is not there
    Lesson: 00-start-here
    """
    return _stream(experiment, every, cancelled, device, measure, [])


def _stream(experiment, every, cancelled, device, measure, batches: list) -> Iterator[Trace]:
    """What `stream` does; `batches` is filled with (indices of the runs, their batch)."""
    if every < 1:
        raise ValueError(f"stream: every must be at least 1; got {every!r}")
    where = _device(device)
    steps = experiment.runs[0].steps
    # A panel's worker thread, or a caller inside no_grad, may have gradients switched off.
    with torch.enable_grad(), Threads(None if where.type == "cpu" else 1) as threads:
        for rows in _groups(experiment, where):
            batches.append((rows, RunBatch([experiment.runs[r] for r in rows], where, measure)))
        done = 0
        for step in range(steps):
            if cancelled is not None and cancelled():
                break
            threads.each(lambda pair: pair[1].step(), batches)
            done = step + 1
            if done % every == 0 and done < steps:
                yield _trace(experiment, batches, done)
                if not any(batch.alive for _, batch in batches):
                    break
        yield _trace(experiment, batches, done)


def _groups(experiment: Experiment, device: torch.device) -> list[list[int]]:
    """Runs that are trained as one batch: of one structure, and on a CPU no more than pays.

    The sizes depend on the experiment alone, not on the machine, so that neither do the curves.
    """
    by_structure: dict[tuple, list[int]] = {}
    for index, run in enumerate(experiment.runs):
        by_structure.setdefault(run.structure, []).append(index)
    if device.type != "cpu":
        return list(by_structure.values())
    groups = []
    for rows in by_structure.values():
        largest = problem_of(experiment.runs[rows[0]]).numbers_per_run
        parts = min(len(rows), max(1, round(len(rows) * largest / NUMBERS_TOGETHER)))
        groups += [part.tolist() for part in np.array_split(rows, parts)]
    return groups


def _device(name: str | None) -> torch.device:
    """The device asked for, else a GPU where there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(
            f"stream: device must be one that this machine has; got {name!r}. Try device='cpu'."
        )
    return torch.device(name)


def _trace(experiment: Experiment, batches: list[tuple[list[int], RunBatch]], done: int) -> Trace:
    """Join what the batches measured so far into one Trace, runs in their order."""
    wide = any(run.dtype == "float64" for run in experiment.runs)
    names = dict.fromkeys(name for _, batch in batches for name in batch.signals)
    shape, dtype = (len(experiment.runs), done), np.float64 if wide else np.float32
    signals = {name: np.full(shape, np.nan, dtype=dtype) for name in names}
    for rows, batch in batches:
        for name, values_SR in batch.signals.items():
            # A copy: the next steps write to the buffers, and a Trace must stay as it was yielded.
            signals[name][rows] = values_SR[:done].T.cpu().numpy()
    first = batches[0][1]
    config = experiment.shared | {"device": str(first.device)}
    config |= {name: getattr(first.problem, name) for name in ("floor_nats", "chance_nats", "loss_unit")}
    if notes := dict.fromkeys(note for _, batch in batches for note in batch.notes):
        config["note"] = "; ".join(notes)
    return Trace(
        config=config,
        steps=np.arange(done),
        signals=signals,
        runs=[dict(label) for label in experiment.labels],
        events=_events(signals, experiment),
    )


def _events(signals, experiment: Experiment) -> list[dict]:
    """The first non-finite step of each run, and every skipped one where steps are skipped."""
    events = []
    for r, run in enumerate(experiment.runs):
        bad_S = ~(np.isfinite(signals["loss_nats"][r]) & np.isfinite(signals["grad_norm_preclip"][r]))
        steps = np.flatnonzero(bad_S)
        for step in steps if run.on_non_finite == "skip" else steps[:1]:
            signal = "grad_norm_preclip" if np.isfinite(signals["loss_nats"][r][step]) else "loss_nats"
            events.append({"run": r, "step": int(step), "kind": "non_finite", "signal": signal})
    return events
