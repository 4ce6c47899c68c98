"""lab: many models at once, a verdict for each, and the Trace kept."""

import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """Train many models at once, print a verdict for each, and keep the Trace.

    A knob with several values makes a grid: --lr 1e-3 1e-2 --clip-norm 1 inf trains four models with each
    seed. A knob that is left out has the lab's own default, see stabviz.lab.
    """

    task: str = "text"
    """What is learned, e.g. text, markov, copy or ravine."""
    steps: int = 200
    """Updates of each run."""
    seeds: int = 8
    """How many seeds for each combination of the other knobs."""
    lr: tuple[float, ...] = ()
    """Peak learning rate."""
    model: tuple[str, ...] = ()
    """transformer, lstm or rnn."""
    optimizer: tuple[str, ...] = ()
    """A name in stabviz.ops.OPTIMIZERS, e.g. adamw or sgd."""
    schedule: tuple[str, ...] = ()
    """A name in stabviz.ops.SCHEDULES, e.g. cosine or constant."""
    warmup_steps: tuple[int, ...] = ()
    """Steps over which the rate rises linearly."""
    clip_norm: tuple[float, ...] = ()
    """Largest L2 norm of the gradient; inf is off."""
    weight_decay: tuple[float, ...] = ()
    """Decoupled weight decay."""
    beta2: tuple[float, ...] = ()
    """Decay of the second moment."""
    norm: tuple[str, ...] = ()
    """Layer norm pre or post."""
    init_scale: tuple[float, ...] = ()
    """Factor on the standard deviation of the initial weights."""
    batch: tuple[int, ...] = ()
    """Sequences in a batch."""
    context: tuple[int, ...] = ()
    """Tokens in a sequence."""
    width: tuple[int, ...] = ()
    """Width of the model."""
    layers: tuple[int, ...] = ()
    """Layers of the model."""
    heads: tuple[int, ...] = ()
    """Attention heads."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto lets the lab choose."""
    every: int = 10
    """Steps between two lines of progress."""
    out: Path = Path("runs")
    """Folder for trace.parquet, trace.jsonl and training.svg."""

    def knobs(self) -> dict:
        """Return the arguments of `stabviz.lab.grid`: lists for the knobs that vary, and the seeds."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tuples = {name: value for name, value in values.items() if isinstance(value, tuple) and value}
        knobs = {name: list(value) if len(value) > 1 else value[0] for name, value in tuples.items()}
        return {"task": self.task, "steps": self.steps, **knobs, "seed": list(range(self.seeds))}


def lab(options: Lab) -> int:
    from stabviz import lab as laboratory

    device = None if options.device == "auto" else options.device
    experiment = laboratory.grid(**options.knobs())
    options.out.mkdir(parents=True, exist_ok=True)  # before training: a bad folder costs no run
    trace, status = None, 0
    try:
        for trace in laboratory.stream(experiment, every=options.every, device=device):
            stopped = len({event["run"] for event in trace.events if event["kind"] == "non_finite"})
            line = f"step {trace.n_steps} of {options.steps}, {stopped} of {trace.n_runs} runs non-finite"
            print(f"\r{line}", end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        status = INTERRUPTED
        if trace is None:
            raise
    print(file=sys.stderr)
    print(table(trace))
    keep(trace, options.out)
    print(f"kept in {options.out}: trace.parquet, trace.jsonl, training.svg")
    return status


def table(trace) -> str:
    """Return the verdict of every run as aligned text."""
    from stabviz.trace import verdicts
    from stabviz.views import text_table, unseen

    rows = [
        {
            **run,
            "final loss": float(loss),
            "verdict": found.kind if found.step is None else f"{found.kind} at {found.step}",
            "evidence": str(found.evidence),
        }
        for run, loss, found in zip(trace.runs, trace.final(), verdicts(trace), strict=True)
    ]
    return f"{text_table(rows, most=len(rows), width=math.inf)}\n{unseen(trace)}"


def keep(trace, folder: Path) -> None:
    """Write the Trace in both formats, and the picture of loss and gradient norm on one step axis."""
    from matplotlib.figure import Figure

    from stabviz.trace import save
    from stabviz.views.plots import plot_gradient_norm, plot_loss_fan
    from stabviz.views.svg import figure_svg

    save(trace, folder / "trace.parquet")
    save(trace, folder / "trace.jsonl")
    figure = Figure(figsize=(8, 6), layout="constrained")
    loss_axes, norm_axes = figure.subplots(2, 1, sharex=True)
    by = [label for label in trace.runs[0] if label != "seed"] or None
    plot_loss_fan(loss_axes, trace, by=by)
    plot_gradient_norm(norm_axes, trace, by=by)
    label = f"Loss and gradient norm of {trace.n_runs} runs over {trace.n_steps} steps"
    (folder / "training.svg").write_text(figure_svg(figure, label), encoding="utf-8")


COMMANDS = {Lab: lab}
