"""Distillation of an encoder: words and texts of the student lie as those of its teacher do."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabviz.methods.objective import Objective, model_inputs
from stabviz.ops import cross_entropy

IGNORED = -100  # the label of a piece that is not asked for


def word_means(hidden_BLD: Tensor, words_BL: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Average the hidden states of each word's pieces, so that two ways to cut a word can be compared.

    Shapes: hidden_BLD (B, L, D), words_BL (B, L): the word of a piece, counted from 1, 0 for none -> means
            (B, words, D), present (B, words) bool

    >>> hidden, of_word = torch.tensor([[[9.0], [1.0], [3.0], [5.0]]]), torch.tensor([[0, 1, 1, 2]])
    >>> [x.squeeze().tolist() for x in word_means(hidden, of_word, 3)]
    [[2.0, 5.0, 0.0], [True, True, False]]
    """
    inside_BL = torch.where(words_BL <= words, words_BL, 0)
    piece_of_BLW = F.one_hot(inside_BL, words + 1)[..., 1:].to(hidden_BLD)
    pieces_BW = piece_of_BLW.sum(dim=1)
    return piece_of_BLW.mT @ hidden_BLD / pieces_BW.clamp_min(1)[..., None], pieces_BW > 0


def distillation_objective(teacher: nn.Module, *, masked_weight: float = 0.0) -> Objective:
    """Make the objective of a student of `teacher`: three errors of last hidden states, and masked words.

    Words: the squared error over the variance of the teacher's words. Texts: 1 - cosine of the student's
    first state, that of [CLS], and the mean of the teacher's words. Relations: the squared error of the
    cosines of all pairs of texts in the (micro-)batch. Words that either
    has cut off do not count. The teacher reads the whole text, also where the student's pieces are hidden.

    Shapes: the student's output: last_hidden_state (B, L, D) with D of the teacher, logits (N, V) at the N
            pieces asked for; batch "words" (B, L) as in `word_means`, "teacher" (B, 3, M): the teacher's
            pieces, their words, their attention mask; "labels" (B, L), -100 = not asked
    Units:  none, each error is at most about 1 for a student that knows nothing; masked words in nats
    Source: hidden states: Sanh et al. 2019, arXiv:1910.01108; relations: Tung and Mori 2019,
            arXiv:1907.09682; deviations: by word, as teacher and student may cut words in different ways, and
            the text from [CLS], which fine-tuning for classes reads
    Lesson: 09-pretraining
    """
    teacher.requires_grad_(False).eval()

    def objective(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        ids_BM, words_BM, mask_BM = batch["teacher"].unbind(dim=1)
        with torch.no_grad():
            theirs_BMD = teacher(input_ids=ids_BM, attention_mask=mask_BM).last_hidden_state.float()
        asked_BL = batch["labels"] != IGNORED if masked_weight else None
        output = model(**model_inputs(batch), asked_BL=asked_BL)
        ours_BLD = output.last_hidden_state.float()
        words = int(torch.minimum(batch["words"].max(), words_BM.max()))
        ours_BWD, here_BW = word_means(ours_BLD, batch["words"], words)
        theirs_BWD, there_BW = word_means(theirs_BMD, words_BM, words)
        both_BW = here_BW & there_BW
        ours_ND, theirs_ND = ours_BWD[both_BW], theirs_BWD[both_BW]
        word_error = (ours_ND - theirs_ND).square().mean() / theirs_ND.var(dim=0).mean()
        text_cosine, relation_error = text_errors(
            ours_BLD[:, 0], (theirs_BWD * both_BW[..., None]).sum(dim=1)
        )
        measured = {"word_error": word_error, "text_cosine": text_cosine, "relation_error": relation_error}
        loss = word_error + (1 - text_cosine) + relation_error
        if masked_weight:
            measured["masked_lm_loss_nats"], _ = cross_entropy(
                output.logits.float(), batch["labels"][asked_BL]
            )
            loss = loss + masked_weight * measured["masked_lm_loss_nats"]
        return loss, {name: value.detach() for name, value in measured.items()}

    return objective


def text_errors(ours_BD: Tensor, theirs_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cosine of texts with the teacher's, and the error of the cosines of all pairs of texts.

    Shapes: ours_BD, theirs_BD (B, D) -> (), (); of one text there are no relations: 0
    """
    ours_BD, theirs_BD = F.normalize(ours_BD, dim=-1), F.normalize(theirs_BD, dim=-1)
    cosine = (ours_BD * theirs_BD).sum(dim=-1).mean()
    apart = ~torch.eye(len(ours_BD), dtype=torch.bool, device=ours_BD.device)
    ours_P, theirs_P = (ours_BD @ ours_BD.mT)[apart], (theirs_BD @ theirs_BD.mT)[apart]
    # of one text there are no relations
    return cosine, (ours_P - theirs_P).square().sum() / max(len(ours_P), 1)
