"""The task "intents": messages as word ids, an encoder read at its first position, Adam by part."""

import math

import pytest
import torch

from stabviz import ops
from stabviz.lab import adam_by_part, desk_messages, grid, guarded_adam, intent_logits, train
from stabviz.lab.experiment import Run
from stabviz.lab.problems import problem_of
from stabviz.seeds import generator

INTENTS = {
    "task": "intents",
    "batch": 5,
    "width": 6,
    "heads": 2,
    "context": 7,
    "layers": 2,
    "norm": "post",
    "steps": 6,
    "schedule": "constant",
    "warmup_steps": 0,
    "lr": 0.01,
    "beta2": 0.999,
}


def adam(param, grad, m, v, t, lr):
    m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
    return param - lr * (m / (1 - 0.9**t)) / (torch.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


def test_desk_messages_are_half_of_each_intent_and_share_no_message():
    messages = desk_messages()
    assert messages.train_NL.shape == (720, 64)
    assert messages.test_NL.shape == (120, 64)
    assert messages.train_N.double().mean() == messages.test_N.double().mean() == 0.5
    assert bool((messages.train_NL[:, 0] == 1).all())
    assert int(messages.train_NL.max()) < len(messages.words)
    train_rows = {tuple(row) for row in messages.train_NL.tolist()}
    assert not train_rows & {tuple(row) for row in messages.test_NL.tolist()}


def test_intent_logits_do_not_depend_on_padding():
    run = Run(**INTENTS)
    problem = problem_of(run)
    params, tokens_BL = problem.init(run), torch.tensor([[1, 5, 9, 4, 0, 0, 0]])
    short = intent_logits(params, tokens_BL[:, :4], problem.config)[0]
    torch.testing.assert_close(intent_logits(params, tokens_BL, problem.config)[0], short)


def test_the_loss_of_intents_is_cross_entropy_on_the_first_batch():
    trace, params, configs = train(grid(**INTENTS | {"lr": 0.0, "steps": 1}, seed=[3]), keep_params=True)
    messages = desk_messages()
    rows = torch.randint(720, (1, 5), generator=generator(3, "data"))[0]
    logits_BC = intent_logits(params[0], messages.train_NL[rows, :7], configs[0])[0]
    expected = ops.cross_entropy(logits_BC, messages.train_N[rows])[0]
    assert trace["loss_nats"][0, 0] == pytest.approx(float(expected), rel=1e-5)
    assert trace.config["chance_nats"] == pytest.approx(math.log(2))
    gap_B = logits_BC[:, 1] - logits_BC[:, 0]
    assert trace["logit_spread"][0, 0] == pytest.approx(float(gap_B.std(correction=0)), rel=1e-4)


def test_a_run_of_intents_is_the_same_alone_and_among_others():
    alone = train(grid(**INTENTS, seed=[2]))
    among = train(grid(**INTENTS, seed=[1, 2, 3]))
    assert among["loss_nats"][1] == pytest.approx(alone["loss_nats"][0], rel=1e-4)


def test_a_loss_of_yours_on_intents_gives_the_curve_of_ours():
    def mine(logits, targets):
        return ops.cross_entropy(logits, targets)[0]

    ours, yours = (train(grid(**INTENTS, loss=loss, seed=range(2))) for loss in (None, mine))
    assert yours["loss_nats"] == pytest.approx(ours["loss_nats"], rel=1e-4)


def test_intents_refuse_a_recurrent_model_and_a_block_of_yours():
    with pytest.raises(ValueError, match="Run: model must be 'transformer' for what looks to both sides"):
        Run(task="intents", model="lstm")
    with pytest.raises(ValueError, match="Run: block must be None"):
        Run(task="intents", block=lambda params, stream: stream)


def test_adam_by_part_is_adam_where_nothing_or_everything_is_picked():
    first = grid(**INTENTS).runs[0]
    for flag in (True, False):
        step = adam_by_part(first, uncorrected=lambda name, flag=flag: not flag)
        mine = train(grid(**INTENTS, optimizer=step, seed=range(2)))
        ours = train(grid(**INTENTS, bias_correction=flag, seed=range(2)))
        assert mine["loss_nats"] == pytest.approx(ours["loss_nats"], rel=1e-3)


def test_adam_by_part_freezes_what_it_is_told_to_and_nothing_else():
    step = adam_by_part(grid(**INTENTS).runs[0], frozen=lambda name: name.startswith("block0"))
    begun = problem_of(run := Run(**INTENTS)).init(run)
    after = train(grid(**INTENTS, optimizer=step, seed=[0]), keep_params=True).params[0]
    stayed = {name for name in begun if torch.equal(begun[name], after[name])}
    assert stayed == {name for name in begun if name.startswith("block0")}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_guarded_adam_is_adam_and_changes_nothing_at_a_bad_gradient(bad):
    param, grad, m = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.3, -0.4, 0.5]), torch.full((3,), 0.2)
    v, t = torch.full((3,), 0.1), torch.tensor(4.0, dtype=torch.float64)
    for mine, theirs in zip(
        guarded_adam(param, grad, m, v, t, 0.1), adam(param, grad, m, v, t, 0.1), strict=True
    ):
        torch.testing.assert_close(mine, theirs.to(mine.dtype))
    kept = guarded_adam(param, torch.tensor([0.3, bad, 0.5]), m, v, t, 0.1)
    assert all(torch.equal(mine, before) for mine, before in zip(kept, (param, m, v), strict=True))


def test_guarded_adam_saves_a_run_whose_gradient_is_nan_once():
    poison = {"poison_step": 2, "poison_scale": math.nan, "on_non_finite": "apply", "steps": 5}
    saved = train(grid(**INTENTS | poison, optimizer=guarded_adam, seed=[0]))
    lost = train(grid(**INTENTS | poison, seed=[0]))
    assert [bool(math.isfinite(x)) for x in saved["loss_nats"][0]] == [True, True, False, True, True]
    assert not any(math.isfinite(x) for x in lost["loss_nats"][0, 2:])
