"""Distillation of an encoder: words and texts of the student lie as those of its teacher do."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabviz.methods.objective import Objective, model_inputs


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


def distillation_objective(teacher: nn.Module) -> Objective:
    """Make the objective of a student of `teacher`: three errors of last hidden states.

    Words: the squared error over the variance of the teacher's words. Texts: 1 - cosine of the mean of the
    words. Relations: the squared error of the cosines of all pairs of texts in the (micro-)batch, over the
    variance of the teacher's. Words that either has cut off do not count.

    Shapes: the student's output (B, L, D) with D of the teacher; batch "words" (B, L) as in `word_means`,
            "teacher" (B, 3, M): the teacher's pieces, their words, their attention mask
    Units:  none; each error is near 1 for a student that knows nothing
    Source: hidden states: Sanh et al. 2019, arXiv:1910.01108; relations: Tung and Mori 2019,
            arXiv:1907.09682; deviation: by word, as teacher and student may cut words in different ways
    """
    teacher.requires_grad_(False).eval()

    def objective(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        ids_BM, words_BM, mask_BM = batch["teacher"].unbind(dim=1)
        with torch.no_grad():
            theirs_BMD = teacher(input_ids=ids_BM, attention_mask=mask_BM).last_hidden_state.float()
        ours_BLD = model(**model_inputs(batch)).float()
        words = int(torch.minimum(batch["words"].max(), words_BM.max()))
        ours_BWD, here_BW = word_means(ours_BLD, batch["words"], words)
        theirs_BWD, there_BW = word_means(theirs_BMD, words_BM, words)
        both_BW = here_BW & there_BW
        ours_ND, theirs_ND = ours_BWD[both_BW], theirs_BWD[both_BW]
        word_error = (ours_ND - theirs_ND).square().mean() / theirs_ND.var(dim=0).mean()
        ours_BD, theirs_BD = (
            F.normalize((x * both_BW[..., None]).sum(dim=1), dim=-1) for x in (ours_BWD, theirs_BWD)
        )
        cosine = (ours_BD * theirs_BD).sum(dim=-1).mean()
        apart = ~torch.eye(len(ours_BD), dtype=torch.bool, device=ours_BD.device)
        ours_P, theirs_P = (ours_BD @ ours_BD.mT)[apart], (theirs_BD @ theirs_BD.mT)[apart]
        # of one text there are no relations, and of two no variance
        scale = theirs_P.var(correction=0) if len(ours_BD) > 2 else theirs_P.new_ones(())
        relation_error = (ours_P - theirs_P).square().sum() / max(len(ours_P), 1) / scale.clamp_min(1e-4)
        measured = {"word_error": word_error, "text_cosine": cosine, "relation_error": relation_error}
        return word_error + (1 - cosine) + relation_error, {k: v.detach() for k, v in measured.items()}

    return objective
