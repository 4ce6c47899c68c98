"""Pretraining: the objective equals transformers' own, the head at the predicted pieces alone, a run that
learns."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForPreTraining,
    BertModel,
)

from stabviz.finetune.config import DATA
from stabviz.finetune.pretrain.config import PretrainConfig
from stabviz.finetune.pretrain.corpus import Document, train_tokenizer
from stabviz.finetune.pretrain.run import (
    MaskedBert,
    hold_out,
    masked_lm_objective,
    prepare,
    pretrain,
    small_bert,
    with_small_embeddings,
)
from stabviz.finetune.train.live import watch

TINY = {
    "vocab_size": 300,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "max_length": 61,
    "batch": 8,
    "steps": 30,
    "warmup_steps": 3,
    "lr": 1e-2,
    "evaluate_every": 10,
    "save_every": 7,
    "signals_every": 10,
    "progress": False,
    "held_out": 0.2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def documents():
    """Twelve documents of six sentences in eighteen words: a loss that falls within thirty steps."""
    who, does, what = (
        words.split()
        for words in (
            "router printer invoice order account parcel",
            "loses finds sends wants checks blocks",
            "paper money network password address page",
        )
    )
    return [
        Document(
            name=f"topics/{d}",
            sentences=tuple(
                f"The {who[(d + s) % 6]} {does[(d * s) % 6]} the {what[(2 * d + s) % 6]}." for s in range(6)
            ),
        )
        for d in range(12)
    ]


@pytest.fixture(scope="module")
def trained(documents, tmp_path_factory):
    return pretrain(PretrainConfig.of(out=tmp_path_factory.mktemp("run") / "a", **TINY), documents=documents)


def random_bert(kind=BertForPreTraining, vocab_size=101):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = small_bert(
            vocab_size, PretrainConfig.of(width=16, layers=2, heads=2, max_length=31), dropout=0.0
        )
        return kind(shape).eval()


def random_batch(vocab_size=101, pairs=True):
    """Five rows of 7 to 23 pieces; labels at about a third of them, a next-sentence label for the first three
    rows."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, vocab_size, (5, 23), generator=generator)
    real = torch.arange(23) < torch.tensor([23, 7, 11, 17, 19])[:, None]
    chosen = (torch.rand(5, 23, generator=generator) < 0.3) & real
    follows = torch.tensor([0, 1, 1, -100, -100]) if pairs else torch.full((5,), -100)
    return {
        "input_ids": torch.where(real, ids, 0),
        "attention_mask": real.long(),
        "rows": torch.arange(5),
        "token_type_ids": (torch.arange(23) >= 5).long().expand(5, 23).contiguous(),
        "labels": torch.where(chosen, ids.flip(0), -100),
        "next_sentence_label": follows,
    }


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", [BertForPreTraining, MaskedBert])
def test_masked_lm_objective_equals_the_loss_and_gradients_of_transformers(kind):
    batch = random_batch()
    reference = random_bert()
    inputs = {name: value for name, value in batch.items() if name != "rows"}
    theirs = reference(**inputs).loss
    model = random_bert(kind)
    loss, measured = masked_lm_objective(model, batch)
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)  # float32, sums in another order
    assert (measured["masked_lm_loss_nats"] + measured["next_sentence_loss_nats"]).item() == pytest.approx(
        loss.item()
    )
    want, got = gradients(reference, theirs), gradients(model, loss)
    assert want.keys() == got.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-5, rtol=1e-5, msg=name)


def test_masked_lm_objective_measures_accuracy_over_what_is_asked():
    model, batch = random_bert(MaskedBert), random_batch()
    _, measured = masked_lm_objective(model, batch)
    with torch.no_grad():
        output = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    asked = batch["labels"] != -100
    right = (output.prediction_logits.argmax(-1) == batch["labels"])[asked].float().mean()
    told = (output.seq_relationship_logits.argmax(-1) == batch["next_sentence_label"])[:3].float().mean()
    assert measured["accuracy"].item() == pytest.approx(right.item())
    assert measured["next_sentence_accuracy"].item() == pytest.approx(told.item())
    assert not any(value.requires_grad for value in measured.values())


def test_masked_lm_objective_of_a_batch_without_pairs_is_the_language_model_alone():
    model, batch = random_bert(MaskedBert), random_batch(pairs=False)
    loss, measured = masked_lm_objective(model, batch)
    assert measured["next_sentence_loss_nats"] == 0
    assert loss.item() == pytest.approx(measured["masked_lm_loss_nats"].item())
    found = gradients(model, loss)
    assert all(grad.isfinite().all() for grad in found.values())
    assert (found["cls.seq_relationship.weight"] == 0).all()


def test_masked_bert_computes_the_same_logits_at_the_predicted_pieces_alone():
    model, batch = random_bert(MaskedBert), random_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    asked = batch["labels"] != -100
    with torch.no_grad():
        some, every = model(**inputs, predicted_BL=asked), model(**inputs)
    assert some.prediction_logits.shape == (int(asked.sum()), 101)
    torch.testing.assert_close(some.prediction_logits, every.prediction_logits[asked], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(some.seq_relationship_logits, every.seq_relationship_logits)


def test_masked_bert_has_the_names_of_transformers_bert():
    assert random_bert(MaskedBert).state_dict().keys() == random_bert().state_dict().keys()
    inside = {
        name.removeprefix("bert.")
        for name in random_bert(MaskedBert).state_dict()
        if name.startswith("bert.")
    }
    assert inside == set(random_bert(BertModel).state_dict())


def test_hold_out_splits_by_seed_and_keeps_all(documents):
    training, held = hold_out(documents, share=0.3, seed=0)
    assert len(held) == 4
    assert sorted(d.name for d in training + held) == sorted(d.name for d in documents)
    assert hold_out(documents, share=0.3, seed=0)[1] == held
    assert [hold_out(documents, share=0.3, seed=seed)[1] for seed in range(1, 4)] != [held] * 3
    assert len(hold_out(documents, share=0.001, seed=0)[1]) == 2
    with pytest.raises(ValueError, match="at least 4"):
        hold_out(documents[:3], share=0.3, seed=0)


def test_pretrain_lowers_the_loss_and_records_a_trace(trained):
    loss = trained.trace["loss_nats"][0]
    assert trained.progress.finished == "all steps"
    vocab_size = len(AutoTokenizer.from_pretrained(trained.folder))
    assert loss[0] == pytest.approx(math.log(vocab_size) + math.log(2), abs=0.3)  # two losses, at chance
    assert loss[-5:].mean() < loss[0] - 0.8
    assert np.isfinite(trained.trace["validation_loss_nats"][0, [9, 19, 29]]).all()
    assert "grad_norm_preclip/layer0" in trained.trace


def test_pretrain_scores_the_documents_that_were_held_out(trained):
    scores = trained.scores
    assert json.loads((trained.config.run.out / "scores.json").read_text()) == scores
    assert scores["pieces"] >= 10
    assert scores["pairs"] >= 1
    best_at = trained.progress.best_at
    recorded = trained.trace["validation_loss_nats"][0, best_at - 1]
    assert scores["loss_nats"] == pytest.approx(recorded, abs=1e-4)  # reloaded weights, the same masks
    assert scores["loss_nats"] == pytest.approx(
        scores["masked_lm_loss_nats"] + scores["next_sentence_loss_nats"]
    )


def test_pretrain_leaves_a_checkpoint_that_transformers_loads_under_its_own_names(trained):
    config = json.loads((trained.folder / "config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"]
    assert config["hidden_dropout_prob"] == 0.1  # for fine-tuning; none was used here
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    batch = tokenizer(["The order wants money."], return_tensors="pt")
    for family in (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification):
        model, report = family.from_pretrained(trained.folder, output_loading_info=True)
        assert all("pooler" in name or name.startswith("classifier") for name in report["missing_keys"])
        assert torch.isfinite(model(**batch)[0]).all()
    complete = AutoModel.from_pretrained(trained.config.run.out / "best", output_loading_info=True)[1]
    assert not complete["missing_keys"]


def test_pretrain_writes_a_card_with_what_was_measured(trained):
    card = (trained.folder / "README.md").read_text()
    for said in (
        "30 updates of 8 rows",
        "stabviz pretrain --held-out 0.2 --vocab-size 300",
        "held out",
        "## Limits",
        f"{trained.scores['masked_lm_loss_nats']:.3f} nats",
        "pages of the language reference",
    ):
        assert said in card
    assert "support desk (" not in card  # no message was in this run


def test_pretrain_stopped_and_resumed_equals_the_run_that_was_not(trained, documents, tmp_path):
    config = PretrainConfig.of(out=tmp_path / "b", stop_after=11, **TINY)
    first = pretrain(config, documents=documents)
    assert (first.progress.updates, first.progress.finished, first.scores) == (11, "", None)
    loaded = PretrainConfig.of_folder(tmp_path / "b")
    assert loaded == config
    again = pretrain(loaded.replace(stop_after=None), documents=documents, resume=True)
    assert again.trace["loss_nats"].tolist() == trained.trace["loss_nats"].tolist()
    weights = [(run.folder / "model.safetensors").read_bytes() for run in (again, trained)]
    assert weights[0] == weights[1]


def test_pretrain_refuses_a_folder_that_holds_a_run_and_leaves_its_config_alone(trained, documents):
    before = (trained.config.run.out / "pretrain.json").read_text()
    with pytest.raises(ValueError, match="holds? a run"):
        pretrain(trained.config.replace(lr=1e-4), documents=documents)
    assert (trained.config.run.out / "pretrain.json").read_text() == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("held_out", 0.0, r"held_out must be in \(0, 1\)"),
        ("vocab_size", 5, "vocab_size must be at least 100"),
        ("width", 30, "width must be a multiple of heads"),
        ("mask_share", 1.0, "mask_share must be in"),
        ("lr", -1.0, "lr must be above 0"),
        ("batch", 0, "batch must be at least 1"),
    ],
)
def test_pretrain_config_names_what_is_wrong(field, value, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig.of(**{field: value})


def test_pretrain_config_load_names_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match="folder of a pretraining run"):
        PretrainConfig.of_folder(tmp_path)


def tiny_setup(documents, out, **changes):
    config = PretrainConfig.of(out=out, **TINY | changes)
    tokenizer = train_tokenizer([s for d in documents for s in d.sentences], vocab_size=300, max_length=61)
    return prepare(config, tokenizer, *hold_out(documents, share=0.2, seed=0))


def test_watch_yields_growing_traces_and_the_complete_one_last(documents, tmp_path):
    seen = list(watch(tiny_setup(documents, tmp_path / "run"), wait=0.01))
    lengths = [trace.n_steps for trace in seen]
    assert lengths == sorted(lengths)
    assert len(lengths) >= 2
    assert lengths[-1] == 30


def test_watch_stops_the_run_when_cancelled_or_left(documents, tmp_path):
    assert (
        list(watch(tiny_setup(documents, tmp_path / "a", steps=5000), cancelled=lambda: True, wait=0.01))
        == []
    )
    for _ in watch(tiny_setup(documents, tmp_path / "b", steps=5000), wait=0.01):
        break
    for name in "ab":
        updates = len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) - 1
        assert updates < 1000


def test_watch_raises_what_the_loop_raised(documents, tmp_path):
    setup = tiny_setup(documents, tmp_path / "run", lr=1e30, clip_norm=float("inf"))
    with pytest.raises(RuntimeError, match="not finite"):
        list(watch(setup, wait=0.01))


def test_the_shipped_checkpoint_is_small_and_loads_as_float32():
    folder = DATA / "stabviz-mini"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(tokenizer) == model.config.vocab_size == 9000
    batch = tokenizer("the name of the [MASK]", return_tensors="pt")
    with torch.no_grad():
        guess = model(**batch).logits[0, 5].log_softmax(dim=-1)
    assert guess.max() > math.log(20 / 9000)  # it has learned something: twenty times chance


def test_with_small_embeddings_computes_the_same_with_small_embeddings():
    model, batch = random_bert(), random_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        for table in (model.bert.embeddings.word_embeddings, model.bert.embeddings.position_embeddings):
            table.weight.mul_(7.0)  # what pretraining does to them
        model.cls.predictions.transform.LayerNorm.bias.add_(0.3)
        before = model(**inputs)
        small = random_bert()
        small.load_state_dict(with_small_embeddings(dict(model.state_dict()), 0.02))
        after = small(**inputs)
    assert model.bert.embeddings.word_embeddings.weight.std() > 0.1
    assert small.bert.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=1e-4)
    torch.testing.assert_close(after.prediction_logits, before.prediction_logits, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        after.seq_relationship_logits, before.seq_relationship_logits, atol=1e-5, rtol=1e-4
    )


def test_the_shipped_checkpoint_lacks_what_next_sentences_need_and_has_small_embeddings():
    model, report = BertForPreTraining.from_pretrained(DATA / "stabviz-mini", output_loading_info=True)
    missing = {
        f"{layer}.{kind}"
        for layer in ("bert.pooler.dense", "cls.seq_relationship")
        for kind in ("weight", "bias")
    }
    assert set(report["missing_keys"]) == missing
    assert model.bert.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=1e-3)
