"""The signs by which `diagnose` tells one fault from another: each rule looks at measured signals alone.

A rule takes what was seen of a run and returns where it decided and why, or None. Its docstring says what the
sign is and why that fault and no other leaves it. Thresholds stand here, each with its reason; the planted
runs of tests/trace measure what they are worth.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stabviz.trace.trace import Trace
from stabviz.trace.verdicts import FINAL_SHARE, Verdict, verdict

EARLY_STEPS = 10
"""Steps in which a missing warm-up does its harm: Adam's moments still hold little more than the first
gradients."""
FIRST_STEPS = 20
"""Bias correction is worth a factor of 1.5 and more until here (beta2 = 0.999, beta1 = 0.9)."""
UNCORRECTED_RMS = 1.5
"""Corrected Adam's update cannot pass 1.2 lr in its first 20 steps, whatever the gradients (Cauchy-Schwarz,
beta1 0.9, beta2 0.95 to 0.999), and starts at 1 or below; without the correction it is 3.2 at the first step,
6.5 at the tenth."""
SMALL_UPDATE = 0.05
"""Gradients of pure noise still give Adam updates of sqrt((1 - beta1) / (1 + beta1)) = 0.23 lr; a fifth of
that means that the denominator is not the gradient's."""
SMALL_FIRST_UPDATE = 0.5
"""Adam's first update is |g| / (|g| + epsilon): half of lr or less where epsilon is as large as the
gradient."""
STARVED_RATIO = 0.2
"""RMS of g / max(sqrt(v), epsilon) is near 1; a fifth, with a small update, says that epsilon is the larger
one."""
OVERFLOW_SHARE = 0.05
"""Torch's loss scale doubles every 2,000 steps and pays one overflow for it: 0.05 % of steps. A hundred times
that, in the second half of the run, where the scale had time to settle, is no search for a scale."""
LEAST_SCALE = 1.0
"""A loss scale below 1 shrinks gradients: what overflows then is the forward pass, and no scale will help."""
BAD_SHARE = 0.05
"""A rare skipped step is an accident; one in twenty of the second half is a fault in the data or the
arithmetic. In the first half fp16 may still be looking for its loss scale, and not every log holds the
scale."""
GROWTH = 10.0
"""Loss or gradient norm ten times its level just before it stopped being finite: it grew. Less: out of
nowhere."""
ZERO_FROM = 0.05
"""A loss above this that is exactly 0 one line later did not get there by learning."""
EXPLOSION_FACTOR = 10.0
"""Gradients of the planted healthy runs stay within 5 times their level; batches are not ten times as
steep."""
SUDDEN_FACTOR, SUDDEN_LINES = 30.0, 3
"""The jump that is asked for where the length of the step was not measured: a rate too high takes longer to
this."""
STEADY_STEPS, STEADY_SPREAD = 8, 0.25
"""Gradients that grow by an equal factor a step (deviation of the log below a quarter of its mean, 8 steps):
the linear instability of lr > 2 / curvature. An explosion feeds on itself: its factor grows."""
LOGIT_LARGE, LOGIT_GROWTH = 500.0, 10.0
"""Softmax of logits hundreds apart is 0 and 1 to float32's last digit: no gradient reaches queries and keys.
The healthy planted runs stay below 100; published models work with tens."""
LOGIT_EARLY, LOGIT_EARLY_GROWTH = 40.0, 8.0
"""Within the first steps even 40, if it is 8 times the start: with warm-up the same runs reach 10 to 20
there."""
RISE_EARLY, RISE_SIGMAS = 0.02, 5.0
"""Mean loss of steps 1 to 5 above the first one, as a share of it and in standard errors of batch noise."""
RATE_SIGMAS = 4.0
"""Median of five losses above the start, in deviations of one batch: runs that stall wander up to 2.5,
planted rates that are too high rise by 6 and more."""
MOVED_FAR, SHRUNK_RATIO = 1.25, 0.3
"""Norm of the weights over its start, and RMS of g / sqrt(v) in the second half, of runs that did not learn:
measured 1.4 and more, 0.05 to 0.3, where the rate was too high; 1.0 and 0.4 to 1 where it was too low."""
FULL_RATE = 0.9
"""A first rate of nine tenths of the largest is no warm-up."""
PEAK_FACTOR = 1.5
"""Attention that saturates leaves the loss at a plateau below its start; a loss half as much again above the
start is ruined at the output too, by the rate itself."""
LABEL_GAP, LABEL_LOSS_GAP, GAP_ERRORS = 0.07, 0.1, 4.0
"""Clean validation ahead of training by 7 points and 0.1 nats and 4 standard errors: dropout costs the
training batches less, and wrong labels of a tenth and less cannot be told from it."""
OVERFIT_RISE, OVERFIT_NATS, OVERFIT_FALL = 0.25, 0.05, 0.3
"""Validation loss up by 25 % and 0.05 nats from its best, still at the last two evaluations, while the
training loss fell by 30 %: a fine-tuned model grows surer of its errors by less while its score still
rises."""
SCORE_GAIN, OVERFIT_SURE = 0.03, 0.5
"""A score that rose by three points since says that the longer training paid, if its errors did not grow so
sure that the loss is half as high again; a point or two is the noise of a few hundred validation rows."""
ENOUGH_STEPS = 10
"""Fewer rows than this show no course."""

Finding = tuple[int | None, str]
"""Step that decided, and the sentence of evidence with its figures."""


@dataclass(frozen=True)
class Seen:
    """What there is to see of one run; a signal that was not measured is all NaN."""

    trace: Trace
    run: int

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.trace:
            return np.full(self.trace.n_steps, np.nan)
        return self.trace[name][self.run].astype(np.float64)

    def has(self, name: str) -> bool:
        """Whether a signal was measured with a finite value at least once."""
        return bool(np.isfinite(self[name]).any())

    def step(self, s: int) -> int:
        return int(self.trace.steps[s])

    def most(self, signal: str) -> np.ndarray:
        """The largest over the layers and the total: a layer that gets no gradient does not hide the
        others."""
        names = [n for n in self.trace.signals if n == signal or n.startswith(signal + "/")]
        rows = np.array([self[n] for n in names]).reshape(len(names), self.trace.n_steps)
        known_S = np.isfinite(rows).any(axis=0)
        return np.where(
            known_S, np.where(np.isfinite(rows), rows, -np.inf).max(axis=0, initial=-np.inf), np.nan
        )

    def typical(self, signal: str) -> np.ndarray:
        """The median over the layers, where there are any: one layer with other gradients does not speak for
        all."""
        rows = np.array([self[n] for n in self.trace.signals if n.startswith(signal + "/")])
        if not rows.size:
            return self[signal]
        known_S = np.isfinite(rows).any(axis=0)
        return np.where(known_S, np.nanmedian(np.where(known_S, rows, 0.0), axis=0), np.nan)

    @cached_property
    def loss_S(self) -> np.ndarray:
        return self["loss_nats"]

    @cached_property
    def norm_S(self) -> np.ndarray:
        return self["grad_norm_preclip"]

    @cached_property
    def verdict(self) -> Verdict:
        return verdict(self.trace, self.run)

    @cached_property
    def first(self) -> float:
        """Median of the first three losses."""
        finite = self.loss_S[np.isfinite(self.loss_S)]
        return float(np.median(finite[:3])) if finite.size else np.nan

    @cached_property
    def final(self) -> float:
        """Mean of the last tenth of the steps."""
        tail = self.loss_S[-max(1, round(FINAL_SHARE * len(self.loss_S))) :]
        return float(tail[np.isfinite(tail)].mean()) if np.isfinite(tail).any() else np.inf

    @cached_property
    def noise(self) -> float:
        """Standard deviation of single batches: from the steps between neighbours, in the quietest of three
        thirds."""
        finite = self.loss_S[np.isfinite(self.loss_S)]
        thirds = [np.diff(part) for part in np.array_split(finite, 3) if len(part) > 2]
        return min((1.4826 * float(np.median(np.abs(d))) / np.sqrt(2) for d in thirds), default=0.0)

    @cached_property
    def adaptive(self) -> bool:
        """Whether the optimizer divides by a second moment: the ratio to it was measured, or the settings say
        so."""
        named = str(self.trace.setting(self.run, "optimizer", "")).lower()
        return self.has("second_moment_ratio") or "adam" in named

    @cached_property
    def bad_S(self) -> np.ndarray:
        """Steps whose loss or gradient norm is not finite."""
        measured_norm = "grad_norm_preclip" in self.trace
        return ~np.isfinite(self.loss_S) | (~np.isfinite(self.norm_S) & measured_norm)

    @cached_property
    def scaled(self) -> bool:
        """Whether fp16's loss scaling is at work, whose skipped steps are no accident."""
        return self.has("loss_scale") or any(
            e["kind"] == "overflow" for e in self.trace.events if e["run"] == self.run
        )


def fp16_overflow(seen: Seen) -> Finding | None:
    """Loss scaling never settles: overflow goes on in the second half of the run, or the scale falls below 1.

    A data fault that gives NaN at every step looks the same where a scale is in use.
    """
    if not seen.scaled:
        return None
    over_S = seen.bad_S.copy()
    for event in seen.trace.events:
        if event["run"] == seen.run and event["kind"] == "overflow":
            over_S |= seen.trace.steps == event["step"]
    share = over_S[len(over_S) // 2 :].mean()
    scale_S = seen["loss_scale"]
    known = np.flatnonzero(np.isfinite(scale_S))
    collapsed = bool(known.size) and scale_S[known[-1]] < LEAST_SCALE
    if share < OVERFLOW_SHARE and not collapsed:
        return None
    first = int(np.flatnonzero(over_S)[0]) if over_S.any() else int(known[0])
    scales = (
        f"; the loss scale went from {scale_S[known[0]]:.3g} to {scale_S[known[-1]]:.3g}"
        if known.size
        else ""
    )
    return seen.step(first), (
        f"{over_S.sum()} of {len(over_S)} steps overflowed, {share:.0%} of the second half; "
        f"the first at step {seen.step(first)}{scales}"
    )


def hidden_nan(seen: Seen) -> Finding | None:
    """A value stopped being finite without having grown, whether the log shows it or not.

    Hidden: a finite loss beside a gradient norm that is NaN, or a loss that is exactly 0 from one line to the
    next. Seen: loss or gradient NaN from a step to the end, or at one step in twenty, with nothing unusual
    before the first.
    """
    bad, zero = np.flatnonzero(seen.bad_S), _sudden_zero(seen)
    blind = "grad_norm_preclip" in seen.trace and not seen.has("grad_norm_preclip")
    if zero is not None and (not bad.size or blind or zero <= bad[0]):
        return seen.step(zero), (
            f"the loss is exactly 0 from step {seen.step(zero)} on; it was "
            f"{seen.loss_S[zero - 1]:.3g} one line before: a NaN was replaced in the log"
        )
    if not bad.size or seen.scaled:
        return None
    lasting = seen.bad_S[-1] or seen.bad_S[len(seen.bad_S) // 2 :].mean() >= BAD_SHARE
    if not lasting or _grew_before(seen, bad[0]):
        return None
    s = int(bad[0])
    before = (
        f"{seen.loss_S[s - 1]:.3g}, gradient norm {seen.norm_S[s - 1]:.3g}"
        if s
        else "nothing: the first line"
    )
    hidden = np.flatnonzero(seen.bad_S & np.isfinite(seen.loss_S))
    if hidden.size:
        return seen.step(s), (
            f"gradient norm {seen.norm_S[s]} from step {seen.step(s)} on, while the log still shows "
            f"finite losses at {hidden.size} lines, the last one {seen.loss_S[hidden[-1]]:.3g}"
        )
    return seen.step(
        s
    ), f"loss {seen.loss_S[s]} at step {seen.step(s)} without growth; one line before {before}"


def _sudden_zero(seen: Seen) -> int | None:
    """Line from which the loss is exactly 0 to the end, having been well above 0 just before."""
    alive = np.flatnonzero(seen.loss_S != 0.0)
    if not alive.size or len(seen.loss_S) - alive[-1] <= 2 or alive[-1] < 2:
        return None
    last = seen.loss_S[alive[-1]]
    return int(alive[-1]) + 1 if np.isfinite(last) and last > ZERO_FROM else None


def _grew_before(seen: Seen, s: int) -> bool:
    """Whether loss or gradient norm had grown GROWTH-fold over the five lines before line s, or is infinite
    there."""
    if np.isposinf(seen.loss_S[s]) or np.isposinf(seen.norm_S[s]):
        return True
    for values_S in (seen.loss_S, seen.norm_S):
        before = values_S[:s][np.isfinite(values_S[:s])]
        if before.size > 1 and before[-5:].max() >= GROWTH * np.median(
            before[:-5] if before.size > 9 else before[:1]
        ):
            return True
    return False


def missing_bias_correction(seen: Seen) -> Finding | None:
    """The first updates of an Adam are longer than a corrected Adam's can be. beta2 of 0.95 does not show
    it."""
    if not seen.adaptive:
        return None
    update_S = seen.most("update_rms")
    early = np.flatnonzero(np.isfinite(update_S) & (seen.trace.steps < FIRST_STEPS))
    if not early.size or update_S[early].max() <= UNCORRECTED_RMS:
        return None
    steps = ", ".join(
        f"{update_S[s]:.3g} lr at step {seen.step(s)}"
        for s in dict.fromkeys([int(early[0]), int(early[np.argmax(update_S[early])])])
    )
    return seen.step(int(early[0])), (
        f"update RMS of {steps}; with the correction it starts at 1 or below and stays "
        f"under {UNCORRECTED_RMS}"
    )


def epsilon_too_large(seen: Seen) -> Finding | None:
    """Adam's updates are tiny from the first step on although gradients arrive: epsilon outweighs sqrt(v).

    A spiky gradient makes updates small too, but not the first one, which is 1 lr where epsilon does not
    matter.
    """
    if not seen.adaptive:
        return None
    update_S, ratio_S = seen.typical("update_rms"), seen.typical("second_moment_ratio")
    at = np.flatnonzero(np.isfinite(update_S))
    if not at.size or not seen.norm_S[at].any() or not np.median(update_S[at]) < SMALL_UPDATE:
        return None
    from_start = seen.step(int(at[0])) < FIRST_STEPS
    if from_start and update_S[at[0]] >= SMALL_FIRST_UPDATE:
        return None
    ratio = np.median(ratio_S[np.isfinite(ratio_S)]) if np.isfinite(ratio_S).any() else np.nan
    if not from_start and not ratio < STARVED_RATIO:
        return None
    norm = np.nanmedian(seen.norm_S) if seen.has("grad_norm_preclip") else np.nan
    return seen.step(int(at[0])), (
        f"update RMS of {update_S[at[0]]:.2g} lr at step {seen.step(int(at[0]))}, "
        f"{np.median(update_S[at]):.2g} lr in "
        f"the median, with a gradient norm of {norm:.2g} (median); RMS of g / max(sqrt(v), epsilon) "
        f"{ratio:.2g}"
    )


def explosion(seen: Seen) -> Finding | None:
    """The gradient norm jumped, the step followed it, and the loss was lost: nothing held the step back.

    Clipped or adaptive steps cannot follow; growth by an equal factor a step is a rate too high on a smooth
    surface. Where the length of the step was not measured, only a jump within SUDDEN_LINES lines counts.
    """
    if seen.verdict.kind != "diverged" or not seen.has("grad_norm_preclip") or _steady_growth(seen):
        return None
    norm_S = np.where(np.isnan(seen.norm_S), 0.0, seen.norm_S)
    peak = int(np.argmax(norm_S))
    followed = _step_followed(seen, peak)
    if followed is False or not norm_S[peak] >= EXPLOSION_FACTOR * _level_before(norm_S, peak):
        return None
    if followed is None and not _sudden_jump(norm_S):
        return None
    long = ", and the step was as long" if followed else ""
    return seen.step(peak), (
        f"gradient norm {norm_S[peak]:.3g} at step {seen.step(peak)}, "
        f"{_level_before(norm_S, peak):.3g} before{long}; {seen.verdict.evidence}"
    )


def _sudden_jump(norm_S) -> bool:
    """Whether some gradient norm is SUDDEN_FACTOR times the largest of the SUDDEN_LINES lines before it."""
    return any(
        norm_S[s] >= SUDDEN_FACTOR * norm_S[s - SUDDEN_LINES : s].max()
        for s in range(SUDDEN_LINES, len(norm_S))
    )


def _step_followed(seen: Seen, s: int) -> bool | None:
    """Whether the update at line s was as long as its gradient asked; None if that was not measured."""
    if seen["clipped"][s] == 1 or seen.adaptive and seen.has("update_rms"):
        return False
    if not seen.has("update_rms"):
        return False if seen.adaptive else None
    return not seen["update_rms"][s] < EXPLOSION_FACTOR / 2 * _level_before(seen["update_rms"], s)


def _level_before(values_S, s: int) -> float:
    """Usual size before line s: the median, or the first value where growth began at once."""
    before = values_S[:s][np.isfinite(values_S[:s])]
    return min(float(np.median(before)), float(before[0])) if before.size else np.inf


def _steady_growth(seen: Seen) -> bool:
    """Whether the gradient norm grew by an equal factor a step over STEADY_STEPS steps or more, up to the
    end."""
    end = int(np.flatnonzero(seen.bad_S)[0]) if seen.bad_S.any() else len(seen.norm_S)
    last = seen.norm_S[max(end - 4 * STEADY_STEPS, 0) : end]
    last = last[np.isfinite(last) & (last > 0)]
    if len(last) <= STEADY_STEPS:
        return False
    growth = np.diff(np.log(last))[len(last) // 4 :]
    return bool(growth.mean() > 0.01 and growth.std() < STEADY_SPREAD * growth.mean())


def no_warmup(seen: Seen) -> Finding | None:
    """The rate starts at its full height, and the first steps do harm: the loss rises, or attention logits
    jump.

    Whether a warm-up alone would do, or the rate is too high for one, the run cannot tell: it is the first
    thing to mend. A loss that ends where it began is not asked about: see rate_too_high.
    """
    lr_S = seen["lr"]
    if not seen.has("lr") or not lr_S[0] >= FULL_RATE * np.nanmax(lr_S) or seen.step(0) > EARLY_STEPS:
        return None
    early = np.flatnonzero(seen.trace.steps - seen.trace.steps[0] <= EARLY_STEPS)
    logit_S = seen["max_attention_logit"]
    known = early[np.isfinite(logit_S[early])]
    signs = []
    if known.size and logit_S[known].max() >= max(LOGIT_EARLY, LOGIT_EARLY_GROWTH * logit_S[known[0]]):
        signs.append(
            f"the largest attention logit went from {logit_S[known[0]]:.3g} to {logit_S[known].max():.3g}"
        )
    first, after = seen.loss_S[0], seen.loss_S[1:6].mean()
    error = seen.noise * np.sqrt(1 + 1 / 5)
    if seen.step(5) <= EARLY_STEPS and after - first >= max(RISE_EARLY * abs(first), RISE_SIGMAS * error):
        signs.append(f"the loss rose from {first:.3g} to {after:.3g} (mean of the next five)")
    if not signs or not seen.adaptive and not known.size or seen.verdict.kind == "stalled" or _ruined(seen):
        return None
    return seen.step(0), (
        f"the rate is {lr_S[0]:.3g} at the first step, its full height; within {EARLY_STEPS} steps "
        + " and ".join(signs)
    )


def _ruined(seen: Seen) -> bool:
    """Whether the loss stayed at PEAK_FACTOR times its start, or went above it and ended there or
    non-finite."""
    return not seen.final < PEAK_FACTOR * seen.first or _smooth_peak(seen)[1] >= 2 * PEAK_FACTOR * seen.first


def attention_logit_growth(seen: Seen) -> Finding | None:
    """Attention logits grew into the hundreds and beyond, while the loss stayed in bounds: softmax is
    saturated."""
    logit_S = seen["max_attention_logit"]
    known = np.flatnonzero(np.isfinite(logit_S))
    if not known.size or _smooth_peak(seen)[1] >= PEAK_FACTOR * seen.first:
        return None
    peak = int(known[np.argmax(logit_S[known])])
    if logit_S[peak] < max(LOGIT_LARGE, LOGIT_GROWTH * logit_S[known[0]]):
        return None
    first = int(known[np.argmax(logit_S[known] >= LOGIT_LARGE)])
    entropy_S = seen["attention_entropy"][known]
    fell = (
        f"; attention entropy went from {entropy_S[0]:.2g} to {entropy_S[-1]:.2g} nats"
        if np.isfinite(entropy_S[[0, -1]]).all()
        else ""
    )
    return seen.step(first), (
        f"the largest attention logit went from {logit_S[known[0]]:.3g} to {logit_S[peak]:.3g}, "
        f"past {LOGIT_LARGE:.0f} at step {seen.step(first)}{fell}"
    )


def unclear_loss(seen: Seen) -> Finding | None:
    """The loss was lost, and the signals do not tell a rate too high from an explosion.

    Without a gradient norm they look alike. So they do with gradients that grew tenfold while it was not
    measured whether the step followed: with Adam that is a consequence, without clipping and without Adam it
    is the cause.
    """
    found = None if _steady_growth(seen) else _lost_loss(seen)
    if found is None:
        return None
    if not seen.has("grad_norm_preclip"):
        return found[0], found[1] + "; without a gradient norm a rate too high looks like an explosion"
    norm_S = np.where(np.isnan(seen.norm_S), 0.0, seen.norm_S)
    peak = int(np.argmax(norm_S))
    level = _level_before(norm_S, peak)
    if _step_followed(seen, peak) is not None or not norm_S[peak] >= EXPLOSION_FACTOR * level:
        return None
    return found[0], (
        f"{found[1]}; the gradient norm grew from {level:.3g} to {norm_S[peak]:.3g}; whether the step "
        "followed (update_rms, clipped) was not measured: a rate too high, or an explosion"
    )


def rate_too_high(seen: Seen) -> Finding | None:
    """The loss rose above its start by more than it ever gained, or ended far above: the steps are too long.

    Also gradients that grow by an equal factor a step, which is lr > 2 / curvature; and a loss that stayed
    where it was although the weights went far, or although their moments remember far larger gradients: the
    step leapt over what there was to learn. A stall by too low a rate leaves the weights where they were.
    """
    if _steady_growth(seen) and seen.verdict.kind == "diverged":
        return (
            seen.verdict.step,
            f"the gradient norm grew by an equal factor at every step; {seen.verdict.evidence}",
        )
    return _lost_loss(seen) or _moved_in_vain(seen)


def _moved_in_vain(seen: Seen) -> Finding | None:
    if seen.verdict.kind != "stalled":
        return None
    norm_S, ratio_S = seen["param_norm"], seen.typical("second_moment_ratio")
    known = np.flatnonzero(np.isfinite(norm_S))
    if known.size > 1 and norm_S[known].max() >= MOVED_FAR * norm_S[known[0]]:
        at = int(known[np.argmax(norm_S[known] >= MOVED_FAR * norm_S[known[0]])])
        return seen.step(at), (
            f"the norm of the weights went from {norm_S[known[0]]:.3g} to {norm_S[known].max():.3g}"
            f", and nothing was learned; {seen.verdict.evidence}"
        )
    ratio = ratio_S[np.isfinite(ratio_S)]
    late = float(np.median(ratio[len(ratio) // 2 :])) if ratio.size > 1 else np.inf
    if late < SHRUNK_RATIO and ratio[0] >= SMALL_FIRST_UPDATE:  # below it from the start: epsilon's doing
        return None, (
            f"the second moments remember gradients {1 / late:.0f} times those of the second half (RMS of "
            f"g / sqrt(v) {late:.2g}, {ratio[0]:.2g} at the start), and nothing was learned; "
            f"{seen.verdict.evidence}"
        )
    return None


def _lost_loss(seen: Seen) -> Finding | None:
    at, peak = _smooth_peak(seen)
    rise, gain = peak - seen.first, seen.first - seen.final
    margin = RATE_SIGMAS * seen.noise
    lost = seen.verdict.kind == "diverged" and (seen.final - seen.first > margin or _lost_again(seen, margin))
    if not (rise > margin and rise > RISE_EARLY * abs(seen.first) and rise > gain) and not lost:
        return None
    where = seen.step(at)
    lr = f" at a rate of {seen['lr'][at]:.3g}" if np.isfinite(seen["lr"][at]) else ""
    return where, (
        f"the loss rose from {seen.first:.3g} to {peak:.3g} at step {where}{lr} and ended at "
        f"{seen.final:.3g} (median of 5 steps; noise of one batch {seen.noise:.2g})"
    )


def _smooth_peak(seen: Seen) -> tuple[int, float]:
    """Where the median of five losses is highest, and how high: a single spike does not count."""
    loss_S = np.where(np.isfinite(seen.loss_S), seen.loss_S, np.nan)
    finite = np.flatnonzero(np.isfinite(loss_S))
    if finite.size < 5:
        return (
            (int(finite[np.argmax(loss_S[finite])]), float(loss_S[finite].max()))
            if finite.size
            else (0, np.nan)
        )
    windows = np.lib.stride_tricks.sliding_window_view(loss_S[finite], 5)
    level = np.median(windows, axis=1)
    top = int(np.argmax(level))
    return int(finite[top + 2]), float(level[top])


def _lost_again(seen: Seen, margin: float) -> bool:
    finite = seen.loss_S[np.isfinite(seen.loss_S)]
    width = max(1, round(FINAL_SHARE * len(finite)))
    best = np.convolve(finite, np.ones(width) / width, mode="valid").min()
    return bool(seen.final - best > max(margin, (seen.first - best) / 2))


def label_noise(seen: Seen) -> Finding | None:
    """Clean validation rows are predicted better than the training rows around them: part of those is
    labelled wrong.

    Needs a clean validation split; with noise on both sides the task only looks harder. Asked at the best
    validation loss: later the wrong labels are learned by heart, and validation falls behind.
    """
    found = _at_best_validation(seen)
    if found is None:
        return None
    s, around, near = found
    loss_gap = seen.loss_S[around].mean() - seen["validation_loss_nats"][near].mean()
    if not loss_gap >= LABEL_LOSS_GAP:
        return None
    told = (
        f"training loss {seen.loss_S[around].mean():.3g} against a validation loss of "
        f"{seen['validation_loss_nats'][near].mean():.3g} around step {seen.step(s)}"
    )
    if not (seen.has("accuracy") and seen.has("validation_score")):
        error = seen.loss_S[around].std() / np.sqrt(len(around))
        smoothed = seen.trace.setting(seen.run, "label_smoothing", 0.0)
        sure = loss_gap >= GAP_ERRORS * error and loss_gap >= 0.5 * seen["validation_loss_nats"][near].mean()
        return (
            (seen.step(s), told + "; accuracy of training was not logged") if sure and not smoothed else None
        )
    train, held = seen["accuracy"][around], seen["validation_score"][near].mean()
    if held - train.mean() < max(LABEL_GAP, GAP_ERRORS * train.std() / np.sqrt(len(train))):
        return None
    return seen.step(s), f"training accuracy {train.mean():.3g} against {held:.3g} on validation; " + told


def _at_best_validation(seen: Seen):
    """Line of the best evaluation, the lines between its neighbours, and those evaluations; None with fewer
    than 3."""
    held = seen["validation_loss_nats"]
    at = np.flatnonzero(np.isfinite(held))
    if at.size < 3 or not np.isfinite(seen.loss_S[at]).all():
        return None
    k = int(np.argmin(held[at]))
    low, high = max(k - 1, 0), min(k + 1, at.size - 1)
    start = at[low] + 1 if low < k else 0
    if high == k:  # the last one: training was still on its way through the lines before it
        start = (start + at[k]) // 2
    around = np.arange(start, at[high] + 1)
    around = around[np.isfinite(seen.loss_S[around])]
    return (int(at[k]), around, at[low : high + 1]) if around.size >= 2 else None


def overfit(seen: Seen) -> Finding | None:
    """Validation loss turned and rose for good while the training loss went on falling."""
    held = seen["validation_loss_nats"]
    at = np.flatnonzero(np.isfinite(held))
    if at.size < 3:
        return None
    k = int(np.argmin(held[at]))
    best, last = held[at[k]], held[at[max(k + 1, at.size - 2) :]]
    if not last.size or last.min() < best + max(OVERFIT_RISE * best, OVERFIT_NATS):
        return None
    around = seen.loss_S[at[max(k - 1, 0)] : at[min(k + 1, at.size - 1)] + 1]
    around = around[np.isfinite(around)]
    if not around.size or seen.final > (1 - OVERFIT_FALL) * around.mean():
        return None
    score_S = seen["validation_score"][at]
    gained = np.isfinite(score_S[[k, -1]]).all() and score_S[-1] > score_S[k] + SCORE_GAIN
    if gained and last.min() < (1 + OVERFIT_SURE) * best:
        return None
    return seen.step(int(at[k])), (
        f"validation loss was best, {best:.3g}, at step {seen.step(int(at[k]))} and is "
        f"{last[-1]:.3g} at the end; training loss fell from {around.mean():.3g} to "
        f"{seen.final:.3g} meanwhile"
    )


def stall(seen: Seen) -> Finding | None:
    """The loss did not come down: no more than the noise of batches, or a twentieth of the way to its
    floor."""
    if seen.verdict.kind == "stalled":
        return None, seen.verdict.evidence
    if seen.first - seen.final <= RISE_SIGMAS * seen.noise / np.sqrt(5) and seen.final < PEAK_FACTOR * abs(
        seen.first
    ):
        return None, (
            f"the loss went from {seen.first:.3g} to {seen.final:.3g}, which the noise of batches "
            f"({seen.noise:.2g}) explains"
        )
    return None
