"""Your function in the lab: what a learner wrote trains like ours, and what cannot be used says why."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from stabviz import ops
from stabviz.lab import grid, train
from stabviz.lab.problems import problem_of
from stabviz.models import transformer_block
from stabviz.models.transformer import part

TINY = {
    "task": "markov",
    "width": 12,
    "heads": 3,
    "layers": 2,
    "context": 6,
    "batch": 5,
    "steps": 9,
    "lr": 1e-2,
    "seed": [2, 7, 13],
    "dtype": "float64",
}


def paper_adam(param, grad, m, v, t, lr, beta1, beta2, eps):
    """As the exercise of lesson 03 asks for it."""
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    return param - lr * (m / (1 - beta1**t)) / (torch.sqrt(v / (1 - beta2**t)) + eps), m, v


def state_adam(param, grad, state, *, lr, beta1=0.5, beta2=0.5, eps=1.0):
    """In the form of stabviz.ops; its defaults are not ours, so the knobs must reach it."""
    step = state["step"] + 1
    m = beta1 * state["first_moment"] + (1 - beta1) * grad
    v = beta2 * state["second_moment"] + (1 - beta2) * grad**2
    direction = (m / (1 - beta1**step)) / (torch.sqrt(v / (1 - beta2**step)) + eps)
    return param - lr * direction, {"step": step, "first_moment": m, "second_moment": v}


def descend(p, g, lr):
    return p - lr * g


def heavy_ball(param, grad, velocity, lr, beta1):
    velocity = beta1 * velocity + grad
    return param - lr * velocity, velocity


def clip(grad_P, max_norm):
    norm = (grad_P**2).sum() ** 0.5
    return grad_P * torch.clamp(max_norm / norm, max=1.0), norm


def attention(query_BHLK, key_BHMK, value_BHMK, mask):
    scores = query_BHLK @ key_BHMK.mT / math.sqrt(query_BHLK.shape[-1])
    return torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1) @ value_BHMK


def hidden_attention(q, k, v):
    later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf)
    return torch.softmax(scores, dim=-1) @ v, "whatever else"


def block(params, x, mask, heads):
    """Pre-LN, as the exercise of lesson 07 asks for it."""

    def norm(name, x):
        return ops.layer_norm(x, params[f"{name}.weight"], params[f"{name}.bias"])

    x = (
        x
        + ops.multi_head_attention(
            part(params, "attention"), norm("attention_norm", x), heads=heads, mask=mask, measure=False
        )[0]
    )
    return x + ops.feed_forward(part(params, "feed_forward"), norm("feed_forward_norm", x))


def post_block(params, stream, *, causal, heads):
    def norm(name, x):
        return ops.layer_norm(x, params[f"{name}.weight"], params[f"{name}.bias"])

    attended, seen = ops.multi_head_attention(
        part(params, "attention"), stream, heads=heads, causal=causal, measure=False
    )
    stream = norm("attention_norm", stream + attended)
    return norm("feed_forward_norm", stream + ops.feed_forward(part(params, "feed_forward"), stream)), seen


def loss(logits_NV, targets_N):
    return -torch.log_softmax(logits_NV, -1).gather(-1, targets_N[:, None]).mean()


def smoothed(logits_NV, targets_N, label_smoothing):
    log_p_NV = torch.log_softmax(logits_NV, -1)
    right = log_p_NV.gather(-1, targets_N[:, None]).mean()
    return -(1 - label_smoothing) * right - label_smoothing * log_p_NV.mean()


def cosine_by_other_names(step, steps, warmup):
    return half_cosine(step, steps, warmup)


def half_cosine(step, total_steps, warmup_steps):
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def tensor_cosine(step, *, total_steps, warmup_steps=0):
    rise = torch.clamp((step + 1) / warmup_steps, max=1.0)
    progress = torch.clamp(step - warmup_steps, min=0) / (total_steps - warmup_steps)
    return rise * (1 + torch.cos(math.pi * progress)) / 2


def amsgrad(param, grad, state, lr):
    return ops.amsgrad_step(param, grad, state, lr=lr)


def curves(trace):
    return np.stack([trace["loss_nats"], trace["grad_norm_preclip"], trace["lr"]])


@pytest.mark.parametrize(
    ("yours", "named"),
    [
        ({"optimizer": paper_adam}, {"optimizer": "adam"}),
        ({"optimizer": state_adam}, {"optimizer": "adam"}),
        ({"optimizer": paper_adam, "beta2": [0.9, 0.999]}, {"optimizer": "adam", "beta2": [0.9, 0.999]}),
        ({"optimizer": amsgrad}, None),
        ({"optimizer": descend}, {"optimizer": "sgd"}),
        ({"optimizer": heavy_ball}, {"optimizer": "momentum"}),
        ({"clip": clip, "clip_norm": [0.3, 0.5]}, {"clip_norm": [0.3, 0.5]}),
        ({"attention": attention}, {}),
        ({"attention": hidden_attention}, {}),
        ({"attention": ops.scaled_dot_product_attention, "softcap": [2.0, 5.0]}, {"softcap": [2.0, 5.0]}),
        ({"block": block}, {}),
        (
            {"block": post_block, "norm": "post", "init_scale": [0.5, 1.0]},
            {"norm": "post", "init_scale": [0.5, 1.0]},
        ),
        ({"block": block, "task": "copy"}, {"task": "copy"}),
        (
            {"block": transformer_block, "norm": "deepnorm", "softcap": 3.0},
            {"norm": "deepnorm", "softcap": 3.0},
        ),
        ({"block": transformer_block}, {}),
        ({"loss": loss}, {}),
        ({"loss": smoothed, "label_smoothing": [0.1, 0.2]}, {"label_smoothing": [0.1, 0.2]}),
        ({"loss": ops.cross_entropy}, {}),
        ({"schedule": half_cosine, "warmup_steps": 3}, {"warmup_steps": 3}),
        ({"schedule": tensor_cosine, "warmup_steps": 3}, {"warmup_steps": 3}),
        ({"schedule": lambda step: 1.0}, {"schedule": "constant"}),
        ({"schedule": cosine_by_other_names, "warmup_steps": 3}, {"warmup_steps": 3}),
    ],
)
def test_a_function_of_yours_gives_the_curves_of_ours(yours, named, recwarn):
    if named is None:  # the state of amsgrad is not that of Adam, and the error says so
        with pytest.raises(ValueError, match="train: optimizer amsgrad must run on one model; got"):
            train(grid(**TINY | yours))
        return
    with_yours = train(grid(**TINY | yours))
    # float64: only the order of operations differs
    np.testing.assert_allclose(curves(with_yours), curves(train(grid(**TINY | named))), rtol=1e-7)
    assert "note" not in with_yours.config
    assert not recwarn.list


@pytest.mark.parametrize(
    "yours",
    [
        {"optimizer": paper_adam},
        {"clip": clip, "clip_norm": 0.3},
        {"attention": attention},
        {"block": block},
        {"loss": loss},
    ],
)
def test_run_r_among_many_equals_run_r_alone_with_a_function_of_yours(yours):
    together = train(grid(**TINY | yours))
    alone = train(grid(**TINY | yours | {"seed": [7]}))
    np.testing.assert_allclose(curves(together.select(seed=7)), curves(alone), rtol=1e-9)


def branching_clip(grad_P, max_norm):
    norm = grad_P.norm()
    return grad_P * max_norm / norm if norm > max_norm else grad_P


def item_step(param, grad, t, lr):
    return param - lr.item() * grad


def branching_loss(logits_NV, targets_N):
    value = loss(logits_NV, targets_N)
    return value if value < 1e9 else value * 0


def branching_block(params, stream, mask, heads):
    return block(params, stream if stream.sum() < 1e9 else -stream, mask, heads)


def branching_attention(query, key, value, mask):
    return attention(query, key, value, mask if query.sum() < 1e9 else ~mask)


@pytest.mark.parametrize(
    ("yours", "named", "why"),
    [
        (
            {"clip": branching_clip, "clip_norm": [0.3, 0.6]},
            {"clip_norm": [0.3, 0.6]},
            "clip branching_clip branches",
        ),
        (
            {"optimizer": item_step},
            {"optimizer": "sgd"},
            "optimizer item_step hands a tensor's value to Python",
        ),
        ({"loss": branching_loss}, {}, "loss branching_loss branches on a tensor's value"),
        ({"attention": branching_attention}, {}, "attention branching_attention branches"),
        ({"block": branching_block}, {}, "block branching_block branches on a tensor's value"),
    ],
)
def test_what_cannot_be_recorded_runs_as_written_and_says_so(yours, named, why):
    with pytest.warns(UserWarning, match=why):
        trace = train(grid(**TINY | yours))
    assert trace.config["note"].endswith("it runs run by run, as written, which takes longer")
    np.testing.assert_allclose(curves(trace), curves(train(grid(**TINY | named))), rtol=1e-7)


def test_a_function_that_depends_on_more_than_its_arguments_is_not_recorded():
    calls = []

    def decaying(param, grad, lr):
        calls.append(None)
        return param - lr / len(calls) * grad

    with pytest.warns(
        UserWarning, match="optimizer decaying depends on more than its arguments: it runs as written"
    ):
        trace = train(grid(**TINY | {"optimizer": decaying}))
    assert len(calls) > trace.n_steps
    update_S = trace["update_rms"][0] / trace["grad_norm_preclip"][0]
    assert (np.diff(update_S) < 0).all(), "each call takes a shorter step, also beyond the recorded one"


def test_your_functions_label_runs_by_name_and_stand_in_the_configuration():
    trace = train(grid(**TINY | {"optimizer": [paper_adam, "adam"], "clip": clip, "steps": 3}))
    assert trace.labels("optimizer").tolist() == ["paper_adam", "adam"] * 3
    assert trace.config["clip"] == "clip"
    assert hash(grid(**TINY | {"clip": clip}).runs[0]) == hash(grid(**TINY | {"clip": clip}).runs[0])
    assert grid(optimizer=[partial(heavy_ball, beta1=0.5)]).labels == ({"optimizer": "partial"},)


def test_a_block_that_leaves_parameters_unused_trains_the_others():
    def without_attention(params, x):
        return x + ops.feed_forward(part(params, "feed_forward"), x)

    trace, params, _ = train(grid(**TINY | {"block": without_attention}), keep_params=True)
    first = train(grid(**TINY | {"block": without_attention, "lr": 0.0}), keep_params=True).params
    unused, used = "block0.attention.query.weight", "block0.feed_forward.up.weight"
    assert torch.equal(params[0][unused], first[0][unused])
    assert not torch.equal(params[0][used], first[0][used])
    assert "max_attention_logit" not in trace
    assert "note" not in trace.config


def test_your_optimizer_measures_the_update_in_units_of_the_rate():
    ours = train(grid(**TINY | {"optimizer": "adam"}))
    yours = train(grid(**TINY | {"optimizer": paper_adam}))
    np.testing.assert_allclose(yours["update_rms"], ours["update_rms"], rtol=1e-6)
    assert "second_moment_ratio" not in yours


def in_place(param, grad, lr):
    param -= lr * grad
    return param


def detached(logits_NV, targets_N):
    return loss(logits_NV.detach(), targets_N)


def bad_state(param, grad, state, lr):
    return param - lr * grad, {"velocity": grad}


@pytest.mark.parametrize(
    ("yours", "message"),
    [
        ({"optimizer": lambda param, grad, lr: None}, "optimizer <lambda> must return param, .* got None"),
        (
            {"optimizer": lambda param, grad, lr: param[:3]},
            r"return param, param being float64 of shape .* got float64",
        ),
        (
            {"optimizer": lambda param, grad, lr: param.float()},
            "optimizer <lambda> must return .* got float32 of shape",
        ),
        (
            {"optimizer": lambda param, grad, m, lr: param},
            r"optimizer <lambda> must return \(param, m\); got float64",
        ),
        (
            {"optimizer": lambda param, grad, state, lr: param},
            r"must return \(param, state\), the state a dict of",
        ),
        (
            {"optimizer": bad_state},
            r"bad_state must return .*other moments: take them as arguments.* \['velocity'\]",
        ),
        (
            {"optimizer": in_place},
            "optimizer in_place must leave its arguments as they are .* got an edit in place",
        ),
        ({"optimizer": lambda param, grad, lr: param / nothing}, "must run on one model; got NameError"),  # noqa: F821
        (
            {"clip": lambda grad, max_norm: grad.norm()},
            r"clip <lambda> must return float64 of shape \(.*got float64",
        ),
        ({"clip": lambda grad, max_norm, threshold: grad}, "clip <lambda> must take only .* got 'threshold'"),
        (
            {"clip": lambda grad, max_norm: grad.mul_(0.5)},
            "clip <lambda> must leave its arguments as they are",
        ),
        (
            {"attention": lambda q, k, v: q @ k.mT},
            r"attention <lambda> must return float64 of shape \(5, 3, 6, 4\)",
        ),
        (
            {"attention": lambda q, k, v: v.detach()},
            "attention <lambda> must return what can be differentiated",
        ),
        (
            {"block": lambda params, stream: stream[:, :3] * params["feed_forward.down.weight"].sum()},
            r"block <lambda> must return float64 of shape \(5, 6, 12\); got float64 of shape \(5, 3, 12\)",
        ),
        ({"block": lambda params, x: x.mul_(2)}, "block <lambda> must leave its arguments as they are"),
        ({"block": lambda params, x: x.detach()}, "block <lambda> must return what can be differentiated"),
        (
            {"block": lambda params, x: x * params["block0.up.weight"].sum()},
            "block <lambda> must run on one model; got KeyError",
        ),
        (
            {"block": lambda params, x, memory: x},
            "block <lambda> must take only params, stream, mask, causal .* got 'memory'",
        ),
        ({"loss": lambda logits, targets: logits}, r"loss <lambda> must return float64 of shape \(\); got"),
        ({"loss": lambda logits, targets: 3.0}, r"loss <lambda> must return float64 of shape \(\); got 3.0"),
        ({"loss": detached}, "loss detached must return what can be differentiated"),
        (
            {"clip": lambda grad, norm: grad / norm},
            "clip <lambda> must say whether 'norm' is max_norm or the knob; got both. Call it max_norm",
        ),
        ({"schedule": lambda step: "soon"}, "schedule <lambda> must return one number.* got 'soon'"),
        ({"schedule": lambda step: None}, "schedule <lambda> must return one number.* got None"),
    ],
)
def test_train_refuses_a_function_that_it_cannot_use(yours, message):
    with pytest.raises(ValueError, match="train: .*" + message):
        train(grid(**TINY | yours))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"optimizer": 3}, "optimizer must be one of .* or a function; got 3"),
        ({"clip": "norm"}, "clip must be a function or None; got 'norm'"),
        (
            {"attention": attention, "model": "lstm"},
            "attention must be None without a transformer; got attention",
        ),
        ({"block": block, "model": "lstm"}, "block must be None without a transformer; got block"),
        (
            {"block": block, "attention": attention},
            "attention must be None beside a block of your own.* got attention",
        ),
        ({"init_scale_of": "ends", "model": "lstm"}, "init_scale_of must be 'all' without a transformer"),
        ({"loss": loss, "task": "bowl"}, "loss must be None for task 'bowl'; got loss"),
        ({"clip": [lambda g, c: g, lambda g, c: 2 * g]}, "functions of clip must differ in their names; got"),
    ],
)
def test_grid_refuses_functions_that_fit_nowhere(knobs, message):
    with pytest.raises(ValueError, match=message):
        grid(**knobs)


def test_a_step_of_ops_handed_over_as_a_function_is_the_optimizer_of_that_name():
    knobs = {"steps": 6, "width": 12, "heads": 3, "context": 6, "batch": 2, "lr": 1e-2, "seed": [0, 1]}
    for name in ("sgd", "momentum", "adamw", "stable_adamw"):
        by_name = train(grid("markov", optimizer=name, **knobs))
        handed = train(grid("markov", optimizer=ops.OPTIMIZERS[name].step, **knobs))
        assert np.array_equal(handed["loss_nats"], by_name["loss_nats"]), name


def test_what_hides_characters_asks_for_these_alone_by_the_rule():
    experiment = grid("masked", mask_share=[0.15, 0.5], steps=40, batch=16, context=24)
    problem = problem_of(experiment.runs[0])
    batches = problem.batches(experiment.runs, torch.device("cpu"))
    seen, targets = (
        torch.stack([batches(torch.tensor(step))[name] for step in range(40)], dim=1)
        for name in ("tokens", "targets")
    )
    for run, share in enumerate((0.15, 0.5)):
        asked = targets[run] != -100
        assert asked.float().mean() == pytest.approx(share, abs=0.02)
        hidden, kept = seen[run] == problem.mask_id, seen[run] == targets[run]
        assert hidden[asked].float().mean() == pytest.approx(0.8, abs=0.03)
        assert kept[asked].float().mean() == pytest.approx(0.1, abs=0.03)
        assert not hidden[~asked].any()
    # one seed, one text: what both ask for is the same
    both = (targets != -100).all(dim=0)
    assert torch.equal(targets[0][both], targets[1][both])


def test_who_fills_gaps_may_look_to_the_right():
    seen = []

    def attention(query, key, value, mask, causal):
        seen.append((bool(mask.all()), causal))
        return value.flip(-2)

    trace = train(grid("masked", attention=attention, steps=3, batch=2, context=8, width=8))
    assert np.isfinite(trace["loss_nats"]).all()
    assert set(seen) == {(True, False)}
    with pytest.raises(ValueError, match="model must be 'transformer' for what looks to both sides"):
        grid("masked", model="lstm")
    with pytest.raises(ValueError, match="mask_share must be 0.15 unless task is 'masked'"):
        grid("text", mask_share=0.5)
