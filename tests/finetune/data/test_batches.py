"""Word pieces, the plan of an epoch, padding, micro-batches and packing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stabviz.finetune.data.batches import collate, count_targets, pack, plan_epoch, split_batch
from stabviz.finetune.data.encode import TokenRows, first_piece_labels

TEXTS = [
    "my router is slow",
    "where is the invoice",
    "cancel",
    "the order was late and it is not good to lock my account",
]


@pytest.fixture
def tag_rows(tiny_tokenizer):
    rows = {"words": [["Router", "printing", "Weston", "!"], ["my", "day"]], "tags": [[0, 0, 3, 0], [0, 4]]}
    return TokenRows(Sliced(rows), tiny_tokenizer, kind="tags", max_length=32)


class Sliced:
    """Columns that are sliced as a `datasets.Dataset` is."""

    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, rows):
        return {name: values[rows] for name, values in self.columns.items()}


def class_rows(tokenizer, **options):
    columns = {"text": TEXTS, "label": [2, 0, 1, 2]}
    return TokenRows(Sliced(columns), tokenizer, kind="classes", **{"max_length": 64, **options})


def test_token_rows_tag_stands_on_the_first_piece_alone(tag_rows, tiny_tokenizer):
    row = tag_rows[(0, 0)]
    assert tiny_tokenizer.convert_ids_to_tokens(row["input_ids"]) == [
        "[CLS]",
        "router",
        "print",
        "##ing",
        "w",
        "##e",
        "##s",
        "##ton",
        "!",
        "[SEP]",
    ]
    assert row["labels"] == [-100, 0, 0, -100, 3, -100, -100, -100, 0, -100]
    assert tag_rows[(5, 1)]["labels"] == [-100, 0, 4, -100]
    assert tag_rows.lengths.tolist() == [10, 4]
    assert (tag_rows.truncated, tag_rows.lost_tags) == (0, 0)


def test_token_rows_reads_a_dataset_as_it_reads_columns(tag_rows, tiny_tokenizer):
    from datasets import Dataset

    rows = Dataset.from_dict(
        {
            "row": [7, 9],
            "words": [["Router", "printing", "Weston", "!"], ["my", "day"]],
            "tags": [[0, 0, 3, 0], [0, 4]],
        }
    )
    again = TokenRows(rows, tiny_tokenizer, kind="tags", max_length=32)
    assert [again[(0, i)] for i in range(2)] == [tag_rows[(0, i)] for i in range(2)]


def test_token_rows_in_several_chunks_equal_one(tiny_tokenizer, monkeypatch):
    whole = class_rows(tiny_tokenizer)
    monkeypatch.setattr("stabviz.finetune.data.encode.CHUNK", 3)
    assert [class_rows(tiny_tokenizer)[(0, i)] for i in range(4)] == [whole[(0, i)] for i in range(4)]


def test_first_piece_labels_neighbouring_words_of_one_tag_both_count():
    assert first_piece_labels([None, 0, 0, 1, 2, 2, None], [5, 5, 6]) == [-100, 5, -100, 5, 6, -100, -100]


def test_token_rows_counts_what_truncation_takes(tiny_tokenizer):
    columns = {"words": [["weston", "my", "day"], ["my"]], "tags": [[1, 0, 2], [0]]}
    rows = TokenRows(
        Sliced(columns), tiny_tokenizer, kind="tags", max_length=7
    )  # 5 pieces between the special ones
    assert rows[(0, 0)]["labels"] == [-100, 1, -100, -100, -100, 0, -100]
    assert rows.truncated == 1
    assert rows.lost_tags == 1
    assert rows.lengths.max() == 7
    classes = class_rows(tiny_tokenizer, max_length=6)
    assert classes.truncated == 1
    assert classes[(0, 3)]["labels"] == 2
    assert classes[(0, 3)]["input_ids"][-1] == tiny_tokenizer.sep_token_id


def test_token_rows_a_word_without_pieces_takes_no_label(tiny_tokenizer):
    rows = TokenRows(
        Sliced({"words": [["my", "\u200b", "day"]], "tags": [[1, 2, 3]]}),
        tiny_tokenizer,
        kind="tags",
        max_length=9,
    )
    assert rows[(0, 0)]["labels"] == [-100, 1, 3, -100]
    assert rows.lost_tags == 1


def test_token_rows_needs_a_fast_tokenizer():
    with pytest.raises(ValueError, match="tokenizer must be a fast one.*got object"):
        TokenRows(Sliced({"text": ["a"], "label": [0]}), object(), kind="classes", max_length=8)


def test_word_dropout_depends_on_seed_epoch_and_row_alone(tiny_tokenizer):
    rows = class_rows(tiny_tokenizer, word_dropout=0.5, seed=3)
    first = [rows[(1, i)]["input_ids"] for i in (3, 0, 1)]
    again = class_rows(tiny_tokenizer, word_dropout=0.5, seed=3)
    assert [again[(1, i)]["input_ids"] for i in (1, 0, 3)][::-1] == first
    assert rows[(2, 3)]["input_ids"] != first[0]
    assert class_rows(tiny_tokenizer, word_dropout=0.5, seed=4)[(1, 3)]["input_ids"] != first[0]


def test_word_dropout_masks_its_share_and_no_special_token(tiny_tokenizer):
    rows, plain = class_rows(tiny_tokenizer, word_dropout=0.25), class_rows(tiny_tokenizer)
    clean = np.array(plain[(0, 3)]["input_ids"])
    drawn = np.array([rows[(epoch, 3)]["input_ids"] for epoch in range(400)])
    masked = drawn == tiny_tokenizer.mask_token_id
    assert (drawn[~masked] == np.broadcast_to(clean, drawn.shape)[~masked]).all()
    assert not masked[:, [0, -1]].any()
    assert masked[:, 1:-1].mean() == pytest.approx(0.25, abs=0.025)  # 5 sigma of 400 * 12 draws is 0.031


def test_transform_gets_the_generator_of_its_row(tiny_tokenizer):
    def transform(row, generator):
        return row | {"labels": int(torch.randint(10**6, (), generator=generator))}

    rows, again = (class_rows(tiny_tokenizer, transform=transform, seed=1) for _ in range(2))
    drawn = {(epoch, i): rows[(epoch, i)]["labels"] for epoch in range(3) for i in range(4)}
    assert len(set(drawn.values())) == 12
    assert again[(2, 1)]["labels"] == drawn[(2, 1)]


def test_loader_workers_change_no_row(tiny_tokenizer):
    from functools import partial

    rows = class_rows(tiny_tokenizer, word_dropout=0.3)
    plan = [
        [(epoch, i) for i in part]
        for epoch in (0, 1)
        for part in plan_epoch(rows.lengths, batch=2, seed=0, epoch=epoch, bucket=True)
    ]
    batches = [
        list(
            torch.utils.data.DataLoader(
                rows, batch_sampler=plan, collate_fn=partial(collate, pad_id=0), num_workers=workers
            )
        )
        for workers in (0, 2)
    ]
    assert len(batches[0]) == 4
    for one, two in zip(*batches, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


LENGTHS = st.lists(st.integers(1, 60), max_size=300)


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    batch=st.integers(1, 17),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    bucket=st.booleans(),
)
def test_plan_epoch_takes_each_row_at_most_once(lengths, batch, seed, epoch, bucket):
    plan = plan_epoch(lengths, batch=batch, seed=seed, epoch=epoch, bucket=bucket)
    rows = [i for part in plan for i in part]
    assert len(rows) == len(set(rows))
    assert set(rows) <= set(range(len(lengths)))
    if len(lengths) >= batch:
        assert {len(part) for part in plan} == {batch}
        assert len(plan) == len(lengths) // batch
    else:
        assert len(rows) == len(lengths)
    assert plan == plan_epoch(
        np.array(lengths, dtype=np.int64), batch=batch, seed=seed, epoch=epoch, bucket=bucket
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(4, 32))
def test_plan_epoch_bucketing_pads_less(seed, batch):
    lengths = np.random.default_rng(seed).integers(5, 60, size=40 * batch)

    def padded(bucket):
        plan = plan_epoch(lengths, batch=batch, seed=seed, epoch=0, bucket=bucket)
        return 1 - lengths.sum() / sum(len(part) * lengths[part].max() for part in plan)

    assert padded(True) < 0.1
    assert padded(True) < 0.4 * padded(False)


def test_plan_epoch_another_epoch_is_another_order_and_drops_other_rows():
    plans = [plan_epoch(list(range(1, 24)), batch=5, seed=0, epoch=epoch, bucket=True) for epoch in range(40)]
    assert len({str(plan) for plan in plans}) == 40
    left_out = [set(range(23)) - {i for part in plan for i in part} for plan in plans]
    assert {len(rows) for rows in left_out} == {3}
    assert set().union(*left_out) == set(range(23))  # long rows are dropped no more than short ones


def test_collate_pads_and_masks_by_hand():
    rows = [
        {"input_ids": [2, 5, 3], "labels": [-100, 1, -100], "row": 8, "next_sentence_label": 1},
        {
            "input_ids": [2, 6, 7, 8, 3],
            "labels": [-100, 0, -100, 2, -100],
            "row": 4,
            "next_sentence_label": 0,
        },
    ]
    batch = collate(rows, pad_id=9)
    assert batch["input_ids"].tolist() == [[2, 5, 3, 9, 9], [2, 6, 7, 8, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 1, -100, -100, -100], [-100, 0, -100, 2, -100]]
    assert batch["rows"].tolist() == [8, 4]
    assert batch["next_sentence_label"].tolist() == [1, 0]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert count_targets(batch) == 3
    assert collate(rows, pad_id=9, fixed_length=7)["input_ids"].shape == (2, 7)
    with pytest.raises(ValueError, match="fixed_length must be at least 5, the longest row; got 4"):
        collate(rows, pad_id=9, fixed_length=4)


def test_split_batch_trims_what_no_row_needs():
    rows = [{"input_ids": [1] * n, "labels": n, "token_type_ids": [0] * n, "row": n} for n in (3, 2, 7, 5, 4)]
    batch = collate(rows, pad_id=0, fixed_length=11)
    pieces = split_batch(batch, 2)
    assert [piece["input_ids"].shape for piece in pieces] == [(2, 3), (2, 7), (1, 4)]
    assert torch.cat([piece["labels"] for piece in pieces]).tolist() == [3, 2, 7, 5, 4]
    assert pieces[1]["token_type_ids"].shape == (2, 7)
    assert torch.equal(pieces[1]["attention_mask"], batch["attention_mask"][2:4, :7])
    assert [piece["input_ids"].shape[1] for piece in split_batch(batch, 2, trim=False)] == [11, 11, 11]
    assert [piece["input_ids"].shape for piece in split_batch(batch, None)] == [(5, 7)]


def test_split_batch_of_as_many_rows_as_columns_cuts_no_labels():
    rows = [{"input_ids": [1, 1], "labels": i, "row": i} for i in range(5)]
    assert split_batch(collate(rows, pad_id=0, fixed_length=5), 5)[0]["labels"].tolist() == [0, 1, 2, 3, 4]


def test_count_targets_of_a_batch_without_any_is_zero():
    rows = [{"input_ids": [2, 3], "labels": [-100, -100], "row": i} for i in range(3)]
    batch = collate(rows, pad_id=0)
    assert count_targets(batch) == 0
    assert sum(count_targets(piece) for piece in split_batch(batch, 2)) == 0


@pytest.fixture(scope="module")
def tagger(tiny_bert_folder):
    from transformers import BertForTokenClassification

    with torch.random.fork_rng():
        torch.manual_seed(5)
        return BertForTokenClassification.from_pretrained(tiny_bert_folder, num_labels=7).eval()


def logits_alone(model, row):
    with torch.no_grad():
        return model(input_ids=torch.tensor([row["input_ids"]])).logits[0]


def test_padding_is_masked_logits_equal_those_of_the_row_alone(tiny_tokenizer, tagger):
    rows = [class_rows(tiny_tokenizer)[(0, i)] for i in range(4)]
    batch = collate(rows, pad_id=tiny_tokenizer.pad_token_id, fixed_length=37)
    with torch.no_grad():
        logits = tagger(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        unmasked = tagger(input_ids=batch["input_ids"]).logits
    for i, row in enumerate(rows):
        size = len(row["input_ids"])
        assert torch.allclose(logits[i, :size], logits_alone(tagger, row), atol=1e-5)
    assert not torch.allclose(
        unmasked[2, :3], logits_alone(tagger, rows[2]), atol=1e-3
    )  # the mask matters here


def test_pack_each_row_is_blind_to_the_others(tiny_tokenizer, tagger):
    rows = [class_rows(tiny_tokenizer)[(0, i)] for i in range(4)]
    rows = [row | {"labels": [i] * len(row["input_ids"])} for i, row in enumerate(rows)]
    packed = pack(rows, max_length=16, pad_id=tiny_tokenizer.pad_token_id)
    assert packed["input_ids"].shape == (2, 15)  # 14 and 6 + 6 + 3 pieces: two rows instead of four
    inputs = {name: packed[name] for name in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad():
        logits = tagger(**inputs).logits
    assert torch.isfinite(logits).all()
    for i, row in enumerate(rows):
        where = packed["labels"] == i
        assert torch.allclose(logits[where], logits_alone(tagger, row), atol=1e-5)
    assert sorted(i for part in packed["rows"].tolist() for i in part if i >= 0) == [0, 1, 2, 3]
    assert count_targets(packed) == sum(len(row["input_ids"]) for row in rows)
    pieces = split_batch(packed, 1)
    assert [piece["attention_mask"].shape for piece in pieces] == [(1, 1, 15, 15)] * 2


def test_pack_refuses_what_it_cannot_pack():
    with pytest.raises(ValueError, match="max_length must be at least 3, the longest row; got 2"):
        pack([{"input_ids": [1, 2, 3], "labels": [0, 0, 0], "row": 0}], max_length=2, pad_id=0)
    with pytest.raises(ValueError, match="got one label for a row"):
        pack([{"input_ids": [1], "labels": 0, "row": 0}], max_length=2, pad_id=0)
