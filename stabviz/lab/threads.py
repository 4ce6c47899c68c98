"""How many threads a step uses, one or all, and memory that is kept from step to step."""

import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch


class Threads(AbstractContextManager):
    """Calls a function on every item with one torch thread or with all, whichever a stopwatch finds faster.

    A step of tiny models is hundreds of short operations. All threads halve its time on a machine of one's
    own; on one that others use, threads that wait for one another can cost far more than they bring. Their
    number does not change a result by a bit (a test holds it to that), so a stopwatch may decide: TRIALS of
    every PERIOD rounds alternate, and the faster number does the rest. Python threads that share the runs
    were tried and were slower: they hand the interpreter's lock to and fro at every operation.
    """

    TRIALS, PERIOD = 6, 100

    def __init__(self, most: int | None = None):
        self.before = torch.get_num_threads()
        most = self.before if most is None else most
        self.counts = (most, 1) if most > 1 else (1,)
        self.seconds: dict[int, float] = {}
        self.round = 0

    def __enter__(self):
        _keep_freed_memory()
        return self

    def __exit__(self, *_):
        # The number belongs to the process: whoever called would keep ours.
        torch.set_num_threads(self.before)

    def each(self, do: Callable, items: Iterable) -> None:
        """Call do(item) for every item, in order."""
        place = self.round % self.PERIOD
        self.round += 1
        if place == 0:
            self.seconds = dict.fromkeys(self.counts, math.inf)
        trial = place < self.TRIALS
        count = (
            self.counts[place % len(self.counts)]
            if trial
            else min(self.seconds, key=self.seconds.__getitem__)
        )
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
        start = time.perf_counter()
        for item in items:
            do(item)
        if trial:
            # The least, not the mean: what disturbs a stopwatch only ever adds.
            self.seconds[count] = min(self.seconds[count], time.perf_counter() - start)


def _keep_freed_memory(megabytes: int = 512) -> None:
    """Ask glibc to keep what a step frees for the next step: fresh pages cost 5 to 15 % of a step here.

    Without it each tensor above 128 kB is mapped and unmapped every time. Elsewhere than on glibc nothing is
    done.
    """
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at most 32 MiB
    mallopt(-1, megabytes * 2**20)  # M_TRIM_THRESHOLD
