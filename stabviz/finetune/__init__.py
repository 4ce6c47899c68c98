"""One real run, from text to a verdict: configuration, data, loop, checkpoints, scores. Imports ops, models and trace."""

from stabviz.finetune.config import FinetuneConfig

__all__ = ["FinetuneConfig"]
