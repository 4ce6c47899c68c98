"""Checks of lesson 02: log-sum-exp, the loss, its gradient, which runs decide, the plain loss of a log."""

import math

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision

READY_MADE = {
    "cross_entropy",
    "cross_entropy_loss",
    "CrossEntropyLoss",
    "log_softmax",
    "log_sum_exp",
    "logaddexp",
    "logsumexp",
    "nll_loss",
    "softmax",
}
"""What the exercises build, or would build half of it."""


class _ReadyMade(TorchFunctionMode):
    """Notes which functions of torch are called, whatever name they were imported under."""

    def __init__(self):
        super().__init__()
        self.called: set[str] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.called.add(getattr(function, "__name__", "").strip("_"))
        return function(*args, **(kwargs or {}))


def _refuse_ready_made(solution, *arguments):
    """Run the solution once, and refuse one that calls what is to be built."""
    with _ReadyMade() as seen:
        solution(*arguments)
    function = getattr(solution, "__wrapped__", solution)
    # The course's own functions are no functions of torch; a log_sum_exp that the reader wrote is welcome.
    names = _names_in(getattr(function, "__code__", None))
    named = {name for name in names if "ops" in names or not _is_yours(function, name)}
    if found := sorted((seen.called | named) & READY_MADE):
        raise ExerciseFailed(
            f"this calls {found[0]}, which is what you are building here. "
            "Use exp, log, max and sum: then you know what it does, and where it breaks"
        )


def _names_in(code) -> set[str]:
    """Names that a function uses, those inside its comprehensions and lambdas too."""
    if not hasattr(code, "co_names"):
        return set()
    return set(code.co_names).union(*map(_names_in, code.co_consts))


def _is_yours(function, name) -> bool:
    value = function.__globals__.get(name)
    return callable(value) and not str(getattr(value, "__module__", "")).startswith(("torch", "stabviz"))


def _expect_untouched(what, argument, before):
    if not torch.equal(argument, before):
        raise ExerciseFailed(f"{what} was edited in place: make a new tensor, x = x - m and not x -= m")


def _expect_nats(what, got, expected, **tolerance):
    """Compare, and name a logarithm to base 2 or 10 and a value that is not finite."""
    value = float(torch.as_tensor(got).detach().mean())
    wanted = float(torch.as_tensor(expected).detach().mean())
    for base, unit in ((2, "bits"), (10, "decimal digits")):
        if wanted and math.isclose(value, wanted / math.log(base), rel_tol=1e-4):
            raise ExerciseFailed(
                f"{what}: log{base} gives {unit}; nats need the natural logarithm, torch.log"
            )
    if not math.isfinite(value) and math.isfinite(wanted):
        raise ExerciseFailed(
            f"{what}: expected {wanted:.5g}; got {value}. An exponential has overflowed, or all have become 0"
        )
    expect(what, got, expected, **tolerance)


def _edits_the_scores(scores):
    largest = scores.max().clone()
    scores -= largest
    return largest + scores.exp().sum().log()


@check(
    "02-log-sum-exp",
    wrong=[
        lambda scores: scores.exp().sum().log(),
        lambda scores: (scores - scores.max()).exp().sum().log(),
        lambda scores: scores.max(),
        lambda scores: scores.mean() + (scores - scores.mean()).exp().sum().log(),
        lambda scores: scores.max() + (scores - scores.max()).exp().sum().log2(),
        lambda scores: scores.logsumexp(0),
        lambda scores: torch.logsumexp(scores, dim=-1),
        _edits_the_scores,
    ],
)
def log_sum_exp_is_stable(solution):
    _refuse_ready_made(solution, torch.tensor([0.0, 1.0, 2.0]))
    for words, values in (
        ("of [0, 0]: ln 2", [0.0, 0.0]),
        ("of [0, 1, 2]", [0.0, 1.0, 2.0]),
        ("of [1000, 1000]: 1000 + ln 2", [1000.0, 1000.0]),
        ("of [-1000, -1000]", [-1000.0, -1000.0]),
        ("of [0, 1500, -1500]", [0.0, 1500.0, -1500.0]),
    ):
        scores = torch.tensor(values)
        _expect_nats(f"log-sum-exp {words}", solution(scores), torch.logsumexp(torch.tensor(values), 0))
        _expect_untouched("scores", scores, torch.tensor(values))


def _loss_of_rows(logits_NV, targets_N):
    shifted_NV = logits_NV - logits_NV.amax(dim=-1, keepdim=True)
    picked_N = shifted_NV.gather(-1, targets_N.clamp_min(0)[:, None])[:, 0]
    return shifted_NV.exp().sum(dim=-1).log() - picked_N


def _mean_of_kept(loss_N, targets_N):
    return (loss_N * (targets_N != -100)).sum() / (targets_N != -100).sum().clamp_min(1)


def _without_the_maximum(logits_NV, targets_N):
    picked_N = logits_NV.gather(-1, targets_N.clamp_min(0)[:, None])[:, 0]
    return _mean_of_kept(logits_NV.exp().sum(-1).log() - picked_N, targets_N)


def _log_of_the_probability(logits_NV, targets_N):
    exponentials_NV = (logits_NV - logits_NV.amax(dim=-1, keepdim=True)).exp()
    picked_N = exponentials_NV.gather(-1, targets_N.clamp_min(0)[:, None])[:, 0]
    return _mean_of_kept(-(picked_N / exponentials_NV.sum(-1)).log(), targets_N)


def _edits_the_logits(logits_NV, targets_N):
    with torch.no_grad():
        logits_NV -= logits_NV.amax(dim=-1, keepdim=True)
    return _mean_of_kept(_loss_of_rows(logits_NV, targets_N), targets_N)


def _edits_the_targets(logits_NV, targets_N):
    loss_N, keep_N = _loss_of_rows(logits_NV, targets_N), targets_N != -100
    targets_N[~keep_N] = 0
    return (loss_N * keep_N).sum() / keep_N.sum().clamp_min(1)


@check(
    "02-cross-entropy",
    wrong=[
        _without_the_maximum,
        _log_of_the_probability,
        _edits_the_logits,
        _edits_the_targets,
        lambda logits_NV, targets_N: _loss_of_rows(logits_NV, targets_N).mean(),  # counts ignored rows
        lambda logits_NV, targets_N: (_loss_of_rows(logits_NV, targets_N) * (targets_N != -100)).mean(),
        lambda logits_NV, targets_N: (_loss_of_rows(logits_NV, targets_N) * (targets_N != -100)).sum(),
        lambda logits_NV, targets_N: -_mean_of_kept(_loss_of_rows(logits_NV, targets_N), targets_N),
        lambda logits_NV, targets_N: (
            _mean_of_kept(_loss_of_rows(logits_NV, targets_N), targets_N) / math.log(2)
        ),
        lambda logits_NV, targets_N: _mean_of_kept(_loss_of_rows(logits_NV.detach(), targets_N), targets_N),
        lambda logits_NV, targets_N: _loss_of_rows(logits_NV, targets_N)[
            targets_N != -100
        ].mean(),  # NaN for none
        lambda logits_NV, targets_N: F.cross_entropy(logits_NV, targets_N),
        lambda logits_NV, targets_N: _loss_of_rows(logits_NV, targets_N) * (targets_N != -100),  # no mean
    ],
)
def cross_entropy_is_built(solution):
    draw = torch.Generator().manual_seed(0)
    logits_NV = 2 * torch.randn(5, 7, generator=draw, dtype=torch.float64)
    _refuse_ready_made(solution, logits_NV.clone(), torch.tensor([0, 2, 6, 1, 0]))
    high_NV = torch.tensor([[1000.0, 0.0], [-1000.0, -1200.0]], dtype=torch.float64)
    for words, logits, targets in (
        ("five targets", logits_NV, [0, 2, 6, 1, 0]),
        ("two of five ignored", logits_NV, [0, -100, 1, -100, 2]),
        ("logits of 1000, the right one on top", high_NV, [0, 0]),
        ("a gap of 1000 and one of 200, the wrong one on top", high_NV, [1, 1]),
    ):
        leaf, targets_N = logits.clone().requires_grad_(), torch.tensor(targets)
        got = solution(leaf, targets_N)
        reference = logits.clone().requires_grad_()
        expected = F.cross_entropy(reference, torch.tensor(targets))
        if getattr(got, "shape", ()) != ():
            raise ExerciseFailed(f"return one number, the mean; got a tensor of shape {tuple(got.shape)}")
        _expect_nats(f"the loss, {words}", got, expected)
        _expect_untouched("logits_NV", leaf.detach(), logits)
        _expect_untouched("targets_N", targets_N, torch.tensor(targets))
        if not getattr(got, "requires_grad", False):
            raise ExerciseFailed(
                "the loss has lost its graph (detach, item or numpy?): nothing can learn from it"
            )
        (grad,) = torch.autograd.grad(got, leaf)
        expect(f"the gradient, {words}", grad, torch.autograd.grad(expected, reference)[0], atol=1e-7)
    leaf = logits_NV.clone().requires_grad_()
    none = solution(leaf, torch.full((5,), -100))
    expect("the loss where every target is -100: 0, not 0/0", none, 0.0)
    if getattr(none, "requires_grad", False):
        (grad,) = torch.autograd.grad(none, leaf)
        expect("the gradient where every target is -100: zeros", grad, torch.zeros(5, 7))


def _sum_over_rows(logits_NV, targets_N):
    keep_N = targets_N != -100
    one_hot_NV = F.one_hot(targets_N.clamp_min(0), logits_NV.shape[1])
    return (logits_NV.softmax(-1) - one_hot_NV) * keep_N[:, None]


def _divides_by_none(logits_NV, targets_N):
    return _sum_over_rows(logits_NV, targets_N) / (targets_N != -100).sum()


def _gradient_in_place(logits_NV, targets_N):
    grad_NV = _sum_over_rows(logits_NV, targets_N) / (targets_N != -100).sum().clamp_min(1)
    return logits_NV.copy_(grad_NV)


@check(
    "02-gradient",
    wrong=[
        _sum_over_rows,
        _divides_by_none,
        _gradient_in_place,
        lambda logits_NV, targets_N: (
            _sum_over_rows(logits_NV, targets_N) / len(targets_N)
        ),  # ignored ones too
        lambda logits_NV, targets_N: -_divides_by_none(logits_NV, targets_N).nan_to_num(0.0),  # ascends
    ],
)
def gradient_is_sum_over_rows(solution):
    logits_NV = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for words, targets in (("five targets", [0, 2, 1, 1, 0]), ("two of five ignored", [0, -100, 1, -100, 2])):
        leaf, given, targets_N = logits_NV.clone().requires_grad_(), logits_NV.clone(), torch.tensor(targets)
        F.cross_entropy(leaf, targets_N).backward()
        expect(f"the gradient, {words}", solution(given, targets_N), leaf.grad)
        _expect_untouched("logits_NV", given, logits_NV)
        _expect_untouched("targets_N", targets_N, torch.tensor(targets))
    ignored_N = torch.full((5,), -100)  # 0 targets: the mean over them must not become 0/0
    expect(
        "the gradient where every target is -100: zeros",
        solution(logits_NV.clone(), ignored_N),
        torch.zeros(5, 3),
    )


RUNS = {
    "cooler": ("above chance", "below chance"),
    "hotter": ("stays good", "above chance"),
    "more seeds": ("above chance", "above chance"),
    "longer": ("above chance", "above chance"),
    "smoothing": ("below chance", "below chance"),
}
"""What Ann and Ben expect of each run."""
ABOUT = {
    "more seeds": "it makes the same finding surer",
    "longer": "it makes logits larger and learns the noise better at once",
    "smoothing": "it changes what is learned and how large the logits are, both at once",
} | dict.fromkeys(
    ("cooler", "hotter"),
    "neither the guesses nor the knowledge change, only the size of the logits: who blames the size?",
)


@check(
    "02-decide",
    wrong=[
        lambda: {"cooler": ("above chance", "below chance"), "smoothing": ("above chance", "below chance")},
        lambda: {"more seeds": ("above chance", "above chance"), "longer": ("above chance", "above chance")},
        lambda: {"cooler": ("below chance", "above chance"), "hotter": ("above chance", "stays good")},
        lambda: {"cooler": ("above chance", "below chance"), "hotter": ("above chance", "above chance")},
        lambda: {"cooler": ("above chance", "below chance")},
        lambda: ("cooler", "hotter"),
        lambda: (
            {name: RUNS[name] for name in ("cooler", "hotter")}
            | {"smoothing": ("above chance", "below chance")}
        ),
    ],
)
def two_runs_decide(solution):
    expect_decision(solution(), stories=("Ann", "Ben"), runs=RUNS, because=ABOUT)


def _logged_in_place(logged, log_z, mean_logit, label_smoothing):
    logged -= label_smoothing * (log_z - mean_logit)
    logged /= 1 - label_smoothing
    return logged


@check(
    "02-plain-loss",
    wrong=[
        lambda logged, log_z, mean_logit, label_smoothing: logged - label_smoothing * (log_z - mean_logit),
        lambda logged, log_z, mean_logit, label_smoothing: (
            (logged - label_smoothing * log_z) / (1 - label_smoothing)
        ),
        lambda logged, log_z, mean_logit, label_smoothing: logged / (1 - label_smoothing),
        lambda logged, log_z, mean_logit, label_smoothing: (
            (logged - label_smoothing * (log_z + mean_logit)) / (1 - label_smoothing)
        ),
        lambda logged, log_z, mean_logit, label_smoothing: logged,
        _logged_in_place,
    ],
)
def plain_loss_is_taken_out(solution):
    draw = torch.Generator().manual_seed(0)
    for epsilon in (0.0, 0.1, 0.4):
        logits_NV = 1 + 2 * torch.randn(6, 5, generator=draw, dtype=torch.float64)
        targets_N = torch.tensor([0, 1, 2, 3, 4, 0])
        logged = F.cross_entropy(logits_NV, targets_N, label_smoothing=epsilon)
        before = logged.clone()
        got = solution(logged, logits_NV.logsumexp(-1).mean(), logits_NV.mean(), epsilon)
        expect(f"the plain loss at smoothing {epsilon}", got, F.cross_entropy(logits_NV, targets_N))
        _expect_untouched("logged", logged, before)
