from dataclasses import replace

import numpy as np
import pytest
import torch

from stabviz.lab import engine, grid, train
from stabviz.lab import fuse as fuse_module
from stabviz.lab.fuse import fuse
from stabviz.lab.replay import NotReplayable, record

KNOBS = {
    "width": 12,
    "heads": 3,
    "layers": 2,
    "context": 6,
    "batch": 5,
    "steps": 9,
    "lr": 1e-2,
    "seed": [2, 7, 13],
}


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"model": "lstm"},
        {"task": "copy"},
        {"norm": "post"},
        {"qk_norm": True},
        {"softcap": [5.0, 7.0, np.inf]},
        {"clip_value": 1e-3},
        {"clip_adaptive": 0.01},
        {"clip_norm": [0.1, 0.5, np.inf]},
        {"label_smoothing": 0.1},
        {"z_loss": [0.0, 1e-2]},
        {"schedule": "plateau", "steps": 41},
        {"task": "regression"},
        {"dtype": "float64"},
        {"task": "ravine", "noise_scale": 0.3},
        {"task": "quartic", "optimizer": "sgd", "lr": [0.1, 1.0], "steps": 41},
        {"optimizer": "stable_adamw"},
        {"optimizer": "amsgrad", "bias_correction": [True, False]},
        {"optimizer": "nesterov", "weight_decay": [0.0, 0.1]},
        {"gradient_scale": [1.0, 3.0]},
        {"poison_step": [-1, 4], "poison_scale": float("nan")},
        {"poison_step": [-1, 4], "poison_scale": float("nan"), "on_non_finite": "skip"},
        {"poison_step": [-1, 4], "poison_scale": float("nan"), "on_non_finite": "apply"},
    ],
)
@pytest.mark.parametrize("measure", [True, False])
def test_replayed_steps_equal_written_ones_to_the_bit(monkeypatch, knobs, measure):
    experiment = grid(**{"task": "markov"} | KNOBS | knobs)
    monkeypatch.setattr(engine, "fuse", lambda calls, keep: calls)
    replayed = train(experiment, measure=measure)
    monkeypatch.setattr(engine.RunBatch, "step", lambda self: self._commit(*self._step()))
    written = train(experiment, measure=measure)
    assert written.signals.keys() == replayed.signals.keys()
    for name in written.signals:
        assert np.array_equal(written[name], replayed[name], equal_nan=True), name


@pytest.mark.parametrize(
    "knobs",
    [{}, {"model": "lstm"}, {"norm": "post"}, {"softcap": [5.0, np.inf]}, {"context": 24, "qk_norm": True}],
)
def test_fused_steps_equal_written_ones_but_for_rounding(monkeypatch, knobs):
    experiment = grid(**{"task": "markov", "dtype": "float64"} | KNOBS | knobs)
    fused = train(experiment)
    monkeypatch.setattr(engine.RunBatch, "step", lambda self: self._commit(*self._step()))
    written = train(experiment)
    for name in written.signals:
        # float64: the kernels sum in another order, and nine steps pass it on
        np.testing.assert_allclose(fused[name], written[name], rtol=1e-9, atol=1e-12, err_msg=name)


def recorded_step(**knobs):
    """The calls of one step of a transformer before and after they were fused."""
    seen = {}

    def look(calls, keep):
        seen["before"], seen["after"] = calls, fuse(calls, keep)
        return seen["after"]

    with pytest.MonkeyPatch.context() as patch, torch.enable_grad():
        patch.setattr(engine, "fuse", look)
        batch = engine.RunBatch(list(grid("markov", **KNOBS | knobs).runs), torch.device("cpu"), True)
        for _ in range(4):
            batch.step()
    return seen["before"], seen["after"]


def kernels(calls):
    return sorted(
        call.writer.__name__
        for call in calls
        if call.writer is not None and call.writer.__module__ == fuse.__module__
    )


def test_fuse_finds_every_softmax_and_gelu_of_the_step_and_every_narrow_product():
    before, after = recorded_step(layers=2)
    found = kernels(after)
    assert found.count("_softmax") == found.count("_softmax_backward") == 2
    assert found.count("_gelu") == found.count("_gelu_backward") == 2
    narrow = [c for c in before if c.function is torch.ops.aten.bmm.default and c.results[0].shape[-1] == 4]
    assert found.count("transposed_product") >= len(narrow) == 6
    # a softmax and its gradient are 13 calls, a GELU and its own 15; each pair becomes two
    assert len(before) - len(after) == 2 * (11 + 13)


def test_fuse_leaves_a_chain_that_something_else_reads():
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    for also in (False, True):

        def step(also=also):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                exponentials = (leaf - leaf.detach().amax(dim=-1, keepdim=True)).exp()
                weights = exponentials / exponentials.sum(dim=-1, keepdim=True)
                seen = exponentials.detach() * 2 if also else leaf.detach() * 2
                return seen, *torch.autograd.grad((weights.square()).sum(), leaf)

        actions, results = record(step, (x,), rewrite=fuse)
        names = [getattr(action, "func", action).__name__ for action in actions]
        assert ("_softmax" in names) is not also
        wanted = step()
        for action in actions:
            action()
        for ours, theirs in zip(results, wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_fuse_refuses_a_kernel_that_gives_other_values(monkeypatch):
    def wrong(x, *, out):
        return out.copy_(x)

    before, after = recorded_step()
    assert "_gelu" in kernels(after)
    kernel = replace(fuse_module.KERNELS[1], forward=wrong)
    monkeypatch.setattr(fuse_module, "KERNELS", (fuse_module.KERNELS[0], kernel))
    _, after = recorded_step()
    assert kernels(after).count("_softmax") == 2
    assert not {"wrong", "_gelu_backward"} & {
        call.writer.__name__ for call in after if hasattr(call.writer, "__name__")
    }


def test_record_repeats_a_step_and_reuses_places():
    total, x = torch.zeros(3), torch.arange(3.0)

    def step():
        total.add_(((x * 2 + 1) * 3 + 1).exp().log())
        return total * 2

    actions, doubled = record(step, ())
    assert total.tolist() == pytest.approx([4, 10, 16])
    for _ in range(2):
        for action in actions:
            action()
    assert total.tolist() == pytest.approx([12, 30, 48])
    assert doubled.tolist() == pytest.approx([24, 60, 96])
    # what does not depend on anything that changes was computed once: only the two on `total` are left
    assert len(actions) == 2


def test_record_follows_what_others_change_when_told():
    x = torch.ones(2)
    for told, expected in (((x,), 7.0), ((), 3.0)):
        x.fill_(1.0)
        actions, seen = record(lambda: x * 2 + 1, told)
        x.fill_(3.0)
        for action in actions:
            action()
        assert seen.tolist() == [expected] * 2


def test_record_keeps_living_values_apart():
    x = torch.ones(5)

    def step():
        first = x + 1
        second = first * 2
        third = second + first
        fourth = third * second
        return fourth + 1

    actions, seen = record(step, (x,))
    x.fill_(2.0)
    for action in actions:
        action()
    assert seen.tolist() == [55.0] * 5
    places = [action.keywords["out"].data_ptr() for action in actions]
    assert len(set(places[:3])) == 3
    assert places[3] == places[0], "the first result is no longer needed and gives its place to the fourth"


def test_record_copies_the_result_of_an_operation_without_out():
    x = torch.tensor([3.0, 1.0, 2.0])
    actions, (largest, seen) = record(
        lambda: (x.max(dim=0).values + 0, torch.nn.functional.pad(x, (1, 0))), (x,)
    )
    x.copy_(torch.tensor([1.0, 5.0, 2.0]))
    for action in actions:
        action()
    assert largest == 5
    assert seen.tolist() == [0.0, 1.0, 5.0, 2.0]


def test_record_refuses_a_step_that_looks_at_a_value():
    x = torch.ones(())
    with pytest.raises(NotReplayable, match="a step must not look at a tensor's value"):
        record(lambda: x * float(x), (x,))


def test_recorder_does_not_import_the_compiler():
    """It costs a second, which a learner waits for in front of a panel."""
    import subprocess
    import sys

    code = (
        "import sys, torch; from stabviz.lab.replay import record; x = torch.ones(2);"
        "record(lambda: x * 2, (x,));"
        "assert not any(name.startswith('torch._inductor') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
