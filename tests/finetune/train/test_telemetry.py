"""Each signal of a step beside an independent plain computation; what is kept on the device until a flush."""

import math
from collections import Counter

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
)

from stabviz.finetune.config import FinetuneConfig, OptimizerConfig
from stabviz.finetune.data.splits import read_splits
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.run import prepare
from stabviz.finetune.train.interrupt import Interrupt
from stabviz.finetune.train.loop import Training
from stabviz.finetune.train.optimizer import OPTIMIZERS, trained_parameters
from stabviz.finetune.train.telemetry import AttentionProbe, Norms, Telemetry
from stabviz.ops import global_norm
from stabviz.trace.log import read_metrics

V, D, H, LAYERS, B, L = 31, 12, 3, 2, 5, 7
PROCESSES = ProcessGroup.join("cpu")
NAMES = ["", "/embeddings", "/layer0", "/layer1", "/head"]


class Lines:
    """A log that keeps what it is given."""

    def __init__(self):
        self.steps, self.flushes = {}, 0

    def step(self, step, values):
        self.steps[step] = values

    def flush(self):
        self.flushes += 1


def bert():
    torch.manual_seed(3)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=V,
            hidden_size=D,
            num_hidden_layers=LAYERS,
            num_attention_heads=H,
            intermediate_size=17,
            max_position_embeddings=11,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.3,
        )
    )


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, V, (B, L), generator=generator)
    mask = (torch.arange(L) < torch.tensor([7, 2, 5, 1, 6])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def made(model=None, **settings):
    model = model or bert()
    config = FinetuneConfig.of(**{"optimizer": "adamw", "weight_decay": 0.0, "layer_decay": 0.5} | settings)
    adam = config.train.optimizer
    parameters, log = trained_parameters(model, adam), Lines()
    return model, parameters, adam, log, Telemetry(parameters, adam, config.run, PROCESSES, log)


def backward(model, seed=0):
    model.zero_grad()
    model(**batch(), labels=(torch.arange(B) + seed) % 2).loss.backward()


def by_layer(parameters, tensors):
    """The tensors of everything, then of each layer in the order of NAMES."""
    layers = ["embeddings", "layer0", "layer1", "head"]
    chosen = [[t for p, t in zip(parameters, tensors, strict=True) if p.layer == layer] for layer in layers]
    return [list(tensors), *chosen]


def rms(tensors):
    flat = torch.cat([t.double().flatten() for t in tensors])
    return float(flat.square().mean().sqrt())


# Norms


def test_norms_are_global_norms_of_everything_and_of_each_layer():
    model, parameters, *_, telemetry = made()
    backward(model)
    grads = [p.tensor.grad for p in parameters]
    found = telemetry.norms(grads)
    expected = [float(global_norm(part)) for part in by_layer(parameters, grads)]
    assert telemetry.norms.layers == ["embeddings", "layer0", "layer1", "head"]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert telemetry.param_norms().tolist() == pytest.approx(
        [float(global_norm(part)) for part in by_layer(parameters, [p.tensor.detach() for p in parameters])],
        rel=1e-6,
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_norms_show_what_is_not_finite_in_its_layer_alone(bad):
    model, parameters, *_, telemetry = made()
    backward(model)
    grads = [p.tensor.grad for p in parameters]
    grads[[p.name for p in parameters].index("bert.encoder.layer.1.output.dense.weight")][3, 4] = bad
    finite = torch.isfinite(telemetry.norms(grads)).tolist()
    assert finite == [False, True, True, False, True]


def test_norms_pass_over_what_has_no_gradient():
    model, parameters, *_, telemetry = made()
    backward(model)
    grads = [None if p.layer == "layer0" else p.tensor.grad for p in parameters]
    found = telemetry.norms(grads).tolist()
    assert found[2] == 0
    assert found[0] == pytest.approx(math.sqrt(sum(x * x for x in found[1:])), rel=1e-6)
    assert telemetry.norms([None] * len(grads)).tolist() == [0.0] * 5


def test_norms_of_millions_of_elements_are_right():
    """One running float32 sum of squares would lose the small ones."""
    tensor = torch.full((3_000_000,), 1e-3)
    tensor[0] = 30.0
    model = torch.nn.ModuleDict({"head": torch.nn.Linear(1, 1)})
    parameter = trained_parameters(model, OptimizerConfig())[:1]
    found = Norms(parameter, PROCESSES)([tensor])
    # in its own piece the large one still swallows some of 2^18 small ones: 2e-5 here, and 1e-3 over all at
    # once
    assert float(found[0]) == pytest.approx(float(tensor.double().norm()), rel=1e-4)


# Update and moments


@pytest.mark.parametrize("kind", ["adamw", "adamw_fused"])
def test_update_rms_is_the_change_of_the_weights_over_lr(kind):
    model, parameters, adam, _, telemetry = made(optimizer=kind)
    optimizer, lr = OPTIMIZERS[kind](parameters, adam), 0.5
    for step in range(4):
        backward(model, seed=step)
        before = [p.tensor.detach().clone() for p in parameters]
        optimizer.step(lr)
        found = telemetry.update_signals(optimizer)["update_rms"].tolist()
        change = [
            (old - p.tensor.detach()) / (lr * p.lr_factor) for old, p in zip(before, parameters, strict=True)
        ]
        # lr is large, so that rounding of the weights, 6e-8 of them, stays small beside the change
        assert found == pytest.approx([rms(part) for part in by_layer(parameters, change)], rel=1e-4)
    assert found[0] < 0.999  # not the 1 that every first step of Adam has


def test_update_rms_without_bias_correction():
    model, parameters, adam, _, telemetry = made(bias_correction=False)
    optimizer = OPTIMIZERS["adamw"](parameters, adam)
    backward(model)
    before = [p.tensor.detach().clone() for p in parameters]
    optimizer.step(0.5)
    change = [
        (old - p.tensor.detach()) / (0.5 * p.lr_factor) for old, p in zip(before, parameters, strict=True)
    ]
    found = telemetry.update_signals(optimizer)["update_rms"].tolist()
    assert found == pytest.approx([rms(part) for part in by_layer(parameters, change)], rel=1e-4)


def test_second_moment_ratio_is_that_of_gradients_kept_by_hand():
    model, parameters, adam, _, telemetry = made()
    optimizer = OPTIMIZERS["adamw"](parameters, adam)
    second = [torch.zeros_like(p.tensor, dtype=torch.float64) for p in parameters]
    for step in range(3):
        backward(model, seed=step)
        grads = [p.tensor.grad.double() for p in parameters]
        second = [0.999 * v + 0.001 * g * g for v, g in zip(second, grads, strict=True)]
        optimizer.step(0.1)
        found = telemetry.update_signals(optimizer)["second_moment_ratio"].tolist()
        corrected = [(v / (1 - 0.999 ** (step + 1))).clamp(min=1e-16) for v in second]
        ratios = [g / v.sqrt() for g, v in zip(grads, corrected, strict=True)]
        assert found == pytest.approx([rms(part) for part in by_layer(parameters, ratios)], rel=1e-4)
    assert abs(found[0] - 1) > 0.01


def test_what_has_no_gradient_does_not_thin_the_mean():
    model, parameters, adam, _, telemetry = made()
    optimizer = OPTIMIZERS["adamw"](parameters, adam)
    backward(model)
    for p in parameters:
        if "attention" in p.name:
            p.tensor.grad = None
    optimizer.step(0.1)
    found = telemetry.update_signals(optimizer)["update_rms"].tolist()
    # the first step of Adam is +-1 wherever the gradient is far above epsilon: not so in rows of unseen words
    assert found[2:] == pytest.approx([1.0, 1.0, 1.0], rel=1e-2)


# Attention


def test_probe_is_what_eager_attention_says():
    model = bert().eval()
    model.set_attn_implementation("eager")
    inputs = batch()
    real = inputs["attention_mask"].bool()
    with AttentionProbe(model) as probe, torch.no_grad():
        output = model(**inputs, output_attentions=True, output_hidden_states=True)
    found = probe.measured(inputs["attention_mask"])
    entropies, largest = [], []
    for layer, weights_BHLM, hidden in zip(
        model.bert.encoder.layer, output.attentions, output.hidden_states, strict=False
    ):
        entropy_BHL = -torch.special.xlogy(weights_BHLM, weights_BHLM).sum(-1)
        entropies.append(float(torch.cat([entropy_BHL[b][:, real[b]].flatten() for b in range(B)]).mean()))
        query, key = layer.attention.self.query(hidden), layer.attention.self.key(hidden)
        for b in range(B):
            for h in range(H):
                part = slice(h * D // H, (h + 1) * D // H)
                logits = query[b, real[b], part] @ key[b, real[b], part].T / math.sqrt(D / H)
                largest.append(float(logits.abs().max()))
    assert float(found["attention_entropy"]) == pytest.approx(sum(entropies) / LAYERS, rel=1e-5)
    assert float(found["max_attention_logit"]) == pytest.approx(max(largest), rel=1e-5)
    assert 0.05 < float(found["attention_entropy"]) < math.log(L)
    # the hooks are gone: a pass outside of the frame leaves nothing
    model(**inputs)
    assert probe.measured(inputs["attention_mask"]) == {}


def test_probe_sees_packed_rows_by_their_mask():
    model = bert().eval()
    ids = batch()["input_ids"][:1]
    segment = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    mask_BHLM = (segment[:, None] == segment[None, :])[None, None]
    with AttentionProbe(model) as probe, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    packed = probe.measured(mask_BHLM)
    with AttentionProbe(model) as probe, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    whole = probe.measured(torch.ones_like(ids))
    assert 0 < float(packed["attention_entropy"]) < min(math.log(4), float(whole["attention_entropy"]))
    assert float(packed["max_attention_logit"]) <= float(whole["max_attention_logit"])


def test_probe_knows_distilbert_and_passes_others_over():
    distil = DistilBertModel(DistilBertConfig(vocab_size=V, dim=D, n_layers=LAYERS, n_heads=H, hidden_dim=17))
    assert len(AttentionProbe(distil).places) == LAYERS
    with AttentionProbe(distil) as probe, torch.no_grad():
        distil(**batch())
    assert set(probe.measured(batch()["attention_mask"])) == {"max_attention_logit", "attention_entropy"}
    other = GPT2Model(GPT2Config(vocab_size=V, n_embd=D, n_layer=1, n_head=H, n_positions=11))
    with AttentionProbe(other) as probe, torch.no_grad():
        other(**batch())
    assert probe.measured(batch()["attention_mask"]) == {}


# What is written, and when


def test_due_every_so_many_steps():
    *_, telemetry = made(signals_every=4)
    assert [step for step in range(10) if telemetry.due(step)] == [0, 4, 8]


def test_record_keeps_until_a_flush_and_keeps_nan():
    *_, log, telemetry = made(flush_every=3)
    for step in range(2):
        telemetry.record(
            step, {"lr": 0.1}, {"norm": torch.arange(5.0) + step, "loss_nats": torch.tensor(math.nan)}
        )
    assert log.steps == {}
    telemetry.record(2, {"lr": 0.2}, {"loss_nats": torch.tensor(math.inf)})
    assert list(log.steps) == [0, 1, 2]
    assert log.flushes == 1
    assert {name: log.steps[1][f"norm{name}"] for name in NAMES} == dict(
        zip(NAMES, [1.0, 2.0, 3.0, 4.0, 5.0], strict=True)
    )
    assert math.isnan(log.steps[0]["loss_nats"])
    assert log.steps[2] == {"lr": 0.2, "loss_nats": math.inf}
    telemetry.flush()
    assert log.flushes == 1  # nothing was there to write


def training(config):
    made = Training(
        prepare(config, read_splits(config.data, config.run.seed), PROCESSES)[0], resume=False, force=False
    )
    made.bar = type(
        "Bar", (), {"update": lambda *_: None, "set_postfix_str": lambda *_, **__: None, "n": 0}
    )()
    return made


def test_gradient_norms_of_a_step_are_those_before_clipping(config_of, tmp_path):
    config = config_of(
        tmp_path / "run",
        clip_norm=1e-3,
        dropout=0.0,
        word_dropout=0.0,
        micro_batch=None,
        flush_every=1,
        deterministic=False,
    )
    run, other = training(config), training(config.replace(out=tmp_path / "other"))
    position, one = run.next_batch(Interrupt())
    run.model.train()
    run.step(position, one)
    other.model.train()
    output = other.model(**{k: v for k, v in one.items() if k not in ("labels", "rows")})
    loss = torch.nn.functional.cross_entropy(output.logits, one["labels"])
    loss.backward()
    trace = read_metrics(config.run.out / "metrics.jsonl")
    grads = [p.tensor.grad for p in other.parameters]
    for name, part in zip(NAMES, by_layer(other.parameters, grads), strict=True):
        assert trace[f"grad_norm_preclip{name}"][0, 0] == pytest.approx(float(global_norm(part)), rel=1e-5)
    assert trace["clipped"][0, 0] == 1
    assert trace["loss_nats"][0, 0] == pytest.approx(loss.item(), rel=1e-6)
    assert trace["log_z"][0, 0] == pytest.approx(float(output.logits.logsumexp(-1).mean()), rel=1e-5)
    assert trace["accuracy"][0, 0] == pytest.approx(
        float((output.logits.argmax(-1) == one["labels"]).float().mean())
    )
    assert trace["targets"][0, 0] == 8
    weights = [p.tensor.detach() for p in other.parameters]
    assert trace["param_norm"][0, 0] == pytest.approx(float(global_norm(weights)), rel=1e-5)


def test_the_log_is_the_same_whatever_flush_every_is(config_of, go, tmp_path):
    logs = []
    for flush_every in (1, 5, 99):
        config = config_of(tmp_path / str(flush_every), flush_every=flush_every, steps=8)
        go(config)
        logs.append((config.run.out / "metrics.jsonl").read_bytes())
    assert logs[0] == logs[1] == logs[2]
    assert logs[0].count(b'"values"') == 8


def test_a_step_waits_for_two_numbers_and_no_more(config_of, tmp_path, monkeypatch):
    """Every way for a float to leave a tensor is counted; whole numbers are those of the batch, which is
    here."""
    run = training(config_of(tmp_path / "run", flush_every=99, signals_every=1, deterministic=False))
    run.model.train()
    run.step(*run.next_batch(Interrupt()))
    batches = [run.next_batch(Interrupt()) for _ in range(3)]
    seen = Counter()
    schedule = [float(run.schedule(u, total_steps=32, warmup_steps=4)) for u in range(6)]
    monkeypatch.setattr(run, "schedule", lambda updates, **_: schedule[updates])

    def counted(name):
        original = getattr(torch.Tensor, name)

        def call(self, *args, **kwargs):
            if self.is_floating_point():
                seen[name, tuple(self.shape)] += 1
            return original(self, *args, **kwargs)

        return call

    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    for position, one in batches:
        run.step(position, one)
    assert seen == {("tolist", (2,)): 3}  # loss and norm of each step, in one transfer
    run.telemetry.flush()
    ((name, shape),) = set(seen) - {("tolist", (2,))}
    assert name == "tolist"
    assert seen[name, shape] == 1  # and all signals of all steps in another
