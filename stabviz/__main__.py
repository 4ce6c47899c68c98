"""The command line: fine-tune a model and look into runs, train a grid of small models, and check the
set-up."""

import contextlib
import io
import os
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from stabviz.cli.commands import COMMANDS, command_types

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """Look at versions, device, threads, browser and write access, and say what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Show which lessons, predictions, exercises and quizzes were done."""


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
    """transformer or lstm."""
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
        """Return what `stabviz.lab.grid` is given: lists for the knobs that vary, and the seeds."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != ()}
        tuples = {name: value for name, value in given.items() if isinstance(value, tuple)}
        several = {name: list(value) if len(value) > 1 else value[0] for name, value in tuples.items()}
        return {"task": self.task, "steps": self.steps, **several, "seed": list(range(self.seeds))}


House = (
    Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Progress, tyro.conf.subcommand("progress")]
    | Annotated[Lab, tyro.conf.subcommand("lab")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; what the caller got wrong is one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "STABVIZ_HOME" not in os.environ and Path("notebooks").is_dir():
        os.environ["STABVIZ_HOME"] = os.path.join("notebooks", ".stabviz")  # where the notebooks keep it
    try:
        command = parsed(arguments)
        match command:
            case Doctor():
                return doctor()
            case Progress():
                return progress()
            case Lab():
                return lab(command)
        return COMMANDS[type(command)](command)
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(("stream:", "finetune:")):
            raise  # not the caller's doing: the traceback says where to look
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return INTERRUPTED


def parsed(arguments: list[str]):
    """Read the flags; what a config's own checks refuse is an error of one line, not the parser's box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                command_types(arguments) | House,
                prog="python -m stabviz",
                description=__doc__,
                args=arguments,
            )
    except SystemExit:
        words = " ".join(re.sub("[│╭╮╰╯─]", " ", said.getvalue()).split())
        refused = re.search(r"\w+Config: .*?(?= For full helptext|$)", words)
        if refused:
            raise ValueError(refused.group()) from None
        sys.stderr.write(said.getvalue())
        raise


def doctor() -> int:
    try:
        from stabviz.course.doctor import examine, report
    except ImportError as error:
        print(f"fail  packages  {error}\n{'':16}-> run: make setup, or: pip install -r requirements.txt -e .")
        return 1
    findings = examine()
    print(report(findings))
    return int(any(finding.level == "fail" for finding in findings))


def progress() -> int:
    from stabviz.course import progress

    print(progress.report())
    return 0


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

    labels = list(trace.runs[0])
    rows = [[*labels, "final loss", "verdict", "evidence"]]
    for run, loss, found in zip(trace.runs, trace.final(), verdicts(trace), strict=True):
        kind = found.kind if found.step is None else f"{found.kind} at {found.step}"
        rows.append([*(str(run[key]) for key in labels), f"{loss:.3f}", kind, str(found.evidence)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def keep(trace, folder: Path) -> None:
    """Write the Trace in both formats, and the picture of loss and gradient norm on one step axis."""
    from matplotlib.figure import Figure

    from stabviz.views.plots import plot_gradient_norm, plot_loss_fan
    from stabviz.views.svg import figure_svg

    trace.save(folder / "trace.parquet")
    trace.save(folder / "trace.jsonl")
    figure = Figure(figsize=(8, 6), layout="constrained")
    loss_axes, norm_axes = figure.subplots(2, 1, sharex=True)
    by = [label for label in trace.runs[0] if label != "seed"] or None
    plot_loss_fan(loss_axes, trace, by=by)
    plot_gradient_norm(norm_axes, trace, by=by)
    label = f"Loss and gradient norm of {trace.n_runs} runs over {trace.n_steps} steps"
    (folder / "training.svg").write_text(figure_svg(figure, label), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
