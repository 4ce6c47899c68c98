"""What may be said of a run, in one word: the outcome, with the evidence, and LR sensitivity.

`diagnose` names the cause of this outcome and never another one. The rules, in the order in which they are
asked. "Start" is the larger of chance and initial loss, "way" the distance from chance (unknown: initial
loss) down to the floor (unknown: 0), and "final" the mean of the last tenth of the steps.

    too_short  no loss, or fewer than ENOUGH_ROWS of one whose chance and floor are not known
    diverged   loss or gradient norm non-finite to the end, or a loss of exactly 0 from one row to the next
    stalled    final has covered less than STALLED_SHARE of the way
    overfit    the validation loss turned and rose for good while the training loss fell
    spiked     see below
    healthy    none of these

Where chance or floor is known:

    diverged   final above start by DIVERGED_MARGIN of the way; or the run had covered LEARNED_SHARE of the
               way and then lost LOST_SHARE of that for good

Where the floor is known, as in the laboratory:

    spiked     loss or gradient norm jumped SPIKE_SIGMAS robust deviations above its running window and by at
               least SPIKE_HEIGHT of the way (gradient norm: by a factor of GRADIENT_FACTOR); or, in the first
               SPIKE_HISTORY values, which have no window, the loss left its start by EARLY_HEIGHT of the
               way; the evidence says whether it came back

Where the floor is not known, as in fine-tuning or in another program's log, a loss is judged by its own past:

    diverged   its level (a running median) rose to RISE_FACTOR of the lowest before it, by RISE_SIGMAS robust
               deviations and RISE_OF_START of the start, and stayed; or came back, and the validation loss
               did not; or it ended above its start
    spiked     its level rose so, and came back

One row that leaps is mentioned there (small batches do leap), and so is a gradient norm that leapt while the
loss did not. A run that logs a reward is judged by the reward, by the same rule.

A skipped step (non-finite, then finite again) is no divergence: loss scaling in fp16 skips steps by design.
What these rules cannot see in a run is said beside its verdict: `Verdict.unseen`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from stabviz.trace.curve import FINAL_SHARE, RISE_FACTOR, RISE_SIGMAS, Curve, Rise
from stabviz.trace.spikes import SPIKE_HISTORY, find_spikes
from stabviz.trace.trace import Trace

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
ENOUGH_ROWS = 8
"""Three to start, three to end, and something between them."""
STALL_STEPS = 50
"""Updates, not rows: a run of thirty has hardly left its warm-up when it ends."""
TREND_SIGMAS, TREND_SHARE = 4.0, 0.02
"""A fall of a fiftieth, sure by four standard errors, is slow learning and no stall."""
ZERO_FROM = 0.05
"""A loss above this that is exactly 0 one row later did not get there by learning."""
OVERFIT_RISE, OVERFIT_OF_START, OVERFIT_SIGMAS, OVERFIT_FALL = 0.1, 0.05, 3.0, 0.3
"""Validation loss up by a tenth of its best, a twentieth of where training began, and three deviations of one
evaluation, still at the last two, while the training loss fell by 30 %."""
SCORE_GAIN, OVERFIT_SURE = 0.03, 0.5
"""A score that rose by three points since says that the longer training paid, if its errors did not grow so
sure that the loss is half as high again; a point or two is the noise of a few hundred validation rows."""

Kind = Literal["healthy", "spiked", "stalled", "overfit", "diverged", "too_short"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Judgement of one run."""

    kind: Kind
    step: int | None
    """Step that decided it (first non-finite, best before the loss rose, highest spike); None otherwise."""
    evidence: str
    """One sentence with the figures."""
    noted: tuple[str, ...] = ()
    """What is worth a look and no fault: a flat stretch, a leap that left no mark."""
    unseen: tuple[str, ...] = ()
    """What the rules could not see in this run, a phrase each."""


@dataclass(frozen=True)
class _Run:
    """What the rules look at."""

    trace: Trace
    run: int
    floor: float | None
    chance: float | None

    def values(self, signal: str) -> np.ndarray:
        if signal not in self.trace:
            return np.full(self.trace.n_steps, np.nan)
        return self.trace[signal][self.run].astype(np.float64)

    def step(self, row: int) -> int:
        return int(self.trace.steps[row])

    @cached_property
    def loss(self) -> Curve:
        return Curve(self.values("loss_nats"))

    @cached_property
    def rise(self) -> Rise | None:
        return self.loss.rise()

    @cached_property
    def unit(self) -> str:
        """With its space before it; nothing where the loss is not known to be in nats."""
        unit = self.trace.config.get("loss_unit", "nats")
        return f" {unit}" if unit else ""

    @cached_property
    def level(self) -> float:
        return self.loss.finite_N[0] if self.chance is None else self.chance

    @cached_property
    def way(self) -> float:
        floor = self.floor or 0.0
        # a run that starts at its floor, or a loss below 0, has no way to go: its own size stands for it
        return self.level - floor if self.level > floor else max(abs(self.level), 1.0)

    @cached_property
    def named(self) -> str:
        return f"{'initial loss' if self.chance is None else 'chance'} {self.level:.3g}"

    @property
    def known(self) -> bool:
        """Whether chance or floor was given."""
        return self.chance is not None or self.floor is not None


def verdict(trace: Trace, run: int, *, floor: float | None = None, chance: float | None = None) -> Verdict:
    """Judge one run by the rules at the head of this module.

    `floor` and `chance` default to "floor_nats" and "chance_nats" of the run's labels or configuration.

    Units:  floor and chance in nats, like the loss
    Raises: ValueError if run is out of range, or floor >= chance
    Source: the kinds follow the failed and stalled runs of Mosbach et al. 2021, arXiv:2006.04884, and the
            loss spikes of Wortsman et al. 2023, arXiv:2304.13013; the thresholds are ours, justified above
    Lesson: 00-start-here

    >>> trace = Trace(steps=range(3), signals={"loss_nats": [[4.0, 2.0, float("nan")]]}, runs=[{}])
    >>> verdict(trace, 0).kind, verdict(trace, 0).step
    ('diverged', 2)
    """
    if isinstance(run, bool) or not isinstance(run, (int, np.integer)) or not 0 <= run < trace.n_runs:
        raise ValueError(f"verdict: run must be an index in 0..{trace.n_runs - 1}; got {run!r}")
    floor = trace.setting(run, "floor_nats") if floor is None else floor
    chance = trace.setting(run, "chance_nats") if chance is None else chance
    if chance is not None and not (floor or 0.0) < chance:
        raise ValueError(f"verdict: floor must be below chance = {chance!r}; got {floor or 0.0!r}")
    one = _Run(trace, int(run), floor, chance)
    # rules compute with runs that went non-finite: inf - inf and 0/0 are data here, and compare as False
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        found = next(found for rule in _RULES if (found := rule(one)) is not None)
        noted = _noted(one) if one.floor is None and found.kind in ("healthy", "spiked") else ()
        return replace(found, noted=noted, unseen=_unseen(one))


def verdicts(trace: Trace, *, floor: float | None = None, chance: float | None = None) -> list[Verdict]:
    """Judge every run: `verdict` for each, in order."""
    return [verdict(trace, r, floor=floor, chance=chance) for r in range(trace.n_runs)]


def _not_finite(one: _Run) -> Verdict | None:
    step = one.trace.non_finite_step(one.run) if "loss_nats" in one.trace else None
    if step is None:
        return None
    return Verdict(kind="diverged", step=step, evidence=_non_finite_evidence(one, step))


def _too_short(one: _Run) -> Verdict | None:
    rows = len(one.loss.row_N)
    if rows and (rows >= ENOUGH_ROWS or one.known):
        return None
    got = f"the loss was logged {rows} times" if rows else "no loss was logged"
    words = f"{got}; {ENOUGH_ROWS} rows or more show a course"
    return Verdict(kind="too_short", step=None, evidence=words)


def _by_reward(one: _Run) -> Verdict | None:
    """Where a reward was logged it says how the run went: the loss there stands for something else."""
    reward_S = one.values("reward")
    if not np.isfinite(reward_S).any():
        return None
    cost = Curve(-reward_S)
    name = one.trace.config.get("names", {}).get("reward", "reward")
    if len(cost.row_N) < ENOUGH_ROWS:
        words = f"{name} was logged {len(cost.row_N)} times; {ENOUGH_ROWS} rows or more show a course"
        return Verdict(kind="too_short", step=None, evidence=words)
    rise = cost.rise()
    if rise is not None and rise.lasts and -rise.low > -cost.start:
        step = one.step(rise.low_row)
        words = (
            f"{name} had come up to {-rise.low:.3g} by step {step}, then fell to {-cost.final:.3g} for good"
        )
        return Verdict(kind="diverged", step=step, evidence=words)
    words = f"{name} went from {-cost.start:.3g} to {-cost.final:.3g}; the loss of such a run says nothing"
    return Verdict(kind="healthy", step=None, evidence=words)


def _zero(one: _Run) -> Verdict | None:
    """The loss is exactly 0 from some row to the end, having been well above 0 just before."""
    loss_S = one.values("loss_nats")
    alive = np.flatnonzero(loss_S != 0.0)
    # a single zero at the end may be a loss that was rounded
    if not alive.size or len(loss_S) - alive[-1] <= 2 or alive[-1] < 2 or not loss_S[alive[-1]] > ZERO_FROM:
        return None
    step = one.step(alive[-1] + 1)
    words = (
        f"the loss is exactly 0 from step {step} on; it was {loss_S[alive[-1]]:.3g} one row before: a NaN "
        "was replaced in the log"
    )
    return Verdict(kind="diverged", step=step, evidence=words)


def _lost(one: _Run) -> Verdict | None:
    """Known levels: ended above the start, or gave back most of what was learned."""
    if not one.known:
        return None
    loss_S, initial, final = one.loss.values_S, one.loss.finite_N[0], one.loss.final
    start, named = max(one.level, initial), f"{one.named}{one.unit}"
    if final > start + DIVERGED_MARGIN * one.way:
        # NaN of a skipped step is no return below the start
        below = np.flatnonzero(np.nan_to_num(loss_S, nan=np.inf) <= start)
        step = one.step(below[-1] if below.size else 0)
        words = f"final loss {final:.3g} is above {named} and initial loss {initial:.3g}, since step {step}"
        return Verdict(kind="diverged", step=step, evidence=words)
    smooth_S = _trailing_mean(loss_S, max(1, round(FINAL_SHARE * len(loss_S))))
    best_at = int(np.nanargmin(smooth_S))
    best = float(smooth_S[best_at])
    if one.level - best >= LEARNED_SHARE * one.way and final - best > LOST_SHARE * (one.level - best):
        step = one.step(best_at)
        lost = f"loss had come down to {best:.3g} by step {step}, then rose to {final:.3g} and stayed"
        return Verdict(kind="diverged", step=step, evidence=f"{lost}; {named}")
    return None


def _risen(one: _Run) -> Verdict | None:
    """Unknown floor: the level of the loss rose for good, or that of held-out data with it."""
    if one.floor is not None:
        return None
    loss, rise = one.loss, one.rise
    ended_above = loss.final - loss.start > max(DIVERGED_MARGIN * abs(loss.start), RISE_SIGMAS * loss.noise)
    if rise is None and ended_above and not one.known:
        words = f"loss started at {loss.start:.3g} and ended above it, at {loss.final:.3g}{one.unit}"
        return Verdict(kind="diverged", step=one.step(int(loss.row_N[0])), evidence=words)
    if rise is None:
        return None
    step = one.step(rise.low_row)
    words = (
        f"loss had come down to {rise.low:.3g} by step {step}, then rose to {rise.peak:.3g} by step "
        f"{one.step(rise.peak_row)}"
    )
    if rise.lasts or ended_above:
        words += f" and ended at {loss.final:.3g}{one.unit} (medians of {loss.width} rows)"
        return Verdict(kind="diverged", step=step, evidence=words)
    held = Curve(one.values("validation_loss_nats"))
    if held.row_N.size > 1 and held.finite_N[-2:].min() >= RISE_FACTOR * held.finite_N.min():
        words += (
            f"; it came back to {loss.final:.3g}, but the validation loss, {held.finite_N.min():.3g} at best,"
            f" is {held.finite_N[-1]:.3g} at the end"
        )
        return Verdict(kind="diverged", step=step, evidence=words)
    return None


def _stalled(one: _Run) -> Verdict | None:
    loss = one.loss
    if one.known:
        covered = (one.level - loss.final) / one.way
        left = f"has left {one.named}{one.unit} by {max(covered, 0):.1%} of the way to the floor"
        words = f"final loss {loss.final:.3g} {left}"
    else:
        covered = loss.gain()
        words = f"loss stayed: {loss.start:.3g} at the start, {loss.final:.3g}{one.unit} at the end"
        if covered >= TREND_SHARE and loss.trend_sigmas() >= TREND_SIGMAS:
            return None
        held = Curve(one.values("validation_loss_nats")).finite_N
        if held.size > 1 and held.min() < (1 - STALLED_SHARE) * held[0]:
            return None
    if covered >= STALLED_SHARE:
        return None
    words += f"; {STALLED_SHARE:.0%} would count as learning"
    steps = one.step(-1) - one.step(0) + 1
    if one.floor is None and steps < STALL_STEPS:
        words += f", but {steps} steps are too few to call it a stall"
        return Verdict(kind="too_short", step=None, evidence=words)
    return Verdict(kind="stalled", step=None, evidence=words)


def _overfit(one: _Run) -> Verdict | None:
    """Validation loss turned and rose for good while the training loss went on falling."""
    held, loss = Curve(one.values("validation_loss_nats")), one.loss
    if held.row_N.size < 3:
        return None
    k = int(np.argmin(held.finite_N))
    best, last = held.finite_N[k], held.finite_N[max(k + 1, held.row_N.size - 2) :]
    least = max(OVERFIT_RISE * best, OVERFIT_OF_START * abs(loss.start), OVERFIT_SIGMAS * held.noise)
    if not last.size or last.min() < best + least:
        return None
    beside = slice(held.row_N[max(k - 1, 0)], held.row_N[min(k + 1, held.row_N.size - 1)] + 1)
    around = Curve(loss.values_S[beside]).finite_N
    if not around.size or loss.final > (1 - OVERFIT_FALL) * around.mean():
        return None
    score_S = one.values("validation_score")[held.row_N]
    gained = score_S[-1] - score_S[k]  # NaN compares as no gain: without a score the loss alone decides
    if one.trace.config.get("score_is_error"):
        gained = -gained / abs(score_S[k])  # a rate of errors has no fixed scale: its share counts
    elif np.fmax.reduce(score_S, initial=0.0) > 1:
        gained = gained / 100  # per cent
    if gained > SCORE_GAIN and last.min() < (1 + OVERFIT_SURE) * best:
        return None
    step = one.step(held.row_N[k])
    words = (
        f"validation loss was best, {best:.3g}, at step {step} and is {last[-1]:.3g} at the end; training "
        f"loss fell from {around.mean():.3g} to {loss.final:.3g} meanwhile"
    )
    return Verdict(kind="overfit", step=step, evidence=words)


def _came_back(one: _Run) -> Verdict | None:
    """Unknown floor: the level of the loss rose, and fell again."""
    rise = one.rise if one.floor is None else None
    if rise is None:
        return None
    words = (
        f"loss rose from {rise.low:.3g} to {rise.peak:.3g}{one.unit} by step {one.step(rise.peak_row)} and "
        f"came back to {one.loss.final:.3g} (medians of {one.loss.width} rows)"
    )
    return Verdict(kind="spiked", step=one.step(rise.low_row), evidence=words)


def _non_finite_evidence(one: _Run, step: int) -> str:
    trace, run = one.trace, one.run
    s = int(np.searchsorted(trace.steps, step))
    loss = trace["loss_nats"][run]
    if np.isfinite(loss[s]):
        norm = trace["grad_norm_preclip"][run, s]
        what = f"gradient norm became {norm} at step {step}, loss still {loss[s]:.3g}"
    else:
        what = f"loss became {loss[s]} at step {step}"
    before = f"; it was {loss[s - 1]:.3g}{one.unit} one step before" if s and np.isfinite(loss[s - 1]) else ""
    return what + before


def _spiked(one: _Run) -> Verdict | None:
    return _leap(one) if one.floor is not None else None


def _leap(one: _Run) -> Verdict | None:
    """A row of the loss, else of the gradient norm, that leapt out of the window before it."""
    spikes = loss_spikes = find_spikes(one.values("loss_nats"), min_height=SPIKE_HEIGHT * one.way)
    if not spikes:
        norm_S = one.values("grad_norm_preclip")
        log_S = np.log(np.where(norm_S > 0, norm_S, np.nan))
        spikes = find_spikes(log_S, min_height=np.log(GRADIENT_FACTOR))
    if not spikes:
        return None
    top = max(spikes, key=lambda spike: spike.value - spike.expected)
    if loss_spikes:
        what = f"loss jumped from {top.expected:.3g} to {top.value:.3g}{one.unit}"
    else:
        before, peak = np.exp(top.expected), np.exp(top.value)
        what = f"gradient norm jumped from {before:.3g} to {peak:.3g} (the loss did not)"
    step = one.step(top.index)
    end = "and came back" if top.recovered else "and has not come back yet"
    more = f"; {len(spikes)} spikes in all" if len(spikes) > 1 else ""
    # a noise-free window has no deviation to speak of: the factor would be a meaningless huge number
    size = f"{top.sigmas:.0f} robust deviations" if top.sigmas < 1000 else "over 1000 robust deviations"
    return Verdict(kind="spiked", step=step, evidence=f"{what} at step {step}, {size}, {end}{more}")


def _left_early(one: _Run) -> Verdict | None:
    """A jump in the first values, which no running window stands before."""
    if one.floor is None:
        return None
    loss_S, start = one.loss.values_S, max(one.level, one.loss.finite_N[0])
    first_S = np.where(np.isfinite(loss_S), loss_S, -np.inf)[:SPIKE_HISTORY]
    top = int(np.argmax(first_S))
    if first_S[top] <= start + EARLY_HEIGHT * one.way:
        return None
    after_S = loss_S[top + 1 :]
    back = np.any(after_S[np.isfinite(after_S)] <= start + (first_S[top] - start) / 2)
    words = f"loss rose from {start:.3g} to {first_S[top]:.3g}{one.unit} in its first {SPIKE_HISTORY} values"
    end = "and came back" if back else "and has not come back yet"
    return Verdict(kind="spiked", step=one.step(top), evidence=f"{words}, {end}")


def _healthy(one: _Run) -> Verdict:
    initial, final, floor = one.loss.finite_N[0], one.loss.final, one.floor or 0.0
    skipped = one.trace.non_finite(one.run).sum()
    words = (
        f"loss went from {initial:.3g} to {final:.3g}{one.unit}, {(one.level - final) / one.way:.0%} of the "
        f"way from {one.named} to the floor {floor:.3g}"
    )
    words += f"; {skipped} non-finite steps were skipped" if skipped else ""
    return Verdict(kind="healthy", step=None, evidence=words)


_RULES = (
    _not_finite,
    _too_short,
    _by_reward,
    _zero,
    _lost,
    _risen,
    _stalled,
    _overfit,
    _spiked,
    _left_early,
    _came_back,
    _healthy,
)


def _noted(one: _Run) -> tuple[str, ...]:
    """A flat stretch, and single rows that leapt: no fault, and worth a look."""
    notes = []
    flat = one.loss.flat_stretch()
    if flat is not None:
        first, last, level = flat
        where = (
            f"from step {one.step(first)} to {'the end' if last == one.loss.row_N[-1] else one.step(last)}"
        )
        share = (last - first + 1) / len(one.loss.values_S)
        notes.append(f"the loss is flat at {level:.3g} {where}, {share:.0%} of the run")
    found = _leap(one)
    if found is not None:
        notes.append(f"{found.evidence}; no lasting mark")
    return tuple(notes)


def _unseen(one: _Run) -> tuple[str, ...]:
    """What the rules cannot see in this run, for want of data or by what they are."""
    trace, phrases = one.trace, []
    every = int(np.median(np.diff(trace.steps))) if trace.n_steps > 1 else 1
    if every > 1:
        phrases.append(f"what happened between logged steps ({every} apart)")
    if trace.n_steps <= SPIKE_HISTORY:
        height = f"{EARLY_HEIGHT:.0%} of the way"
        phrases.append(f"a spike lower than {height}: it takes more than {SPIKE_HISTORY} values to tell one")
    if not np.isfinite(one.values("grad_norm_preclip")).any():
        phrases.append("the gradient, whose norm was not logged")
    if one.chance is None:
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
