"""AdamW of a whole model: groups by name, one trajectory from two implementations, averages of weights."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from stabviz.finetune.config import OptimizerConfig
from stabviz.finetune.train.optimizer import (
    OPTIMIZERS,
    AdamW,
    FusedAdamW,
    WeightAverage,
    layer_of,
    load_moments,
    save_moments,
    trained_parameters,
)
from stabviz.ops import adam_direction_from, clip_by_global_norm

V, D, LAYERS, C = 31, 16, 3, 5
STEPS, LR = 60, 3e-3
SETTINGS = {"layer_decay": 0.7, "weight_decay": 0.1, "eps": 1e-6, "name": "adamw"}
CLIP_NORM = 0.5
TOLERANCE = 2e-5
"""Of weights after 60 steps that moved them by about 0.1: the two divide and multiply in another order, 1e-7
a step."""


def bert(seed=0):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_labels=C,
        intermediate_size=23,
        max_position_embeddings=11,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def distilbert():
    config = DistilBertConfig(
        vocab_size=V,
        dim=D,
        n_layers=LAYERS,
        n_heads=2,
        hidden_dim=23,
        num_labels=C,
        max_position_embeddings=11,
    )
    return DistilBertForSequenceClassification(config)


def gpt2():
    return GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=V, n_embd=D, n_layer=LAYERS, n_head=2, n_positions=11, num_labels=C, pad_token_id=0
        )
    )


def settings(**changes):
    return OptimizerConfig(**SETTINGS | changes)


def gradients(model, step):
    """Fill .grad with that of a fixed batch of this step, clipped; return the norm before clipping."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(1, V, (7, 9), generator=generator)
    model.zero_grad()
    model(input_ids=ids, labels=ids[:, 0] % C).loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    clipped, norm = clip_by_global_norm(grads, CLIP_NORM)
    torch._foreach_copy_(grads, clipped)
    return float(norm)


def trained(kind, model, steps=range(STEPS), optimizer=None, **changes):
    """Train; return the optimizer. The rate rises and falls."""
    config = settings(**changes)
    optimizer = optimizer or OPTIMIZERS[kind](trained_parameters(model, config), config)
    norms = []
    for step in steps:
        norms.append(gradients(model, step))
        optimizer.step(LR * min(1.0, (step + 1) / 10, (STEPS - step) / 30))
    if len(norms) == STEPS:
        assert min(norms) < CLIP_NORM < max(norms)  # clipping is on at some steps and off at others
    return optimizer


def assert_same_weights(one, other, tolerance=TOLERANCE):
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


# Groups


@pytest.mark.parametrize(
    ("make", "layers", "spared", "decayed"),
    [
        (
            bert,
            {
                "bert.embeddings.word_embeddings.weight": "embeddings",
                "bert.embeddings.LayerNorm.weight": "embeddings",
                "bert.encoder.layer.0.attention.self.query.weight": "layer0",
                "bert.encoder.layer.2.output.dense.bias": "layer2",
                "bert.pooler.dense.weight": "head",
                "classifier.weight": "head",
            },
            [
                "bert.embeddings.LayerNorm.weight",
                "bert.encoder.layer.1.output.LayerNorm.bias",
                "classifier.bias",
                "bert.encoder.layer.0.attention.self.query.bias",
            ],
            [
                "bert.embeddings.word_embeddings.weight",
                "bert.encoder.layer.1.output.dense.weight",
                "classifier.weight",
            ],
        ),
        (
            distilbert,
            {
                "distilbert.embeddings.position_embeddings.weight": "embeddings",
                "distilbert.transformer.layer.1.attention.q_lin.weight": "layer1",
                "pre_classifier.weight": "head",
                "distilbert.transformer.layer.2.ffn.lin1.weight": "layer2",
            },
            [
                "distilbert.transformer.layer.0.sa_layer_norm.weight",
                "distilbert.transformer.layer.0.output_layer_norm.weight",
                "distilbert.embeddings.LayerNorm.weight",
                "pre_classifier.bias",
            ],
            ["distilbert.transformer.layer.0.attention.q_lin.weight", "pre_classifier.weight"],
        ),
        (
            gpt2,
            {
                "transformer.wte.weight": "embeddings",
                "transformer.wpe.weight": "embeddings",
                "transformer.h.0.attn.c_attn.weight": "layer0",
                "transformer.h.2.mlp.c_proj.bias": "layer2",
                "transformer.ln_f.weight": "head",
                "score.weight": "head",
            },
            [
                "transformer.h.0.ln_1.weight",
                "transformer.h.1.ln_2.bias",
                "transformer.ln_f.weight",
                "transformer.h.0.attn.c_attn.bias",
            ],
            ["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "score.weight"],
        ),
    ],
)
def test_trained_parameters_groups_by_name(make, layers, spared, decayed):
    model = make()
    found = {p.name: p for p in trained_parameters(model, settings())}
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert all(found[name].tensor is tensor for name, tensor in model.named_parameters())
    assert {name: found[name].layer for name in layers} == layers
    factors = {"head": 1.0, "layer2": 0.7, "layer1": 0.7**2, "layer0": 0.7**3, "embeddings": 0.7**4}
    assert {p.layer for p in found.values()} == set(factors)
    for p in found.values():
        assert p.lr_factor == pytest.approx(factors[p.layer])
    assert {found[name].weight_decay for name in spared} == {0.0}
    assert {found[name].weight_decay for name in decayed} == {0.1}
    # a bias and a layer norm are vectors, all else are matrices: true of these three models
    assert all((p.weight_decay == 0) == (p.tensor.ndim == 1) for p in found.values())


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.11.mlp.up_proj.weight", "layer11"),
        ("blocks.0.norm.weight", "layer0"),
        ("model.embed_tokens.weight", "embeddings"),
        ("lm_head.weight", "head"),
        ("layer.3", "head"),
    ],
)
def test_layer_of_reads_other_families_names(name, layer):
    assert layer_of(name) == layer


def test_freeze_leaves_tensors_as_they_are():
    model = bert()
    before = copy.deepcopy(model)
    optimizer = trained("adamw", model, steps=range(3), freeze=("embeddings", "encoder.layer.0."))
    assert {p.layer for p in optimizer.parameters} == {"layer1", "layer2", "head"}
    for (name, a), (_, b) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        frozen = "embeddings" in name or "layer.0." in name
        assert a.requires_grad != frozen
        # a query's bias moves, a key's hardly does: look at matrices
        assert torch.equal(a, b) == frozen or a.ndim == 1, name
    assert next(p for p in optimizer.parameters if p.layer == "layer1").lr_factor == pytest.approx(0.7**2)


def test_freeze_errors_name_the_word_and_the_layers():
    with pytest.raises(
        ValueError, match=r"got 'enocder', which matches none.*'embeddings', 'head', 'layer0'"
    ):
        trained_parameters(bert(), settings(freeze=("enocder",)))
    with pytest.raises(ValueError, match="freeze must leave something to train"):
        trained_parameters(bert(), settings(freeze=("bert", "classifier")))


# Trajectories


def test_ours_and_fused_follow_one_trajectory():
    start = bert()
    ours, fused = copy.deepcopy(start), copy.deepcopy(start)
    trained("adamw", ours)
    trained("adamw_fused", fused)
    moved = max(
        float((a - b).detach().abs().max())
        for a, b in zip(ours.parameters(), start.parameters(), strict=True)
    )
    assert moved > 0.05
    assert_same_weights(ours, fused)


def test_fused_leaves_alone_what_has_no_gradient():
    """A parameter that the loss does not reach is neither decayed nor counted, by either."""
    for kind in OPTIMIZERS:
        model = bert()
        optimizer = OPTIMIZERS[kind](trained_parameters(model, settings()), settings())
        gradients(model, 0)
        model.bert.pooler.dense.weight.grad = None
        before = model.bert.pooler.dense.weight.detach().clone()
        optimizer.step(LR)
        assert torch.equal(before, model.bert.pooler.dense.weight)
        counts = {p.name: float(optimizer.moments(p)[2]) for p in optimizer.parameters}
        assert counts.pop("bert.pooler.dense.weight") == 0
        assert set(counts.values()) == {1}


@pytest.mark.parametrize(("kind", "other"), [("adamw", "adamw_fused"), ("adamw_fused", "adamw")])
def test_either_goes_on_from_the_state_of_the_other(kind, other):
    model = bert()
    optimizer = trained(kind, model, steps=range(25))
    saved = {name: value.clone() for name, value in save_moments(optimizer).items()}
    taken_over = copy.deepcopy(model)
    second = OPTIMIZERS[other](trained_parameters(taken_over, settings()), settings())
    load_moments(second, saved)
    again = save_moments(second)
    assert set(again) == set(saved)
    assert all(torch.equal(again[name], saved[name]) for name in saved)
    assert float(saved["classifier.weight/step"]) == 25
    trained(kind, model, steps=range(25, STEPS), optimizer=optimizer)
    trained(other, taken_over, steps=range(25, STEPS), optimizer=second)
    assert_same_weights(model, taken_over)


def test_load_moments_goes_on_to_the_bit():
    for kind in OPTIMIZERS:
        model = bert()
        optimizer = trained(kind, model, steps=range(9))
        copied = copy.deepcopy(model)
        second = OPTIMIZERS[kind](trained_parameters(copied, settings()), settings())
        load_moments(second, {name: value.clone() for name, value in save_moments(optimizer).items()})
        trained(kind, model, steps=range(9, 14), optimizer=optimizer)
        trained(kind, copied, steps=range(9, 14), optimizer=second)
        assert_same_weights(model, copied, tolerance=0)


def test_load_moments_refuses_the_state_of_other_parameters():
    config = settings()
    saved = save_moments(AdamW(trained_parameters(bert(), config), config))
    saved["old.weight/step"] = saved.pop("classifier.weight/step")
    with pytest.raises(ValueError, match=r"got others: \['classifier.weight/step', 'old.weight/step'\]"):
        load_moments(FusedAdamW(trained_parameters(bert(), config), config), saved)


def test_without_bias_correction_the_first_update_is_three_times_as_long():
    """By hand: m = 0.1 g and v = 0.001 g^2, so that m / sqrt(v) = 3.16 sign(g) where the corrected one is
    sign(g)."""
    config = settings(bias_correction=False, weight_decay=0.0, layer_decay=1.0, eps=0.0)
    model = bert()
    optimizer = AdamW(trained_parameters(model, config), config)
    before = [p.tensor.detach().clone() for p in optimizer.parameters]
    gradients(model, 0)
    grads = [p.tensor.grad.clone() for p in optimizer.parameters]
    optimizer.step(1e-2)
    for p, old, grad in zip(optimizer.parameters, before, grads, strict=True):
        if "key.bias" in p.name or p.layer == "embeddings":
            continue  # gradients that are 0 but for rounding, or exactly
        # float32 weights of order 1 are rounded to 6e-8, which is 6e-6 of a step of 0.01
        torch.testing.assert_close(
            (old - p.tensor) / 1e-2, 0.1 / 0.001**0.5 * grad.sign(), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("corrects", [True, False])
def test_moments_are_those_of_the_update(corrects):
    config = settings(bias_correction=corrects, weight_decay=0.0, layer_decay=1.0)
    model = bert().double()
    optimizer = trained(
        "adamw", model, steps=range(4), bias_correction=corrects, weight_decay=0.0, layer_decay=1.0
    )
    before = {p.name: p.tensor.detach().clone() for p in optimizer.parameters}
    gradients(model, 4)
    optimizer.step(0.25)
    for p in optimizer.parameters:
        moments = optimizer.moments(p)
        direction = adam_direction_from(*moments, config.beta1, config.beta2, config.eps, corrects)
        # the step count is float32, and 1 - 0.999^5 = 0.005 there right to 6e-8 / 0.005
        torch.testing.assert_close((before[p.name] - p.tensor) / 0.25, direction, rtol=2e-5, atol=1e-8)


# Averages


def test_weight_average_is_the_hand_loop_and_swaps():
    model = bert()
    average = WeightAverage(trained_parameters(model, settings()), 0.75)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = trained("adamw", model, steps=range(0))
    for step in range(7):
        trained("adamw", model, steps=[step], optimizer=optimizer)
        average.update()
        for name, p in model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * p.detach()
    weights = copy.deepcopy(model.state_dict())
    for name, value in expected.items():
        torch.testing.assert_close(average.averages[name], value, rtol=0, atol=1e-6)  # 7 roundings of 6e-8
    kept = {name: value.clone() for name, value in average.averages.items()}
    average.swap()
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())
    assert all(torch.equal(average.averages[name], weights[name]) for name in kept)
    assert not torch.equal(model.classifier.weight, weights["classifier.weight"])
    average.swap()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(average.averages[name], value) for name, value in kept.items())
