"""What the loop does when a step goes wrong, and that accumulation, averages and early ends are what they
say."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset

from stabviz.finetune.config import FinetuneConfig
from stabviz.finetune.data.batches import collate
from stabviz.finetune.data.encode import TokenRows
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.evaluation import evaluate
from stabviz.finetune.run import build_model
from stabviz.finetune.train.checkpoint import newest_checkpoint, read_checkpoint
from stabviz.finetune.train.guard import TrainingFailed
from stabviz.finetune.train.interrupt import Interrupt
from stabviz.finetune.train.loop import Training, train
from stabviz.finetune.train.optimizer import drop_gradients
from stabviz.finetune.train.setup import Setup
from stabviz.methods.objective import cross_entropy_objective
from stabviz.trace.log import read_metrics

TEXTS = [
    "my order is late",
    "please cancel my account",
    "the invoice is not good",
    "where is the router",
    "help",
    "it was a slow day and the print is bad",
    "refund my order please",
    "locked",
] * 5
LABELS = ("a", "b", "c")


def rows_of(tokenizer, texts=TEXTS, word_dropout=0.0):
    table = {"row": range(len(texts)), "text": texts, "label": [i % len(LABELS) for i in range(len(texts))]}
    return TokenRows(
        Dataset.from_dict(table), tokenizer, kind="classes", max_length=32, word_dropout=word_dropout
    )


@pytest.fixture
def setup_of(tiny_bert_folder, tiny_tokenizer, tmp_path):
    """Make a Setup on the tiny BERT; `around(objective)` may plant a fault in the objective."""

    def make(around=lambda objective: objective, **settings):
        defaults = {
            "steps": 12,
            "batch": 8,
            "lr": 1e-3,
            "warmup_steps": 2,
            "model": str(tiny_bert_folder),
            "dropout": 0.0,
            "out": tmp_path / "run",
            "progress": False,
            "device": "cpu",
            "save_every": 4,
            "evaluate_every": 6,
            "bucket": False,
            "overwrite": True,
        }
        config = FinetuneConfig.of(**(defaults | settings))
        processes = ProcessGroup.join("cpu")
        rows = rows_of(tiny_tokenizer)

        def score(model, check):
            return evaluate(
                model,
                rows,
                LABELS,
                pad_id=tiny_tokenizer.pad_token_id,
                processes=processes,
                autocast=torch.no_grad,
                check=check,
            )

        return Setup(
            config=config,
            processes=processes,
            model=build_model(config, "classes", LABELS, tiny_tokenizer),
            objective=around(cross_entropy_objective()),
            rows=rows,
            collate=partial(collate, pad_id=tiny_tokenizer.pad_token_id),
            evaluate=score,
            save_model=lambda model, folder, weights: model.save_pretrained(folder, state_dict=weights),
            fingerprint="tiny",
        )

    return make


class Planted:
    """An objective that does something at chosen calls; `calls` counts them."""

    def __init__(self, objective, at, do):
        self.objective, self.at, self.do, self.calls = objective, set(at), do, 0

    def __call__(self, model, batch):
        self.calls += 1
        loss, measured = self.objective(model, batch)
        return (self.do(loss) if self.calls - 1 in self.at else loss), measured


def planted(at, do):
    return lambda objective: Planted(objective, at, do)


def snapshot(training):
    weights = {x.name: x.tensor.detach().clone() for x in training.parameters}
    moments = {x.name: [m.clone() for m in training.optimizer.moments(x)] for x in training.parameters}
    return weights, moments


def same_bits(one, other):
    return all(torch.equal(one[0][n], other[0][n]) for n in one[0]) and all(
        torch.equal(a, b) for n in one[1] for a, b in zip(one[1][n], other[1][n], strict=True)
    )


def run_steps(training, count):
    """Take `count` steps without the frame of a run: for a look between two steps."""
    training.bar = type(
        "Bar",
        (),
        {
            "update": lambda *_: None,
            "set_postfix_str": lambda *_, **__: None,
            "write": lambda *_: None,
            "n": 0,
        },
    )()
    for _ in range(count):
        training.step(*training.next_batch(Interrupt()))


def final_weights(out):
    tensors, _ = read_checkpoint(newest_checkpoint(out / "checkpoints")[0])
    return tensors["model"]


# what is not finite never reaches the weights


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_fused"])
def test_a_loss_that_is_not_finite_changes_nothing_but_the_log(setup_of, bad, optimizer):
    # two micro-batches a step: call 7 is the second half of step 3
    setup = setup_of(planted([7], lambda loss: loss * bad), micro_batch=4, optimizer=optimizer, ema_decay=0.5)
    training = Training(setup, resume=False, force=False)
    run_steps(training, 3)
    before, averages = snapshot(training), {n: a.clone() for n, a in training.average.averages.items()}
    position = training.progress.position
    run_steps(training, 1)
    assert same_bits(before, snapshot(training))
    assert all(torch.equal(averages[n], a) for n, a in training.average.averages.items())
    assert (training.progress.updates, training.progress.attempts, training.progress.bad_steps) == (3, 4, 1)
    run_steps(training, 1)
    assert not same_bits(before, snapshot(training))
    training.telemetry.flush()
    trace = read_metrics(setup.config.run.out / "metrics.jsonl")
    raw = trace["loss_nats"][0, 3]
    assert not math.isfinite(raw)
    event = next(e for e in trace.events if e["kind"] == "non_finite")
    assert event["step"] == 3
    assert event["rows"] == training.loader.indices(position)[4:]  # the micro-batch that did it, and no other
    assert trace["lr"][0, 4] == trace["lr"][0, 3]  # the schedule waited
    assert trace.non_finite_step(0) is None  # and the run lives


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_caught(setup_of):
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * math.nan

    training = Training(setup_of(planted([2], Poison.apply)), resume=False, force=False)
    run_steps(training, 2)
    before = snapshot(training)
    run_steps(training, 1)
    assert same_bits(before, snapshot(training))
    training.telemetry.flush()
    trace = read_metrics(training.config.run.out / "metrics.jsonl")
    assert math.isfinite(trace["loss_nats"][0, 2])
    assert math.isnan(trace["grad_norm_preclip"][0, 2])
    assert trace.events[-1]["signal"] == "grad_norm_preclip"


def test_too_many_bad_steps_stop_the_run_and_name_the_last_good_checkpoint(setup_of):
    setup = setup_of(planted(range(5, 99), lambda loss: loss * math.nan), max_bad_steps=3)
    with pytest.raises(
        TrainingFailed, match=r"3 steps in a row were not finite, up to step 7 .*step-00000004"
    ):
        train(setup)
    assert newest_checkpoint(setup.config.run.out / "checkpoints")[0].name == "step-00000004"


def test_bad_steps_that_are_not_in_a_row_do_not_stop_the_run(setup_of):
    progress = train(setup_of(planted([1, 2, 4, 5, 7, 8], lambda loss: loss * math.nan), max_bad_steps=3))
    assert (progress.finished, progress.updates, progress.attempts) == ("all steps", 12, 18)


# spikes


def test_a_single_spike_is_dropped_and_its_rows_are_left_out(setup_of):
    setup = setup_of(planted([24], lambda loss: loss + 50), steps=40)
    progress = train(setup)
    trace = read_metrics(setup.config.run.out / "metrics.jsonl")
    spike = next(e for e in trace.events if e["kind"] == "spike")
    assert progress.finished == "all steps"
    assert spike["step"] == 24
    assert len(spike["rows"]) == 8
    assert progress.left_out == sorted(spike["rows"])
    assert not any(e["kind"] == "rewind" for e in trace.events)
    later = trace.steps > 24
    assert trace["loss_nats"][0, later].max() < 3


def test_a_second_spike_in_a_row_goes_back_to_a_checkpoint_from_before(setup_of):
    setup = setup_of(planted([24, 25], lambda loss: loss + 50), steps=40, save_every=8, keep=4)
    progress = train(setup)
    trace = read_metrics(setup.config.run.out / "metrics.jsonl")
    rewind = next(e for e in trace.events if e["kind"] == "rewind")
    assert rewind["to"] == "step-00000016"  # step-00000024 is too near: its weights may be bad already
    assert rewind["updates"] == 16
    assert progress.finished == "all steps"
    assert progress.updates == 40
    assert progress.attempts == 40 + (24 - 16) + 2
    assert len(progress.left_out) > 16  # both spikes, and the batches before them
    np.testing.assert_array_equal(np.diff(trace.steps), 1)


def test_a_maximum_of_spikes_is_kept(setup_of):
    setup = setup_of(planted([24, 27, 30], lambda loss: loss + 50), steps=60, max_rewinds=2)
    with pytest.raises(TrainingFailed, match=r"the loss spiked 3 times.*last good checkpoint is .*step-"):
        train(setup)


def test_rewind_off_lets_a_spike_through(setup_of):
    progress = train(setup_of(planted([24], lambda loss: loss + 50), steps=30, rewind=False))
    assert (progress.spikes, progress.attempts) == (0, 30)


# memory


def run_out_of_memory(loss):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class LateFailure(torch.autograd.Function):
    """Fails on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("fault", [run_out_of_memory, LateFailure.apply], ids=["forward", "backward"])
def test_out_of_memory_changes_the_micro_batch_and_not_the_mathematics(setup_of, tmp_path, fault):
    train(setup_of(out=tmp_path / "calm"))
    setup = setup_of(planted([3], fault), out=tmp_path / "tight")
    progress = train(setup)
    calm, tight = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("calm", "tight"))
    assert progress.micro_batch == 4
    event = next(e for e in tight.events if e["kind"] == "out_of_memory")
    assert (event["step"], event["micro_batch"]) == (3, 4)
    np.testing.assert_array_equal(calm.steps, tight.steps)  # no step twice, none missing
    np.testing.assert_array_equal(calm["targets"], tight["targets"])  # the same rows in each
    np.testing.assert_allclose(calm["loss_nats"], tight["loss_nats"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(calm["grad_norm_preclip"], tight["grad_norm_preclip"], rtol=1e-5)


def test_out_of_memory_in_the_optimizer_is_tried_again(setup_of, tmp_path):
    train(setup_of(out=tmp_path / "calm"))
    training = Training(setup_of(out=tmp_path / "tight"), resume=False, force=False)
    step, calls = training.optimizer.step, []

    def failing(lr):
        calls.append(lr)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        step(lr)

    training.optimizer.step = failing
    training.run(Interrupt())
    assert len(calls) == 13
    one, other = final_weights(tmp_path / "calm"), final_weights(tmp_path / "tight")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_out_of_memory_with_a_single_row_is_an_error_with_a_way_out(setup_of):
    setup = setup_of(planted(range(99), run_out_of_memory), micro_batch=1)
    with pytest.raises(TrainingFailed, match=r"memory ran out at step 0 with micro_batch 1.*Try a smaller"):
        train(setup)


def test_another_runtime_error_is_not_taken_for_want_of_memory(setup_of):
    def fail(loss):
        raise RuntimeError("the planted fault")

    with pytest.raises(RuntimeError, match="the planted fault"):
        train(setup_of(planted([2], fail)))


# accumulation


@pytest.mark.parametrize("micro_batch", [4, 2, 1])
def test_accumulation_is_exact_for_classes(setup_of, tmp_path, micro_batch):
    train(setup_of(out=tmp_path / "whole"))
    train(setup_of(out=tmp_path / "parts", micro_batch=micro_batch))
    whole, parts = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    # float32 sums in another order: 1e-6 of a loss near 1
    np.testing.assert_allclose(parts["loss_nats"], whole["loss_nats"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(parts["grad_norm_preclip"], whole["grad_norm_preclip"], rtol=1e-5)
    np.testing.assert_allclose(parts["accuracy"], whole["accuracy"], atol=1e-6)


def test_accumulation_weights_by_the_targets_that_count(setup_of):
    """Micro-batches of 1 and 7 targets: the mean over tokens, not the mean of the two means."""
    setup = setup_of(micro_batch=4)
    training = Training(setup, resume=False, force=False)
    position, batch = training.next_batch(Interrupt())
    batch["labels"][1:4] = -100  # 1 target in the first half, 4 in the second
    done = training.micro_batches.accumulate(position, batch, training.progress, measure=False)
    assert done.targets == 5
    means = [float(value) for value, _ in done.micro_losses]
    assert float(done.loss_nats) == pytest.approx((means[0] + 4 * means[1]) / 5, abs=1e-6)
    assert abs(means[0] - means[1]) > 1e-3  # or the two ways of averaging would agree
    gradient = {x.name: x.tensor.grad.clone() for x in training.parameters if x.tensor.grad is not None}
    drop_gradients(training.parameters)
    training.progress.micro_batch = 8
    training.micro_batches.accumulate(position, batch, training.progress, measure=False)
    for x in training.parameters:
        if x.tensor.grad is not None:
            torch.testing.assert_close(gradient[x.name], x.tensor.grad, rtol=1e-4, atol=1e-7)


def test_a_micro_batch_without_targets_counts_for_nothing_and_a_batch_without_them_is_skipped(setup_of):
    training = Training(setup_of(micro_batch=4), resume=False, force=False)
    position, batch = training.next_batch(Interrupt())
    batch["labels"][:4] = -100
    done = training.micro_batches.accumulate(position, batch, training.progress, measure=False)
    assert math.isfinite(float(done.loss_nats))
    assert done.targets == 4
    drop_gradients(training.parameters)
    batch["labels"][:] = -100
    run_steps(training, 0)
    before = snapshot(training)
    training.step(position, batch)
    assert same_bits(before, snapshot(training))
    assert training.progress.bad_steps == 1


# the rest of the story


def test_same_seed_writes_the_same_bytes_and_another_seed_does_not(setup_of, tmp_path):
    logs = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train(setup_of(out=tmp_path / name, seed=seed, dropout=0.1))
        logs.append((tmp_path / name / "metrics.jsonl").read_bytes())
    assert logs[0] == logs[1]
    assert logs[0].splitlines()[1:] != logs[2].splitlines()[1:]


def test_clipping_is_recorded_and_the_norm_is_the_one_before_it(setup_of):
    train(setup_of(clip_norm=0.01))
    trace = read_metrics(setup_of().config.run.out / "metrics.jsonl")
    assert (trace["clipped"] == 1).all()
    assert (trace["grad_norm_preclip"] > 0.01).all()


def test_weight_averages_are_what_is_evaluated_and_kept(setup_of):
    setup = setup_of(ema_decay=0.9, steps=6)
    seen = {}

    def score(model, check):
        seen.update({n: p.detach().clone() for n, p in model.named_parameters()})
        return setup.evaluate(model, check)

    train(dataclasses.replace(setup, evaluate=score))
    tensors, _ = read_checkpoint(newest_checkpoint(setup.config.run.out / "checkpoints")[0])
    name = "classifier.weight"
    assert torch.equal(seen[name], tensors["average"][name])
    assert not torch.equal(tensors["model"][name], tensors["average"][name])


def test_patience_ends_a_run_whose_score_no_longer_rises(setup_of):
    setup = setup_of(steps=60, evaluate_every=2, patience=3, lr=1e-12)
    progress = train(setup)
    assert progress.finished == "no better score"
    assert progress.updates == 8  # the first evaluation is the best, three more are not better


def test_a_stop_that_is_asked_for_ends_an_evaluation_between_two_batches(setup_of):
    setup, interrupt, batches = setup_of(steps=6, evaluate_every=3), Interrupt(), []

    def score(model, check):
        for batch in range(5):
            batches.append(batch)
            interrupt.ask() if batch == 1 else None  # from another thread, say: no signal comes
            check()
        raise AssertionError("the evaluation went on")

    progress = train(dataclasses.replace(setup, evaluate=score), interrupt=interrupt)
    assert batches == [0, 1]
    assert (progress.updates, progress.evaluated_at, progress.finished) == (3, 0, "")


def test_frozen_parameters_stay_to_the_bit(setup_of):
    setup = setup_of(freeze=("embeddings", "encoder.layer.0"))
    before = {n: p.detach().clone() for n, p in setup.model.named_parameters()}
    train(setup)
    after = final_weights(setup.config.run.out)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved
    assert not any("embeddings" in n or "encoder.layer.0" in n for n in moved)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_short_formats_learn_and_keep_float32_weights(setup_of, precision):
    setup = setup_of(precision=precision, loss_scale=1024.0)
    assert train(setup).finished == "all steps"
    assert {t.dtype for t in final_weights(setup.config.run.out).values() if t.is_floating_point()} == {
        torch.float32
    }
    trace = read_metrics(setup.config.run.out / "metrics.jsonl")
    assert ("loss_scale" in trace) == (precision == "fp16")
    calm = setup_of(out=setup.config.run.out.parent / "fp32")
    train(calm)
    wide = read_metrics(calm.config.run.out / "metrics.jsonl")
    np.testing.assert_allclose(trace["loss_nats"], wide["loss_nats"], atol=0.05)  # bf16: 8 significant bits
    np.testing.assert_allclose(
        trace["grad_norm_preclip"], wide["grad_norm_preclip"], rtol=0.1
    )  # unscaled again


def test_an_overflow_halves_the_loss_scale_and_skips_the_step(setup_of):
    setup = setup_of(precision="fp16", loss_scale=2.0**40, max_bad_steps=60)
    progress = train(setup)
    trace = read_metrics(setup.config.run.out / "metrics.jsonl")
    overflows = [e for e in trace.events if e["kind"] == "overflow"]
    assert overflows
    assert progress.updates == 12
    assert progress.attempts == 12 + len(overflows)
    first = trace["loss_scale"][0, :2]
    assert first[1] == first[0] / 2


@pytest.mark.parametrize("setting", [{"activation_checkpointing": True}, {"workers": 2}, {"compile": True}])
def test_what_saves_memory_or_time_changes_no_loss(setup_of, tmp_path, setting, monkeypatch):
    # the compiler's front half alone: generating code takes a minute, and is torch's own affair
    compiled, whole = [], torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, **options: compiled.append(1) or whole(self, backend="eager", **options),
    )
    train(setup_of(out=tmp_path / "plain", steps=4))
    train(setup_of(out=tmp_path / "other", steps=4, **setting))
    plain, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("plain", "other"))
    np.testing.assert_allclose(other["loss_nats"], plain["loss_nats"], rtol=0, atol=1e-5)
    assert bool(compiled) == ("compile" in setting)


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(setup_of):
    train(setup_of(steps=2))
    with pytest.raises(ValueError, match="must not hold a run already"):
        train(setup_of(steps=2, overwrite=False))
    assert read_metrics(setup_of().config.run.out / "metrics.jsonl").n_steps == 2
