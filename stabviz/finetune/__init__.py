"""One real run, from text to a verdict: configuration, data, loop, checkpoints, scores.

What needs transformers is imported when it is first asked for: reading a config takes no seconds.
"""

from importlib import import_module

from stabviz.finetune.config import FinetuneConfig

_LATER = {
    "finetune": "run",
    "finetune_seeds": "run",
    "predict": "run",
    "load_outcome": "run",
    "Outcome": "run",
    "read_splits": "data.splits",
    "PretrainConfig": "pretrain.config",
    "StabilityCallback": "trainer_callback",
}
__all__ = ["FinetuneConfig", *_LATER]


def __getattr__(name: str):
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
