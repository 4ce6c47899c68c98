"""Share the pieces of an experiment among threads: each trains its own runs, and none waits inside an operation."""

import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch


class Workers(AbstractContextManager):
    """Calls a function on every item, by one thread or by all, and finds out with a stopwatch which is faster.

    Operations on tiny models are too short to be cut in two: threads that meet after each one cost more than they
    bring. So each thread takes whole pieces, and torch uses one thread inside an operation. On a machine that others
    use even that may not pay. Who does a piece does not change its result by a bit (a test holds it to that), so a
    stopwatch may decide: TRIALS of every PERIOD rounds alternate, and the faster number does the rest.
    """

    TRIALS, PERIOD = 6, 100

    def __init__(self, most: int):
        self.before = torch.get_num_threads()
        self.counts = (max(1, most), 1) if most > 1 else (1,)
        self.seconds: dict[int, float] = {}
        self.round = 0
        self.pool = ThreadPoolExecutor(self.counts[0] - 1, "stabviz", _one_thread) if most > 1 else None

    def __enter__(self):
        _keep_freed_memory()
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_):
        if self.pool is not None:
            self.pool.shutdown()
        torch.set_num_threads(self.before)

    def each(self, do: Callable, items: Iterable) -> None:
        """Call do(item) for every item; an exception in one thread is raised here."""
        place = self.round % self.PERIOD
        self.round += 1
        if place == 0:
            self.seconds = dict.fromkeys(self.counts, math.inf)
        trial = place < self.TRIALS
        count = self.counts[place % len(self.counts)] if trial else min(self.seconds, key=self.seconds.__getitem__)
        start = time.perf_counter()
        self._share(do, items, count)
        if trial:
            self.seconds[count] = min(self.seconds[count], time.perf_counter() - start)

    def _share(self, do, items, count):
        queue = iter(list(items))       # whoever is free takes the next: `next` on a list's iterator is atomic

        def work():
            for item in queue:
                do(item)

        others = [self.pool.submit(work) for _ in range(count - 1)]
        work()
        for other in others:
            other.result()


def _one_thread() -> None:
    """torch counts threads per thread that calls it."""
    torch.set_num_threads(1)


def _keep_freed_memory(megabytes: int = 512) -> None:
    """Ask glibc to keep what a step frees for the next step: fresh pages cost 5 to 15 % of a step here.

    Without it each tensor above 128 kB is mapped and unmapped every time. Elsewhere than on glibc nothing is done.
    """
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-3, 32 * 2**20)             # M_MMAP_THRESHOLD, at most 32 MiB
    mallopt(-1, megabytes * 2**20)      # M_TRIM_THRESHOLD
