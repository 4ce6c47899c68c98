"""Ctrl-C and SIGTERM: the step is finished, the state saved, and the program leaves with STOPPED."""

import contextlib
import signal
import threading

STOPPED = 75
"""Exit code of a run that was told to stop and has saved (EX_TEMPFAIL of sysexits); `stabviz resume` goes
on."""


class StopRequested(Exception):
    """Raised in `Interrupt.interruptible` when the run is to stop: in a wait for data, or an evaluation."""


class Interrupt:
    """Listens for SIGINT and SIGTERM while it is entered. The first one asks, a second one ends at once.

    Handlers belong to the main thread; elsewhere (a panel's worker) only `ask` stops a run.
    """

    def __init__(self):
        self.requested = False
        self._may_raise = False
        self._before = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def ask(self) -> None:
        """Ask for a stop, as the first signal does."""
        self.requested = True

    def check(self) -> None:
        """Raise StopRequested if a stop was asked for: between batches whose results may be dropped."""
        if self.requested:
            raise StopRequested

    def _on_signal(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt  # the second time: whoever asks twice does not want to wait
        self.requested = True
        if self._may_raise:
            raise StopRequested

    @contextlib.contextmanager
    def interruptible(self):
        """Let a request end this block with StopRequested: nothing in it may change the run's state."""
        self._may_raise = True
        try:
            self.check()  # it may have come just before this block
            yield
        finally:
            self._may_raise = False
