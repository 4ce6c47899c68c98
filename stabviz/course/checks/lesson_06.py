"""Checks of lesson 06: InfoNCE from nothing, the two deciding runs, the collapse told by what is found."""

import math

import torch

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision


def _unit(z):
    return z / z.norm(dim=-1, keepdim=True)


def _unchanged(function, *tensors):
    """Call a function on copies, and refuse one that edits them."""
    copies = [tensor.clone() for tensor in tensors]
    answer = function(*copies)
    if not all(torch.equal(copy, tensor) for copy, tensor in zip(copies, tensors, strict=True)):
        raise ExerciseFailed("your function changed its arguments in place (x /= ...). Write x = x / ...")
    return answer


# InfoNCE from nothing ---------------------------------------------------------------------------------------


def _not_normalised(x, y, temperature):
    scores = x @ y.T / temperature
    return (torch.logsumexp(scores, dim=-1) - scores.diagonal()).mean()


def _positive_left_out(x, y, temperature):
    scores = _unit(x) @ _unit(y).T / temperature
    negatives = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), -torch.inf)
    return (torch.logsumexp(negatives, dim=-1) - scores.diagonal()).mean()


def _overflows(x, y, temperature):
    exps = torch.exp(_unit(x) @ _unit(y).T / temperature)
    return -torch.log(exps.diagonal() / exps.sum(dim=-1)).mean()


def _in_place(x, y, temperature):
    x /= x.norm(dim=-1, keepdim=True)
    return _not_normalised(x, _unit(y), temperature)


@check(
    "06-in-batch",
    wrong=[
        _not_normalised,
        _positive_left_out,
        _overflows,
        _in_place,
        lambda x, y, temperature: _not_normalised(_unit(x), _unit(y), 1 / temperature),  # times, not divided
        lambda x, y, temperature: _not_normalised(_unit(y), _unit(x), temperature),  # x found from y
        lambda x, y, temperature: _not_normalised(_unit(x), _unit(y), temperature) * len(x),  # a sum
        lambda x, y, temperature: _not_normalised(_unit(x), _unit(y), 0.1),  # a temperature of its own
        lambda x, y, temperature: (_unit(x) - _unit(y)).square().sum(dim=-1).mean(),  # no negatives
    ],
)
def in_batch_is_a_cross_entropy_on_cosines(solution):
    eye = torch.eye(3)
    expect("three perpendicular pairs at temperature 1: ln(e + 2) - 1", solution(eye, eye, 1.0), 0.551445)
    expect("the same three, x twice as long (a cosine does not mind)", solution(2 * eye, eye, 1.0), 0.551445)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    cosines = _unit(x) @ _unit(y).T
    expected = torch.nn.functional.cross_entropy(cosines / 0.2, torch.arange(7))
    got = _unchanged(lambda *z: solution(*z, 0.2), x, y)
    other_way = torch.nn.functional.cross_entropy(cosines.T / 0.2, torch.arange(7))
    if torch.is_tensor(got) and got.shape == () and torch.isclose(got.double(), other_way):
        raise ExerciseFailed("this finds x from y: each row of x must find its y, so sum over the rows of y")
    expect("seven random pairs at temperature 0.2", got, expected)
    small = solution(x.float(), y.float(), 0.001)
    if torch.is_tensor(small) and not torch.isfinite(small).all():
        raise ExerciseFailed("at temperature 0.001 exp overflows: e^1000. torch.logsumexp does not")
    reference = torch.nn.functional.cross_entropy(cosines / 0.001, torch.arange(7))
    expect("the same seven at temperature 0.001, in float32", small, reference, rtol=1e-3)


# Which two runs decide --------------------------------------------------------------------------------------

GAIN, NONE = "gain", "no gain"
RUNS = {
    "hardest 16": (NONE, GAIN),
    "rate 10": (GAIN, NONE),
    "tau 0.2": (GAIN, GAIN),
    "any 16": (NONE, NONE),
    "tau 0.1, hardest 16": (GAIN, GAIN),
}
"""What the story of length and the story of neighbours predict of each run, against tau 1."""


@check(
    "06-two-runs",
    wrong=[
        lambda: {"tau 0.2": (GAIN, GAIN), "any 16": (NONE, NONE)},  # both stories say the same
        lambda: {"hardest 16": (GAIN, NONE), "rate 10": (NONE, GAIN)},  # predictions swapped
        lambda: {"hardest 16": (NONE, GAIN)},  # one run only
        lambda: {"hardest 16": (NONE, GAIN), "tau 0.1, hardest 16": (GAIN, GAIN)},
        lambda: dict(RUNS),  # all five
        lambda: {"hardest 16": (NONE, GAIN), "rate 10": (GAIN, GAIN)},  # one story's prediction is wrong
        lambda: ["hardest 16", "rate 10"],  # no predictions
    ],
)
def two_runs_are_told_with_both_predictions(solution):
    expect_decision(solution(), stories=("length", "neighbours"), runs=RUNS, because={})


# Collapsed, or only close together --------------------------------------------------------------------------


def _best_found(x, y, temperatures, scale=_unit):
    scores = scale(x) @ scale(y).T
    target = torch.arange(len(scores))
    losses = [torch.nn.functional.cross_entropy(scores / t, target) for t in temperatures]
    return math.log(len(x)) - min(float(loss) for loss in losses)


def _uniformity(z):
    return torch.exp(-2 * torch.pdist(_unit(z)).square()).mean().log()


def _alignment(x, y):
    return (_unit(x) - _unit(y)).square().sum(dim=-1).mean()


def _edits(x, y, raw_x, raw_y, temperatures):
    for z in (x, y, raw_x, raw_y):
        z /= z.norm(dim=-1, keepdim=True)
    return _best_found(x, y, temperatures) < 0.4 * _best_found(raw_x, raw_y, temperatures)


def _one_temperature_for_both(x, y, raw_x, raw_y, temperatures):
    best = max(temperatures, key=lambda t: _best_found(raw_x, raw_y, [t]))
    return _best_found(x, y, [best]) < 0.4 * _best_found(raw_x, raw_y, [best])


def _by_loss(x, y, raw_x, raw_y, temperatures):
    loss, raw = (math.log(len(x)) - _best_found(*z, temperatures) for z in ((x, y), (raw_x, raw_y)))
    return loss > 2 * raw


def _below(found):
    return lambda x, y, raw_x, raw_y, temperatures: _best_found(x, y, temperatures) < found


def _share(share, temperatures=None, scale=_unit):
    def judged(x, y, raw_x, raw_y, given):
        tried = temperatures or given
        found, raw = (_best_found(*z, tried, scale) for z in ((x, y), (raw_x, raw_y)))
        return found < share * raw

    return judged


@check(
    "06-collapsed",
    wrong=[
        lambda x, y, raw_x, raw_y, temperatures: bool(_uniformity(x) > -1.5),
        lambda x, y, raw_x, raw_y, temperatures: bool(_uniformity(x) > -1.0),
        lambda x, y, raw_x, raw_y, temperatures: bool(_unit(x).std(dim=0).mean() < 0.1),
        lambda x, y, raw_x, raw_y, temperatures: bool(_alignment(x, y) < 0.05),
        _share(0.4, temperatures=[0.1]),  # one temperature for all
        _one_temperature_for_both,
        _below(0.7),  # no word of what the raw features find
        _by_loss,
        _share(1.0),  # worse than raw, but not by that much
        _share(0.5),
        _share(0.3),
        _share(0.75),
        _share(0.4, scale=lambda z: z),  # not normalised
        _edits,
        lambda x, y, raw_x, raw_y, temperatures: True,
        lambda x, y, raw_x, raw_y, temperatures: False,
    ],
)
def collapsed_is_told_by_what_is_found(solution):
    temperatures = [0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0]
    for kind, (expected, pairs) in _encoders().items():
        answer = _unchanged(lambda *z: solution(*z, list(temperatures)), *pairs)
        try:
            answer = bool(answer)
        except (RuntimeError, ValueError, TypeError):
            raise ExerciseFailed(
                f"return True or False, one word for the encoder; got {answer!r:.100}"
            ) from None
        if answer != expected:
            found, raw = _best_found(*pairs[:2], temperatures), _best_found(*pairs[2:], temperatures)
            raise ExerciseFailed(
                f"an encoder that is {kind}: expected {expected}; got {answer}. At its best temperature it "
                f"finds {found:.2f} nats, the raw features at theirs {raw:.2f}"
            )


def _encoders():
    """Kinds of encoders: is it collapsed, its embeddings of 64 pairs, their raw features."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def noisy(core, noise):
        return core + noise * drawn(*core.shape), core + noise * drawn(*core.shape)

    core = drawn(64, 12)
    raw = noisy(core, 0.55)
    label = torch.sign(core[:, :1]) * torch.tensor([[1.0, 0.0]]).double()
    clouds = noisy(label, 0.02)
    cloud_centre = torch.tensor([[1.0] + [0.0] * 12]).double()
    cone = [cloud_centre + 0.02 * torch.nn.functional.pad(z, (1, 0)) for z in raw]
    strangers = drawn(2, 64, 12)
    lengths = torch.exp(1.5 * drawn(64, 1))
    poor_raw = [torch.cat([z, 0.3 * stranger], dim=1) for z, stranger in zip(clouds, strangers, strict=True)]
    point = noisy(torch.ones(64, 4).double(), 1e-3)
    lost_less, lost_more = noisy(core[:, :5], 0.62), noisy(core[:, :4], 0.65)
    return {
        "healthy": (False, (*noisy(core, 0.5), *raw)),
        "narrow, all vectors close together, and yet knows its pairs": (False, (*cone, *raw)),
        "spread evenly over the sphere and knows nothing": (True, (*strangers, *raw)),
        "two clouds, well apart": (True, (*clouds, *raw)),
        "one point, with noise": (True, (*point, *raw)),
        "two clouds, where the raw features know little more": (False, (*clouds, *poor_raw)),
        "worse than the raw features, and finds a little more than 0.4 of what they do": (
            False,
            (*lost_less, *raw),
        ),
        "worse than the raw features, and finds a third of what they do": (True, (*lost_more, *raw)),
        "healthy, with vectors of very different lengths": (
            False,
            (raw[0] * lengths, raw[1] * lengths.flip(0), *raw),
        ),
    }
