"""Pretraining: the objective equals transformers' own, the head at the predicted pieces alone, a run that learns."""

import pytest
import torch
from transformers import BertForPreTraining, BertModel

from stabviz.finetune.pretraining import MaskedBert, masked_lm_objective, small_bert


def random_bert(kind=BertForPreTraining, vocab_size=101):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(small_bert(vocab_size, width=16, layers=2, heads=2, max_length=31, dropout=0.0, pad_id=0)).eval()


def random_batch(vocab_size=101, pairs=True):
    """Five rows of 7 to 23 pieces; labels at about a third of them, a next-sentence label for the first three rows."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, vocab_size, (5, 23), generator=generator)
    real = torch.arange(23) < torch.tensor([23, 7, 11, 17, 19])[:, None]
    chosen = (torch.rand(5, 23, generator=generator) < 0.3) & real
    follows = torch.tensor([0, 1, 1, -100, -100]) if pairs else torch.full((5,), -100)
    return {"input_ids": torch.where(real, ids, 0), "attention_mask": real.long(), "rows": torch.arange(5),
            "token_type_ids": (torch.arange(23) >= 5).long().expand(5, 23).contiguous(),
            "labels": torch.where(chosen, ids.flip(0), -100), "next_sentence_label": follows}


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
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)         # float32, sums in another order
    assert (measured["masked_lm_loss_nats"] + measured["next_sentence_loss_nats"]).item() == pytest.approx(loss.item())
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
    inside = {name.removeprefix("bert.") for name in random_bert(MaskedBert).state_dict() if name.startswith("bert.")}
    assert inside == set(random_bert(BertModel).state_dict())
