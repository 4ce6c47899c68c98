"""Checks of lesson 07: a block, DeepNorm, which runs decide, a plateau in a noisy log."""

import math

import numpy as np
import torch
from torch import nn

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision
from stabviz.ops import causal_mask, gelu

_HEADS = 3


def _block(
    params,
    x,
    mask,
    heads,
    norm,
    *,
    branch_reads="the rule",
    mended_norm=None,
    scale=None,
    hides=True,
    inverted=False,
    both_read_the_first=False,
    activation=gelu,
    split="heads first",
    shared_norm=False,
    biased=True,
):
    """The block, and what becomes of it under the usual mistakes."""
    placement = mended_norm or norm
    first = x
    mask = ~mask if inverted else mask

    def normed(name, x):
        name = "attention_norm" if shared_norm else name
        bias = params[f"{name}.bias"] if biased else None
        return nn.functional.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], bias)

    def attend(x):
        def project(name):
            flat = x @ params[f"attention.{name}.weight"].mT
            if split == "heads last":
                return flat.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
            return flat.unflatten(-1, (heads, -1)).transpose(1, 2)

        query, key, value = project("query"), project("key"), project("value")
        scores = (
            query
            @ key.mT
            * (1 / math.sqrt(query.shape[-1]) if scale is None else scale(query.shape[-1], heads))
        )
        weights = torch.softmax(scores.masked_fill(~mask, -math.inf) if hides else scores, dim=-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return mixed @ params["attention.output.weight"].mT

    def feed(x):
        return activation(x @ params["feed_forward.up.weight"].mT) @ params["feed_forward.down.weight"].mT

    for name, branch in (("attention_norm", attend), ("feed_forward_norm", feed)):
        if both_read_the_first:
            read = normed(name, first) if placement == "pre" else first
            x = x + branch(read) if placement == "pre" else normed(name, x + branch(read))
        elif placement == "pre":
            kept = normed(name, x) if branch_reads == "normed stream kept" else x
            x = kept + branch(normed(name, x))
        elif branch_reads == "norm of the branch":
            x = x + normed(name, branch(x))
        elif branch_reads == "no stream":
            x = normed(name, branch(x))
        else:
            x = normed(name, x + branch(x))
    return x


_MISTAKES = {
    "later tokens are seen: where mask is False the score must be -inf before the softmax": {"hides": False},
    "the mask is taken the wrong way round: True means that row MAY look at column": {"inverted": True},
    "the feed-forward pair must read what attention has left, not the stream that came in": {
        "both_read_the_first": True
    },
    "the scores are not divided by the root of the HEAD width": {"scale": lambda K, heads: 1.0},
    "the scores are divided by the root of the whole width, not of a head's": {
        "scale": lambda K, heads: 1 / math.sqrt(K * heads)
    },
    "the heads are cut wrongly: head 0 has the FIRST D / heads columns": {"split": "heads last"},
    "pre-LN and post-LN come out as pre-LN both": {"mended_norm": "pre"},
    "pre-LN and post-LN come out as post-LN both": {"mended_norm": "post"},
    "in pre-LN the stream itself is never normalised, only what the branch reads": {
        "branch_reads": "normed stream kept"
    },
    "in post-LN the norm belongs on the SUM of stream and branch, not on the branch": {
        "branch_reads": "norm of the branch"
    },
    "in post-LN the stream itself is missing from the sum": {"branch_reads": "no stream"},
    "the feed-forward pair has a layer norm of its own, feed_forward_norm": {"shared_norm": True},
    "the layer norms' bias is missing": {"biased": False},
    "between up and down stands GELU, ops.gelu": {"activation": torch.relu},
}


def _mistaken(options):
    return lambda params, x, mask, heads, norm: _block(params, x, mask, heads, norm, **options)


def _in_place(params, x, mask, heads, norm):
    x += _block(params, x, mask, heads, norm) - x
    return x


def _made_block():
    draws = torch.Generator().manual_seed(7)
    D, F = 2 * _HEADS, 11

    def draw(*shape):
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    params = {f"attention.{name}.weight": draw(D, D) for name in ("query", "key", "value", "output")}
    params |= {"feed_forward.up.weight": draw(F, D), "feed_forward.down.weight": draw(D, F)}
    for name in ("attention_norm", "feed_forward_norm"):
        params |= {f"{name}.weight": 1 + 0.3 * draw(D), f"{name}.bias": 0.3 * draw(D)}
    return params, draw(2, 5, D)


@check("07-block", wrong=[*map(_mistaken, _MISTAKES.values()), _in_place])
def block_is_two_branches_on_a_stream(solution):
    params, x = _made_block()
    kept, kept_x = {name: value.clone() for name, value in params.items()}, x.clone()
    near = causal_mask(5) & ~causal_mask(5).tril(-3)  # a mask that is not the causal one: is it used at all?
    for norm in ("pre", "post"):
        for what, mask in (("the causal mask", causal_mask(5)), ("a mask of the last three", near)):
            got = solution(params, x, mask, _HEADS, norm)
            if not torch.equal(x, kept_x) or any(not torch.equal(params[n], kept[n]) for n in kept):
                raise ExerciseFailed(
                    "the stream or a weight that was handed in has changed: x = x + ..., not x += ..."
                )
            if isinstance(got, torch.Tensor) and got.shape == x.shape:
                for words, options in _MISTAKES.items():
                    mistaken = _block(params, x, mask, _HEADS, norm, **options)
                    right = _block(params, x, mask, _HEADS, norm)
                    # A row that may look nowhere is NaN, or whatever the learner's softmax makes of it.
                    finite = mistaken.isfinite()
                    same = torch.allclose(got[finite], mistaken[finite])
                    if same and not torch.allclose(mistaken, right):
                        raise ExerciseFailed(f"{norm}-LN, {what}: {words}")
            expect(f"{norm}-LN, {what}", got, _block(params, x, mask, _HEADS, norm))


_WRITTEN = ("attention.value.weight", "attention.output.weight", "up.weight", "down.weight")


def _turned_down(params, layers, names):
    return {name: w * (8 * layers) ** -0.25 if name.endswith(names) else w for name, w in params.items()}


def _alpha_inverted(params, layers):
    return (2 * layers) ** -0.25, _turned_down(params, layers, _WRITTEN)


def _everything_turned_down(params, layers):
    return (2 * layers) ** 0.25, _turned_down(params, layers, "")


def _value_forgotten(params, layers):
    return (2 * layers) ** 0.25, _turned_down(params, layers, _WRITTEN[1:])


def _edited_in_place(params, layers):
    for name, value in params.items():
        if name.endswith(_WRITTEN):
            value *= (8 * layers) ** -0.25
    return (2 * layers) ** 0.25, dict(params)


def _same_dict(params, layers):
    params |= _turned_down(params, layers, _WRITTEN)
    return (2 * layers) ** 0.25, params


def _factors_of_gpt_2(params, layers):
    scaled = {n: w * (2 * layers) ** -0.5 if n.endswith(_WRITTEN) else w for n, w in params.items()}
    return (2 * layers) ** 0.25, scaled


@check(
    "07-deepnorm",
    wrong=[
        _alpha_inverted,
        _everything_turned_down,
        _value_forgotten,
        _edited_in_place,
        _same_dict,
        _factors_of_gpt_2,
    ],
)
def deepnorm_turns_down_what_writes(solution):
    kept = (
        "attention.query.weight",
        "attention.key.weight",
        "attention_norm.weight",
        "feed_forward_norm.bias",
    )
    names = [name if name.startswith("attention") else f"feed_forward.{name}" for name in _WRITTEN]
    params = {f"block{i}.{name}": torch.ones(2) for i in range(8) for name in (*names, *kept)}
    params |= {"embedding.token": torch.ones(2), "head.weight": torch.ones(2)}
    given, tensors = params, dict(params)
    answer = solution(params, 8)
    if not isinstance(answer, tuple | list) or len(answer) != 2 or not isinstance(answer[1], dict):
        raise ExerciseFailed(f"return alpha and a dict of the parameters; got {answer!r:.100}")
    alpha, scaled = answer
    edited = [name for name, tensor in tensors.items() if not torch.equal(tensor, torch.ones(2))]
    if (
        edited
        or any(given.get(name) is not tensor for name, tensor in tensors.items())
        or len(given) != len(tensors)
    ):
        what = edited[0] if edited else "the dict"
        raise ExerciseFailed(f"what was handed in has changed ({what}): return a new dict with new tensors")
    expect("alpha of 8 blocks: the fourth root of 16", alpha, 2.0)
    missing, added = sorted(set(tensors) - set(scaled)), sorted(set(scaled) - set(tensors))
    if missing or added:
        words = "the parameters returned must have the names of those given"
        raise ExerciseFailed(f"{words}; missing {missing[:3]}, added {added[:3]}")
    for name, value in scaled.items():
        factor = 64**-0.25 if name.endswith(_WRITTEN) else 1.0
        expect(f"factor on {name}, of 8 blocks", value, torch.full((2,), factor))


_RUNS = {
    "feed-forward x 0.3": ("mends", "stays"),
    "attention to itself": ("stays", "mends"),
    "both branches x 0.3": ("mends", "mends"),
    "ends x 0.3": ("stays", "stays"),
    "warm-up of 40": ("stays", "stays"),
}
"""What the stories of size and of mixing predict of each run."""
_ABOUT = {
    "both branches x 0.3": "attention's branch is small there too",
    "ends x 0.3": "embeddings and readout are no branches",
    "warm-up of 40": "the branches are as large and mix as much",
}


@check(
    "07-decide",
    wrong=[
        lambda: {"both branches x 0.3": ("mends", "mends"), "feed-forward x 0.3": ("mends", "stays")},
        lambda: {"ends x 0.3": ("stays", "stays"), "attention to itself": ("stays", "mends")},
        lambda: {"feed-forward x 0.3": ("stays", "mends"), "attention to itself": ("mends", "stays")},
        lambda: {"feed-forward x 0.3": ("mends", "stays"), "attention to itself": ("mends", "mends")},
        lambda: {"feed-forward x 0.3": ("mends", "stays")},
        lambda: ("feed-forward x 0.3", "attention to itself"),
        lambda: {"feed-forward x 0.3": "mends", "attention to itself": "stays"},
    ],
)
def two_runs_decide(solution):
    expect_decision(solution(), stories=("size", "mixing"), runs=_RUNS, because=_ABOUT)


def _log(seed, *levels, steps=200, scatter=0.1):
    """A noisy loss that runs through the levels, given as (share of the run, nats)."""
    noise = np.random.default_rng(seed).normal(size=steps) * scatter
    shares, nats = zip(*levels, strict=True)
    return np.interp(np.linspace(0, 1, steps), shares, nats) + noise


def _last_value_only(loss_S, frequencies):
    if abs(loss_S[-1] - frequencies) < 0.15:
        return "plateau"
    return "learning" if loss_S[-1] < frequencies else "lost"


def _level_only(loss_S, frequencies):
    late = np.mean(loss_S[-len(loss_S) // 5 :])
    if abs(late - frequencies) < 0.15:
        return "plateau"
    return "learning" if late < frequencies else "lost"


def _slope_only(loss_S, frequencies):
    fifth = len(loss_S) // 5
    fall = np.mean(loss_S[-2 * fifth : -fifth]) - np.mean(loss_S[-fifth:])
    return "learning" if fall > 0.05 else "plateau"


def _right_diagnosis(loss_S, frequencies):
    fifth = len(loss_S) // 5
    before, late = np.mean(loss_S[-2 * fifth : -fifth]), np.mean(loss_S[-fifth:])
    if not np.isfinite(loss_S).all():
        return "lost"
    if late < frequencies - 0.15 or before - late > 0.1:
        return "learning"
    return "plateau" if late < frequencies + 0.15 else "lost"


def _nan_is_no_fall(loss_S, frequencies):
    return _right_diagnosis(np.nan_to_num(loss_S, nan=frequencies), frequencies)


def _sorts_in_place(loss_S, frequencies):
    answer = _right_diagnosis(loss_S, frequencies)
    loss_S.sort()
    return answer


def _takes_the_lowest(loss_S, frequencies):
    return "learning" if np.nanmin(loss_S) < frequencies - 0.15 else _right_diagnosis(loss_S, frequencies)


@check(
    "07-diagnose",
    wrong=[
        _last_value_only,
        _level_only,
        _slope_only,
        _nan_is_no_fall,
        _sorts_in_place,
        _takes_the_lowest,
        lambda loss_S, frequencies: "plateau",
    ],
)
def diagnosis_tells_a_rest_from_a_passage(solution):
    resting = _log(3, (0, 4.2), (0.3, 3.1), (1, 3.1))
    # one batch of easy text: 0.5 nats below, and no sign of learning
    lucky = resting.copy()
    lucky[150] -= 0.5
    ended = resting.copy()
    ended[-1] = 2.8
    broken = resting.copy()
    broken[-40:] = np.nan
    cases = [
        ("a run that rests at the frequencies", resting, 3.1, "plateau"),
        ("the same run, its last batch 0.3 nats easier", ended, 3.1, "plateau"),
        ("the same run with one easy batch in the middle", lucky, 3.1, "plateau"),
        ("a run that passes the frequencies on its way down", _log(5, (0, 4.3), (1, 2.95)), 3.1, "learning"),
        ("a run that rests half a nat below them", _log(7, (0, 4.2), (0.5, 2.6), (1, 2.6)), 3.1, "learning"),
        (
            "a run that left the plateau late",
            _log(8, (0, 4.2), (0.3, 3.1), (0.6, 3.1), (1, 2.5)),
            3.1,
            "learning",
        ),
        ("a run that rests half a nat above them", _log(9, (0, 4.2), (0.2, 3.6), (1, 3.6)), 3.1, "lost"),
        ("a run that turned NaN at the end", broken, 3.1, "lost"),
        ("other letters: frequencies of 2.4", _log(11, (0, 4.2), (0.4, 2.4), (1, 2.4)), 2.4, "plateau"),
        ("a log four times as long", _log(13, (0, 4.2), (0.1, 3.1), (1, 3.1), steps=800), 3.1, "plateau"),
    ]
    for what, loss_S, frequencies, answer in cases:
        kept = loss_S.copy()
        found = solution(loss_S, frequencies)
        if not np.array_equal(loss_S, kept, equal_nan=True):
            raise ExerciseFailed(f"{what}: the log that was handed in has changed: work on a copy")
        if found not in ("plateau", "learning", "lost"):
            raise ExerciseFailed(f"{what}: expected 'plateau', 'learning' or 'lost'; got {found!r:.60}")
        if found != answer:
            raise ExerciseFailed(f"{what}: expected {answer!r}; got {found!r}")
