"""Batches in an order that depends on seed and position alone, so that a run can go on anywhere in it."""

import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stabviz.finetune.config import LoopConfig
from stabviz.finetune.data.batches import plan_epoch
from stabviz.finetune.distributed import ProcessGroup
from stabviz.seeds import generator


class Rows(Protocol):
    """What is trained on: `rows[epoch, index]` is one encoded row."""

    lengths: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]: ...


class Loader:
    """The endless stream of batches of a run: a position has the same batch whenever it is asked for."""

    def __init__(self, rows: Rows, collate: Callable, config: LoopConfig, processes: ProcessGroup):
        self.rows, self.collate, self.processes = rows, collate, processes
        self.train, self.run = config.train, config.run
        self._epoch, self._plan = -1, list[list[int]]()
        self.per_epoch = len(self._planned(0))
        if not self.per_epoch:
            raise ValueError("finetune: data must hold at least one training row; got 0")
        if processes.size > self.train.batch:
            raise ValueError(
                f"finetune: batch must be at least {processes.size}, the number of processes; "
                f"got {self.train.batch}"
            )

    def batches(self, position: int, left_out: set[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield (position, this process's rows) from `position` on, without the rows in `left_out`."""
        loader = DataLoader(
            _Positioned(self.rows),
            # positions, not an iterator's state: what workers prepared ahead is drawn again after a resume
            batch_sampler=_Sampler(self, position, frozenset(left_out)),
            collate_fn=partial(_collate, self.collate),
            num_workers=self.run.workers,
            # a generator of its own: the default one belongs to dropout
            generator=generator(self.run.seed, "workers"),
            worker_init_fn=_leave_signals_alone,
            pin_memory=self.processes.device.type == "cuda",
        )
        return iter(loader)

    def indices(self, position: int) -> list[int]:
        """Return the rows of the whole batch at a position, over all processes."""
        epoch, index = divmod(position, self.per_epoch)
        return self._planned(epoch)[index]

    def _planned(self, epoch: int) -> list[list[int]]:
        if epoch != self._epoch:
            self._plan = plan_epoch(
                self.rows.lengths,
                batch=self.train.batch,
                seed=self.run.seed,
                epoch=epoch,
                bucket=self.train.compute.bucket,
            )
            self._epoch = epoch
        return self._plan


class _Sampler:
    def __init__(self, loader: Loader, position: int, left_out: frozenset[int]):
        self.loader, self.position, self.left_out = loader, position, left_out

    def __iter__(self):
        position, processes = self.position, self.loader.processes
        empty = 0
        while True:
            kept = [i for i in self.loader.indices(position) if i not in self.left_out]
            if len(kept) >= processes.size:
                epoch, empty = position // self.loader.per_epoch, 0
                # every size-th row: the lengths of a bucket are spread evenly over the processes
                yield [(position, epoch, i) for i in kept[processes.rank :: processes.size]]
            else:  # too few for every process: all of them pass this batch over
                empty += 1
                if empty > self.loader.per_epoch:
                    raise ValueError(
                        "finetune: data must keep some rows; all were left out after loss spikes"
                    )
            position += 1


class _Positioned(Dataset):
    """Rows that remember at which position of the stream they were asked for."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __getitem__(self, key: tuple[int, int, int]):
        position, epoch, index = key
        return position, self.rows[(epoch, index)]


def _collate(collate: Callable, items: list) -> tuple[int, dict[str, Tensor]]:
    return items[0][0], collate([row for _, row in items])


def _leave_signals_alone(worker: int) -> None:
    """A terminal and a job scheduler signal the workers too: only the main process answers, and it ends them.

    A second SIGTERM does end a worker: it is the main process's last means.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
