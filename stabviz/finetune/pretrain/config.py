"""`PretrainConfig`: the settings of a pretraining run. The flags of `stabviz pretrain` are made from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from tyro.conf import arg as flag

from stabviz.finetune.config import (
    DATA,
    LoopConfig,
    MaybeText,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    at_least,
    must,
    share,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """What is read, and what is hidden in it."""

    messages: Annotated[Path | None, flag(metavar="PATH")] = DATA / "support-desk" / "train.jsonl"
    """JSON lines with a "text" column, added to the standard library's prose; None: that prose alone."""
    held_out: float = 0.03
    """Share of the documents, chosen by seed, that are never trained on and measure the loss."""
    vocab_size: int = 4096
    """Word pieces, special tokens included."""
    max_length: int = 128
    """Longest row in word pieces, and the positions that the model has."""
    mask_share: float = 0.15
    """Share of the pieces that are to be predicted."""
    random_next: float = 0.5
    """Share of the pairs whose second part comes from another document."""

    def __post_init__(self):
        object.__setattr__(self, "messages", None if self.messages is None else Path(self.messages))
        must(self, "held_out mask_share", lambda x: 0 < x < 1, "in (0, 1)")
        must(self, "random_next", lambda x: 0 <= x <= 1, "in [0, 1]")
        must(self, "vocab_size", *at_least(100))
        must(self, "max_length", *at_least(8))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeConfig:
    """The BERT that is made."""

    width: int = 128
    """Width of the model; feed-forward layers are four times as wide."""
    layers: int = 4
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    dropout: float = 0.0
    """Dropout while pretraining: a small model on fresh masks does not overfit."""
    checkpoint_dropout: float = 0.1
    """Dropout that the checkpoint asks of who fine-tunes it."""

    def __post_init__(self):
        must(self, "layers heads", *at_least(1))
        must(self, "width", lambda n: n >= 1 and n % self.heads == 0, f"a multiple of heads = {self.heads}")
        must(self, "dropout checkpoint_dropout", share, "in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilConfig:
    """From whom it learns, if not from text alone."""

    teacher: MaybeText = None
    """A model whose hidden states are learnt in place of masked words: minilm, a folder, or a Hugging Face
    id."""
    student: MaybeText = None
    """A model to start from, e.g. minilm:3, as it is cut; None: one of the shape below, drawn by seed, whose
    pieces are some of the teacher's and whose embeddings begin as the teacher's."""
    masked_weight: float = 0.1
    """Weight of masked words, which a drawn student learns beside its teacher's states; 0: none."""
    swapped_texts: float = 1.0
    """Copies with three words in ten replaced beside the documents, as a share of their number."""

    def __post_init__(self):
        must(self, "student", lambda name: name is None or self.teacher, "left out without a teacher")
        must(self, "masked_weight swapped_texts", lambda x: x >= 0, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig(LoopConfig):
    """A tokenizer and a small BERT, from text alone or from a teacher."""

    text: TextConfig = TextConfig()
    distil: DistilConfig = DistilConfig()
    shape: ShapeConfig = ShapeConfig()
    run: RunConfig = RunConfig(out=Path("runs/pretrain"), save_every=250, signals_every=50)
    # small batches learn most for the time here: measured in lesson 09
    train: TrainConfig = TrainConfig(
        steps=6000,
        batch=16,
        lr=1e-3,
        warmup_steps=300,
        evaluate_every=500,
        optimizer=OptimizerConfig(beta2=0.98),
    )
    threads: int = 1
    """Threads of torch on a CPU; one is fastest for a model this narrow."""

    def __post_init__(self):
        must(self, "threads", *at_least(1))
        must(self.run, "seeds", lambda n: n == 1, "1 for pretraining")
        must(self.train, "lr", lambda x: x is not None, "a number for pretraining")
        must(self.train.compute, "packing", lambda on: not on, "off for pretraining, whose rows are pairs")

    @classmethod
    def of_folder(cls, folder: str | Path) -> Self:
        """Read the settings of a run from its folder, with the folder as it is called now.

        Raises: ValueError if the folder holds no pretraining run
        """
        path = Path(folder) / "pretrain.json"
        if not path.exists():
            raise ValueError(
                f"PretrainConfig.of_folder: {folder} must be the folder of a pretraining run; "
                f"it holds no {path.name}"
            )
        return cls.load(path).replace(out=folder, overwrite=False)
