"""`PretrainConfig`: the one definition of a pretraining run. The flags of `stabviz pretrain` are made from
it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stabviz.files import as_number, loads
from stabviz.finetune.config import DATA, FinetuneConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """One pretraining run: a tokenizer and a small BERT, from text alone. The defaults made
    data/stabviz-mini."""

    messages: Path | None = DATA / "support-desk" / "train.jsonl"
    """JSON lines with a "text" column, added to the standard library's prose; None: that prose alone."""
    held_out: float = 0.03
    """Share of the documents, chosen by seed, that are never trained on and measure the loss."""
    vocab_size: int = 4096
    """Word pieces, special tokens included."""
    max_length: int = 128
    """Longest row in word pieces, and the positions that the model has."""

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

    mask_share: float = 0.15
    """Share of the pieces that are to be predicted."""
    random_next: float = 0.5
    """Share of the pairs whose second part comes from another document."""

    steps: int = 6000
    """Updates."""
    batch: int = 16
    """Rows of one update. Small ones learn most for the time here: measured in lesson 09."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 300
    """Steps over which the rate rises; it then falls linearly to 0."""
    beta2: float = 0.98
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Adam's epsilon; a gradient far below it starves."""
    weight_decay: float = 0.01
    """Decoupled weight decay; biases and layer norms are spared."""
    clip_norm: float = 1.0
    """Largest L2 norm of the gradient; inf is off."""

    threads: int = 1
    """Threads of torch on a CPU; one is fastest for a model this narrow."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward and backward pass."""
    deterministic: bool = False
    """Ask torch for deterministic kernels."""
    evaluate_every: int = 500
    """Steps between two measurements on the documents held out."""
    save_every: int = 250
    """Steps between two checkpoints; 0: none but the last."""
    signals_every: int = 50
    """Steps between two measurements of the costly signals."""
    progress: bool = True
    """Show a progress bar."""
    overwrite: bool = False
    """Clear what an earlier run left in OUT."""
    seed: int = 0
    """Seed of the weights, the order, the masks, the pairs and the held-out documents."""
    stop_after: int | None = None
    """Stop and save after this many updates, as if interrupted; None: never."""
    out: Path = Path("runs/pretrain")
    """Folder of the run; the checkpoint is OUT/pretrained, in transformers' format."""

    def __post_init__(self):
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "messages", None if self.messages is None else Path(self.messages))
        for name, holds, constraint in (
            ("held_out", 0 < self.held_out < 1, "in (0, 1)"),
            ("vocab_size", self.vocab_size >= 100, "at least 100"),
            ("max_length", self.max_length >= 8, "at least 8"),
            ("layers", self.layers >= 1, "at least 1"),
            ("heads", self.heads >= 1, "at least 1"),
            (
                "width",
                self.width >= 1 and self.width % max(self.heads, 1) == 0,
                f"a multiple of heads = {self.heads}",
            ),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("checkpoint_dropout", 0 <= self.checkpoint_dropout < 1, "in [0, 1)"),
            ("mask_share", 0 < self.mask_share < 1, "in (0, 1)"),
            ("random_next", 0 <= self.random_next <= 1, "in [0, 1]"),
            ("threads", self.threads >= 1, "at least 1"),
        ):
            if not holds:
                raise ValueError(f"PretrainConfig: {name} must be {constraint}; got {getattr(self, name)!r}")
        self.loop()  # the loop's own checks

    def loop(self) -> FinetuneConfig:
        """Return the settings of the loop that trains: the same loop, with the masked language model to
        minimise."""
        shared = (
            "max_length",
            "steps",
            "batch",
            "lr",
            "warmup_steps",
            "beta2",
            "eps",
            "weight_decay",
            "clip_norm",
            "device",
            "precision",
            "deterministic",
            "evaluate_every",
            "save_every",
            "signals_every",
            "progress",
            "overwrite",
            "seed",
            "stop_after",
            "out",
        )
        return FinetuneConfig(
            data="pretraining",
            model="from scratch",
            from_scratch=True,
            dropout=self.dropout,
            schedule="linear",
            **{name: getattr(self, name) for name in shared},
        )

    def replace(self, **changes) -> "PretrainConfig":
        """Return a copy with these fields set anew, checked again."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that `files.dumps` can hold."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {
            "out": str(self.out),
            "messages": None if self.messages is None else str(self.messages),
        }

    @classmethod
    def load(cls, folder: str | Path) -> "PretrainConfig":
        """Read the settings of a run from its folder, with the folder as it is called now.

        Raises: ValueError if the folder holds no pretraining run
        """
        path = Path(folder) / "pretrain.json"
        if not path.exists():
            raise ValueError(
                f"PretrainConfig.load: {folder} must be the folder of a pretraining run; "
                f"it holds no {path.name}"
            )
        plain = loads(path.read_text(encoding="utf-8"))
        return cls(
            **{name: as_number(value) for name, value in plain.items()} | {"out": folder, "overwrite": False}
        )
