"""What one training step measures: every signal's name, unit and meaning, in the order of the step.

A signal of one layer is called "<signal>/<layer>", for example "grad_norm_preclip/block0". The total
carries the bare name, so that "grad_norm_preclip" is always the norm over all parameters.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Signal:
    """One measured quantity of a training step."""

    name: str
    unit: str
    """Unit for an axis label; "" for a pure number."""
    label: str
    """Name for an axis, without the unit."""
    meaning: str
    """One sentence that says what is measured, and at which point of the step."""

    @property
    def axis_label(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


_REGISTERED = (
    Signal("lr", "", "learning rate", "Learning rate of this step, after the schedule."),
    Signal(
        "loss_nats",
        "nats",
        "loss",
        "Objective before the update: mean over the tokens that count; not nats if no text.",
    ),
    Signal(
        "accuracy", "share", "accuracy", "Share of counted predictions that are right, before the update."
    ),
    Signal(
        "log_z",
        "nats",
        "mean log Z of the output",
        "Log of the output softmax's denominator, mean over the tokens that count.",
    ),
    Signal(
        "mean_logit",
        "nats",
        "mean output logit",
        "Mean of the output logits over tokens and classes, their common height: the softmax ignores it.",
    ),
    Signal(
        "max_attention_logit",
        "",
        "largest |attention logit|",
        "Largest |logit| before any cap, over layers, heads, allowed pairs (a real run: of 8 rows).",
    ),
    Signal(
        "attention_entropy",
        "nats",
        "attention entropy",
        "Entropy of an attention row, mean over rows, heads, layers; 0 = one key has all.",
    ),
    Signal(
        "grad_norm_preclip",
        "",
        "gradient norm before clipping",
        "L2 norm of the gradient over all parameters, as the backward pass left it.",
    ),
    Signal("clipped", "share", "clipped", "1 where clipping changed the gradient of this step, else 0."),
    Signal(
        "update_rms",
        "lr",
        "RMS of the update",
        "Root mean square of the parameter change over the learning rate.",
    ),
    Signal(
        "second_moment_ratio",
        "",
        "RMS of g / sqrt(v)",
        "Root mean square of g/sqrt(v) over the parameters; far above 1 = v lags behind g.",
    ),
    Signal("param_norm", "", "parameter norm", "L2 norm of all parameters, before the update."),
    Signal(
        "loss_scale",
        "",
        "loss scale",
        "Factor on the loss before an fp16 backward pass; the gradients are divided by it again.",
    ),
    Signal(
        "targets", "", "targets", "Labels that count in the batch: rows, or word pieces that are not ignored."
    ),
    Signal(
        "updates",
        "",
        "updates",
        "Updates made before this step; a skipped step makes none, a rewind takes some back.",
    ),
    Signal(
        "held_out_loss_nats",
        "nats",
        "held-out loss",
        "Cross-entropy after this step on the end of the corpus, which no batch is drawn from.",
    ),
    Signal(
        "validation_loss_nats",
        "nats",
        "validation loss",
        "Cross-entropy on the validation split after this step, mean over the labels that count.",
    ),
    Signal(
        "validation_score",
        "",
        "validation score",
        "Accuracy, F1 or what metric names, on the validation split; negated where less is more.",
    ),
    Signal("reward", "", "reward", "What reinforcement or preference learning raises; its loss says little."),
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
        return Signal(name, "", name.replace("_", " "), "")
    known = SIGNALS[base]
    return replace(known, name=name, label=f"{known.label}, {layer}" if layer else known.label)
