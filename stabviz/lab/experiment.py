"""What to run: `Run` holds every knob of one run, `grid` makes the product of those that vary.

A knob is one line of `Run`. What else is asked about knobs (the checks, which of them may differ inside a
batch, who is handed what) follows from that line; `KNOBS` is the table of them.
"""

import itertools
import math
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from stabviz.models.transformer import INIT_GROUPS, PLACEMENTS
from stabviz.ops import OPTIMIZERS, SCHEDULES

TASKS = ("text", "markov", "copy", "masked", "intents", "ravine", "quartic", "bowl", "regression", "pairs")
CORPORA = ("text", "markov")
SEQUENCES = (*CORPORA, "copy", "masked")
HOLDS_OUT = (*CORPORA, "pairs")
MODELS = ("transformer", "lstm", "rnn")
RECURRENT = ("lstm", "rnn")
FUNCTIONS = ("optimizer", "clip", "attention", "block", "loss", "schedule")
"""Knobs that take a function of the reader's own; `lab.functions` says what it gets and returns."""

Condition = tuple[Callable[[Any], bool], str]
"""What a value must fulfil, and the same in words."""


def _whole_from(least: int) -> Condition:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return fits, f"a whole number of at least {least}"


POSITIVE: Condition = (lambda value: value > 0, "> 0 (inf is off)")
NOT_NEGATIVE: Condition = (lambda value: 0 <= value < math.inf, "a finite number of at least 0")
BELOW_ONE: Condition = (lambda value: 0 <= value < 1, "in [0, 1)")
SHARE: Condition = (lambda value: 0 <= value <= 1, "in [0, 1]")
FUNCTION: Condition = (lambda value: value is None or callable(value), "a function or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One line of the table of knobs."""

    name: str
    kind: str
    """"int", "float", "bool" or "str"; "str | Callable" where a function of the reader's own fits."""
    default: Any
    reader: str
    """Who reads it: "data", "model", "start" (initial values), "objective", "fault", "clip", "optimizer",
    "schedule" or "engine"."""
    unit: str = ""
    numeric: bool = False
    """True: runs trained as one batch may differ in it. Runs that differ in another form batches of their
    own."""
    condition: Condition | None = None
    choices: Collection[str] | None = None

    def check(self, value: Any) -> None:
        """Raise ValueError, naming knob and value, unless the value fits."""
        fits, words = self.condition or (lambda value: True, "")
        if (names := self.choices) is not None:
            takes_yours = self.name in FUNCTIONS
            words = f"one of {tuple(names)}" + (" or a function" if takes_yours else "")
            fits = lambda value: value in names or (takes_yours and callable(value))  # noqa: E731
        if not fits(value):
            raise ValueError(f"Run: {self.name} must be {words}; got {value!r}")
        if self.name in FUNCTIONS and not isinstance(value, Hashable):
            # Runs of one function are found by it, and trained as one batch.
            raise ValueError(f"Run: {self.name} must be a function that can be hashed; got {value!r}")


def _knob(default: Any, reader: str, condition: Condition | None = None, **about: Any) -> Any:
    return field(default=default, metadata={"reader": reader, "condition": condition} | about)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Every knob of one run, with its unit. `grid` takes the same names."""

    task: str = _knob("text", "data", choices=TASKS)
    """One of TASKS."""
    model: str = _knob("transformer", "model", choices=MODELS)
    """"transformer", "lstm" or "rnn" (plain, tanh), for the sequence tasks."""
    optimizer: str | Callable = _knob("adamw", "optimizer", choices=OPTIMIZERS)
    """A name in `ops.OPTIMIZERS`, or a step of your own."""
    clip: Callable | None = _knob(None, "clip", FUNCTION)
    """A clip rule of your own, in place of the three below; its limit is clip_norm."""
    attention: Callable | None = _knob(None, "model", FUNCTION)
    """Attention of your own, in place of `ops.scaled_dot_product_attention`."""
    block: Callable | None = _knob(None, "model", FUNCTION)
    """A transformer block of your own, in place of that in `models.transformer_logits`."""
    loss: Callable | None = _knob(None, "objective", FUNCTION)
    """A loss of your own, in place of `ops.cross_entropy`, or of InfoNCE in the task "pairs"."""
    schedule: str | Callable = _knob("cosine", "schedule", choices=(*SCHEDULES, "plateau"))
    """A name in `ops.SCHEDULES`, "plateau" (halve the rate when the loss stops falling), or your own."""
    steps: int = _knob(200, "engine", _whole_from(1), unit="updates")
    """Updates."""
    batch: int = _knob(8, "data", _whole_from(1), unit="sequences")
    """Sequences in a batch, B."""
    seed: int = _knob(0, "start", _whole_from(0), numeric=True)
    """Draws the initial parameters and the order of the data; runs of one seed see the same of both."""
    lr: float = _knob(3e-3, "schedule", NOT_NEGATIVE, numeric=True)
    """Peak learning rate."""
    warmup_steps: int = _knob(20, "schedule", _whole_from(0), unit="updates", numeric=True)
    """Steps over which the rate rises linearly; 0 starts at the peak."""
    final_lr_share: float = _knob(0.0, "schedule", SHARE, unit="lr", numeric=True)
    """Share of the peak rate that the cosine schedule ends on."""
    clip_norm: float = _knob(math.inf, "clip", POSITIVE, numeric=True)
    """Largest L2 norm of the whole gradient; inf is off."""
    clip_value: float = _knob(math.inf, "clip", POSITIVE, numeric=True)
    """Largest absolute entry of the gradient; inf is off."""
    clip_adaptive: float = _knob(math.inf, "clip", POSITIVE, numeric=True)
    """Largest ratio of gradient norm to weight norm, unit by unit; inf is off."""
    beta1: float = _knob(0.9, "optimizer", BELOW_ONE, numeric=True)
    """Decay of the first moment, or of momentum."""
    beta2: float = _knob(0.95, "optimizer", BELOW_ONE, numeric=True)
    """Decay of the second moment."""
    eps: float = _knob(1e-8, "optimizer", NOT_NEGATIVE, numeric=True)
    """Added to the root of the second moment."""
    weight_decay: float = _knob(0.0, "optimizer", NOT_NEGATIVE, numeric=True)
    """Decoupled weight decay of the AdamW family."""
    qk_lr_scale: float = _knob(1.0, "engine", NOT_NEGATIVE, numeric=True)
    """Factor on the update of query and key weights alone, so on their rate; 0 keeps them as drawn."""
    vo_lr_scale: float = _knob(1.0, "engine", NOT_NEGATIVE, numeric=True)
    """The same for the value and output weights of attention."""
    bias_correction: bool = _knob(True, "optimizer", numeric=True)
    """False leaves out Adam's correction of the moments that start at zero."""
    label_smoothing: float = _knob(0.0, "objective", BELOW_ONE, unit="share", numeric=True)
    """Share of the target spread evenly over the vocabulary."""
    z_loss: float = _knob(0.0, "objective", NOT_NEGATIVE, unit="1/nats", numeric=True)
    """Weight of (log Z)^2 in the objective."""
    temperature: float = _knob(0.1, "objective", POSITIVE, numeric=True)
    """What InfoNCE divides cosines by, in the task "pairs"."""
    width: int = _knob(32, "model", _whole_from(1))
    """Width of the model, D."""
    layers: int = _knob(2, "model", _whole_from(1))
    """Blocks of the transformer, layers of the LSTM, linear maps of the perceptron."""
    heads: int = _knob(4, "model", _whole_from(1))
    """Attention heads, H."""
    context: int = _knob(32, "data", _whole_from(1), unit="tokens")
    """Length of a sequence, L."""
    mask_share: float = _knob(0.15, "data", SHARE, unit="share", numeric=True)
    """Share of the characters that are asked for, and spoiled by BERT's 80/10/10 rule, in the task
    "masked"."""
    held_out: float = _knob(0.0, "data", BELOW_ONE, unit="share")
    """Share of the corpus, its end, that no batch is drawn from; held_out_loss_nats is measured on it."""
    norm: str = _knob("pre", "model", choices=PLACEMENTS)
    """Layer norm "pre", "post" or "deepnorm"."""
    init_scale: float = _knob(1.0, "start", POSITIVE, numeric=True)
    """Factor on the standard deviation of every initial weight, or of those that init_scale_of names."""
    init_scale_of: str = _knob("all", "start", choices=INIT_GROUPS)
    """What init_scale reaches in a transformer: "all", "branches", "writers" (to the stream) or "ends"."""
    recurrent_scale: float = _knob(1.0, "start", POSITIVE, numeric=True)
    """Factor on the initial recurrent weights alone, of "lstm" and "rnn"."""
    detach_state: bool = _knob(False, "model")
    """"lstm" and "rnn": no gradient travels back through the state from place to place; the forward pass is
    the same."""
    qk_norm: bool = _knob(False, "model")
    """Normalise queries and keys."""
    qk_clip: float = _knob(math.inf, "engine", POSITIVE)
    """After each update, scale a head's query and key weights until its largest logit is at most this; inf is
    off."""
    softcap: float = _knob(math.inf, "objective", POSITIVE, numeric=True)
    """Soft cap of the attention logits; inf is off."""
    gradient_scale: float = _knob(1.0, "fault", numeric=True)
    """Factor on the gradient before it is measured: what a badly scaled loss does."""
    poison_step: int = _knob(-1, "fault", unit="updates", numeric=True)
    """Step whose loss is multiplied by poison_scale, a planted fault; -1 is never."""
    poison_scale: float = _knob(1e3, "fault", numeric=True)
    """Factor of the planted fault; nan plants a NaN."""
    on_non_finite: str = _knob("freeze", "engine", choices=("freeze", "skip", "apply"))
    """What a non-finite loss or gradient does: "freeze" the run, "skip" the step, or "apply" it as loops
    do."""
    condition: float = _knob(20.0, "objective", POSITIVE, numeric=True)
    """Curvature across the ravine, in units of that along it."""
    start_x: float = _knob(10.0, "start", numeric=True)
    """Where a run on a surface starts, first coordinate."""
    start_y: float = _knob(1.0, "start", numeric=True)
    """Second coordinate, of the ravine."""
    noise_scale: float = _knob(0.0, "data", NOT_NEGATIVE, numeric=True)
    """Scale of the Student-t(1.5) noise added to the gradient on a surface: heavy tails, infinite
    variance."""
    sharpness: bool = _knob(False, "engine")
    """Measure the largest eigenvalue of the Hessian (preconditioned for the Adam family): of task
    "regression", and of "lstm" and "rnn"."""
    sharpness_every: int = _knob(1, "engine", _whole_from(1), unit="updates")
    """Steps between two measurements of the sharpness; each costs as much as several steps."""
    linearise_step: int = _knob(-1, "engine", _whole_from(-1), unit="updates")
    """Step from which the perceptron is replaced by its tangent there, whose loss is a parabola of fixed
    curvature; -1 is never. Task "regression" only."""
    dtype: str = _knob("float32", "engine", choices=("float32", "float64"))
    """"float32" or "float64"."""

    def __post_init__(self):
        for knob in KNOBS.values():
            knob.check(getattr(self, knob.name))
        tokens = self.task in SEQUENCES
        recurrent = tokens and self.model in RECURRENT
        attends = (tokens or self.task == "intents") and self.model == "transformer"
        for name, fits, must in (
            (
                "sharpness",
                self.task == "regression" or recurrent,
                "False unless task is 'regression' or model recurrent",
            ),
            ("mask_share", self.task == "masked", "0.15 unless task is 'masked'"),
            ("model", self.task not in ("masked", "intents"), "'transformer' for what looks to both sides"),
            ("linearise_step", self.task == "regression", "-1 unless task is 'regression'"),
            ("held_out", self.task in HOLDS_OUT, f"0 unless task is one of {HOLDS_OUT}"),
            ("attention", tokens and self.model == "transformer", "None without a transformer"),
            ("qk_lr_scale", attends, "1 without a transformer"),
            ("block", tokens and self.model == "transformer", "None without a transformer"),
            ("attention", self.block is None, "None beside a block of your own, which brings its attention"),
            ("init_scale_of", attends, "'all' without a transformer"),
            ("vo_lr_scale", attends, "1 without a transformer"),
            ("loss", tokens or self.task in ("intents", "pairs"), f"None for task {self.task!r}"),
            ("recurrent_scale", recurrent, f"1 unless model is one of {RECURRENT}"),
            ("detach_state", recurrent, f"False unless model is one of {RECURRENT}"),
            # Behind a norm, smaller weights make no smaller logits: the rule would shrink them for ever.
            (
                "qk_clip",
                tokens
                and self.model == "transformer"
                and not self.qk_norm
                and self.attention is self.block is None,
                "inf without a transformer's own attention, free of qk_norm",
            ),
        ):
            if not fits and getattr(self, name) != KNOBS[name].default:
                got = f"{named(getattr(self, name))} with task {self.task!r}"
                raise ValueError(f"Run: {name} must be {must}; got {got}")

    @property
    def structure(self) -> tuple:
        """What runs must share to be trained as one batch."""
        return tuple((name, getattr(self, name)) for name, knob in KNOBS.items() if not knob.numeric)


KNOBS: dict[str, Knob] = {
    f.name: Knob(name=f.name, kind=str(getattr(f.type, "__name__", f.type)), default=f.default, **f.metadata)
    for f in fields(Run)
}
"""The table of knobs, by name, read off the lines of `Run`."""


def numeric_knobs(*readers: str) -> tuple[str, ...]:
    """Return the names of the numeric knobs that one of `readers` reads."""
    return tuple(name for name, knob in KNOBS.items() if knob.numeric and knob.reader in readers)


def named(value: Any) -> Any:
    """Return the name of a function, and anything else as it is: what labels and records hold."""
    return getattr(value, "__name__", type(value).__name__) if callable(value) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Runs to be trained together, and the labels that tell them apart."""

    runs: tuple[Run, ...]
    labels: tuple[dict[str, Any], ...]
    """One dict per run: the knobs that vary; a function by its name."""

    def __post_init__(self):
        if not self.runs or len(self.runs) != len(self.labels):
            got = f"{len(self.runs)} runs, {len(self.labels)} labels"
            raise ValueError(f"Experiment: runs must be one or more, with one label each; got {got}")
        if len({run.steps for run in self.runs}) > 1:
            raise ValueError("Experiment: steps must be equal for all runs; got several: make two of it")

    @property
    def shared(self) -> dict[str, Any]:
        """The knobs that all runs share."""
        return {name: named(getattr(self.runs[0], name)) for name in KNOBS if name not in self.labels[0]}


def _listed(value: Any) -> list | None:
    """The values of a knob that varies, or None for a knob that does not."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None
    # numpy's numbers become Python's: a knob is checked with isinstance, and compared and hashed.
    values = [item.item() if hasattr(item, "item") else item for item in value]
    if not values:
        raise ValueError("grid: a knob's list must hold a value; got []")
    return values


def grid(task: str = "text", **knobs: Any) -> Experiment:
    """Make the product of all knobs that are given as a list, range or array; the others are shared.

    Knobs are the fields of `Run`. A knob given as a list labels the runs, even with one value. `optimizer`,
    `clip`, `attention`, `block`, `loss` and `schedule` take a function of yours: see `lab.functions`.

    Raises: ValueError for an unknown knob or a value out of range, each named
    Lesson: 00-start-here

    >>> experiment = grid("markov", lr=[1e-3, 1e-2], seed=range(3), steps=50)
    >>> len(experiment.runs), experiment.labels[-1]
    (6, {'lr': 0.01, 'seed': 2})
    """
    for name in knobs:
        if name not in KNOBS:
            known = ", ".join(sorted(KNOBS))
            raise ValueError(f"grid: knob must be a field of Run; got {name!r}. Known: {known}")
    knobs = {"task": task, **knobs}
    varying = {name: values for name, value in knobs.items() if (values := _listed(value)) is not None}
    shared = {name: value for name, value in knobs.items() if name not in varying}
    if "steps" in varying:
        raise ValueError(f"grid: steps must be one number for all runs; got {varying['steps']!r}")
    for name in FUNCTIONS:
        # Labels hold names: two functions of one name would be one line in a plot.
        names = [named(value) for value in dict.fromkeys(varying.get(name, ()))]
        if len(set(names)) < len(names):
            raise ValueError(f"grid: functions of {name} must differ in their names; got {names}")
    settings = [dict(zip(varying, values, strict=True)) for values in itertools.product(*varying.values())]
    first = Run(**shared | settings[0])
    return Experiment(
        runs=tuple(replace(first, **setting) for setting in settings),
        labels=tuple({name: named(value) for name, value in setting.items()} for setting in settings),
    )
