"""One real run, from text to a verdict: configuration, data, loop, checkpoints, scores."""

from stabviz.finetune.config import FinetuneConfig

__all__ = ["FinetuneConfig"]
