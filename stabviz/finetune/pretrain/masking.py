"""What a masked language model predicts: word pieces hidden by the 80/10/10 rule, and pairs of passages.

Everything random is keyed to (seed, epoch, row): a row is the same whatever was drawn before it, with any
number of loader workers, and after a resume.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from stabviz.finetune.data.encode import IGNORED
from stabviz.finetune.pretrain.corpus import Document
from stabviz.seeds import generator


def mask_pieces(
    input_ids_L: Tensor,
    generator: torch.Generator,
    *,
    special_ids: Sequence[int],
    mask_id: int,
    vocab_size: int,
    share: float = 0.15,
) -> tuple[Tensor, Tensor]:
    """Choose `share` of the pieces to be predicted; hide 80 % of them, replace 10 % by chance, leave 10 %.

    Special tokens are never chosen and never drawn as a replacement. At least one piece is chosen where there
    is one.

    Shapes: input_ids_L (L,) int64 -> masked_L (L,), labels_L (L,): the true piece where chosen, -100
            elsewhere
    Raises: ValueError if share is outside (0, 1]
    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1, Task #1; deviation: each piece is chosen on its
            own, so that the number varies
    """
    if not 0 < share <= 1:
        raise ValueError(f"mask_pieces: share must be in (0, 1]; got {share!r}")
    special = torch.tensor(sorted(set(special_ids)))
    draw_L, fate_L = torch.rand(2, len(input_ids_L), generator=generator, dtype=torch.float64)
    draw_L[torch.isin(input_ids_L, special)] = 2.0  # above any share
    # The smallest draw always counts: a row without a target would leave a mean over nothing, NaN.
    # Capped at 1, below the 2 of special tokens: where there are only those, none is chosen.
    chosen_L = draw_L < max(share, float(draw_L.min().clamp_max(1.0)) + 1e-12)
    ordinary = torch.ones(vocab_size, dtype=torch.bool)
    ordinary[special] = False
    pool = ordinary.nonzero().squeeze(-1)
    # Drawn for every piece, used for few: the number of draws must not hang on what was chosen.
    random_L = pool[torch.randint(len(pool), input_ids_L.shape, generator=generator)]
    masked_L = torch.where(chosen_L & (fate_L < 0.8), mask_id, input_ids_L)
    masked_L = torch.where(chosen_L & (fate_L >= 0.9), random_L, masked_L)
    return masked_L, torch.where(chosen_L, input_ids_L, IGNORED)


def cut_passages(
    documents: Sequence[Sequence[Sequence[int]]], *, room: int
) -> list[tuple[int, list[list[int]]]]:
    """Cut documents into passages of whole sentences, at most `room` pieces; a longer one loses its end.

    Shapes: documents[d][s] the pieces of sentence s -> (document, [pieces of each sentence]) for each passage
    """
    passages: list[tuple[int, list[list[int]]]] = []
    for number, sentences in enumerate(documents):
        passage: list[list[int]] = []
        for sentence in sentences:
            pieces = list(sentence[:room])
            if passage and sum(map(len, passage)) + len(pieces) > room:
                passages.append((number, passage))
                passage = []
            if pieces:
                passage.append(pieces)
        if passage:
            passages.append((number, passage))
    return passages


class PretrainingRows(Dataset):
    """Rows for masked language model and next-sentence prediction: item (epoch, index), new in each epoch.

    A row is a passage of a document, cut in two between sentences: [CLS] A [SEP] B [SEP]. In half of the rows
    B is replaced by sentences of another document, and next_sentence_label is 1 instead of 0 (transformers'
    convention). A passage of one sentence stays alone, as texts do in fine-tuning; its next_sentence_label is
    -100.

    Lesson: 09-pretraining
    """

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_length: int,
        seed: int = 0,
        share: float = 0.15,
        random_next: float = 0.5,
    ):
        if max_length < 8:
            raise ValueError(f"PretrainingRows: max_length must be at least 8; got {max_length!r}")
        texts = [sentence for document in documents for sentence in document.sentences]
        encoded = iter(tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
        pieces = [[next(encoded).ids for _ in document.sentences] for document in documents]
        self.passages = cut_passages(pieces, room=max_length - 3)
        if not self.passages:
            raise ValueError("PretrainingRows: documents must hold at least one sentence; got none")
        self.tokenizer, self.max_length, self.seed = tokenizer, max_length, seed
        self.share, self.random_next = share, random_next
        self.special_ids, self.vocab_size = tokenizer.all_special_ids, len(tokenizer)
        self.lengths = np.array([sum(map(len, p)) + 2 + (len(p) > 1) for _, p in self.passages])

    def __len__(self) -> int:
        return len(self.passages)

    def pair(self, epoch: int, index: int) -> tuple[list[int], list[int], int]:
        """Return the pieces of A and B, and the label: 0 B follows A, 1 it does not, -100 no B."""
        return self._pair(index, generator(self.seed, "row", epoch, index))

    def _pair(self, index: int, generator: torch.Generator) -> tuple[list[int], list[int], int]:
        document, sentences = self.passages[index]
        if len(sentences) == 1:
            return sentences[0], [], IGNORED
        # From one stream, in this order: cut, replaced or not, by what; the masks go on from there.
        cut = 1 + int(torch.randint(len(sentences) - 1, (), generator=generator))
        first = [piece for sentence in sentences[:cut] for piece in sentence]
        second = [piece for sentence in sentences[cut:] for piece in sentence]
        if torch.rand((), generator=generator) >= self.random_next:
            return first, second, 0
        other = self._another(document, generator)
        return first, other[: self.max_length - 3 - len(first)], 1

    def _another(self, document: int, generator: torch.Generator) -> list[int]:
        """Pieces of a passage of another document, from one of its sentences on."""
        for _ in range(100):
            number, sentences = self.passages[int(torch.randint(len(self), (), generator=generator))]
            if number != document:
                start = int(torch.randint(len(sentences), (), generator=generator))
                return [piece for sentence in sentences[start:] for piece in sentence]
        raise ValueError("PretrainingRows: documents must be at least two, for a random next one; got one")

    def __getitem__(self, item: tuple[int, int]) -> dict:
        epoch, index = item
        row_generator = generator(self.seed, "row", epoch, index)
        first, second, label = self._pair(index, row_generator)
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        ids = [cls, *first, sep, *second, *([sep] if second else [])]
        masked, labels = mask_pieces(
            torch.tensor(ids),
            row_generator,
            special_ids=self.special_ids,
            share=self.share,
            mask_id=self.tokenizer.mask_token_id,
            vocab_size=self.vocab_size,
        )
        types = [0] * (len(first) + 2) + [1] * (len(ids) - len(first) - 2)
        return {
            "input_ids": masked.tolist(),
            "token_type_ids": types,
            "labels": labels.tolist(),
            "next_sentence_label": label,
            "row": index,
        }
