"""Distillation: the errors of a student that is its teacher, of one that is not, and what does not count."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stabviz.methods.distillation import distillation_objective, word_means

B, L, M, D = 5, 7, 11, 13
"""Rows, the student's pieces, the teacher's, width."""


class Says(nn.Module):
    """A model that says these hidden states, whatever it is asked."""

    def __init__(self, hidden_BLD, bare=False):
        super().__init__()
        self.hidden_BLD, self.bare = nn.Parameter(hidden_BLD), bare

    def forward(self, **_):
        return self.hidden_BLD if self.bare else SimpleNamespace(last_hidden_state=self.hidden_BLD)


def batch_of(words_BL, words_BM):
    teacher = torch.stack([torch.ones_like(words_BM), words_BM, torch.ones_like(words_BM)], dim=1)
    return {"input_ids": torch.ones_like(words_BL), "words": words_BL, "teacher": teacher}


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
    loss, measured = distillation_objective(Says(theirs_BMD))(
        Says(ours_BLD, bare=True), batch_of(words_BL, words_BM)
    )
    assert loss.item() == pytest.approx(0.0, abs=1e-5)  # float32
    assert measured["text_cosine"].item() == pytest.approx(1.0, abs=1e-6)


def test_what_is_always_the_teachers_mean_has_a_word_error_of_one(states):
    theirs_BMD, words_BL, words_BM = states
    means_BWD, _ = word_means(theirs_BMD, words_BM, 4)
    flat_ND = means_BWD.reshape(-1, D)
    ours_BLD = flat_ND.mean(dim=0).expand(B, L, D).clone()
    _, measured = distillation_objective(Says(theirs_BMD))(
        Says(ours_BLD, bare=True), batch_of(words_BL, words_BM)
    )
    n = len(flat_ND)
    assert measured["word_error"].item() == pytest.approx(
        (n - 1) / n, rel=1e-5
    )  # torch's variance over n - 1
    assert not any(value.requires_grad for value in measured.values())


def test_the_gradient_goes_to_the_student_alone_and_not_to_what_does_not_count(states):
    theirs_BMD, words_BL, words_BM = states
    teacher = Says(theirs_BMD)
    student = Says(torch.randn(B, L, D, generator=torch.Generator().manual_seed(1)), bare=True)
    distillation_objective(teacher)(student, batch_of(words_BL, words_BM))[0].backward()
    assert teacher.hidden_BLD.grad is None
    moved_L = student.hidden_BLD.grad.abs().sum(dim=(0, 2)) > 0
    assert moved_L.tolist() == [False, True, True, True, True, False, False]


def test_one_text_alone_has_no_relations(states):
    theirs_BMD, words_BL, words_BM = (x[:1] for x in states)
    loss, measured = distillation_objective(Says(theirs_BMD))(
        Says(torch.randn(1, L, D), bare=True), batch_of(words_BL, words_BM)
    )
    assert measured["relation_error"] == 0
    assert loss.isfinite()
