"""Real runs of a tiny BERT under transformers' Trainer, beside a plain loop on the same batches."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from stabviz.finetune.train.optimizer import layer_of
from stabviz.finetune.trainer_callback import StabilityCallback
from stabviz.trace.readers import from_trainer_state, read_run

STEPS, BATCH, LENGTH, WORDS = 7, 4, 5, 31
LAYERS = ("embeddings", "layer0", "layer1", "head")


def tiny_model(seed=3, **options):
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=11,
            num_labels=3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.2,
            **options,
        )
    )


def rows(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(WORDS, (LENGTH,), generator=generator),
            "attention_mask": torch.ones(LENGTH),
            "labels": torch.randint(3, (), generator=generator),
        }
        for _ in range(n)
    ]


def run_trainer(
    tmp_path,
    model,
    data,
    *,
    collate=None,
    watch=True,
    evaluate=False,
    resume=None,
    every=2,
    scaler=None,
    **options,
):
    """Train, and return (trainer, callback, batches as the model saw them)."""
    taken = []

    def collect(items):
        batch = {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in items[0]}
        taken.append(batch if collate is None else collate(batch, len(taken)))
        return dict(taken[-1])

    options = {"max_steps": STEPS, "logging_steps": 1, "learning_rate": 0.01, "max_grad_norm": 0.7, **options}
    args = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=BATCH,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy=options.pop("save_strategy", "no"),
        dataloader_pin_memory=False,
        **options,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data,
        data_collator=collect,
        eval_dataset=data[:8] if evaluate else None,
        compute_metrics=(lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())}),
    )
    if scaler is not None:
        trainer.accelerator.scaler = scaler
    callback = StabilityCallback(tmp_path / "run", signals_every=every, report=False)
    if watch:
        assert callback.watch(trainer) is callback
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback, taken


def plain_loop(batches, *, clip, lrs, accumulate=1):
    """The same training by hand: signals of every step, computed in the most direct way.

    transformers 5.23 takes the SUM of the micro-batches' means here: it expects a model whose forward takes
    **kwargs to divide by the targets of all of them, and BertForSequenceClassification does not. The callback
    records that.
    """
    model = tiny_model()
    plain = {id(p) for n, p in model.named_parameters() if "LayerNorm" in n or n.endswith("bias")}
    groups = [
        {"params": [p for p in model.parameters() if (id(p) in plain) == is_plain], "weight_decay": decay}
        for is_plain, decay in ((False, 0.1), (True, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.99), eps=1e-6)
    signals = []
    for step, lr in enumerate(lrs):
        micro = batches[step * accumulate : (step + 1) * accumulate]
        batch = {key: torch.cat([m[key] for m in micro]) for key in micro[0]}
        model.train()
        optimizer.zero_grad()
        output = model(**batch)
        (output.loss * accumulate).backward()
        row = {
            "loss_nats": output.loss.item() * accumulate,
            "lr": lr,
            "accuracy": (output.logits.argmax(-1) == batch["labels"]).float().mean().item(),
        }
        named = dict(model.named_parameters())
        total = math.sqrt(sum(float(p.grad.square().sum()) for p in named.values()))
        row |= {"grad_norm_preclip": total, "clipped": float(total > clip)}
        before = {name: p.detach().clone() for name, p in named.items()}
        row["param_norm"] = math.sqrt(sum(float(p.square().sum()) for p in before.values()))
        for layer in LAYERS:
            row[f"grad_norm_preclip/{layer}"] = math.sqrt(
                sum(float(p.grad.square().sum()) for n, p in named.items() if layer_of(n) == layer)
            )
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        moved = {n: (before[n] * (1 - lr * decays[id(p)]) - p.detach()) / lr for n, p in named.items()}
        for layer in (None, *LAYERS):
            names = [n for n in moved if layer in (None, layer_of(n))]
            size = sum(moved[n].numel() for n in names)
            key = "update_rms" + (f"/{layer}" if layer else "")
            row[key] = math.sqrt(sum(float(moved[n].square().sum()) for n in names) / size)
        ratio = [
            named[n].grad.square()
            / (optimizer.state[named[n]]["exp_avg_sq"] / (1 - 0.99 ** (step + 1))).clamp(min=1e-12)
            for n in named
        ]
        row["second_moment_ratio"] = math.sqrt(
            sum(float(r.sum()) for r in ratio) / sum(r.numel() for r in ratio)
        )
        signals.append(row)
    return {name: np.array([row[name] for row in signals]) for name in signals[0]}


ADAM = {"adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-6, "weight_decay": 0.1}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_callback_signals_equal_those_of_a_plain_loop(tmp_path, accumulate):
    trainer, callback, batches = run_trainer(
        tmp_path,
        tiny_model(),
        rows(BATCH * accumulate * STEPS),
        gradient_accumulation_steps=accumulate,
        warmup_steps=2,
        every=1,
        **ADAM,
    )
    trace = callback.trace
    lrs = trace["lr"][0].tolist()
    assert lrs == pytest.approx(
        [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
    )
    wanted = plain_loop(batches, clip=0.7, lrs=[lr or 1e-30 for lr in lrs], accumulate=accumulate)
    assert trace.steps.tolist() == list(range(STEPS))
    assert set(np.unique(trace["clipped"])) == {0.0, 1.0} or trace["clipped"].all()
    assert trace["grad_norm_preclip"][0].max() > 0.7  # what was clipped is recorded as it was before
    for name, values in wanted.items():
        # the first rate of a warm-up is 0: no update can be measured by how far the weights went
        start = 1 if name.startswith("update_rms") else 0
        np.testing.assert_allclose(trace[name][0, start:], values[start:], rtol=2e-3, atol=1e-6, err_msg=name)
    for name in ("max_attention_logit", "attention_entropy"):
        assert np.isfinite(trace[name]).all()


def test_callback_leaves_training_as_it_is(tmp_path):
    watched, _, _ = run_trainer(tmp_path / "a", tiny_model(), rows(28), every=1)
    alone, _, _ = run_trainer(tmp_path / "b", tiny_model(), rows(28), watch=False)
    for ours, theirs in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def broken_at(model, step):
    """The model, whose logits are NaN in one forward pass."""
    passes = []

    def spoil(module, inputs, output):
        passes.append(1)
        return output * math.nan if len(passes) == step + 1 else output

    model.classifier.register_forward_hook(spoil)
    return model


def test_callback_keeps_the_nan_that_the_trainer_hides(tmp_path):
    trainer, callback, _ = run_trainer(
        tmp_path, broken_at(tiny_model(), 3), rows(60), max_steps=12, save_strategy="steps", save_steps=12
    )
    hidden = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert hidden[3:] == [0.0] * 9
    assert np.isfinite(callback.trace["loss_nats"][0, :3]).all()
    assert np.isnan(callback.trace["loss_nats"][0, 3:]).all()
    assert np.isnan(callback.trace["grad_norm_preclip"][0, 3:]).all()
    assert (callback.verdict.kind, callback.verdict.step) == ("diverged", 3)
    assert (callback.diagnosis.kind, callback.diagnosis.step) == ("hidden_nan", 3)
    theirs = from_trainer_state(tmp_path / "trainer" / "checkpoint-12")
    np.testing.assert_array_equal(theirs["loss_nats"], [hidden])
    assert [event["step"] for event in theirs.events] == list(range(3, 12))
    np.testing.assert_allclose(theirs["grad_norm_preclip"], callback.trace["grad_norm_preclip"], rtol=1e-5)


def test_callback_keeps_the_nan_of_a_batch_without_targets(tmp_path):
    """0/0 in the loss, and no gradient: the weights live on, and only the raw loss tells."""

    def no_target(batch, index):
        return batch | ({"labels": torch.full_like(batch["labels"], -100)} if index == 3 else {})

    trainer, callback, _ = run_trainer(tmp_path, tiny_model(), rows(60), collate=no_target)
    assert [line["loss"] for line in trainer.state.log_history if "loss" in line][3] == 0.0
    assert np.flatnonzero(np.isnan(callback.trace["loss_nats"][0])).tolist() == [3]


def test_callback_writes_the_record_that_stabviz_reads(tmp_path, capsys):
    _, callback, _ = run_trainer(
        tmp_path, tiny_model(), rows(28), evaluate=True, eval_strategy="steps", eval_steps=3
    )
    trace = read_run(tmp_path / "run")
    assert trace.equals(callback.trace)
    at = np.flatnonzero(np.isfinite(trace["validation_loss_nats"][0]))
    assert at.tolist() == [2, 5, 6]
    assert np.isfinite(trace["validation_score"][0, at]).all()
    assert np.flatnonzero(np.isfinite(trace["update_rms"][0])).tolist() == [0, 2, 4, 6]
    assert set(trace.signals) >= {f"{s}/{layer}" for s in ("update_rms", "param_norm") for layer in LAYERS}
    assert trace.config["optimizer"].startswith("adamw")
    assert trace.config["chance_nats"] == pytest.approx(math.log(3))
    assert capsys.readouterr().out.count("diagnosis") == 0


def test_callback_prints_verdict_diagnosis_and_remedy(tmp_path, capsys):
    callback = StabilityCallback(tmp_path / "run")
    args = TrainingArguments(
        output_dir=str(tmp_path / "t"),
        max_steps=12,
        per_device_train_batch_size=BATCH,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(model=tiny_model(), args=args, train_dataset=rows(48))
    callback.watch(trainer)
    trainer.train()
    printed = capsys.readouterr().out
    found = callback.diagnosis
    assert f"diagnosis  {found.headline}" in printed
    assert found.verdict == callback.verdict
    assert f"remedy     ({found.confidence}) {found.remedy}" in printed


def test_callback_goes_on_with_the_record_of_a_resumed_run(tmp_path):
    data, options = rows(4 * BATCH * STEPS), {"save_strategy": "steps", "save_steps": 4, "seed": 5}
    whole, callback, _ = run_trainer(tmp_path, tiny_model(), data, every=1, **options)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    _, resumed, _ = run_trainer(
        tmp_path,
        tiny_model(seed=9),
        data,
        every=1,
        resume=str(tmp_path / "trainer" / "checkpoint-4"),
        **options,
    )
    assert resumed.trace.steps.tolist() == list(range(STEPS))
    np.testing.assert_array_equal(resumed.trace["loss_nats"], callback.trace["loss_nats"])
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:5] == text.splitlines()[:5]


def trainer_with(tmp_path, callback):
    args = TrainingArguments(
        output_dir=str(tmp_path / "t"),
        max_steps=3,
        per_device_train_batch_size=BATCH,
        max_grad_norm=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
    )
    return Trainer(model=tiny_model(), args=args, train_dataset=rows(48), callbacks=[callback])


def test_callback_in_the_list_of_callbacks_needs_nothing_else(tmp_path):
    callback = StabilityCallback(tmp_path / "run", report=False)
    trainer = trainer_with(tmp_path, callback)
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    np.testing.assert_allclose(callback.trace["loss_nats"][0], logged, rtol=1e-5)
    assert (callback.trace["grad_norm_preclip"][0] > 0.1).all()  # of before clipping
    again = trainer_with(tmp_path, callback)
    again.train()
    assert callback.trainer is again
    assert callback.trace.n_steps == 3


def test_callback_says_what_it_cannot_do(tmp_path):
    callback = StabilityCallback(tmp_path / "none")
    with pytest.raises(ValueError, match="out must hold a run; got .*none.* Train first"):
        _ = callback.diagnosis
    with pytest.raises(ValueError, match="must be begun by a Trainer of transformers"):
        callback.on_train_begin(None, None, None)
    trainer = trainer_with(tmp_path, callback)
    callback.watch(trainer)
    with pytest.raises(ValueError, match="watch must be called once"):
        callback.watch(trainer)


def test_callback_measures_the_loss_that_is_smoothed_and_an_optimizer_without_moments(tmp_path):
    trainer, callback, _ = run_trainer(
        tmp_path, tiny_model(), rows(28), label_smoothing_factor=0.3, optim="sgd", every=1
    )
    hidden = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    np.testing.assert_allclose(callback.trace["loss_nats"][0], hidden, rtol=1e-5)
    assert "update_rms" not in callback.trace
    assert callback.trace.config["label_smoothing"] == 0.3


def test_callback_records_the_loss_scale_and_gradients_without_it(tmp_path):
    """accelerate scales on a GPU alone: the scaler is put in by hand. A step that is not finite is
    skipped."""
    _, exact, _ = run_trainer(tmp_path / "a", tiny_model(), rows(28), every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    _, scaled, _ = run_trainer(tmp_path / "b", broken_at(tiny_model(), 2), rows(28), every=1, scaler=scaler)
    assert scaled.trace["loss_scale"][0].tolist() == [1024.0] * 3 + [512.0] * 4
    norm = scaled.trace["grad_norm_preclip"][0]
    assert np.flatnonzero(~np.isfinite(norm)).tolist() == [2]
    # a power of two changes no digit of the first gradient; later Adam's epsilon counts for less
    np.testing.assert_allclose(norm[0], exact.trace["grad_norm_preclip"][0, 0], rtol=1e-6)
    np.testing.assert_allclose(scaled.trace["loss_nats"][0, :2], exact.trace["loss_nats"][0, :2], rtol=1e-3)
    assert scaled.trace.events == [{"run": 0, "step": 2, "kind": "overflow", "signal": "grad_norm_preclip"}]
    assert np.flatnonzero(np.isnan(scaled.trace["update_rms"][0])).tolist() == [2]


def test_callback_metrics_are_one_json_object_a_line(tmp_path):
    run_trainer(tmp_path, tiny_model(), rows(28))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["schema"] == "stabviz.metrics/1"
    assert [line["step"] for line in lines[1:]] == list(range(STEPS))
