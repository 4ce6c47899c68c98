"""What may be said of a run: healthy, spiked, stalled or diverged, with the evidence, and LR sensitivity.

The rules, in the order in which they are asked. "Start" is the larger of chance and initial loss, "way" the
distance from chance (unknown: initial loss) down to the floor (unknown: 0), and "final" the mean of the last
tenth of the steps.

    diverged   loss or gradient norm non-finite to the end; or final above start by DIVERGED_MARGIN of the
               way; or the run had covered LEARNED_SHARE of the way and then lost LOST_SHARE of that for good
    stalled    final has covered less than STALLED_SHARE of the way
    spiked     loss or gradient norm jumped SPIKE_SIGMAS robust deviations above its running window and by at
               least SPIKE_HEIGHT of the way (gradient norm: by a factor of GRADIENT_FACTOR); or, in the first
               SPIKE_HISTORY values, which have no window, the loss left its start by EARLY_HEIGHT of the
               way; the evidence says whether it came back
    healthy    none of these

A skipped step (non-finite, then finite again) is no divergence: loss scaling in fp16 skips steps by design.
What these rules cannot see in a run is said beside its verdict: `Verdict.unseen`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stabviz.trace.spikes import SPIKE_HISTORY, find_spikes
from stabviz.trace.trace import Trace

FINAL_SHARE = 0.1
"""Share of the steps that "final" averages: single batches are noisy, a tenth of the run is not."""
DIVERGED_MARGIN = 0.1
"""Above chance by this share of the way: batch noise around chance stays below it, ruined outputs do not."""
LEARNED_SHARE = 0.1
"""Only a run that had clearly left chance can lose what it had learned; twice STALLED_SHARE is clear."""
LOST_SHARE = 0.5
"""Losing more than half of the progress for good is a failed run, not the wobble of a high learning rate."""
STALLED_SHARE = 0.05
"""Below a twentieth of the way a language model has learned token frequencies at the very most."""
EARLY_HEIGHT = 1.0
"""As far above the start as the floor lies below it: batches of an untrained model do not scatter so."""
SPIKE_HEIGHT = 0.1
"""Smallest jump, as a share of the way: a noise-free loss has a tiny deviation, any wiggle many of them."""
GRADIENT_FACTOR = 5.0
"""Smallest jump of a gradient norm over its median; the noise is multiplicative: deviations of the log."""

Kind = Literal["healthy", "spiked", "stalled", "diverged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Judgement of one run."""

    kind: Kind
    step: int | None
    """Step that decided it (first non-finite, best before the loss rose, highest spike); None otherwise."""
    evidence: str
    """One sentence with the figures."""
    unseen: tuple[str, ...] = ()
    """What the rules could not see in this run, a phrase each."""


def verdict(trace: Trace, run: int, *, floor: float | None = None, chance: float | None = None) -> Verdict:
    """Judge one run by the rules at the head of this module.

    `floor` and `chance` default to "floor_nats" and "chance_nats" of the run's labels or configuration.

    Units:  floor and chance in nats, like the loss
    Raises: ValueError if run is out of range, the trace is empty, or floor >= chance
    Source: the kinds follow the failed and stalled runs of Mosbach et al. 2021, arXiv:2006.04884, and the
            loss spikes of Wortsman et al. 2023, arXiv:2304.13013; the thresholds are ours, justified above
    Lesson: 00-start-here

    >>> trace = Trace(steps=range(3), signals={"loss_nats": [[4.0, 2.0, float("nan")]]}, runs=[{}])
    >>> verdict(trace, 0).kind, verdict(trace, 0).step
    ('diverged', 2)
    """
    if not isinstance(run, (int, np.integer)) or not 0 <= run < trace.n_runs:
        raise ValueError(f"verdict: run must be an index in 0..{trace.n_runs - 1}; got {run!r}")
    if not trace.n_steps:
        raise ValueError("verdict: trace must hold at least one step; got 0")
    loss_S = trace["loss_nats"][run].astype(np.float64)
    dead_step = trace.non_finite_step(run)
    unseen = _unseen(trace, run, known=chance is not None or trace.setting(run, "chance_nats") is not None)
    if dead_step is not None:
        words = _non_finite_evidence(trace, run, dead_step)
        return Verdict(kind="diverged", step=dead_step, evidence=words, unseen=unseen)
    floor = trace.setting(run, "floor_nats") if floor is None else floor
    chance = trace.setting(run, "chance_nats") if chance is None else chance
    floor = 0.0 if floor is None else float(floor)
    alive_S = loss_S[np.isfinite(loss_S)]
    tail_S = loss_S[-max(1, round(FINAL_SHARE * len(loss_S))) :]  # its last value is finite: the run lives
    initial, final = float(alive_S[0]), float(tail_S[np.isfinite(tail_S)].mean())
    if chance is not None and not floor < chance:
        raise ValueError(f"verdict: floor must be below chance = {chance!r}; got {floor!r}")
    level = initial if chance is None else float(chance)
    # a run that starts at its floor, or a loss below 0, has no way to go: its own size stands for it
    way = level - floor if level > floor else max(abs(level), 1.0)
    unit = trace.config.get("loss_unit", "nats")
    named = f"{'initial loss' if chance is None else 'chance'} {level:.3g}"
    skipped = trace.non_finite(run).sum()
    words = (
        f"loss went from {initial:.3g} to {final:.3g} {unit}, {(level - final) / way:.0%} of the way from "
        f"{named} to the floor {floor:.3g}{f'; {skipped} non-finite steps were skipped' if skipped else ''}"
    )
    found = (
        _lost(trace, loss_S, initial, final, level, way, f"{named} {unit}")
        or _stalled(final, level, way, f"{named} {unit}")
        or _spiked(trace, run, loss_S, way, unit)
        or _left_early(trace, loss_S, max(level, initial), way, unit)
        or Verdict(kind="healthy", step=None, evidence=words)
    )
    return replace(found, unseen=unseen)


def verdicts(trace: Trace, *, floor: float | None = None, chance: float | None = None) -> list[Verdict]:
    """Judge every run: `verdict` for each, in order."""
    return [verdict(trace, r, floor=floor, chance=chance) for r in range(trace.n_runs)]


def lr_sensitivity(lrs: Sequence[float], losses: Sequence[float], initial_loss: float) -> float:
    """Expected loss above the best over a range of learning rates; lower is better, 0 = any rate will do.

    Mean over the rates of min(loss, initial loss) - best loss; a non-finite loss counts as the initial one.
    The rates should be evenly spaced in log: the plain mean is then the expectation over log lr. The paper
    takes 3e-4, 1e-3, 3e-3, ..., 3e-1. 0 also comes out where no rate learns at all: look at the curve.

    Units:  nats, as the losses
    Raises: ValueError unless lrs are distinct, positive, at least two, one loss each, initial_loss finite
    Source: Wortsman et al. 2023, arXiv:2309.14322, definition of LR sensitivity; deviation: the best loss is
            never above the initial one, so that the result is never negative
    Lesson: 05-schedules

    >>> lr_sensitivity([1e-3, 1e-2, 1e-1], [3.0, 2.0, float("nan")], initial_loss=4.0)
    1.0
    """
    lr_N, loss_N = np.asarray(lrs, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if lr_N.ndim != 1 or lr_N.size < 2 or np.unique(lr_N).size != lr_N.size or not np.all(lr_N > 0):
        raise ValueError(f"lr_sensitivity: lrs must be 2 or more distinct rates > 0; got {lr_N.tolist()}")
    if loss_N.shape != lr_N.shape:
        raise ValueError(
            f"lr_sensitivity: losses must be one per rate, {lr_N.shape}; got {loss_N.shape}. "
            "Average over the seeds first"
        )
    if not np.isfinite(initial_loss):
        raise ValueError(f"lr_sensitivity: initial_loss must be finite; got {initial_loss!r}")
    capped_N = np.where(np.isfinite(loss_N), np.minimum(loss_N, initial_loss), initial_loss)
    return float(np.mean(capped_N - capped_N.min()))


def _non_finite_evidence(trace: Trace, run: int, step: int) -> str:
    s = int(np.searchsorted(trace.steps, step))
    loss = trace["loss_nats"][run]
    unit = trace.config.get("loss_unit", "nats")
    if np.isfinite(loss[s]):
        norm = trace["grad_norm_preclip"][run, s]
        what = f"gradient norm became {norm} at step {step}, loss still {loss[s]:.3g}"
    else:
        what = f"loss became {loss[s]} at step {step}"
    before = f"; it was {loss[s - 1]:.3g} {unit} one step before" if s and np.isfinite(loss[s - 1]) else ""
    return what + before


def _lost(trace, loss_S, initial, final, level, way, named) -> Verdict | None:
    if final > max(level, initial) + DIVERGED_MARGIN * way:
        # NaN of a skipped step is no return below the start
        below = np.flatnonzero(np.nan_to_num(loss_S, nan=np.inf) <= max(level, initial))
        step = int(trace.steps[below[-1] if below.size else 0])
        words = f"final loss {final:.3g} is above {named} and initial loss {initial:.3g}, since step {step}"
        return Verdict(kind="diverged", step=step, evidence=words)
    smooth_S = _trailing_mean(loss_S, max(1, round(FINAL_SHARE * len(loss_S))))
    best_at = int(np.nanargmin(smooth_S))
    best = float(smooth_S[best_at])
    if level - best >= LEARNED_SHARE * way and final - best > LOST_SHARE * (level - best):
        step = int(trace.steps[best_at])
        lost = f"loss had come down to {best:.3g} by step {step}, then rose to {final:.3g} and stayed"
        return Verdict(kind="diverged", step=step, evidence=f"{lost}; {named}")
    return None


def _stalled(final, level, way, named) -> Verdict | None:
    covered = (level - final) / way
    if covered >= STALLED_SHARE:
        return None
    words = (
        f"final loss {final:.3g} has left {named} by {max(covered, 0):.1%} of the way to the floor; "
        f"{STALLED_SHARE:.0%} would count as learning"
    )
    return Verdict(kind="stalled", step=None, evidence=words)


def _spiked(trace, run, loss_S, way, unit) -> Verdict | None:
    spikes = loss_spikes = find_spikes(loss_S, min_height=SPIKE_HEIGHT * way)
    if not spikes and "grad_norm_preclip" in trace:
        norm_S = trace["grad_norm_preclip"][run].astype(np.float64)
        log_S = np.log(np.where(norm_S > 0, norm_S, np.nan))
        spikes = find_spikes(log_S, min_height=np.log(GRADIENT_FACTOR))
    if not spikes:
        return None
    top = max(spikes, key=lambda spike: spike.value - spike.expected)
    if loss_spikes:
        what = f"loss jumped from {top.expected:.3g} to {top.value:.3g} {unit}"
    else:
        before, peak = np.exp(top.expected), np.exp(top.value)
        what = f"gradient norm jumped from {before:.3g} to {peak:.3g} (the loss did not)"
    step = int(trace.steps[top.index])
    end = "and came back" if top.recovered else "and has not come back yet"
    more = f"; {len(spikes)} spikes in all" if len(spikes) > 1 else ""
    # a noise-free window has no deviation to speak of: the factor would be a meaningless huge number
    size = f"{top.sigmas:.0f} robust deviations" if top.sigmas < 1000 else "over 1000 robust deviations"
    return Verdict(kind="spiked", step=step, evidence=f"{what} at step {step}, {size}, {end}{more}")


def _left_early(trace, loss_S, start, way, unit) -> Verdict | None:
    """A jump in the first values, which no running window stands before."""
    first_S = np.where(np.isfinite(loss_S), loss_S, -np.inf)[:SPIKE_HISTORY]
    top = int(np.argmax(first_S))
    if first_S[top] <= start + EARLY_HEIGHT * way:
        return None
    after_S = loss_S[top + 1 :]
    back = np.any(after_S[np.isfinite(after_S)] <= start + (first_S[top] - start) / 2)
    words = f"loss rose from {start:.3g} to {first_S[top]:.3g} {unit} in its first {SPIKE_HISTORY} values"
    end = "and came back" if back else "and has not come back yet"
    return Verdict(kind="spiked", step=int(trace.steps[top]), evidence=f"{words}, {end}")


def _unseen(trace: Trace, run: int, *, known: bool) -> tuple[str, ...]:
    """What the rules cannot see in this run, for want of data or by what they are."""
    phrases = []
    every = int(np.median(np.diff(trace.steps))) if trace.n_steps > 1 else 1
    if every > 1:
        phrases.append(f"what happened between logged steps ({every} apart)")
    if trace.n_steps <= SPIKE_HISTORY:
        height = f"{EARLY_HEIGHT:.0%} of the way"
        phrases.append(f"a spike lower than {height}: it takes more than {SPIKE_HISTORY} values to tell one")
    if "grad_norm_preclip" not in trace or not np.isfinite(trace["grad_norm_preclip"][run]).any():
        phrases.append("the gradient, whose norm was not logged")
    if not known:
        phrases.append("how far this is from guessing, which was not given: the first loss stands for it")
    phrases.append("whether another rate, seed or more steps would do better, or held-out data fares as well")
    return tuple(phrases)


def _trailing_mean(values_S, width):
    finite_S = np.isfinite(values_S)
    # sums from the start, not a window a step: a long run has a window of thousands
    total_S = np.cumsum(np.r_[0.0, np.where(finite_S, values_S, 0.0)])
    count_S = np.cumsum(np.r_[0, finite_S])
    last = np.arange(len(values_S)) + 1
    first = np.maximum(last - width, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_S = (total_S[last] - total_S[first]) / (count_S[last] - count_S[first])
    # means over fewer than `width` steps are too noisy to be called the best
    return np.where((last < width) & (width < len(values_S)), np.nan, mean_S)
