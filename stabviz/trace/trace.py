"""`Trace`: what R runs measured at S steps, with labels, events and configuration."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stabviz.files import dumps

WATCHED = ("loss_nats", "grad_norm_preclip")
"""Every step measures these, so what is not finite in them was lost, not left out: the run counts as
non-finite. The loss alone would not do: the gradient that the update is made of may be NaN beside it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Record of R runs over S steps. Arrays are copied in and read-only; `config` etc. become plain data.

    Plain data is what JSON can say: tuples become lists, numpy and torch scalars become Python numbers.
    A run that went non-finite is frozen: the raw value stands at its step, NaN at every later one.

    Shapes: steps_S (S,) int, strictly increasing; each of signals (R, S), float32 and float64 kept
    Raises: ValueError for a wrong shape or for what is not plain data
    Lesson: 00-start-here

    >>> trace = Trace(steps=[0, 1], signals={"loss_nats": [[4.0, 2.0], [4.0, float("nan")]]},
    ...               runs=[{"lr": 1e-3}, {"lr": 1.0}])
    >>> trace.final("loss_nats", share=0.5).tolist()
    [2.0, inf]
    """

    steps: np.ndarray
    """Step numbers; `steps[s]` updates had been made when column s was measured."""
    signals: dict[str, np.ndarray]
    """Name -> (R, S); names, units and meanings in `stabviz.trace.SIGNALS`."""
    runs: list[dict[str, Any]]
    """One dict of labels per run, holding what varies between runs: {"lr": 1e-3, "seed": 0}."""
    config: dict[str, Any] = field(default_factory=dict)
    """What all runs share; "floor_nats" and "chance_nats" of the task where it has them."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """{"run": r, "step": k, "kind": "non_finite", "signal": ...}, in any order."""

    def __post_init__(self):
        steps_S = _steps(self.steps)
        for name in ("config", "runs", "events"):
            object.__setattr__(self, name, _plain(getattr(self, name), name))
        if not isinstance(self.runs, list) or not self.runs or {type(run) for run in self.runs} != {dict}:
            raise ValueError(f"Trace: runs must be a list of one or more dicts of labels; got {self.runs!r}")
        shape = (len(self.runs), len(steps_S))
        signals = {_name(name): _array(name, values, shape) for name, values in self.signals.items()}
        for event in self.events:
            _check_event(event, len(self.runs))
        object.__setattr__(self, "steps", steps_S)
        object.__setattr__(self, "signals", signals)

    @property
    def n_runs(self) -> int:
        return len(self.runs)

    @property
    def n_steps(self) -> int:
        return len(self.steps)

    def __getitem__(self, signal: str) -> np.ndarray:
        """The (R, S) array of a signal."""
        if signal in self.signals:
            return self.signals[signal]
        near = difflib.get_close_matches(str(signal), self.signals, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"Trace: signal must be one of {sorted(self.signals)}; got {signal!r}.{hint}")

    def __contains__(self, signal: str) -> bool:
        return signal in self.signals

    def __repr__(self) -> str:
        size = f"{self.n_runs} runs, {self.n_steps} steps"
        return f"Trace({size}, labels {self.label_keys}, signals {sorted(self.signals)})"

    @property
    def label_keys(self) -> list[str]:
        """Keys that label at least one run, in order of first appearance."""
        return list(dict.fromkeys(key for run in self.runs for key in run))

    def labels(self, key: str) -> np.ndarray:
        """Label `key` of every run, (R,); an object array with None where some run lacks it."""
        if key not in self.label_keys:
            raise ValueError(f"Trace.labels: key must be one of {self.label_keys}; got {key!r}")
        values = [run.get(key) for run in self.runs]
        if all(isinstance(v, str) for v in values) or all(_is_number(v) for v in values):
            return np.array(values)
        boxed = np.empty(len(values), dtype=object)
        boxed[:] = values
        return boxed

    def setting(self, run: int, key: str, default=None):
        """What run `run` was given for `key`: its label, else the shared configuration, else `default`."""
        return self.runs[run].get(key, self.config.get(key, default))

    def select(self, **labels) -> "Trace":
        """The runs whose labels match; a list means any of its values. Numbers match to six digits."""
        for key in labels:
            self.labels(key)
        wanted = labels.items()
        keep = [r for r, run in enumerate(self.runs) if all(_matches(run.get(k), want) for k, want in wanted)]
        if not keep:
            known = {key: list(dict.fromkeys(map(str, self.labels(key).tolist())))[:9] for key in labels}
            raise ValueError(f"Trace.select: labels must match a run; got {labels!r}, known {known}")
        return self.take(keep)

    def take(self, runs: Sequence[int]) -> "Trace":
        """The runs with these indices, in this order; events come along under their new index."""
        new = {old: index for index, old in enumerate(runs)}
        events = [{**event, "run": new[event["run"]]} for event in self.events if event["run"] in new]
        return Trace(
            steps=self.steps,
            config=self.config,
            runs=[self.runs[r] for r in runs],
            events=events,
            signals={name: values_RS[list(runs)] for name, values_RS in self.signals.items()},
        )

    def non_finite(self, run: int) -> np.ndarray:
        """Whether a step's loss or gradient norm is not finite, (S,) bool: infinity counts as well as NaN."""
        bad_S = np.zeros(self.n_steps, dtype=bool)
        for name in WATCHED:
            if name in self.signals:
                bad_S |= ~np.isfinite(self.signals[name][run])
        return bad_S

    def non_finite_step(self, run: int) -> int | None:
        """Step from which the run's loss or gradient norm stayed non-finite to its end, or None.

        A non-finite step with finite ones after it was skipped by the loop (loss scaling does so): such a
        run lives.
        """
        bad_S = self.non_finite(run)
        if not bad_S.size or not bad_S[-1]:
            return None
        alive = np.flatnonzero(~bad_S)
        return int(self.steps[alive[-1] + 1 if alive.size else 0])

    def final(self, signal: str = "loss_nats", share: float = 0.1) -> np.ndarray:
        """Mean of the last `share` of the steps, (R,) float64; inf for a run that ended non-finite.

        Values that are not finite inside that window are left out; NaN if none is left.
        """
        if not 0 < share <= 1:
            raise ValueError(f"Trace.final: share must be in (0, 1]; got {share!r}")
        if not self.n_steps:
            raise ValueError("Trace.final: the trace must hold at least one step; got 0")
        tail_RS = self[signal][:, -max(1, round(share * self.n_steps)) :].astype(np.float64)
        kept_RS = np.isfinite(tail_RS)
        total_R = np.where(kept_RS, tail_RS, 0.0).sum(axis=1)
        with np.errstate(invalid="ignore"):  # 0/0: a window without a finite value has no mean
            mean_R = total_R / kept_RS.sum(axis=1)
        dead_R = np.array([self.non_finite_step(r) is not None for r in range(self.n_runs)])
        return np.where(dead_R, np.inf, mean_R)

    def table(self) -> list[dict[str, Any]]:
        """One dict per run: its labels, first and final loss, and the step at which it went non-finite."""
        rows = []
        final_R = self.final() if "loss_nats" in self and self.n_steps else None
        for r, run in enumerate(self.runs):
            row = {"run": r, **run}
            if final_R is not None:
                row["initial_loss_nats"] = float(self["loss_nats"][r, 0])
                row["final_loss_nats"] = float(final_R[r])
            rows.append({**row, "non_finite_step": self.non_finite_step(r)})
        return rows

    def equals(self, other: "Trace") -> bool:
        """Same to the bit: labels, events, configuration, dtypes and values; NaN equals NaN."""
        if not isinstance(other, Trace) or list(self.signals) != list(other.signals):
            return False
        if any(_text(getattr(self, k)) != _text(getattr(other, k)) for k in ("config", "runs", "events")):
            return False
        return np.array_equal(self.steps, other.steps) and all(
            mine.dtype == other[k].dtype and np.array_equal(mine, other[k], equal_nan=True)
            for k, mine in self.signals.items()
        )


def concatenate(traces: Sequence[Trace]) -> Trace:
    """Join the runs of several Traces with equal steps and signals into one.

    What all configurations agree on stays shared; what differs becomes a label of each run.

    >>> one = Trace(steps=[0], signals={"loss_nats": [[2.0]]}, runs=[{"seed": 0}], config={"norm": "pre"})
    >>> two = Trace(steps=[0], signals={"loss_nats": [[1.0]]}, runs=[{"seed": 0}], config={"norm": "post"})
    >>> concatenate([one, two]).runs
    [{'norm': 'pre', 'seed': 0}, {'norm': 'post', 'seed': 0}]
    """
    if not traces:
        raise ValueError("concatenate: traces must hold at least one Trace; got []")
    first = traces[0]
    for i, trace in enumerate(traces):
        if not np.array_equal(trace.steps, first.steps):
            raise ValueError(
                f"concatenate: traces must have equal steps; got {trace.n_steps} in trace {i}, "
                f"{first.n_steps} in trace 0 (or other step numbers)"
            )
        if set(trace.signals) != set(first.signals):
            odd = sorted(set(trace.signals) ^ set(first.signals))
            raise ValueError(f"concatenate: traces must have equal signals; only one of 0 and {i} has {odd}")
    keys = dict.fromkeys(key for trace in traces for key in trace.config)
    varying = [k for k in keys if len({_text(trace.config.get(k)) for trace in traces}) > 1]
    runs: list[dict] = []
    events: list[dict] = []
    for trace in traces:
        events += [{**event, "run": event["run"] + len(runs)} for event in trace.events]
        own = {k: trace.config[k] for k in varying if k in trace.config}
        runs += [{**own, **run} for run in trace.runs]
    return Trace(
        steps=first.steps,
        runs=runs,
        events=events,
        config={k: v for k, v in first.config.items() if k not in varying},
        signals={name: np.concatenate([t[name] for t in traces]) for name in first.signals},
    )


def _steps(steps) -> np.ndarray:
    steps_S = np.asarray(steps)
    if steps_S.ndim != 1 or (steps_S.size and steps_S.dtype.kind not in "iu"):
        raise ValueError(f"Trace: steps must be integers of shape (S,); got {steps_S.dtype} {steps_S.shape}")
    steps_S = np.array(steps_S, dtype=np.int64)
    if np.any(np.diff(steps_S) <= 0):
        at = int(np.flatnonzero(np.diff(steps_S) <= 0)[0])
        pair = steps_S[at : at + 2].tolist()
        raise ValueError(f"Trace: steps must increase strictly; got {pair} at position {at}")
    steps_S.flags.writeable = False  # a picture, a claim and a test may share one Trace
    return steps_S


def _name(name) -> str:
    if not isinstance(name, str) or not name or name in ("run", "step"):
        raise ValueError(f"Trace: signals must be named by a text other than 'run' and 'step'; got {name!r}")
    return name


def _array(name: str, values, shape: tuple[int, int]) -> np.ndarray:
    try:
        values_RS = np.asarray(values)
        # float16 and integers become float64: a mean over many steps of float16 would lose digits
        dtype = values_RS.dtype if values_RS.dtype in (np.float32, np.float64) else np.float64
        values_RS = np.array(values_RS, dtype=dtype, order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"must be an array of numbers on the CPU; got {type(values).__name__} ({error})"
        raise ValueError(f"Trace: signals[{name!r}] {what}") from error
    if values_RS.shape != shape:
        wanted = f"(R, S) = {shape}, runs by steps"
        raise ValueError(f"Trace: signals[{name!r}] must have shape {wanted}; got {values_RS.shape}")
    values_RS.flags.writeable = False
    return values_RS


def _check_event(event, n_runs: int) -> None:
    whole = isinstance(event, dict) and all(type(event.get(key)) is int for key in ("run", "step"))
    if not whole or not isinstance(event.get("kind"), str):
        raise ValueError(f"Trace: events must each have int 'run', int 'step', text 'kind'; got {event!r}")
    if not 0 <= event["run"] < n_runs:
        raise ValueError(f"Trace: events must name a run in 0..{n_runs - 1}; got {event!r}")


def _plain(value, where: str):
    """Copy of `value` in dicts, lists, text, numbers, bools and None only."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"Trace: {where} must have text keys; got {list(value)!r}")
        return {str(key): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), where)
    for kind in (
        bool,
        int,
        float,
        str,
    ):  # an enum's member or a subclass of str, which JSON would not give back
        if isinstance(value, kind):
            return kind(value)
    raise ValueError(f"Trace: {where} must be plain data (numbers, text, lists, dicts, None); got {value!r}")


def _text(plain) -> str:
    # As text NaN equals NaN, and 1 differs from True and from 1.0, which == would not tell apart.
    return dumps(plain)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _matches(value, wanted) -> bool:
    if isinstance(wanted, (list, tuple, set, range, np.ndarray)):
        return any(_matches(value, w) for w in wanted)
    if _is_number(value) and isinstance(wanted, (int, float, np.number)) and not isinstance(wanted, bool):
        # a rate of a grid that is even in log is not 0.003 to the last digit
        return math.isclose(value, float(wanted), rel_tol=1e-6)
    return type(value) is type(wanted) and value == wanted or value is None and wanted is None
