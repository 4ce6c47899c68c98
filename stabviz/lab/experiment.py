"""What to run: `Run` holds every knob of one run, `grid` makes the product of those that vary."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from stabviz.ops import OPTIMIZERS, SCHEDULES

TASKS = ("text", "markov", "copy", "ravine", "quartic", "bowl", "regression")
SEQUENCES = ("text", "markov", "copy")
MODELS = ("transformer", "lstm")
ON_NON_FINITE = ("freeze", "skip", "apply")

NUMERIC = frozenset(
    {
        "seed",
        "lr",
        "warmup_steps",
        "final_lr_share",
        "clip_norm",
        "clip_value",
        "clip_adaptive",
        "beta1",
        "beta2",
        "eps",
        "weight_decay",
        "bias_correction",
        "label_smoothing",
        "z_loss",
        "init_scale",
        "softcap",
        "gradient_scale",
        "poison_step",
        "poison_scale",
        "condition",
        "start_x",
        "start_y",
        "noise_scale",
    }
)
"""Knobs that runs trained as one batch may differ in. Runs that differ in another knob form batches of their
own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Every knob of one run, with its unit. `grid` takes the same names."""

    task: str = "text"
    """One of TASKS."""
    model: str = "transformer"
    """"transformer" or "lstm", for the sequence tasks."""
    optimizer: str = "adamw"
    """A name in `ops.OPTIMIZERS`."""
    schedule: str = "cosine"
    """A name in `ops.SCHEDULES`, or "plateau": halve the rate when the loss stops falling."""
    steps: int = 200
    """Updates."""
    batch: int = 8
    """Sequences in a batch, B."""
    seed: int = 0
    """Draws the initial parameters and the order of the data; runs of one seed see the same of both."""
    lr: float = 3e-3
    """Peak learning rate."""
    warmup_steps: int = 20
    """Steps over which the rate rises linearly; 0 starts at the peak."""
    final_lr_share: float = 0.0
    """Share of the peak rate that the cosine schedule ends on."""
    clip_norm: float = math.inf
    """Largest L2 norm of the whole gradient; inf is off."""
    clip_value: float = math.inf
    """Largest absolute entry of the gradient; inf is off."""
    clip_adaptive: float = math.inf
    """Largest ratio of gradient norm to weight norm, unit by unit; inf is off."""
    beta1: float = 0.9
    """Decay of the first moment, or of momentum."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the AdamW family."""
    bias_correction: bool = True
    """False leaves out Adam's correction of the moments that start at zero."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Weight of (log Z)^2 in the objective."""
    width: int = 32
    """Width of the model, D."""
    layers: int = 2
    """Blocks of the transformer, layers of the LSTM, linear maps of the perceptron."""
    heads: int = 4
    """Attention heads, H."""
    context: int = 32
    """Length of a sequence, L."""
    norm: str = "pre"
    """Layer norm "pre" or "post"."""
    init_scale: float = 1.0
    """Factor on the standard deviation of every initial weight."""
    qk_norm: bool = False
    """Normalise queries and keys."""
    softcap: float = math.inf
    """Soft cap of the attention logits; inf is off."""
    gradient_scale: float = 1.0
    """Factor on the gradient before it is measured: what a badly scaled loss does."""
    poison_step: int = -1
    """Step whose loss is multiplied by poison_scale, a planted fault; -1 is never."""
    poison_scale: float = 1e3
    """Factor of the planted fault; nan plants a NaN."""
    on_non_finite: str = "freeze"
    """What a non-finite loss or gradient does: "freeze" the run, "skip" the step, or "apply" it as loops
    do."""
    condition: float = 20.0
    """Curvature across the ravine, in units of that along it."""
    start_x: float = 10.0
    """Where a run on a surface starts, first coordinate."""
    start_y: float = 1.0
    """Second coordinate, of the ravine."""
    noise_scale: float = 0.0
    """Scale of the Student-t(1.5) noise added to the gradient on a surface: heavy tails, infinite
    variance."""
    sharpness: bool = False
    """Measure the largest eigenvalue of the Hessian (preconditioned for the Adam family): task "regression"
    only."""
    dtype: str = "float32"
    """"float32" or "float64"."""

    def __post_init__(self):
        _check_names(self)
        _check_numbers(self)
        if self.sharpness and self.task != "regression":
            raise ValueError(
                f"Run: sharpness must be False unless task is 'regression'; got task {self.task!r}"
            )

    @property
    def structure(self) -> tuple:
        """What runs must share to be trained as one batch."""
        return tuple((f.name, getattr(self, f.name)) for f in fields(self) if f.name not in NUMERIC)


def _check_names(run: Run) -> None:
    choices = {
        "task": TASKS,
        "model": MODELS,
        "optimizer": tuple(OPTIMIZERS),
        "schedule": (*SCHEDULES, "plateau"),
        "norm": ("pre", "post"),
        "on_non_finite": ON_NON_FINITE,
        "dtype": ("float32", "float64"),
    }
    for name, allowed in choices.items():
        if getattr(run, name) not in allowed:
            raise ValueError(f"Run: {name} must be one of {allowed}; got {getattr(run, name)!r}")


def _check_numbers(run: Run) -> None:
    for name in ("steps", "batch", "width", "layers", "heads", "context"):
        value = getattr(run, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"Run: {name} must be a whole number of at least 1; got {value!r}")
    for name in ("seed", "warmup_steps"):
        value = getattr(run, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"Run: {name} must be a whole number of at least 0; got {value!r}")
    for name in ("clip_norm", "clip_value", "clip_adaptive", "init_scale", "softcap", "condition"):
        if not getattr(run, name) > 0:
            raise ValueError(f"Run: {name} must be > 0 (inf is off); got {getattr(run, name)!r}")
    for name in ("lr", "eps", "weight_decay", "z_loss", "noise_scale"):
        value = getattr(run, name)
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"Run: {name} must be a finite number of at least 0; got {value!r}")
    for name in ("beta1", "beta2", "label_smoothing"):
        if not 0 <= getattr(run, name) < 1:
            raise ValueError(f"Run: {name} must be in [0, 1); got {getattr(run, name)!r}")
    if not 0 <= run.final_lr_share <= 1:
        raise ValueError(f"Run: final_lr_share must be in [0, 1]; got {run.final_lr_share!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Runs to be trained together, and the labels that tell them apart."""

    runs: tuple[Run, ...]
    labels: tuple[dict[str, Any], ...]
    """One dict per run: the knobs that vary."""

    def __post_init__(self):
        if not self.runs or len(self.runs) != len(self.labels):
            raise ValueError(
                f"Experiment: runs must be one or more, with one label each; "
                f"got {len(self.runs)!r} runs, {len(self.labels)!r} labels"
            )
        if len({run.steps for run in self.runs}) > 1:
            raise ValueError(
                "Experiment: steps must be equal for all runs; got several values. Make two experiments."
            )

    @property
    def shared(self) -> dict[str, Any]:
        """The knobs that all runs share."""
        return {name: value for name, value in asdict(self.runs[0]).items() if name not in self.labels[0]}


def _listed(value: Any) -> list | None:
    """The values of a knob that varies, or None for a knob that does not."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None
    values = [item.item() if hasattr(item, "item") else item for item in value]
    if not values:
        raise ValueError("grid: a knob's list must hold a value; got []")
    return values


def grid(task: str = "text", **knobs: Any) -> Experiment:
    """Make the product of all knobs that are given as a list, range or array; the others are shared.

    Knobs are the fields of `Run`. A knob given as a list labels the runs, even with one value.

    Raises: ValueError for an unknown knob or a value out of range, each named
    Lesson: 00-start-here

    >>> experiment = grid("markov", lr=[1e-3, 1e-2], seed=range(3), steps=50)
    >>> len(experiment.runs), experiment.labels[-1]
    (6, {'lr': 0.01, 'seed': 2})
    """
    known = {f.name for f in fields(Run)}
    for name in knobs:
        if name not in known:
            raise ValueError(
                f"grid: knob must be a field of Run; got {name!r}. Known: {', '.join(sorted(known))}"
            )
    knobs = {"task": task, **knobs}
    varying = {name: values for name, value in knobs.items() if (values := _listed(value)) is not None}
    shared = {name: value for name, value in knobs.items() if name not in varying}
    if "steps" in varying:
        raise ValueError(f"grid: steps must be one number for all runs; got {varying['steps']!r}")
    labels = tuple(dict(zip(varying, values, strict=True)) for values in itertools.product(*varying.values()))
    first = Run(**shared | labels[0])
    return Experiment(runs=tuple(replace(first, **label) for label in labels), labels=labels)
