"""The 80/10/10 rule and the pairs of passages, each a function of (seed, epoch, row) alone."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stabviz.finetune.pretrain.corpus import Document
from stabviz.finetune.pretrain.masking import PretrainingRows, cut_passages, mask_pieces
from stabviz.seeds import generator

SPECIAL_IDS, MASK, VOCAB = [0, 1, 2, 3, 4], 4, 1009
WORDS = [
    "order",
    "invoice",
    "late",
    "router",
    "please",
    "cancel",
    "help",
    "print",
    "account",
    "lock",
    "refund",
    "day",
]


def masked(n_rows, length=127, share=0.15):
    """Mask rows of ordinary pieces with [CLS] and [SEP] at the ends; return what was, what is, and the
    labels."""
    before, after, labels = [], [], []
    for row in range(n_rows):
        ids = torch.randint(5, VOCAB, (length,), generator=torch.Generator().manual_seed(row))
        ids[0], ids[-1] = 2, 3
        now, label = mask_pieces(
            ids,
            generator(0, "row", 0, row),
            special_ids=SPECIAL_IDS,
            mask_id=MASK,
            vocab_size=VOCAB,
            share=share,
        )
        before.append(ids), after.append(now), labels.append(label)
    return torch.stack(before), torch.stack(after), torch.stack(labels)


@pytest.fixture(scope="module")
def many():
    return masked(500)


@pytest.fixture(scope="module")
def documents():
    """Twenty documents, each of seven sentences that name their own document and place."""
    return [
        Document(
            name=f"d/{d}",
            sentences=tuple(
                f"{WORDS[d % 12]} {WORDS[(d + s) % 12]} {'the ' * (d // 12)}{'my ' * s}{WORDS[s]}"
                for s in range(7)
            ),
        )
        for d in range(20)
    ]


@pytest.fixture(scope="module")
def rows(documents, tiny_tokenizer):
    return PretrainingRows(documents, tiny_tokenizer, max_length=61, seed=3)


def test_mask_pieces_chooses_15_percent(many):
    _, _, labels = many  # 62,500 ordinary pieces: a deviation of 0.0014 is one sigma
    assert (labels[:, 1:-1] != -100).double().mean().item() == pytest.approx(0.15, abs=0.006)


def test_mask_pieces_hides_80_replaces_10_leaves_10(many):
    before, after, labels = many
    chosen = labels != -100  # about 9,400 of them: sigma is 0.004 for 80 %, 0.003 for 10 %
    hidden = after[chosen] == MASK
    same = after[chosen] == before[chosen]
    assert hidden.double().mean().item() == pytest.approx(0.8, abs=0.017)
    assert same.double().mean().item() == pytest.approx(0.1, abs=0.013)
    assert (~hidden & ~same).double().mean().item() == pytest.approx(0.1, abs=0.013)


def test_mask_pieces_touches_no_special_token_and_draws_none(many):
    before, after, labels = many
    assert (labels[:, [0, -1]] == -100).all()
    assert torch.equal(after[:, [0, -1]], before[:, [0, -1]])
    drawn = after[(after != before) & (after != MASK)]
    assert drawn.min().item() >= 5
    assert len(drawn.unique()) > 500  # of about 940 draws from 1,004 pieces


def test_mask_pieces_labels_are_the_true_pieces_where_chosen_and_minus_100_elsewhere(many):
    before, after, labels = many
    assert torch.equal(labels[labels != -100], before[labels != -100])
    assert torch.equal(after[labels == -100], before[labels == -100])


def test_mask_pieces_chooses_one_of_a_short_text_and_none_of_an_empty_one():
    for row in range(50):
        _, labels = mask_pieces(
            torch.tensor([2, 7, 3]),
            generator(0, "row", 0, row),
            special_ids=SPECIAL_IDS,
            mask_id=MASK,
            vocab_size=VOCAB,
        )
        assert labels.tolist() == [-100, 7, -100]
    ids = torch.tensor([2, 3])
    now, labels = mask_pieces(
        ids, generator(0, "row", 0, 0), special_ids=SPECIAL_IDS, mask_id=MASK, vocab_size=VOCAB
    )
    assert torch.equal(now, ids)
    assert (labels == -100).all()


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_mask_pieces_refuses_a_share_outside_its_range(share):
    with pytest.raises(ValueError, match="share must be in"):
        masked(1, share=share)


def test_cut_passages_keeps_sentences_whole_and_within_the_room():
    documents = [[[1] * 5, [2] * 5, [3] * 7], [[4] * 13, []]]
    assert cut_passages(documents, room=11) == [(0, [[1] * 5, [2] * 5]), (0, [[3] * 7]), (1, [[4] * 11])]


def test_pair_of_a_true_next_is_the_passage_itself_cut_between_sentences(rows):
    seen = 0
    for index, (_, sentences) in enumerate(rows.passages):
        first, second, label = rows.pair(0, index)
        if label == 0:
            seen += 1
            starts = [sum(sentences[:cut], []) for cut in range(1, len(sentences))]
            assert first in starts
            assert first + second == sum(sentences, [])
    assert seen > 5


def test_pair_of_a_random_next_comes_from_another_document(rows):
    of_document = {}
    for number, sentences in rows.passages:
        of_document.setdefault(number, []).extend(tuple(sentence) for sentence in sentences)
    seen = 0
    for epoch in range(5):
        for index, (number, _) in enumerate(rows.passages):
            _, second, label = rows.pair(epoch, index)
            if label == 1:
                seen += 1
                holders = [
                    d
                    for d, own in of_document.items()
                    if any(tuple(second[: len(sentence)]) == sentence[: len(second)] for sentence in own)
                ]
                assert [d for d in holders if d != number]
                assert number not in holders or len(holders) > 1
    assert seen > 30


def test_pair_labels_are_half_and_half(rows):
    labels = [rows.pair(epoch, index)[2] for epoch in range(60) for index in range(len(rows))]
    asked = np.array([label for label in labels if label != -100])
    assert len(asked) > 1000  # 1,200 of them: sigma 0.014
    assert asked.mean() == pytest.approx(0.5, abs=0.06)


def test_a_passage_of_one_sentence_stays_alone(tiny_tokenizer):
    alone = [Document(name=f"d/{i}", sentences=(f"please cancel my {WORDS[i]}",)) for i in range(3)]
    row = PretrainingRows(alone, tiny_tokenizer, max_length=31)[0, 1]
    assert row["next_sentence_label"] == -100
    assert set(row["token_type_ids"]) == {0}


def test_a_row_fits_marks_its_two_parts_and_is_the_pair_masked(rows, tiny_tokenizer):
    cls, sep = tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id
    for index in range(len(rows)):
        first, second, label = rows.pair(7, index)
        row = rows[7, index]
        labels = torch.tensor(row["labels"])
        true = torch.where(labels == -100, torch.tensor(row["input_ids"]), labels).tolist()
        assert true == [cls, *first, sep, *second, *([sep] if second else [])]
        assert len(true) <= 61
        assert len(true) == len(row["labels"]) == len(row["token_type_ids"])
        assert sum(row["token_type_ids"]) == (len(second) + 1 if second else 0)
        assert (row["row"], row["next_sentence_label"]) == (index, label)


def test_rows_are_new_in_each_epoch_and_the_same_for_the_same_key(rows, documents, tiny_tokenizer):
    again = PretrainingRows(documents, tiny_tokenizer, max_length=61, seed=3)
    other = PretrainingRows(documents, tiny_tokenizer, max_length=61, seed=4)
    assert [rows[2, i] for i in range(len(rows))] == [again[2, i] for i in reversed(range(len(rows)))][::-1]
    assert sum(rows[2, i] == rows[3, i] for i in range(len(rows))) < len(rows) / 4
    assert sum(rows[2, i] == other[2, i] for i in range(len(rows))) < len(rows) / 4


def test_rows_are_the_same_with_two_loader_workers(rows):
    keys = [(1, index) for index in range(len(rows))]
    loaded = DataLoader(rows, sampler=keys, batch_size=None, num_workers=2)
    assert list(loaded) == [rows[key] for key in keys]


def test_rows_refuse_what_cannot_work(documents, tiny_tokenizer):
    with pytest.raises(ValueError, match="max_length must be at least 8"):
        PretrainingRows(documents, tiny_tokenizer, max_length=7)
    with pytest.raises(ValueError, match="at least one sentence"):
        PretrainingRows([], tiny_tokenizer, max_length=31)
    lonely = PretrainingRows(documents[:1], tiny_tokenizer, max_length=125)
    with pytest.raises(ValueError, match="at least two"):
        [lonely[epoch, 0] for epoch in range(40)]
