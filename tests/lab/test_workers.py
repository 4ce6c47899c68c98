import threading

import pytest
import torch

from stabviz.lab import workers as workers_module
from stabviz.lab.workers import Workers


def test_each_calls_every_item_once_whoever_does_it():
    with Workers(3) as workers:
        for _ in range(20):
            done = []
            workers.each(done.append, range(11))
            assert sorted(done) == list(range(11))


def test_each_raises_what_a_thread_raised():
    def fail(item):
        if threading.current_thread() is not threading.main_thread():
            raise ArithmeticError(f"item {item}")
        barrier.wait()

    barrier = threading.Barrier(2, timeout=10)
    with Workers(2) as workers, pytest.raises((ArithmeticError, threading.BrokenBarrierError)):
        workers.each(fail, [0, 1])


def test_workers_use_one_thread_inside_an_operation_and_put_the_number_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Workers(2) as workers:
            seen = []
            workers.each(lambda _: seen.append(torch.get_num_threads()), range(8))
        assert seen == [1] * 8
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("slow_count", "chosen"), [(2, 1), (1, 2)])
def test_the_number_of_workers_is_chosen_by_the_stopwatch(monkeypatch, slow_count, chosen):
    clock = {"now": 0.0}
    monkeypatch.setattr(workers_module.time, "perf_counter", lambda: clock["now"])
    seen = []

    def share(self, do, items, count):
        seen.append(count)
        clock["now"] += 100.0 if count == slow_count else 1.0

    monkeypatch.setattr(Workers, "_share", share)
    with Workers(2) as workers:
        for _ in range(12):
            workers.each(None, [])
    assert seen[:6] == [2, 1, 2, 1, 2, 1]
    assert seen[6:] == [chosen] * 6
