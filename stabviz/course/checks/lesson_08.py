"""Checks of lesson 08: attention that no weight can make loud, which runs tell two stories apart, a Trace."""

import numpy as np
import torch

from stabviz.course.exercises import ExerciseFailed, check, expect_decision
from stabviz.ops import causal_mask, cosine_attention
from stabviz.trace import Trace


def _unit(x, dim=-1):
    return x / x.norm(dim=dim, keepdim=True)


def _mix(logits, value, mask, dim=-1):
    return torch.softmax(logits.masked_fill(~mask, -torch.inf), dim) @ value


def _divides_by_the_root_of_the_width(query, key, value, mask, scale=10.0):
    return _mix(query @ key.mT / query.shape[-1] ** 0.5, value, mask)


def _normalises_the_query_alone(query, key, value, mask, scale=10.0):
    return _mix(scale * _unit(query) @ key.mT, value, mask)


def _normalises_along_the_positions(query, key, value, mask, scale=10.0):
    return _mix(scale * _unit(query, -2) @ _unit(key, -2).mT, value, mask)


def _rms_in_place_of_length(query, key, value, mask, scale=10.0):
    return _mix(scale * query.shape[-1] * _unit(query) @ _unit(key).mT, value, mask)


def _no_mask(query, key, value, mask, scale=10.0):
    return torch.softmax(scale * _unit(query) @ _unit(key).mT, -1) @ value


def _masks_with_zero(query, key, value, mask, scale=10.0):
    return torch.softmax((scale * _unit(query) @ _unit(key).mT).masked_fill(~mask, 0.0), -1) @ value


def _weights_sum_to_one_over_queries(query, key, value, mask, scale=10.0):
    return _mix(scale * _unit(query) @ _unit(key).mT, value, mask, dim=-2).nan_to_num()


def _always_ten(query, key, value, mask, scale=10.0):
    return cosine_attention(query, key, value, mask=mask, scale=10.0)


def _edits_in_place(query, key, value, mask, scale=10.0):
    query /= query.norm(dim=-1, keepdim=True)
    key /= key.norm(dim=-1, keepdim=True)
    return _mix(scale * query @ key.mT, value, mask)


def _near(what, found, expected, words):
    """Refuse by one number: three hundred values beside three hundred would name no mistake."""
    apart = float((found - expected).abs().max())
    if not apart < 1e-5:  # NaN is not below it
        raise ExerciseFailed(f"{what}: your output is off by up to {apart:.3g}; {words}")


@check(
    "08-attention",
    wrong=[
        _divides_by_the_root_of_the_width,
        _normalises_the_query_alone,
        _normalises_along_the_positions,
        _rms_in_place_of_length,
        _no_mask,
        _masks_with_zero,
        _weights_sum_to_one_over_queries,
        _always_ten,
        _edits_in_place,
    ],
)
def attention_hears_directions_only(solution):
    draw = torch.Generator().manual_seed(8)
    query, key, value = (torch.randn(2, 3, 5, 7, generator=draw, dtype=torch.float64) for _ in range(3))
    mask = causal_mask(5)
    kept = [x.clone() for x in (query, key, value)]
    found = solution(query, key, value, mask)
    for name, x, before in zip(("query", "key", "value"), (query, key, value), kept, strict=True):
        if not torch.equal(x, before):
            raise ExerciseFailed(f"the {name} that was handed in has changed: make new tensors instead")
    if isinstance(found, tuple):
        found = found[0]
    if not isinstance(found, torch.Tensor) or found.shape != value.shape:
        raise ExerciseFailed(f"return one tensor of shape {tuple(value.shape)}; got {found!r:.80}")
    # The first query may attend to nothing but itself.
    _near(
        "the first position sees itself alone, and gives its own value back",
        found[:, :, 0],
        value[:, :, 0],
        "look at the mask (True: may attend) and at the axis of the softmax",
    )
    for name, long_query, long_key in (("queries", 100, 1), ("keys", 1, 100)):
        apart = (solution(long_query * query, long_key * key, value, mask) - found).abs().max()
        if not apart < 1e-6:
            words = "two vectors of one direction must count alike: divide by the length along the last axis"
            raise ExerciseFailed(f"{name} 100 times as long change the output by {float(apart):.3g}; {words}")
    words = "the logits are scale times the cosine, and nothing else divides or multiplies them"
    _near("scale left at 10", found, cosine_attention(*kept, mask=mask, scale=10.0), words)
    words = "use the scale that is handed in"
    _near("scale=3", solution(*kept, mask, scale=3.0), cosine_attention(*kept, mask=mask, scale=3.0), words)


RUNS = {
    "QK-norm": ("learns", "learns"),
    "soft-cap 10": ("learns", "fails"),
    "query/key rate / 30": ("learns", "learns"),
    "all other rates / 30": ("fails", "fails"),
    "scores x 30": ("fails", "learns"),
}


@check(
    "08-tell-apart",
    wrong=[
        lambda: {"QK-norm": ("learns", "fails"), "soft-cap 10": ("learns", "fails")},
        lambda: {"query/key rate / 30": ("fails", "learns"), "all other rates / 30": ("learns", "fails")},
        lambda: {"soft-cap 10": ("fails", "learns"), "scores x 30": ("learns", "fails")},
        lambda: {"soft-cap 10": ("learns", "fails")},
        lambda: {"soft-cap 10": ("learns", "learns"), "scores x 30": ("fails", "learns")},
        lambda: {name: ("learns", "fails") for name in RUNS},
        lambda: ["soft-cap 10", "scores x 30"],
    ],
)
def two_runs_tell_the_stories_apart(solution):
    expect_decision(solution(), stories=("entropy", "rate"), runs=RUNS, because={})


def _ends(trace, signal):
    return float(trace.final(signal)[0])


def _entropy_first(trace):
    if _ends(trace, "attention_entropy") < 0.2:
        return "collapsed"
    return _right(trace)


def _right(trace):
    if _ends(trace, "loss_nats") < trace.config["chance_nats"] / 2:
        return "fine"
    if _ends(trace, "attention_entropy") < 0.2:
        return "collapsed"
    if "max_attention_logit" not in trace:
        return "cannot tell"
    return (
        "hidden" if _ends(trace, "max_attention_logit") > 10 * trace.config["softcap"] else "something else"
    )


def _looks_at_the_peak(trace):
    found = _right(trace)
    if found == "something else" and trace["max_attention_logit"].max() > 10 * trace.config["softcap"]:
        return "hidden"
    return found


def _no_news_is_good_news(trace):
    found = _right(trace)
    return "something else" if found == "cannot tell" else found


def _logit_or_nothing(trace):
    return _right(trace) if "max_attention_logit" in trace else "cannot tell"


def _any_logit_above_the_cap(trace):
    found = _right(trace)
    if found == "something else" and _ends(trace, "max_attention_logit") > trace.config["softcap"]:
        return "hidden"
    return found


def _needs_a_logit(trace):
    if _ends(trace, "max_attention_logit") > 1000 and _ends(trace, "attention_entropy") < 0.2:
        return "collapsed"
    return _right(trace)


def _half_of_ln_16(trace):
    if _ends(trace, "loss_nats") < 2.77 / 2:
        return "fine"
    return "something else" if _right(trace) == "fine" else _right(trace)


def _anything_below_chance_is_fine(trace):
    return "fine" if _ends(trace, "loss_nats") < trace.config["chance_nats"] - 1 else _right(trace)


def _entropy_below_a_half(trace):
    found = _right(trace)
    return "collapsed" if found != "fine" and _ends(trace, "attention_entropy") < 0.5 else found


def _made_up(loss, entropy, logit=None, softcap=np.inf, chance=2.77):
    """A Trace of one run of 40 steps, each signal going evenly from its first value to its last."""
    signals = {"loss_nats": loss, "attention_entropy": entropy, "max_attention_logit": logit}
    values = {}
    for name, ends in signals.items():
        if ends is not None:
            values[name] = [np.interp(np.arange(40), np.linspace(0, 35, len(ends)), ends).tolist()]
    config = {"chance_nats": chance, "floor_nats": 0.0, "softcap": softcap}
    return Trace(steps=range(40), signals=values, runs=[{}], config=config)


@check(
    "08-name-it",
    wrong=[
        _entropy_first,
        _looks_at_the_peak,
        _no_news_is_good_news,
        _logit_or_nothing,
        _any_logit_above_the_cap,
        _needs_a_logit,
        _half_of_ln_16,
        _anything_below_chance_is_fine,
        _entropy_below_a_half,
    ],
)
def the_fault_is_named(solution):
    cases = [
        ("a copy that is learned, its attention sharp", "fine", _made_up((2.8, 0.0), (1.3, 0.05), (3, 90))),
        ("loud and stuck", "collapsed", _made_up((2.8, 2.6), (1.3, 0.0), (4, 27_000))),
        ("stuck and sharp, no logit logged", "collapsed", _made_up((2.8, 2.6), (1.3, 0.01))),
        ("stuck under a cap", "hidden", _made_up((2.8, 2.4), (1.3, 0.9), (4, 9000), softcap=10.0)),
        ("the same run, no logit logged", "cannot tell", _made_up((2.8, 2.4), (1.3, 0.9), softcap=10.0)),
        ("a rate too small", "something else", _made_up((2.8, 2.7), (1.3, 1.2), (3, 4))),
        (
            "a logit that was high and came back",
            "something else",
            _made_up((2.8, 2.4), (1.3, 0.9), (4, 400, 8), softcap=10.0),
        ),
        (
            "a logit of three times the cap",
            "something else",
            _made_up((2.8, 2.4), (1.3, 0.9), (4, 30), softcap=10.0),
        ),
        (
            "somewhat above half of chance, nothing loud",
            "something else",
            _made_up((2.8, 1.6), (1.3, 0.9), (3, 9)),
        ),
        (
            "a chance of ln 64, and far below half of it",
            "fine",
            _made_up((4.2, 1.5), (1.3, 0.9), (3, 9), chance=4.16),
        ),
        (
            "no cap, a loud logit, entropy just above 0.2",
            "something else",
            _made_up((2.8, 2.6), (1.3, 0.25), (4, 300)),
        ),
        (
            "an entropy that dipped and came back",
            "something else",
            _made_up((2.8, 2.6), (1.3, 0.05, 0.9), (4, 9)),
        ),
        ("an entropy just below 0.2", "collapsed", _made_up((2.8, 2.6), (1.3, 0.15), (4, 60))),
    ]
    for what, expected, trace in cases:
        got = solution(trace)
        if got != expected:
            ends = ", ".join(f"{name} ends at {_ends(trace, name):.3g}" for name in trace.signals)
            words = f"{what} ({ends}; cap {trace.config['softcap']:g})"
            raise ExerciseFailed(f"{words}: expected {expected!r}; got {got!r:.60}")
