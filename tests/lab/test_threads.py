import pytest
import torch

from stabviz.lab import threads as threads_module
from stabviz.lab.threads import Threads


def test_each_calls_every_item_once_in_order():
    with Threads(2) as threads:
        for _ in range(9):
            done = []
            threads.each(done.append, range(11))
            assert done == list(range(11))


def test_each_raises_what_an_item_raised_and_the_number_is_put_back():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), Threads(3) as threads:
        threads.each(lambda item: 1 / item, [1, 0])
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("slow_count", "chosen"), [(2, 1), (1, 2)])
def test_the_number_of_threads_is_chosen_by_the_stopwatch(monkeypatch, slow_count, chosen):
    clock = {"now": 0.0}
    monkeypatch.setattr(threads_module.time, "perf_counter", lambda: clock["now"])
    seen = []

    def work(_):
        seen.append(torch.get_num_threads())
        clock["now"] += 100.0 if seen[-1] == slow_count else 1.0

    with Threads(2) as threads:
        for _ in range(12):
            threads.each(work, [0])
    assert seen[:6] == [2, 1, 2, 1, 2, 1]
    assert seen[6:] == [chosen] * 6
