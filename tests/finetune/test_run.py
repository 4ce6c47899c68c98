"""A whole run from its config, several seeds, and what is done with a run afterwards."""

import json
import sys

import numpy as np
import pytest

from stabviz.finetune.config import DATA, FinetuneConfig
from stabviz.finetune.data.splits import read_splits
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.run import (
    build_model,
    evaluate_model,
    finetune,
    finetune_seeds,
    load_config,
    load_outcome,
    predict,
)
from stabviz.finetune.train import checkpoint, run_folder
from stabviz.finetune.train.interrupt import Interrupt
from stabviz.models import pretrained
from stabviz.models.pretrained import load_tokenizer
from stabviz.trace.readers import from_tensorboard


@pytest.fixture
def config(tiny_bert_folder, tmp_path):
    """A run of a few steps on a few rows of the support desk."""
    return FinetuneConfig.of(
        model=str(tiny_bert_folder),
        steps=6,
        batch=8,
        lr=1e-3,
        max_train_rows=64,
        evaluate_every=3,
        save_every=2,
        progress=False,
        device="cpu",
        out=tmp_path / "run",
        dropout=0.0,
        max_length=48,
    )


def test_finetune_leaves_a_folder_that_says_everything(config):
    outcome = finetune(config)
    assert outcome.finished
    assert {path.name for path in config.run.out.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "timings.jsonl",
        "wall_time.json",
        "checkpoints",
        "best",
        "scores.json",
    }
    assert outcome.trace.n_steps == 6
    assert np.isfinite(outcome.trace["validation_score"][0, [2, 5]]).all()
    scores = json.loads((config.run.out / "scores.json").read_text())
    assert scores["score"] == scores["accuracy"]
    assert len(scores["predictions"]) == 600
    again = load_outcome(config.run.out)
    assert again.trace.equals(outcome.trace)
    assert again.scores["accuracy"] == outcome.scores["accuracy"]
    assert load_config(config.run.out) == config


def test_the_test_score_is_that_of_the_best_weights(config):
    outcome = finetune(config)
    best = config.replace(model=str(config.run.out / "best"))
    again = evaluate_model(
        best, read_splits(best.data, best.run.seed), load_tokenizer(best.model.name), ProcessGroup.join("cpu")
    )
    assert again.scores["accuracy"] == outcome.scores["accuracy"]
    assert again.predictions == outcome.scores["predictions"]


@pytest.mark.parametrize("implementation", ["transformers", "stabviz"])
def test_both_implementations_train_and_are_loaded_again(config, implementation):
    config = config.replace(implementation=implementation)
    assert finetune(config).finished
    said = predict(config.run.out, ["where is my order", "please cancel it"])
    assert [set(one) for one in said] == [{"label", "probability", "probabilities"}] * 2
    assert sum(said[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert said[0]["probability"] == max(said[0]["probabilities"].values())


def test_the_implementations_follow_the_same_losses(config):
    losses = []
    for implementation in ("transformers", "stabviz"):
        first = finetune(
            config.replace(
                implementation="transformers",
                out=config.run.out / "head",
                steps=1,
                warmup_steps=0,
                lr=1e-12,
                overwrite=True,
            )
        )
        start = config.replace(
            model=str(first.config.run.out / "best"),
            implementation=implementation,
            out=config.run.out / implementation,
        )
        losses.append(finetune(start).trace["loss_nats"])
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)  # float32, sums in another order


@pytest.mark.parametrize("implementation", ["transformers", "stabviz"])
def test_a_run_on_the_first_layer_of_minilm_is_resumed_and_needs_no_minilm_afterwards(
    config, implementation, monkeypatch
):
    config = config.replace(model="minilm:1", implementation=implementation, lr=None, steps=4, batch=4)
    config = config.replace(max_train_rows=16, max_length=16, evaluate_every=4, data=str(small_desk(config)))
    finetune(config.replace(stop_after=2))
    outcome = finetune(load_config(config.run.out), resume=True)
    assert outcome.finished
    assert outcome.config.train.lr == pytest.approx(6.5e-4)  # 1.9 million parameters outside the embeddings
    assert load_config(config.run.out).train.lr == outcome.config.train.lr
    moved = config.run.out.rename(config.run.out.parent / "elsewhere")
    monkeypatch.setattr(pretrained, "minilm_folder", lambda: pytest.fail("asked for MiniLM"))
    assert len(predict(moved, ["where is my order"])[0]["probabilities"]) == 10
    from transformers import AutoModelForSequenceClassification

    best = AutoModelForSequenceClassification.from_pretrained(moved / "best")
    assert best.config.num_hidden_layers == 1


def small_desk(config):
    """The first rows of the support desk's splits: what is scored costs more than what is trained on."""
    folder = config.run.out.parent / "small"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        lines = (DATA / "support-desk" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines[:200]]
        texts = [json.dumps({"text": row["text"], "label": row["intent"]}) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(texts), encoding="utf-8")
    return folder


def test_baselines_stand_beside_the_score_unless_they_are_turned_off(config):
    beside = finetune(config).scores["baselines"]
    assert beside["majority"]["accuracy"] == pytest.approx(0.1)  # ten intents, a tenth each
    assert 0.2 < beside["tf-idf + logistic regression"]["accuracy"] < 0.6  # of 64 rows
    assert "baselines" not in finetune(config.replace(baseline=False, overwrite=True)).scores


def test_from_scratch_draws_other_weights(config):
    scratch = config.replace(from_scratch=True, out=config.run.out / "scratch")
    drawn = finetune(scratch).trace["param_norm"][0, 0]
    loaded = finetune(config.replace(out=config.run.out / "loaded")).trace["param_norm"][0, 0]
    assert drawn != loaded


def test_tags_are_scored_by_entities_and_predicted_by_word(config):
    config = config.replace(tags="tags", text="words")
    outcome = finetune(config)
    assert outcome.scores["score"] == outcome.scores["f1"]
    said = predict(config.run.out, ["please call Anna in Berlin"])
    assert said[0]["words"] == ["please", "call", "Anna", "in", "Berlin"]
    assert len(said[0]["tags"]) == 5


def test_packing_changes_no_loss(config):
    tagged = config.replace(tags="tags", text="words", bucket=False)
    plain = finetune(tagged.replace(out=config.run.out / "plain")).trace
    packed = finetune(tagged.replace(out=config.run.out / "packed", packing=True, micro_batch=2)).trace
    np.testing.assert_array_equal(plain["targets"], packed["targets"])
    np.testing.assert_allclose(plain["loss_nats"], packed["loss_nats"], rtol=0, atol=1e-5)


def test_packing_of_classes_is_refused(config):
    with pytest.raises(ValueError, match="packing must be off for classes"):
        finetune(config.replace(packing=True))


def test_several_seeds_are_summarised_and_taken_up_again(config):
    series = config.replace(seeds=2)
    outcomes, found = finetune_seeds(series)
    assert [o.config.run.seed for o in outcomes] == [0, 1]
    assert found["runs"] == 2
    assert found["mean"] == pytest.approx(np.mean([o.scores["accuracy"] for o in outcomes]))
    assert 0 <= found["churn"] <= 1
    assert json.loads((config.run.out / "summary.json").read_text()) == found
    with pytest.raises(ValueError, match="must not hold runs already"):
        finetune_seeds(series)
    (config.run.out / "seed-1" / "scores.json").unlink()  # as if the second seed had been cut off at its end
    again, same = finetune_seeds(load_config(config.run.out), resume=True)
    assert same == found
    assert again[1].trace.equals(outcomes[1].trace)


def test_a_series_that_is_stopped_goes_on_where_it_was(config):
    whole, found = finetune_seeds(config.replace(seeds=2, out=config.run.out / "whole"))
    parts = config.replace(seeds=2, out=config.run.out / "parts")
    outcomes, nothing = finetune_seeds(parts.replace(stop_after=4))
    assert nothing is None
    assert not outcomes[-1].finished
    resumed, same = finetune_seeds(parts, resume=True)
    assert same == found
    assert all(a.trace.equals(b.trace) for a, b in zip(whole, resumed, strict=True))


def test_a_request_at_the_end_of_a_seed_ends_the_series(config, monkeypatch):
    interrupt, write = Interrupt(), checkpoint.prune_checkpoints

    def ask_at_the_end(*args, **options):  # what comes during a run's last save
        if (config.run.out / "seed-0" / "metrics.jsonl").read_text().count('"values"') == 6:
            interrupt.ask()
        return write(*args, **options)

    monkeypatch.setattr(run_folder, "prune_checkpoints", ask_at_the_end)
    outcomes, nothing = finetune_seeds(config.replace(seeds=2, save_every=0), interrupt=interrupt)
    assert (len(outcomes), nothing) == (1, None)
    assert outcomes[0].finished


def test_tensorboard_holds_what_the_log_holds_also_after_a_resume(config):
    watched = config.replace(log=("tensorboard",), save_every=0)
    finetune(watched.replace(stop_after=4))
    outcome = finetune(watched, resume=True)
    seen = from_tensorboard(config.run.out / "tensorboard")
    np.testing.assert_array_equal(seen.steps, outcome.trace.steps)
    for name in ("loss_nats", "grad_norm_preclip/layer0", "validation_score"):
        np.testing.assert_allclose(seen[name], outcome.trace[name], rtol=1e-6)  # events hold float32


def test_without_tensorboard_one_line_says_what_to_install(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        finetune(config.replace(log=("tensorboard",)))


def test_label_noise_touches_training_alone(config):
    clean, noisy = (
        read_splits(config.data, config.run.seed),
        read_splits(config.replace(label_noise=0.25).data),
    )
    changed = np.mean(np.array(clean.train["label"][:]) != np.array(noisy.train["label"][:]))
    assert changed == pytest.approx(0.25, abs=0.01)
    assert clean.test["label"][:] == noisy.test["label"][:]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "./nowhere"}, "model must be a folder that exists"),
        (
            {"model": "no-such-model-on-the-hub"},
            "model must be one that .* can load; got 'no-such-model-on-the-hub'",
        ),
        ({"device": "gpu"}, "device must be"),
        ({"freeze": ("nothing",)}, "freeze must match a parameter's name"),
        ({"max_length": 500}, "max_length must be at most 128"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_is_written(config, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        finetune(config.replace(**settings))
    assert "\n" not in str(caught.value)
    assert not (config.run.out / "checkpoints").exists()


def test_our_implementation_asks_for_a_folder(config, tiny_tokenizer):
    with pytest.raises(
        ValueError, match="model must be a folder on this machine for implementation 'stabviz'"
    ):
        build_model(
            config.replace(model="bert-base-uncased", implementation="stabviz"),
            "classes",
            ("a", "b"),
            tiny_tokenizer,
        )


def test_predict_refuses_what_it_cannot_answer(config, tmp_path):
    with pytest.raises(ValueError, match=r"stabviz\.json is missing"):
        predict(tmp_path, ["help"])
    finetune(config.replace(steps=1))
    with pytest.raises(ValueError, match="texts must not be empty; got text 2"):
        predict(config.run.out, ["help", "  "])
