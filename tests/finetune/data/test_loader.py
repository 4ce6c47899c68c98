"""The stream of batches: a position gives the same batch whatever came before, and each row goes to one
process."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from stabviz.finetune.config import FinetuneConfig
from stabviz.finetune.data.loader import Loader
from stabviz.finetune.distributed import ProcessGroup

N, BATCH = 29, 4  # 7 batches an epoch, one row to spare
PROCESSES = ProcessGroup.join("cpu")


class Rows(Dataset):
    """Rows that show the epoch they were asked for in."""

    lengths = np.arange(N) % 5 + 3

    def __getitem__(self, key):
        epoch, index = key
        return {"row": index, "epoch": epoch, "noise": float(np.random.default_rng([epoch, index]).random())}


def collate(rows):
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def loader(rank=0, size=1, rows=None, **settings):
    processes = dataclasses.replace(PROCESSES, rank=rank, size=size)
    return Loader(rows or Rows(), collate, FinetuneConfig.of(**{"batch": BATCH} | settings), processes)


def taken(made, position, count, left_out=()):
    """(position, rows, epochs, noise) of some batches."""
    return [
        (at, b["row"].tolist(), b["epoch"].tolist(), b["noise"].tolist())
        for at, b in itertools.islice(made.batches(position, set(left_out)), count)
    ]


@pytest.mark.parametrize("bucket", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_gives_the_same_batch_whatever_came_before(workers, bucket):
    stream = taken(loader(bucket=bucket), 0, 20)
    assert [at for at, *_ in stream] == list(range(20))
    made = loader(bucket=bucket, workers=workers)
    # in the middle of an epoch, at its end, back again: one Loader keeps no place
    for position, count in ((5, 4), (13, 3), (0, 2), (7, 1)):
        assert taken(made, position, count) == stream[position : position + count]
    assert [made.indices(position) for position in range(20)] == [rows for _, rows, *_ in stream]


def test_an_epoch_brings_each_row_once_and_the_next_another_order():
    stream = taken(loader(), 0, 21)
    epochs = [[row for _, rows, *_ in stream[e * 7 : e * 7 + 7] for row in rows] for e in range(3)]
    assert all(len(rows) == len(set(rows)) == 28 for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3
    assert [{e for _, _, epoch, _ in stream[i : i + 7] for e in epoch} for i in (0, 7, 14)] == [{0}, {1}, {2}]


def test_another_seed_is_another_order():
    assert taken(loader(), 0, 7) != taken(loader(seed=1), 0, 7)


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_left_out_never_appear_and_their_neighbours_stay(workers):
    made = loader(workers=workers)
    left_out = {*made.indices(2), made.indices(4)[1], 3}
    plain, stream = taken(loader(), 0, 21), taken(made, 0, 20, left_out)
    assert not left_out & {row for _, rows, *_ in stream for row in rows}
    kept = {at: [row for row in rows if row not in left_out] for at, rows, *_ in plain}
    assert 2 not in dict((at, 0) for at, *_ in stream)  # a batch of which nothing is left is passed over
    for at, rows, *_ in stream:
        assert rows == kept[at]


@pytest.mark.parametrize(("size", "batch"), [(2, 4), (2, 7), (3, 7)])
def test_processes_split_a_batch_without_overlap(size, batch):
    streams = [taken(loader(rank, size, batch=batch), 0, 6) for rank in range(size)]
    whole = loader(batch=batch)
    for shares in zip(*streams, strict=True):
        (position,) = {at for at, *_ in shares}
        rows = [row for _, mine, *_ in shares for row in mine]
        assert sorted(rows) == sorted(whole.indices(position))
        counts = [len(mine) for _, mine, *_ in shares]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == batch


def test_processes_pass_over_the_same_batches():
    """Where fewer rows are left than there are processes, none of them may wait for the others."""
    left_out = set(loader().indices(1)[:3])
    streams = [taken(loader(rank, 2), 0, 6, left_out) for rank in (0, 1)]
    assert [at for at, *_ in streams[0]] == [at for at, *_ in streams[1]] == [0, 2, 3, 4, 5, 6]
    alone = taken(loader(), 0, 6, left_out)  # one process goes on with the one row
    assert [at for at, *_ in alone] == [0, 1, 2, 3, 4, 5]


def test_too_few_rows_make_one_batch():
    few = Rows()
    few.lengths = np.full(3, 5)
    assert sorted(taken(loader(rows=few, batch=4), 0, 1)[0][1]) == [0, 1, 2]


def test_the_default_generator_is_left_to_dropout():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    taken(loader(), 0, 9)
    assert torch.equal(torch.rand(3), expected)


def test_no_rows_or_none_left_are_errors():
    none = Rows()
    none.lengths = np.zeros(0, dtype=int)
    with pytest.raises(ValueError, match="at least one training row; got 0"):
        loader(rows=none)
    with pytest.raises(ValueError, match="must keep some rows; all were left out"):
        taken(loader(), 0, 1, left_out=range(N))
    with pytest.raises(ValueError, match="batch must be at least 5, the number of processes; got 4"):
        loader(0, 5)
