"""The main thread's idle OpenMP threads are handed back, and come again when they are needed."""

import os
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from stabviz.views import idle_threads

needs_threads = pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or (os.cpu_count() or 1) < 2
    or idle_threads._pause_function() is None,
    reason="needs Linux, two cores and an OpenMP runtime that can pause",
)


def threads():
    return len(os.listdir("/proc/self/task"))


@needs_threads
def test_release_frees_the_pool_of_the_calling_thread_and_the_next_operation_brings_it_back():
    counts = []

    def compute():
        torch.set_num_threads(2)
        before = threads()
        x = torch.ones(500, 500)
        for _ in range(2):
            assert (x @ x + x)[0, 0] == 501
            counts.append(threads() - before)
            assert idle_threads.release_idle_threads() is True
            counts.append(threads() - before)

    used = torch.get_num_threads()
    try:
        worker = threading.Thread(target=compute)  # a thread of its own: no pool is there yet
        worker.start()
        worker.join()
    finally:
        torch.set_num_threads(used)
    assert counts == [1, 0, 1, 0]


def test_release_is_asked_for_once_and_does_nothing_outside_ipython(monkeypatch):
    registered = []
    events = SimpleNamespace(
        callbacks={"post_run_cell": registered}, register=lambda name, function: registered.append(function)
    )
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(events=events))
    idle_threads.release_after_each_cell()
    idle_threads.release_after_each_cell()
    assert registered == [idle_threads.release_idle_threads]
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    idle_threads.release_after_each_cell()


def test_a_runtime_that_cannot_pause_is_no_error(monkeypatch):
    monkeypatch.setattr(idle_threads, "_pause_function", lambda: None)
    assert idle_threads.release_idle_threads() is False
