"""What one training step measures: every signal's name, unit and meaning, in the order of the step.

A signal of one layer is called "<signal>/<layer>", for example "grad_norm_preclip/block0". The total
carries the bare name, so that "grad_norm_preclip" is always the norm over all parameters.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One measured quantity of a training step."""

    name: str
    unit: str
    """Unit for an axis label; "" for a pure number."""
    meaning: str
    """One sentence that says what is measured, and at which point of the step."""
    label: str
    """Name for an axis, without the unit."""

    @property
    def axis_label(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


_REGISTERED = (
    Signal(
        name="lr", unit="", label="learning rate", meaning="Learning rate of this step, after the schedule."
    ),
    Signal(
        name="loss_nats",
        unit="nats",
        label="loss",
        meaning="Objective before the update: mean over the tokens that count; not nats if no text.",
    ),
    Signal(
        name="accuracy",
        unit="share",
        label="accuracy",
        meaning="Share of counted predictions whose most likely class is the target, before the update.",
    ),
    Signal(
        name="log_z",
        unit="nats",
        label="mean log Z of the output",
        meaning="Log of the output softmax's denominator, mean over the tokens that count.",
    ),
    Signal(
        name="max_attention_logit",
        unit="",
        label="largest |attention logit|",
        meaning="Largest |logit| before any cap, over layers, heads, allowed pairs (a real run: of 8 rows).",
    ),
    Signal(
        name="attention_entropy",
        unit="nats",
        label="attention entropy",
        meaning="Entropy of an attention row, mean over rows, heads, layers; 0 = one key has all.",
    ),
    Signal(
        name="grad_norm_preclip",
        unit="",
        label="gradient norm before clipping",
        meaning="L2 norm of the gradient over all parameters, as the backward pass left it.",
    ),
    Signal(
        name="clipped",
        unit="share",
        label="clipped",
        meaning="1 where clipping changed the gradient of this step, else 0.",
    ),
    Signal(
        name="update_rms",
        unit="lr",
        label="RMS of the update",
        meaning="Root mean square of the parameter change, divided by the learning rate.",
    ),
    Signal(
        name="second_moment_ratio",
        unit="",
        label="RMS of g / sqrt(v)",
        meaning="Root mean square of g/sqrt(v) over the parameters; far above 1 = v lags behind g.",
    ),
    Signal(
        name="param_norm",
        unit="",
        label="parameter norm",
        meaning="L2 norm of all parameters, before the update.",
    ),
    Signal(
        name="loss_scale",
        unit="",
        label="loss scale",
        meaning="Factor on the loss before an fp16 backward pass; the gradients are divided by it again.",
    ),
    Signal(
        name="targets",
        unit="",
        label="targets",
        meaning="Labels that count in the batch: rows, or word pieces that are not ignored.",
    ),
    Signal(
        name="updates",
        unit="",
        label="updates",
        meaning="Updates made before this step; a skipped step makes none, a rewind takes some back.",
    ),
    Signal(
        name="held_out_loss_nats",
        unit="nats",
        label="held-out loss",
        meaning="Cross-entropy after this step on the end of the corpus, which no batch is drawn from.",
    ),
    Signal(
        name="validation_loss_nats",
        unit="nats",
        label="validation loss",
        meaning="Cross-entropy on the validation split after this step, mean over the labels that count.",
    ),
    Signal(
        name="validation_score",
        unit="",
        label="validation score",
        meaning="Accuracy of classes, or F1 of entities, on the validation split after this step.",
    ),
)

SIGNALS: dict[str, Signal] = {signal.name: signal for signal in _REGISTERED}


def signal_of(name: str) -> Signal:
    """Look up a signal by name; "<signal>/<layer>" finds the signal and names the layer in its label.

    An unknown name is answered with a bare Signal of that name: a method may measure what is its own.

    >>> signal_of("loss_nats").axis_label
    'loss (nats)'
    >>> signal_of("grad_norm_preclip/block0").axis_label
    'gradient norm before clipping, block0'
    """
    base, _, layer = name.partition("/")
    if base not in SIGNALS:
        return Signal(name=name, unit="", label=name.replace("_", " "), meaning="")
    known = SIGNALS[base]
    return replace(known, name=name, label=f"{known.label}, {layer}" if layer else known.label)
