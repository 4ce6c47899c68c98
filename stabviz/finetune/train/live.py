"""Watch a run while it trains: the loop in a thread of its own, its growing Trace read from its log."""

import threading
from collections.abc import Callable, Iterator

from stabviz.finetune.train.interrupt import Interrupt
from stabviz.finetune.train.loop import train
from stabviz.finetune.train.setup import Setup
from stabviz.trace import Trace
from stabviz.trace.log import read_metrics


def watch(setup: Setup, *, cancelled: Callable[[], bool] | None = None, wait: float = 0.2) -> Iterator[Trace]:
    """Train, and yield the growing Trace about every `wait` seconds; the last one is complete.

    `cancelled` is asked as often; when it answers True, or nobody asks for more, the run saves and stops.
    What the loop raises is raised here, after the last Trace before it.

    Lesson: 09-pretraining
    """
    interrupt, errors = Interrupt(), []

    def work():
        try:
            train(setup, interrupt=interrupt)
        except BaseException as error:  # handed to whoever watches
            errors.append(error)

    log = setup.config.run.out / "metrics.jsonl"
    log.unlink(missing_ok=True) if setup.config.run.overwrite else None
    thread, seen = threading.Thread(target=work, daemon=True), 0
    thread.start()
    try:
        while thread.is_alive():
            thread.join(wait)
            if cancelled is not None and cancelled():
                return
            trace = read_metrics(log) if log.exists() and log.stat().st_size else None
            if trace is not None and trace.n_steps > seen and thread.is_alive():
                seen = trace.n_steps
                yield trace
    finally:
        interrupt.ask()
        thread.join()
    if log.exists() and log.stat().st_size:
        yield read_metrics(log)
    if errors:
        raise errors[0]
