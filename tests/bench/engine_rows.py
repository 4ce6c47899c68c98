"""The engine against the loop that every tutorial writes: one module, one run after another."""

import time

import torch
from torch import nn
from torch.nn import functional as F

from stabviz.lab import grid
from stabviz.lab.engine import RunBatch
from stabviz.lab.fuse import transposed_product
from stabviz.lab.runs import _groups
from stabviz.lab.tasks import text_corpus
from stabviz.lab.threads import Threads
from tests.bench.table import Row, quiet, side_by_side, slowdown, speedup

BATCH, CONTEXT, HEADS, LAYERS = 8, 32, 4, 2
PRODUCTS = (torch.bmm, torch.baddbmm, transposed_product)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        sizes = {
            "qkv": (width, 3 * width),
            "out": (width, width),
            "up": (width, 4 * width),
            "down": (4 * width, width),
        }
        self.maps = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})

    def forward(self, x):
        B, L, D = x.shape
        query, key, value = (
            part.view(B, L, HEADS, D // HEADS).transpose(1, 2)
            for part in self.maps["qkv"](self.norms[0](x)).split(D, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.maps["out"](mixed.transpose(1, 2).reshape(B, L, D))
        return x + self.maps["down"](F.gelu(self.maps["up"](self.norms[1](x))))


class Model(nn.Module):
    def __init__(self, vocab_size, width):
        super().__init__()
        self.token, self.position = nn.Embedding(vocab_size, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.token(tokens) + self.position.weight)))


def tutorial_loop(width: int, where: str):
    """Return a function that does one step of one run."""
    corpus = text_corpus()
    tokens, model = corpus.tokens_N.to(where), Model(len(corpus.symbols), width).to(where)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10**6)
    losses, norms = [], []

    def step():
        starts = torch.randint(len(tokens) - CONTEXT - 1, (BATCH,))
        inputs = torch.stack([tokens[i : i + CONTEXT] for i in starts])
        targets = torch.stack([tokens[i + 1 : i + CONTEXT + 1] for i in starts])
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        rates.step()
        losses.append(loss.item())

    return step


def engine_round(width: int, runs: int, measure: bool, where: str, threads: Threads):
    """Return a function that does one step of all runs, and one that does its matrix products alone."""
    device = torch.device(where)
    experiment = grid(
        "text",
        seed=range(runs),
        width=width,
        context=CONTEXT,
        batch=BATCH,
        heads=HEADS,
        layers=LAYERS,
        clip_norm=1.0,
        steps=5000,
    )
    batches = [
        RunBatch([experiment.runs[r] for r in rows], device, measure) for rows in _groups(experiment, device)
    ]

    def step():
        threads.each(RunBatch.step, batches)
        if where != "cpu":
            torch.cuda.synchronize()

    for _ in range(5):  # the steps that are recorded come first
        step()
    actions = [action for batch in batches for action in batch.replay or ()]
    products = [action for action in actions if getattr(action, "func", None) in PRODUCTS]

    def floor():
        with torch.no_grad():
            for product in products:
                product()

    return step, floor


def rows(rounds: int, where: str = "cpu"):
    """Yield the rows of the engine on one device."""
    runs, threads = 16, torch.get_num_threads()
    for width in (32, 64):
        most = threads if where == "cpu" else 1
        with torch.enable_grad(), Threads(most) as for_bare, Threads(most) as for_full:
            bare, floor = engine_round(width, runs, False, where, for_bare)
            full, _ = engine_round(width, runs, True, where, for_full)
            loop = tutorial_loop(width, where)

            def loop_on_all_threads(loop=loop):
                torch.set_num_threads(threads)
                for _ in range(4):
                    loop()

            def loop_on_one_thread(loop=loop):
                torch.set_num_threads(1)
                for _ in range(4):
                    loop()

            sides = {"bare": bare, "full": full, "all": loop_on_all_threads, "one": loop_on_one_thread}
            seconds = side_by_side(sides | {"floor": floor}, rounds=rounds)
        fastest = min(("all", "one"), key=lambda name: quiet(seconds[name]))
        sixteen = [4 * s for s in seconds[fastest]]
        name = f"engine, {runs} runs, width {width}" + ("" if where == "cpu" else f", {where} (CUDA graph)")
        note = f"{runs} steps of the loop, torch threads: {fastest} (the faster choice)"
        yield speedup(f"{name}, against the tutorial loop", seconds["bare"], sixteen, 3.0, note=note)
        yield slowdown(f"{name}, all signals against few", seconds["full"], seconds["bare"], 1.10)
        if where == "cpu":
            note = "the step's products as it replays them; this or 3 times the tutorial loop is wanted"
            what = f"{name}, against its matrix products alone"
            yield slowdown(what, seconds["bare"], seconds["floor"], 2.5, note=note)
    if where == "cpu":
        yield panel_budget()


def panel_budget() -> Row:
    """8 runs of 200 steps from the call to the last Trace, as a panel asks for them."""
    from stabviz.lab import train

    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        train(grid("text", seed=range(8), steps=200, clip_norm=1.0))
        seconds.append(time.perf_counter() - start)
    return Row(
        what="engine, 8 runs x 200 steps, width 32, seconds",
        ours=min(seconds),
        unit="s",
        ratio=min(seconds),
        target=4.0,
        spread=(min(seconds), max(seconds)),
        note="no browser; spread is smallest and largest",
    )
