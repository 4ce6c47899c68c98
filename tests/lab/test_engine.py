import math

import numpy as np
import pytest
import torch

from stabviz.lab import engine as engine_module
from stabviz.lab import grid, stream, train
from stabviz.lab import runs as runs_module
from stabviz.lab.engine import RunBatch
from stabviz.lab.experiment import Run
from stabviz.lab.problems import problem_of
from stabviz.models import transformer_logits
from stabviz.ops import OPTIMIZERS

TINY = {"width": 12, "heads": 3, "layers": 2, "context": 6, "batch": 5, "steps": 7, "dtype": "float64"}


def curves(trace):
    return np.stack([trace["loss_nats"], trace["grad_norm_preclip"]])


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_train_gives_a_run_among_many_what_it_gives_alone(optimizer):
    knobs = TINY | {"optimizer": optimizer, "clip_norm": 0.5, "lr": 1e-3}
    together = train(grid("markov", seed=[3, 11, 5], **knobs))
    for seed in (3, 11, 5):
        alone = train(grid("markov", seed=[seed], **knobs))
        # float64, seven steps: only the order of sums inside a batched product may differ
        np.testing.assert_allclose(curves(together.select(seed=seed)), curves(alone), rtol=1e-9)


@pytest.mark.parametrize(
    "knobs",
    [
        {"model": "lstm"},
        {"model": "lstm", "detach_state": True},
        {"model": "rnn", "recurrent_scale": 3.0},
        {"task": "copy"},
        {"norm": "post"},
        {"qk_norm": True},
        {"softcap": 5.0},
        {"clip_value": 1e-3},
        {"clip_adaptive": 0.01},
        {"label_smoothing": 0.1, "z_loss": 1e-2},
        {"schedule": "plateau"},
        {"task": "regression"},
        {"task": "ravine", "noise_scale": 0.3, "lr": 1e-2},
        {"bias_correction": False},
        {"qk_lr_scale": 0.1},
        {"vo_lr_scale": 0.1},
        {"qk_clip": 0.5},
        {"gradient_scale": 1e-7},
    ],
)
def test_train_gives_a_run_among_many_what_it_gives_alone_whatever_the_knobs(knobs):
    knobs = TINY | {"task": "markov", "lr": 1e-3} | knobs
    together = train(grid(seed=[2, 7, 13], **knobs))
    alone = train(grid(seed=[7], **knobs))
    np.testing.assert_allclose(curves(together.select(seed=7)), curves(alone), rtol=1e-8)


def test_train_keeps_numeric_knobs_apart_between_runs():
    together = train(
        grid(
            "markov",
            lr=[1e-3, 1e-1],
            beta2=[0.9, 0.999],
            bias_correction=[True, False],
            clip_norm=[0.1, math.inf],
            seed=[1],
            **TINY,
        )
    )
    alone = train(
        grid("markov", lr=[1e-1], beta2=0.999, bias_correction=False, clip_norm=math.inf, seed=[1], **TINY)
    )
    same = together.select(lr=1e-1, beta2=0.999, bias_correction=False, clip_norm=math.inf)
    np.testing.assert_allclose(curves(same), curves(alone), rtol=1e-9)
    assert len({curves(together)[0, r, -1] for r in range(16)}) > 8


def test_train_does_not_let_a_nan_into_a_neighbour():
    knobs = {name: value for name, value in TINY.items() if name != "dtype"} | {"seed": 3, "lr": 1e-2}
    calm = train(grid("markov", poison_step=[-1, -1, -1], **knobs))
    struck = train(grid("markov", poison_step=[-1, 2, -1], poison_scale=math.nan, **knobs))
    for neighbour in (0, 2):
        assert np.array_equal(curves(calm)[:, neighbour], curves(struck)[:, neighbour]), "to the bit"
    assert struck.non_finite_step(1) == 2
    assert struck.events == [{"run": 1, "step": 2, "kind": "non_finite", "signal": "loss_nats"}]
    assert np.isnan(struck["loss_nats"][1, 2:]).all()
    assert np.isfinite(struck["loss_nats"][1, :2]).all()


def test_the_law_of_independence_is_caught_when_broken(monkeypatch):
    """One norm over ALL runs, the classical mistake: the comparison with the single run must see it."""

    def one_norm_for_all(self, grads_RP):
        norm = grads_RP.norm()
        return grads_RP * 0.5 / norm.clamp(min=0.5), norm.expand(len(self.runs))

    knobs = TINY | {"clip_norm": 0.5, "lr": 1e-3}
    alone = train(grid("markov", seed=[11], **knobs))
    monkeypatch.setattr(engine_module.RunBatch, "_clip", one_norm_for_all)
    together = train(grid("markov", seed=[3, 11, 5], **knobs))
    assert not np.allclose(curves(together.select(seed=11)), curves(alone), rtol=1e-3)


def test_train_equals_torchs_own_loop_step_by_step():
    """The reference: torch's AdamW, clipping and cross-entropy on the same model, data and schedule."""
    experiment = grid(
        "markov", seed=[5], lr=3e-2, warmup_steps=3, clip_norm=0.3, weight_decay=0.1, beta2=0.98, **TINY
    )
    run = experiment.runs[0]
    problem = problem_of(run)
    params = {name: tensor.double().requires_grad_() for name, tensor in problem.init(run).items()}
    batches = problem.batches([run], torch.device("cpu"))
    optimizer = torch.optim.AdamW(params.values(), lr=run.lr, betas=(0.9, 0.98), weight_decay=0.1)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: (s + 1) / 3 if s < 3 else 0.5 * (1 + math.cos(math.pi * (s - 3) / (run.steps - 3))),
    )
    losses, norms = [], []
    for step in range(run.steps):
        batch = {name: rows[0] for name, rows in batches(torch.tensor(step)).items()}
        logits = transformer_logits(params, batch["tokens"], problem.config)[0]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params.values(), 0.3).item())
        optimizer.step()
        rates.step()
        losses.append(loss.item())
    # clip_grad_norm_ divides by norm + 1e-6, ours by the norm: the trajectories part by about 1e-6
    np.testing.assert_allclose(curves(train(experiment)), np.array([[losses], [norms]]), rtol=1e-4)


def test_train_repeats_itself_to_the_bit():
    experiment = grid("text", seed=range(3), lr=[1e-2, 3e-2], width=8, context=8, steps=11)
    first, second = train(experiment), train(experiment)
    assert all(np.array_equal(first[name], second[name], equal_nan=True) for name in first.signals)


def test_train_shows_equal_data_and_weights_to_equal_seeds():
    trace = train(grid("text", seed=[4], lr=[1e-3, 1e-1], width=8, context=8, steps=3))
    assert trace["loss_nats"][0, 0] == trace["loss_nats"][1, 0]
    assert trace["loss_nats"][0, 2] != trace["loss_nats"][1, 2]


def test_stream_grows_and_ends_on_the_whole():
    experiment = grid("bowl", optimizer="sgd", lr=[0.1], steps=17, schedule="constant", warmup_steps=0)
    traces = list(stream(experiment, every=5))
    assert [trace.n_steps for trace in traces] == [5, 10, 15, 17]
    whole = train(experiment)
    for trace in traces:
        assert np.array_equal(trace["loss_nats"], whole["loss_nats"][:, : trace.n_steps])


def test_stream_cancelled_keeps_what_was_done():
    experiment = grid("bowl", optimizer="sgd", lr=[0.1], steps=17, schedule="constant", warmup_steps=0)
    asked = []

    def cancelled():
        asked.append(None)
        return len(asked) > 7

    traces = list(stream(experiment, every=5, cancelled=cancelled))
    assert [trace.n_steps for trace in traces] == [5, 7]
    assert np.array_equal(traces[-1]["loss_nats"], train(experiment)["loss_nats"][:, :7])


def test_stream_stops_early_when_no_run_is_left():
    traces = list(
        stream(
            grid("quartic", optimizer="sgd", lr=[1.0, 2.0], steps=1000, schedule="constant", warmup_steps=0),
            every=10,
        )
    )
    assert traces[-1].n_steps == 10
    assert [event["kind"] for event in traces[-1].events] == ["non_finite"] * 2


def test_stream_works_inside_no_grad():
    with torch.no_grad():
        trace = train(grid("bowl", optimizer="sgd", lr=[0.5], steps=3, schedule="constant", warmup_steps=0))
        assert not torch.is_grad_enabled()
    assert trace["loss_nats"][0].tolist() == [50.0, 12.5, 3.125]


def test_train_measures_layers_whose_squares_add_up_to_the_total():
    trace = train(grid("markov", seed=[1], **TINY))
    layers = [name for name in trace.signals if name.startswith("grad_norm_preclip/")]
    assert layers == [f"grad_norm_preclip/{name}" for name in ("embedding", "block0", "block1", "head")]
    total = np.sqrt(sum(trace[name] ** 2 for name in layers))
    np.testing.assert_allclose(total, trace["grad_norm_preclip"], rtol=1e-12)


def test_train_marks_a_step_as_clipped_just_when_the_norm_is_above_the_threshold():
    trace = train(grid("markov", seed=range(3), clip_norm=0.8, lr=1e-2, **TINY | {"steps": 40}))
    above = trace["grad_norm_preclip"] > 0.8
    assert above.any()
    assert not above.all()
    assert np.array_equal(trace["clipped"].astype(bool), above)


def test_train_measures_the_output_logits_the_same_with_a_loss_of_yours():
    def mine(logits_NV, targets_N):
        return torch.nn.functional.cross_entropy(logits_NV, targets_N)

    ours, theirs = (train(grid("markov", seed=[1, 2], loss=loss, **TINY)) for loss in (None, mine))
    for name in ("mean_logit", "log_z"):
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-9)
    # Jensen: the log of a sum of V exponentials is at least log V above their mean exponent
    assert (ours["log_z"] - ours["mean_logit"] >= math.log(64)).all()


def test_train_without_measures_keeps_the_curve():
    experiment = grid("markov", seed=[1, 2], **TINY)
    bare, full = train(experiment, measure=False), train(experiment)
    assert set(bare.signals) == {"loss_nats", "lr", "grad_norm_preclip"}
    np.testing.assert_allclose(curves(bare), curves(full), rtol=1e-10)


def test_train_keep_params_hands_out_what_the_next_step_would_start_from():
    experiment = grid("markov", seed=[5, 6], norm=["pre", "post"], held_out=0.01, **TINY)
    trace, params, configs = train(experiment, keep_params=True)
    assert trace.equals(train(experiment))
    for r, run in enumerate(experiment.runs):
        assert configs[r].norm == run.norm
        problem = problem_of(run)
        losses = []
        for batch in problem.held_out(torch.device("cpu")):
            logits_BLV, _ = transformer_logits(params[r], batch["tokens"], configs[r])
            targets = batch["targets"].flatten()
            losses.append(torch.nn.functional.cross_entropy(logits_BLV.flatten(0, 1), targets))
        # the mean over batches of 5 and a last one of 4 rows, as the engine takes it: float64, order of sums
        assert trace["held_out_loss_nats"][r, -1] == pytest.approx(
            torch.stack(losses).mean().item(), rel=1e-9
        )


def test_train_keep_params_of_a_frozen_run_are_those_of_its_last_good_step():
    knobs = TINY | {"seed": 3, "schedule": "warmup", "warmup_steps": 2, "poison_scale": math.nan}
    struck = train(grid("markov", poison_step=[2, -1], **knobs), keep_params=True).params
    short = train(grid("markov", poison_step=[-1], **knobs | {"steps": 2}), keep_params=True)
    for name, tensor in short.params[0].items():
        torch.testing.assert_close(struck[0][name], tensor, rtol=1e-9, atol=1e-12)


def test_train_held_out_is_never_drawn_and_changes_nothing_else():
    run = grid("markov", held_out=0.25, **TINY).runs[0]
    corpus_N = problem_of(run).corpus.tokens_N
    kept = len(corpus_N) * 3 // 4
    drawn = problem_of(run).batches([run], torch.device("cpu"))
    windows = corpus_N.unfold(0, run.context + 1, 1)
    for step in range(run.steps):
        batch = drawn(torch.tensor(step))
        rows_BL = torch.cat([batch["tokens"], batch["targets"][..., -1:]], dim=-1)[0]
        assert all((windows[: kept - run.context] == row_L).all(dim=1).any() for row_L in rows_BL)
    tail = [batch["tokens"] for batch in problem_of(run).held_out(torch.device("cpu"))]
    first_L = tail[0][0]
    assert torch.equal(first_L, corpus_N[kept : kept + run.context])
    off, tiny_share = (train(grid("markov", held_out=share, **TINY)) for share in (0.0, 1e-3))
    assert "held_out_loss_nats" not in off
    assert "held_out_loss_nats" in tiny_share


def test_train_measures_the_held_out_loss_every_so_often_and_at_the_end():
    trace = train(grid("text", held_out=0.1, steps=45, width=8, context=8, seed=[0, 1], lr=1e-2))
    measured_S = np.isfinite(trace["held_out_loss_nats"]).all(axis=0)
    assert np.flatnonzero(measured_S).tolist() == [19, 39, 44]
    assert (trace.final("held_out_loss_nats") < trace["held_out_loss_nats"][:, 19]).all()


def test_train_refuses_a_held_out_share_without_a_sequence():
    with pytest.raises(ValueError, match="held_out must leave a sequence of 7 on both sides; got 1e-06"):
        train(grid("markov", held_out=1e-6, **TINY))


def test_train_skips_a_poisoned_step_and_goes_on():
    knobs = TINY | {"seed": 3, "lr": 1e-2, "poison_scale": math.nan}
    trace = train(grid("markov", poison_step=[2], on_non_finite="skip", **knobs))
    assert np.isnan(trace["loss_nats"][0, 2])
    assert np.isfinite(trace["loss_nats"][0, 3:]).all()
    assert trace.non_finite_step(0) is None
    assert [event["step"] for event in trace.events] == [2]


def test_train_that_applies_a_nan_is_lost_from_there_on():
    knobs = TINY | {"seed": 3, "lr": 1e-2, "poison_scale": math.nan}
    trace = train(grid("markov", poison_step=[2], on_non_finite="apply", **knobs))
    assert np.isnan(trace["loss_nats"][0, 2:]).all()


@pytest.mark.parametrize(
    ("knob", "parts"), [("qk_lr_scale", ("query", "key")), ("vo_lr_scale", ("value", "output"))]
)
def test_train_gives_attention_weights_a_rate_of_their_own(knob, parts):
    tiny = {**TINY, "steps": 1, "lr": 1e-2, "warmup_steps": 0, "schedule": "constant", "seed": [0]}
    changes: list[dict] = [{"lr": 0.0}, {}, {knob: 0.1}, {knob: 0.0}]
    start, whole, tenth, none = (
        train(grid("markov", **tiny | change), keep_params=True).params[0] for change in changes
    )
    for name in start:
        moved = whole[name] - start[name]
        share = 0.1 if any(f".attention.{part}." in name for part in parts) else 1.0
        assert moved.abs().max() > 0, name
        torch.testing.assert_close(tenth[name] - start[name], share * moved, rtol=1e-4, atol=1e-7)
        assert torch.equal(none[name], start[name] if share < 1 else whole[name]), name


@pytest.mark.parametrize("knob", ["qk_lr_scale", "vo_lr_scale"])
def test_train_refuses_rates_of_attention_weights_without_attention(knob):
    with pytest.raises(ValueError, match=f"{knob} must be 1 without a transformer"):
        grid("text", model="lstm", **{knob: 0.1})


def test_train_qk_clip_scales_the_loud_heads_after_the_update_by_the_logits_of_the_step():
    tiny = {**TINY, "steps": 1, "lr": 1e-2, "warmup_steps": 0, "schedule": "constant", "seed": [0]}
    plain, clipped = (
        train(grid("markov", **tiny, qk_clip=limit), keep_params=True) for limit in (math.inf, 2.5)
    )
    assert clipped.trace["max_attention_logit"] == plain.trace["max_attention_logit"]  # not yet
    config, before = plain.configs[0], train(grid("markov", **tiny | {"lr": 0.0}), keep_params=True).params[0]
    runs = grid("markov", **tiny).runs
    batch = problem_of(runs[0]).batches(runs, torch.device("cpu"))(torch.tensor(0))
    logit_NH = transformer_logits(before, batch["tokens"][0], config)[1]["max_logit_by_head"]
    assert 0 < (logit_NH > 2.5).sum() < logit_NH.numel()
    for name, value in plain.params[0].items():
        expected = value
        if ".attention.query." in name or ".attention.key." in name:
            root_H = (2.5 / logit_NH[int(name[5])]).clamp(max=1).sqrt()
            expected = value * root_H.repeat_interleave(config.width // config.heads)[:, None]
        torch.testing.assert_close(clipped.params[0][name], expected)


def test_train_qk_clip_needs_no_measures_and_adds_no_signal():
    knobs = TINY | {"task": "markov", "seed": [0, 1], "qk_clip": 1.0}
    measured, bare = (train(grid(**knobs), measure=measure) for measure in (True, False))
    np.testing.assert_allclose(curves(bare), curves(measured), rtol=1e-9)
    assert "max_logit_by_head" not in measured.signals
    assert "max_attention_logit" not in bare.signals


@pytest.mark.parametrize("knobs", [{"qk_norm": True}, {"model": "lstm"}, {"attention": lambda q, k, v: v}])
def test_train_refuses_qk_clip_where_it_has_no_logits_to_bring_down(knobs):
    with pytest.raises(ValueError, match="qk_clip must be inf without a transformer's own attention"):
        grid("markov", qk_clip=30.0, **knobs)


def test_train_joins_runs_of_several_structures_in_their_order():
    trace = train(grid("markov", norm=["post", "pre"], seed=[1, 2], **TINY))
    assert trace.labels("norm").tolist() == ["post", "post", "pre", "pre"]
    alone = train(grid("markov", norm="pre", seed=[2], **TINY))
    np.testing.assert_allclose(curves(trace)[:, 3], curves(alone)[:, 0], rtol=1e-9)


def test_train_rates_follow_the_schedule():
    trace = train(
        grid(
            "bowl",
            optimizer="sgd",
            lr=0.4,
            schedule=["cosine", "constant"],
            warmup_steps=[0, 4],
            steps=8,
            final_lr_share=0.0,
        )
    )
    cosine = trace.select(schedule="cosine", warmup_steps=0)["lr"][0]
    np.testing.assert_allclose(cosine, 0.2 * (1 + np.cos(np.pi * np.arange(8) / 8)), rtol=1e-6)
    np.testing.assert_allclose(trace.select(schedule="constant", warmup_steps=0)["lr"][0], 0.4, rtol=1e-6)


def test_train_cosine_ends_on_the_final_share():
    trace = train(grid("bowl", optimizer="sgd", lr=[0.5], warmup_steps=0, steps=100, final_lr_share=0.2))
    assert trace["lr"][0, -1] == pytest.approx(0.1, rel=5e-3)
    assert trace["lr"][0, 0] == pytest.approx(0.5)


def test_train_plateau_halves_a_rate_that_only_bounces():
    trace = train(
        grid("ravine", optimizer="sgd", schedule="plateau", lr=[2.0 / 20.0], warmup_steps=0, steps=200)
    )
    rates = np.unique(trace["lr"][0])[::-1]
    np.testing.assert_allclose(rates[:2], [0.1, 0.05], rtol=1e-5)
    assert trace["loss_nats"][0, -1] < 1e-3


def test_train_sharpness_finds_the_hessian_of_a_quadratic_model():
    """A one-layer perceptron has a quadratic loss: its Hessian is known exactly."""
    from stabviz.lab import regression_points

    trace = train(
        grid(
            "regression",
            optimizer="sgd",
            layers=1,
            lr=1e-3,
            steps=40,
            sharpness=True,
            seed=[0, 1],
            schedule="constant",
        )
    )
    x_N2, _ = regression_points()
    inputs = torch.cat([x_N2, torch.ones(len(x_N2), 1)], dim=1).double()
    largest = torch.linalg.eigvalsh(2 * inputs.T @ inputs / len(inputs))[-1].item()
    np.testing.assert_allclose(trace["sharpness"][:, -1], largest, rtol=1e-4)


@pytest.mark.parametrize("model", ["lstm", "rnn"])
def test_detach_state_changes_the_gradient_and_not_the_loss(model):
    knobs = TINY | {"model": model, "optimizer": "sgd", "lr": 0.5, "schedule": "constant", "warmup_steps": 0}
    whole, cut = (train(grid("markov", seed=[1], detach_state=cut, **knobs)) for cut in (False, True))
    assert whole["loss_nats"][0, 0] == cut["loss_nats"][0, 0]
    assert whole["grad_norm_preclip"][0, 0] != cut["grad_norm_preclip"][0, 0]
    assert whole["loss_nats"][0, 1] != cut["loss_nats"][0, 1]


def test_recurrent_scale_multiplies_the_recurrent_weights_alone():
    runs = [Run(task="markov", model="rnn", recurrent_scale=scale, **TINY) for scale in (1.0, 3.0)]
    one, three = (RunBatch([run], torch.device("cpu"), True).params_of(0) for run in runs)
    for name in one:
        factor = 3.0 if "recurrent" in name else 1.0
        torch.testing.assert_close(three[name], factor * one[name], rtol=1e-6, atol=0)


def test_train_sharpness_of_a_recurrent_model_is_the_slope_of_its_gradient():
    knobs = TINY | {"model": "lstm", "optimizer": "sgd", "lr": 0.0, "batch": 3, "sharpness_every": 10}
    batch = RunBatch([Run(task="markov", sharpness=True, **knobs)], torch.device("cpu"), True)
    first = batch.next_batch(batch.step_index)

    def grad_at(params_1P):
        batch.params_RP = params_1P
        return batch._gradients(first)[1][0].detach()

    start_1P = batch.params_RP
    batch.step()
    vector_P = batch.curvature.vector_RP[0] / batch.curvature.vector_RP[0].norm()
    batch.curvature, step = None, 1e-5
    # float64, a difference of gradients on either side along the eigenvector that was found
    slope_P = (grad_at(start_1P + step * vector_P) - grad_at(start_1P - step * vector_P)) / (2 * step)
    sharpness = batch.signals["sharpness"][0, 0]
    torch.testing.assert_close(vector_P @ slope_P, sharpness, rtol=0.1, atol=0)


def test_train_preconditioned_sharpness_divides_by_the_root_of_the_second_moment():
    from stabviz.lab import regression_points
    from stabviz.lab.engine import RunBatch

    experiment = grid(
        "regression",
        optimizer="adam",
        layers=1,
        lr=1e-3,
        steps=60,
        sharpness=True,
        seed=[0],
        schedule="constant",
        warmup_steps=0,
        beta2=0.9,
        dtype="float64",
    )
    batch = RunBatch(list(experiment.runs), torch.device("cpu"), True)
    for _ in range(59):
        batch.step()
    v_P = batch.state["second_moment"][0] / (1 - 0.9**59)
    batch.step()
    x_N2, _ = regression_points()
    inputs = torch.cat([x_N2, torch.ones(len(x_N2), 1)], dim=1).double()
    hessian = 2 * inputs.T @ inputs / len(inputs)
    root = (v_P.sqrt() + 1e-8).rsqrt()
    largest = torch.linalg.eigvalsh(root[:, None] * hessian * root)[-1]
    torch.testing.assert_close(batch.signals["preconditioned_sharpness"][59, 0], largest, rtol=2e-2, atol=0)


def test_train_sharpness_every_measures_every_so_many_steps_and_changes_no_curve():
    knobs = {"optimizer": "sgd", "layers": 2, "lr": 0.1, "steps": 41, "seed": [0, 3], "dtype": "float64"}
    each = train(grid("regression", **knobs, sharpness=True))
    some = train(grid("regression", **knobs, sharpness=True, sharpness_every=10))
    np.testing.assert_array_equal(some["loss_nats"], each["loss_nats"])
    assert np.isfinite(some["sharpness"]).sum(axis=1).tolist() == [5, 5]
    # two ways to the same eigenvector, at a sharpness that moves a little from step to step
    np.testing.assert_allclose(some["sharpness"][:, 40], each["sharpness"][:, 40], rtol=2e-3)


def test_train_linearise_step_freezes_the_curvature_and_not_the_gradient():
    knobs = {"optimizer": "sgd", "layers": 3, "lr": 0.05, "steps": 61, "seed": [0, 3], "dtype": "float64"}
    knobs |= {"schedule": "constant", "warmup_steps": 0, "sharpness": True, "sharpness_every": 20}
    bent = train(grid("regression", **knobs))
    straight = train(grid("regression", **knobs, linearise_step=20))
    # at the anchor value and gradient are the network's own
    np.testing.assert_allclose(curves(straight)[..., :21], curves(bent)[..., :21], rtol=1e-9)
    assert (np.abs(straight["loss_nats"][:, 60] / bent["loss_nats"][:, 60] - 1) > 1e-4).all()
    np.testing.assert_allclose(straight["sharpness"][:, 40], straight["sharpness"][:, 60], rtol=1e-4)
    assert (np.abs(bent["sharpness"][:, 40] / bent["sharpness"][:, 60] - 1) > 5e-4).all()


def test_stream_restores_the_thread_count():
    before = torch.get_num_threads()
    train(grid("bowl", optimizer="sgd", lr=0.1, steps=3))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "knobs", [{"width": 32}, {"width": 64, "context": 64}, {"model": "lstm"}, {"norm": "post"}]
)
def test_the_number_of_threads_does_not_change_a_bit(knobs):
    """What lets a stopwatch choose the number of threads: equal seeds give equal curves whatever it says."""
    experiment = grid("text", **{"seed": range(5), "clip_norm": 0.5, "lr": 1e-2, "steps": 5} | knobs)
    before, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            batch = engine_module.RunBatch(list(experiment.runs), torch.device("cpu"), True)
            for _ in range(5):
                batch.step()
            runs.append(batch.params_RP.clone())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_the_number_of_threads_does_not_change_a_bit_of_several_batches(monkeypatch):
    monkeypatch.setattr(runs_module, "NUMBERS_TOGETHER", 2**17)
    experiment = grid("text", seed=range(9), lr=[1e-2], steps=5)
    assert len(runs_module._groups(experiment, torch.device("cpu"))) > 1
    before, traces = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            traces.append(train(experiment))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(traces[0][name], traces[1][name], equal_nan=True) for name in traces[0].signals)


def test_stream_refuses_every_zero():
    with pytest.raises(ValueError, match="stream: every must be at least 1; got 0"):
        next(stream(grid("bowl", steps=3), every=0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_stream_refuses_a_device_that_is_not_there():
    with pytest.raises(RuntimeError, match="device must be one that this machine has; got 'cuda'"):
        train(grid("bowl", steps=3), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_train_on_a_gpu_replays_the_curve_of_the_cpu():
    experiment = grid("markov", seed=[1, 2], lr=[1e-3], **TINY | {"steps": 20})
    on_cpu, on_gpu = train(experiment, device="cpu"), train(experiment, device="cuda")
    # float64 on both; the order of sums differs between devices
    np.testing.assert_allclose(curves(on_gpu), curves(on_cpu), rtol=1e-6)
