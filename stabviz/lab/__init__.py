"""Many tiny runs at once: the knobs of an experiment, and the engine that trains its runs together.

    trace = train(grid("text", lr=[1e-3, 1e-2], seed=range(4), steps=200))

`grid` takes functions of your own for optimizer, clip, attention, loss and schedule (`lab.functions`);
`ablate` tells which change takes away how much of a gap.

The only room in which the run axis R exists. Imports ops, models and trace.
"""

from stabviz.lab.ablation import Ablation, AblationRow, ablate, ablation_of
from stabviz.lab.experiment import KNOBS, Experiment, Run, grid
from stabviz.lab.messages import INTENTS, Messages, desk_messages, intent_logits
from stabviz.lab.parts import adam_by_part, guarded_adam
from stabviz.lab.passages import Passages, neighbours_score, reading_loss, text_passages, unit
from stabviz.lab.runs import Trained, stream, train
from stabviz.lab.saturation import HEAD_WIDTHS, random_attention
from stabviz.lab.tasks import (
    Corpus,
    copy_tokens,
    markov_corpus,
    quartic,
    ravine,
    regression_points,
    text_corpus,
)

__all__ = [
    "HEAD_WIDTHS",
    "INTENTS",
    "KNOBS",
    "Ablation",
    "AblationRow",
    "Corpus",
    "Experiment",
    "Messages",
    "Passages",
    "Run",
    "Trained",
    "ablate",
    "ablation_of",
    "adam_by_part",
    "copy_tokens",
    "desk_messages",
    "grid",
    "guarded_adam",
    "intent_logits",
    "markov_corpus",
    "neighbours_score",
    "quartic",
    "random_attention",
    "ravine",
    "reading_loss",
    "regression_points",
    "stream",
    "text_corpus",
    "text_passages",
    "train",
    "unit",
]
