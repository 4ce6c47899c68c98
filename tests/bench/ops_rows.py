"""The functions of `ops` against torch's own, forward and backward where there is one; no target on time:
they are written as their formulas."""

import subprocess
import sys

import torch
from torch import nn
from torch.nn import functional as F

from stabviz.ops import adam_init, adamw_step, clip_by_global_norm, cross_entropy
from stabviz.ops import scaled_dot_product_attention as attention
from tests.bench.table import Row, side_by_side, slowdown

PEAK = """
import torch
from stabviz.ops import scaled_dot_product_attention, tiled_attention
torch.set_num_threads(1)
def run(length):
    query, key, value = (torch.randn(1, 1, length, 16, requires_grad=True) for _ in range(3))
    {call}.sum().backward()
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
run(64)
open("/proc/self/clear_refs", "w").write("5")    # the peak so far is that of the imports: forget it
before = peak()
run(8192)
print((peak() - before) / 1024)
"""
CALLS = {
    "plain": "scaled_dot_product_attention(query, key, value, causal=True, measure=False)[0]",
    "tiled": "tiled_attention(query, key, value, causal=True)",
}


def rows(rounds: int):
    """Yield the rows of the ops, on the CPU with all threads."""
    yield from attention_rows(rounds)
    yield tiled_row()
    yield from cross_entropy_rows(rounds)
    for count, size in ((60, 64), (20, 1024)):
        yield clip_row(rounds, count, size)
        yield from adamw_rows(rounds, count, size)


def attention_rows(rounds):
    query, key, value = (torch.randn(8, 4, 128, 16, requires_grad=True) for _ in range(3))
    grad = torch.randn(8, 4, 128, 16)

    def of(forward):
        return lambda: torch.autograd.grad(forward(), (query, key, value), grad)

    seconds = side_by_side(
        {
            "full": of(lambda: attention(query, key, value, causal=True)[0]),
            "bare": of(lambda: attention(query, key, value, causal=True, measure=False)[0]),
            "theirs": of(lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True)),
        },
        rounds=rounds,
        calls=3,
    )
    for name, words in (("full", "with measures"), ("bare", "without measures")):
        what = f"attention 8x4x128x16 causal, {words}, against SDPA"
        yield slowdown(what, seconds[name], seconds["theirs"])


def tiled_row() -> Row:
    what = "tiled attention, peak memory at length 8,192, against the plain form"
    try:
        tiled, plain = (
            float(
                subprocess.run(
                    [sys.executable, "-c", PEAK.format(call=CALLS[name])],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for name in ("tiled", "plain")
        )
    except (subprocess.CalledProcessError, ValueError):
        return Row(what=what, target=1 / 8, note="could not be measured: needs Linux's /proc/self/clear_refs")
    return Row(
        what=what,
        ours=tiled,
        reference=plain,
        unit="MiB",
        ratio=tiled / plain,
        target=1 / 8,
        note="forward and backward, one head, processes of their own",
    )


def cross_entropy_rows(rounds):
    for N, V in ((4096, 64), (512, 8192)):
        logits_NV, targets_N = torch.randn(N, V, requires_grad=True), torch.randint(V, (N,))
        seconds = side_by_side(
            {
                "ours": lambda x=logits_NV, y=targets_N: torch.autograd.grad(cross_entropy(x, y)[0], x),
                "theirs": lambda x=logits_NV, y=targets_N: torch.autograd.grad(F.cross_entropy(x, y), x),
            },
            rounds=rounds,
            calls=3,
        )
        yield slowdown(f"cross-entropy {N}x{V}, against torch", seconds["ours"], seconds["theirs"])


def clip_row(rounds, count, size) -> Row:
    params = [nn.Parameter(torch.zeros(size, size)) for _ in range(count)]
    for param in params:
        param.grad = torch.randn(size, size)
    grads = [torch.randn(size, size) for _ in range(count)]
    seconds = side_by_side(
        {
            "ours": lambda: clip_by_global_norm(grads, 1.0),
            "theirs": lambda: nn.utils.clip_grad_norm_(params, 1.0),
        },
        rounds=rounds,
    )
    what = f"clipping by global norm, {count} x ({size}x{size}), against clip_grad_norm_"
    return slowdown(what, seconds["ours"], seconds["theirs"])


def adamw_rows(rounds, count, size):
    params = [nn.Parameter(torch.randn(size, size)) for _ in range(count)]
    for param in params:
        param.grad = torch.randn(size, size)
    fused = torch.optim.AdamW(params, fused=True)
    param, grad = torch.randn(count * size**2), torch.randn(count * size**2)
    state = adam_init(param)
    seconds = side_by_side(
        {
            "full": lambda: adamw_step(param, grad, state, lr=1e-3),
            "bare": lambda: adamw_step(param, grad, state, lr=1e-3, measure=False),
            "theirs": fused.step,
        },
        rounds=rounds,
    )
    for name, words in (("full", "with measures"), ("bare", "without measures")):
        what = f"AdamW, {count} x ({size}x{size}), {words}, against fused"
        yield slowdown(what, seconds[name], seconds["theirs"])
