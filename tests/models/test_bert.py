import dataclasses
import json
import os

import pytest
import torch
import torch.nn.functional as F

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from stabviz.models import bert  # noqa: E402
from stabviz.models.bert import BertConfig, bert_mask, bert_outputs, init_bert  # noqa: E402
from stabviz.models.bert_module import Bert  # noqa: E402

torch.set_num_threads(1)
V, L, H, K, FF, LAYERS, CONTEXT, B = 31, 7, 3, 5, 22, 2, 11, 2
D = H * K
TAGS = ("B-ORG", "B-PER", "I-ORG", "I-PER", "O")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CLASSES = {
    "base": transformers.BertModel,
    "classes": transformers.BertForSequenceClassification,
    "tags": transformers.BertForTokenClassification,
    "pretraining": transformers.BertForPreTraining,
    "masked_lm": transformers.BertForMaskedLM,
}


def theirs_of(kind, seed=0, dropout=0.0, **settings):
    """transformers' random model; biases, norms and large weights too, so that nothing is at its neutral
    value."""
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_attention_heads=H,
        intermediate_size=FF,
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="eager",
        **settings,
    )
    if kind in ("classes", "tags"):
        config.id2label = dict(enumerate(TAGS))
    model = CLASSES[kind](config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * 0.3 + ("LayerNorm.weight" in name)
            )
    return model.eval()


def ours_of(theirs, kind, folder):
    theirs.save_pretrained(folder)
    return Bert.from_folder(folder, kind=kind).eval()


def inputs(seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids_BL = torch.randint(1, V, (B, L), generator=generator)
    mask_BL = torch.ones(B, L, dtype=torch.long)
    mask_BL[1, 5:] = 0
    ids_BL[1, 5:] = 0
    types_BL = (torch.arange(L) > 3).long().expand(B, L).contiguous()
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": types_BL}


def packed_inputs():
    """Two texts in one row, each blind to the other, positions restarting. (transformers' eager ADDS a bool
    mask.)"""
    batch = inputs()
    text_L = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    may_LM = text_L[:, None] == text_L
    batch["attention_mask"] = torch.where(may_LM, 0.0, torch.finfo(torch.float32).min).expand(B, 1, L, L)
    batch["position_ids"] = torch.tensor([0, 1, 2, 3, 0, 1, 2]).expand(B, L).contiguous()
    return batch


def answers(output, kind):
    """The tensors that a kind is asked for, under one name for both."""
    if kind == "base":
        hidden = output.hidden if hasattr(output, "hidden") else output.last_hidden_state
        return [hidden, output.pooled if hasattr(output, "pooled") else output.pooler_output]
    if kind == "pretraining":
        if hasattr(output, "next_sentence_logits"):
            return [output.logits, output.next_sentence_logits]
        return [output.prediction_logits, output.seq_relationship_logits]
    return [output.logits]


def scalar(tensors):
    generator = torch.Generator().manual_seed(9)
    return sum((x * torch.randn(x.shape, generator=generator)).sum() / x.shape[-1] for x in tensors)


def assert_equal(ours, theirs, kind, batch):
    mine, reference = answers(ours(**batch), kind), answers(theirs(**batch), kind)
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    scalar(mine).backward()
    scalar(reference).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert list(found) == list(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("build", [inputs, packed_inputs])
def test_bert_equals_transformers_on_outputs_and_gradients(kind, build, tmp_path):
    theirs = theirs_of(kind)
    assert_equal(ours_of(theirs, kind, tmp_path), theirs, kind, build())


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_act": "relu"},
        {"pad_token_id": None},
        {"pad_token_id": 4},
        {"layer_norm_eps": 1e-2},
        {"type_vocab_size": 3},
    ],
)
def test_bert_equals_transformers_under_other_settings(settings, tmp_path):
    theirs = theirs_of("base", **settings)
    assert_equal(ours_of(theirs, "base", tmp_path), theirs, "base", inputs())


def test_an_additive_mask_means_what_the_bool_mask_means():
    model, batch = Bert.from_config(small_config()).eval(), packed_inputs()
    expected, may = model(**batch).hidden, batch["attention_mask"] == 0
    for same in (may, may.long(), torch.where(may, 0.0, -torch.inf)):
        torch.testing.assert_close(model(**batch | {"attention_mask": same}).hidden, expected, rtol=0, atol=0)


def test_a_packed_text_is_the_text_alone():
    model, batch = Bert.from_config(small_config()).eval(), packed_inputs()
    alone = model(batch["input_ids"][:, 4:], None, batch["token_type_ids"][:, 4:]).hidden
    torch.testing.assert_close(model(**batch).hidden[:, 4:], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["base", "classes", "tags"])
def test_dropout_draws_what_transformers_draws_from_the_same_seed(kind, tmp_path):
    theirs = theirs_of(kind, dropout=0.2).train()
    ours = ours_of(theirs, kind, tmp_path).train()
    drawn = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        drawn.append(answers(model(**inputs()), kind))
    for a, b in zip(*drawn, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    quiet = answers(ours.eval()(**inputs()), kind)[0]
    assert not torch.allclose(quiet, drawn[0][0], atol=1e-2)
    torch.testing.assert_close(quiet, answers(theirs.eval()(**inputs()), kind)[0], **CLOSE)


def test_dropout_of_the_folder_can_be_replaced(tmp_path):
    ours_of(theirs_of("classes", dropout=0.2), "classes", tmp_path)
    model = Bert.from_folder(tmp_path, kind="classes", dropout=0.0).train()
    torch.testing.assert_close(model(**inputs()).logits, model.eval()(**inputs()).logits, rtol=0, atol=0)
    assert Bert.from_folder(tmp_path, kind="classes").config.hidden_dropout_prob == 0.2


# ---- folders


@pytest.mark.parametrize("kind", CLASSES)
def test_saved_folders_are_read_both_ways(kind, tmp_path):
    ours = Bert.from_config(
        small_config(), kind=kind, labels=TAGS, generator=torch.Generator().manual_seed(2)
    ).eval()
    ours.save_pretrained(tmp_path / "ours")
    theirs, report = CLASSES[kind].from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for a, b in zip(answers(ours(**inputs()), kind), answers(theirs.eval()(**inputs()), kind), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    theirs.save_pretrained(tmp_path / "theirs")
    again = Bert.from_folder(tmp_path / "theirs", kind=kind)
    assert again.loading == ""
    assert set(load_file(tmp_path / "ours/model.safetensors")) == set(
        load_file(tmp_path / "theirs/model.safetensors")
    )
    for (name, a), (_, b) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    if kind in ("classes", "tags"):
        assert again.labels == TAGS
        assert theirs.config.id2label == dict(enumerate(TAGS))


def small_config(**settings):
    plain = {
        "vocab_size": V,
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": H,
        "intermediate_size": FF,
        "max_position_embeddings": CONTEXT,
    } | settings
    return BertConfig(**plain)


def test_a_head_on_a_bare_body_is_drawn_anew_and_said(tmp_path, caplog):
    theirs_of("base").save_pretrained(tmp_path)
    model = Bert.from_folder(
        tmp_path, kind="classes", labels=TAGS, generator=torch.Generator().manual_seed(5)
    )
    assert "2 drawn anew: classifier.weight, classifier.bias" in model.loading
    assert "\n" not in model.loading
    assert caplog.messages == [model.loading]
    assert model(**inputs()).logits.shape == (B, len(TAGS))
    again = Bert.from_folder(
        tmp_path, kind="classes", labels=TAGS, generator=torch.Generator().manual_seed(5)
    )
    assert torch.equal(model.classifier.weight, again.classifier.weight)


def test_a_body_is_taken_out_of_a_pretraining_checkpoint(tmp_path):
    theirs = theirs_of("pretraining")
    theirs.save_pretrained(tmp_path)
    model = Bert.from_folder(tmp_path).eval()
    assert "7 of the file not used: cls.predictions.bias" in model.loading
    torch.testing.assert_close(model(**inputs()).hidden, theirs.bert(**inputs()).last_hidden_state, **CLOSE)
    assert "drawn anew: bert.pooler" not in Bert.from_folder(tmp_path, kind="tags").loading
    assert "2 drawn anew: classifier.weight" in Bert.from_folder(tmp_path, kind="tags", labels=TAGS).loading


def test_labels_decide_whether_a_stored_classifier_is_kept(tmp_path):
    theirs = theirs_of("classes")
    theirs.save_pretrained(tmp_path)
    stored = theirs.classifier.weight
    assert torch.equal(Bert.from_folder(tmp_path, kind="classes", labels=TAGS).classifier.weight, stored)
    swapped = Bert.from_folder(tmp_path, kind="classes", labels=TAGS[::-1])
    assert not torch.equal(swapped.classifier.weight, stored)
    assert "drawn anew: classifier.weight" in swapped.loading
    assert Bert.from_folder(tmp_path, kind="classes", labels=("a", "b")).classifier.weight.shape == (2, D)


def test_names_of_2018_buffers_and_tied_copies_are_understood(tmp_path):
    theirs = theirs_of("pretraining")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    old["bert.embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    save_file(old, tmp_path / "model.safetensors")
    model = Bert.from_folder(tmp_path, kind="pretraining").eval()
    assert model.loading == ""
    torch.testing.assert_close(model(**inputs()).logits, theirs(**inputs()).prediction_logits, **CLOSE)
    old["cls.predictions.decoder.weight"][3, 2] += 1
    save_file(old, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="must be the word embedding"):
        Bert.from_folder(tmp_path, kind="pretraining")


def test_weights_in_several_files_or_an_old_bin_are_read(tmp_path):
    theirs = theirs_of("base")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    expected = theirs(**inputs()).last_hidden_state
    torch.testing.assert_close(
        Bert.from_folder(tmp_path / "parts").eval()(**inputs()).hidden, expected, **CLOSE
    )
    theirs.config.save_pretrained(tmp_path / "bin")
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    torch.testing.assert_close(
        Bert.from_folder(tmp_path / "bin").eval()(**inputs()).hidden, expected, **CLOSE
    )


class Malicious:
    def __reduce__(self):
        return os.system, ("touch stabviz-was-here",)


def test_loading_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs_of("base").config.save_pretrained(tmp_path)
    torch.save({"embeddings.word_embeddings.weight": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="Weights only load failed"):
        Bert.from_folder(tmp_path)
    assert not (tmp_path / "stabviz-was-here").exists()


def test_half_precision_checkpoints_are_trained_in_float32(tmp_path):
    theirs_of("base").to(torch.float16).save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in Bert.from_folder(tmp_path).parameters()} == {torch.float32}


def break_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "roberta"}, "model_type must be 'bert'; got 'roberta'"),
        ({"is_decoder": True}, "is_decoder must be False"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
        ({"hidden_act": "silu"}, "hidden_act must be one of"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be True"),
        (
            {"intermediate_size": 23},
            r"encoder.layer.0.intermediate.dense.weight of .* must have shape \(23, 15\)",
        ),
        (
            {"num_hidden_layers": 3},
            "must hold every parameter of the body; 16 are missing: encoder.layer.2.attention",
        ),
    ],
)
def test_folders_that_do_not_fit_are_named(changes, match, tmp_path):
    theirs_of("base").save_pretrained(tmp_path)
    break_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=match):
        Bert.from_folder(tmp_path)


def test_missing_files_and_unknown_kinds_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold config.json"):
        Bert.from_folder(tmp_path)
    theirs_of("base").config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="must hold model.safetensors"):
        Bert.from_folder(tmp_path)
    with pytest.raises(ValueError, match="kind must be one of"):
        Bert.from_folder(tmp_path, kind="poet")
    with pytest.raises(ValueError, match="kind must be one of"):
        Bert.from_config(small_config(), kind="poet")


# ---- the module and the functions


def test_a_fresh_bert_has_transformers_names_shapes_and_spread():
    config = small_config(vocab_size=997, hidden_size=60, intermediate_size=128)
    for kind, theirs in CLASSES.items():
        ours = Bert.from_config(config, kind=kind, generator=torch.Generator().manual_seed(0))
        twin = theirs(
            transformers.BertConfig(
                **{name: value for name, value in dataclasses.asdict(config).items() if name != "labels"}
            )
        )
        assert [(n, p.shape) for n, p in ours.named_parameters()] == [
            (n, p.shape) for n, p in twin.named_parameters()
        ]
        for (name, a), (_, b) in zip(ours.named_parameters(), twin.named_parameters(), strict=True):
            # a standard deviation of n normal draws scatters by 1/sqrt(2 n): under 4 % for the matrices here
            assert float(a.detach().std(correction=0)) == pytest.approx(
                float(b.detach().std(correction=0)), rel=0.2, abs=1e-9
            ), name


def test_from_config_takes_transformers_config():
    theirs = theirs_of("tags")
    ours = Bert.from_config(theirs.config, kind="tags")
    assert ours.labels == TAGS
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


@pytest.mark.parametrize("kind", CLASSES)
def test_module_and_pure_function_agree(kind):
    model = Bert.from_config(small_config(), kind=kind, labels=TAGS).eval()
    pure = bert_outputs(dict(model.named_parameters()), inputs()["input_ids"], config=model.config, kind=kind)
    for a, b in zip(answers(pure, kind), answers(model(inputs()["input_ids"]), kind), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_functional_call_puts_other_parameters_in_place():
    model = Bert.from_config(small_config()).eval()
    other = init_bert(model.config, "base", torch.Generator().manual_seed(8))
    called = torch.func.functional_call(model, other, (inputs()["input_ids"],))
    pure = bert_outputs(other, inputs()["input_ids"], config=model.config, kind="base")
    assert torch.equal(called.hidden, pure.hidden)


def test_measures_are_those_of_transformers_attention(tmp_path):
    theirs = theirs_of("base")
    ours, batch = ours_of(theirs, "base", tmp_path), inputs()
    assert ours(**batch).measured == {}
    ours.measure = True
    measured = ours(**batch).measured
    attentions = theirs(**batch, output_attentions=True).attentions
    entropy = torch.stack([-(w * w.clamp_min(1e-30).log()).sum(-1).mean() for w in attentions]).mean()
    torch.testing.assert_close(measured["attention_entropy"], entropy, **CLOSE)
    assert set(measured) == {"max_attention_logit", "attention_entropy"}
    largest = []
    hooks = [
        layer.attention.self.register_forward_hook(
            lambda module, args, _: largest.append(largest_logit(module, args[0], batch["attention_mask"]))
        )
        for layer in theirs.encoder.layer
    ]
    theirs(**batch)
    [hook.remove() for hook in hooks]
    torch.testing.assert_close(measured["max_attention_logit"], torch.stack(largest).amax(), **CLOSE)


def largest_logit(module, hidden_BLD, mask_BM):
    query, key = (
        x.unflatten(-1, (H, K)).transpose(1, 2) for x in (module.query(hidden_BLD), module.key(hidden_BLD))
    )
    return ((query @ key.mT) / K**0.5 * mask_BM[:, None, None]).abs().amax()


def test_predict_at_gives_the_logits_of_these_positions():
    model = Bert.from_config(small_config(), kind="pretraining").eval()
    at_BL = torch.zeros(B, L, dtype=torch.bool)
    at_BL[0, 3] = at_BL[1, 1] = at_BL[1, 4] = True
    some, whole = model(**inputs(), predict_at=at_BL), model(**inputs())
    torch.testing.assert_close(some.logits, whole.logits[at_BL], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(some.next_sentence_logits, whole.next_sentence_logits)


def test_activation_checkpointing_changes_no_bit_of_a_step_with_dropout():
    gradients = []
    for checkpointing in (False, True):
        model = Bert.from_config(
            small_config(), kind="tags", generator=torch.Generator().manual_seed(0)
        ).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(4)
        model(**inputs()).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert any(gradient.abs().sum() > 0 for gradient in gradients[0])


def test_bf16_autocast_stays_near_float32_and_near_transformers(tmp_path):
    theirs = theirs_of("classes")
    ours, batch = ours_of(theirs, "classes", tmp_path), inputs()
    exact = ours(**batch).logits.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, reference = ours(**batch).logits, theirs(**batch).logits
    assert low.dtype == torch.bfloat16
    # eight bits of mantissa through two layers of weights of size 0.3; transformers' own error sets the scale
    scale = 2 * (reference.detach() - exact).norm() + 0.01 * exact.norm()
    assert float((low.detach() - exact).norm()) < float(scale)
    F.cross_entropy(low.float(), torch.tensor([0, 3])).backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32
        for parameter in ours.parameters()
    )


def test_lengths_and_masks_that_do_not_fit_are_named():
    model = Bert.from_config(small_config())
    with pytest.raises(ValueError, match="at most max_position_embeddings = 11 long; got 12"):
        model(torch.ones(1, 12, dtype=torch.long))
    with pytest.raises(ValueError, match=r"must be \(B, M\), or"):
        bert_mask(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="values between"):
        bert_mask(torch.full((1, 1, 2, 2), -0.5))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"hidden_size": 16}, "multiple of num_attention_heads = 3; got 16"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must be in \[0, 1\)"),
    ],
)
def test_a_config_names_what_does_not_fit(settings, match):
    with pytest.raises(ValueError, match=match):
        small_config(**settings)


@pytest.mark.parametrize("broken", ["gelu", "_norm"])
def test_a_broken_bert_is_caught(broken, monkeypatch, tmp_path):
    theirs = theirs_of("base")
    ours = ours_of(theirs, "base", tmp_path)
    if broken == "gelu":
        monkeypatch.setitem(bert.ACTIVATIONS, "gelu", lambda x: F.gelu(x, approximate="tanh"))
    else:
        right = bert._norm
        monkeypatch.setattr(
            bert, "_norm", lambda params, name, x, config: right(params, name, x, config) * 1.001
        )
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(ours, theirs, "base", inputs())
