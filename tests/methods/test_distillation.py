"""Distillation: the errors of a student that is its teacher, of one that is not, and what does not count."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stabviz.methods.distillation import distillation_objective, word_means

B, L, M, D = 5, 7, 11, 13
"""Rows, the student's pieces, the teacher's, width."""


class Says(nn.Module):
    """A model that says these hidden states, whatever it is asked, and the same logits of each piece."""

    def __init__(self, hidden_BLD, logits_V=None):
        super().__init__()
        self.hidden_BLD, self.logits_V = nn.Parameter(hidden_BLD), logits_V

    def forward(self, asked_BL=None, **_):
        logits = None if asked_BL is None else self.logits_V.expand(int(asked_BL.sum()), -1)
        return SimpleNamespace(last_hidden_state=self.hidden_BLD, logits=logits)


def batch_of(words_BL, words_BM):
    teacher = torch.stack([torch.ones_like(words_BM), words_BM, torch.ones_like(words_BM)], dim=1)
    labels = torch.arange(len(words_BL))
    return {"input_ids": torch.ones_like(words_BL), "words": words_BL, "teacher": teacher, "labels": labels}


@pytest.fixture
def states():
    """Words 1 to 5 in one piece each for the student, 1 to 4 in two each for the teacher."""
    draw = torch.Generator().manual_seed(0)
    words_BL = torch.tensor([0, 1, 2, 3, 4, 5, 0]).expand(B, L)
    words_BM = torch.tensor([0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 0]).expand(B, M)
    return torch.randn(B, M, D, generator=draw), words_BL, words_BM


def test_a_student_that_says_the_same_of_each_word_has_no_error_however_words_are_cut(states):
    theirs_BMD, words_BL, words_BM = states
    means_BWD, _ = word_means(theirs_BMD, words_BM, 4)
    ours_BLD = torch.full((B, L, D), 100.0)  # special tokens and the word that the teacher has cut off
    ours_BLD[:, 1:5] = means_BWD
    ours_BLD[:, 0] = means_BWD.mean(dim=1)  # [CLS] says what the text is about
    loss, measured = distillation_objective(Says(theirs_BMD))(Says(ours_BLD), batch_of(words_BL, words_BM))
    assert loss.item() == pytest.approx(0.0, abs=1e-5)  # float32
    assert measured["text_cosine"].item() == pytest.approx(1.0, abs=1e-6)


def test_what_is_always_the_teachers_mean_has_a_word_error_of_one(states):
    theirs_BMD, words_BL, words_BM = states
    means_BWD, _ = word_means(theirs_BMD, words_BM, 4)
    flat_ND = means_BWD.reshape(-1, D)
    ours_BLD = flat_ND.mean(dim=0).expand(B, L, D).clone()
    _, measured = distillation_objective(Says(theirs_BMD))(Says(ours_BLD), batch_of(words_BL, words_BM))
    n = len(flat_ND)
    assert measured["word_error"].item() == pytest.approx(
        (n - 1) / n, rel=1e-5
    )  # torch's variance over n - 1
    assert not any(value.requires_grad for value in measured.values())


def test_the_gradient_goes_to_the_student_alone_and_not_to_what_does_not_count(states):
    theirs_BMD, words_BL, words_BM = states
    teacher = Says(theirs_BMD)
    student = Says(torch.randn(B, L, D, generator=torch.Generator().manual_seed(1)))
    distillation_objective(teacher)(student, batch_of(words_BL, words_BM))[0].backward()
    assert teacher.hidden_BLD.grad is None
    moved_L = student.hidden_BLD.grad.abs().sum(dim=(0, 2)) > 0
    assert moved_L.tolist() == [True, True, True, True, True, False, False]  # [CLS] and the words of both


def test_one_text_alone_has_no_relations(states):
    theirs_BMD, words_BL, words_BM = (x[:1] for x in states)
    loss, measured = distillation_objective(Says(theirs_BMD))(
        Says(torch.randn(1, L, D)), batch_of(words_BL, words_BM)
    )
    assert measured["relation_error"] == 0
    assert loss.isfinite()


def test_masked_words_add_their_nats_by_weight_and_only_where_they_are_asked(states):
    theirs_BMD, words_BL, words_BM = states
    logits_V = torch.tensor([2.0, 0.0, -1.0])
    batch = batch_of(words_BL, words_BM) | {"labels": torch.full((B, L), -100)}
    batch["labels"][:, 2], batch["labels"][0, 3] = 0, 1
    student = Says(torch.randn(B, L, D, generator=torch.Generator().manual_seed(1)), logits_V)
    alone, _ = distillation_objective(Says(theirs_BMD))(student, batch)
    beside, measured = distillation_objective(Says(theirs_BMD), masked_weight=0.25)(student, batch)
    nats = -(5 * logits_V.log_softmax(dim=0)[0] + logits_V.log_softmax(dim=0)[1]) / 6
    assert measured["masked_lm_loss_nats"].item() == pytest.approx(nats.item(), rel=1e-6)
    assert (beside - alone).item() == pytest.approx(0.25 * nats.item(), rel=1e-5)


def test_the_text_is_read_off_the_first_state_alone(states):
    theirs_BMD, words_BL, words_BM = states
    means_BWD, _ = word_means(theirs_BMD, words_BM, 4)
    ours_BLD = torch.randn(B, L, D, generator=torch.Generator().manual_seed(1))
    ours_BLD[:, 0] = 7.0 * means_BWD.sum(dim=1)  # a cosine knows no length
    _, measured = distillation_objective(Says(theirs_BMD))(Says(ours_BLD), batch_of(words_BL, words_BM))
    assert measured["text_cosine"].item() == pytest.approx(1.0, abs=1e-6)
    assert measured["relation_error"].item() == pytest.approx(0.0, abs=1e-9)
    _, otherwise = distillation_objective(Says(theirs_BMD))(
        Says(ours_BLD.roll(1, dims=1)), batch_of(words_BL, words_BM)
    )
    assert otherwise["text_cosine"].item() < 0.9
