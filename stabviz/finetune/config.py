"""`FinetuneConfig`: the one definition of a run. The command line's flags and their help are made from it."""

import dataclasses
import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stabviz.files import as_number, loads
from stabviz.ops import SCHEDULES

DATA = Path(__file__).resolve().parent.parent.parent / "data"
"""The project's own corpora, present in a clone."""
MAY_CHANGE = (
    "out",
    "overwrite",
    "save_every",
    "keep",
    "flush_every",
    "tensorboard",
    "workers",
    "progress",
    "stop_after",
    "seeds",
)
"""Fields that a resumed run may set anew: they do not touch the mathematics of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """One fine-tuning run, from text to a verdict. A number that is a length or a count is in rows or
    steps."""

    data: str = "support-desk"
    """support-desk, docstrings, a .csv, .jsonl, .json or .parquet file, a folder of them, or a Hugging Face
    id."""
    data_config: str | None = None
    """Configuration of a Hugging Face data set that has several."""
    text: str = "text"
    """Column of the text; with tags a list of words, or one string that is split at spaces."""
    label: str | None = None
    """Column of the class. Left out with tags; the data set's own default otherwise."""
    tags: str | None = None
    """Column of BIO tags, one a word: named entities instead of classes."""
    validation_share: float = 0.1
    """Share of the training rows set aside where the data has no validation split: by seed, stratified by
    class."""
    test_share: float = 0.1
    """The same for a test split."""
    max_train_rows: int | None = None
    """Use only this many training rows, chosen by seed."""
    label_noise: float = 0.0
    """Share of training labels replaced by a wrong one, by seed. Validation and test stay clean."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """An unknown label, empty text, ragged tags, a broken line: stop with file, row and column, or skip and
    count."""
    max_length: int = 128
    """Longest text in word pieces, special tokens included."""

    model: str = "stabviz-mini"
    """stabviz-mini (the checkpoint in data/), minilm (see README), a folder, or a Hugging Face model id."""
    implementation: Literal["transformers", "stabviz"] = "transformers"
    """Who computes the model: transformers, or our own BERT on stabviz.ops (BERT checkpoints only)."""
    from_scratch: bool = False
    """Draw the weights anew, by seed, instead of loading them: what pretraining is worth."""
    dropout: float | None = None
    """Dropout of hidden states and attention; None: as the checkpoint says."""
    freeze: tuple[str, ...] = ()
    """Parameters whose name contains one of these stay as they are, e.g. embeddings encoder.layer.0."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    word_dropout: float = 0.0
    """Share of word pieces replaced by the mask token, anew in each epoch: augmentation."""

    steps: int = 300
    """Updates."""
    batch: int = 32
    """Rows of one update, over all micro-batches and all processes."""
    micro_batch: int | None = None
    """Rows that go through the model at once; None: the whole batch. Accumulation is exact, see README."""
    lr: float = 1e-3
    """Peak learning rate. The default suits the shipped model; 2e-5 to 5e-5 is usual for one of BERT-base
    size."""
    schedule: Literal["constant", "warmup", "cosine", "inverse_sqrt", "linear"] = "linear"
    """Shape of the learning rate over the steps, a name in stabviz.ops.SCHEDULES."""
    warmup_steps: int | None = None
    """Steps over which the rate rises linearly; None: a tenth of the steps."""
    optimizer: Literal["adamw", "adamw_fused"] = "adamw_fused"
    """adamw: ours, from stabviz.ops. adamw_fused: torch's, the same trajectory and faster."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Adam's epsilon; a gradient far below it starves."""
    bias_correction: bool = True
    """False: the Adam of the first BERT code, see lesson 11. Needs optimizer adamw."""
    weight_decay: float = 0.01
    """Decoupled weight decay; biases and layer norms are spared."""
    layer_decay: float = 1.0
    """Learning rate of a layer over that of the layer above it; 1: the same for all."""
    clip_norm: float = 1.0
    """Largest L2 norm of the gradient; inf is off."""
    ema_decay: float = 0.0
    """Decay of an average of the weights that is evaluated and kept in place of the last weights; 0 is
    off."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward and backward pass; weights and optimizer stay float32."""
    loss_scale: float = 65536.0
    """First loss scale with fp16; it adapts."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer and compute the rest again on the way back: less memory, more
    time."""
    compile: bool = False
    """torch.compile the model."""
    bucket: bool = True
    """Put texts of similar length into one batch: less padding."""
    fixed_length: bool = False
    """Pad every batch to max_length instead of its longest text."""
    packing: bool = False
    """Put several texts into one row, each blind to the others. For tags."""
    workers: int = 0
    """Processes that prepare batches."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: a whole model in each process (DDP), or its weights shared out over all of them
    (FSDP2)."""
    deterministic: bool = False
    """Ask torch for deterministic kernels: the same bytes from the same seed, and slower on a GPU."""

    evaluate_every: int = 50
    """Steps between two evaluations on the validation split; the last step is always evaluated."""
    patience: int | None = None
    """Stop after this many evaluations without a better score; None: never."""
    save_every: int = 100
    """Steps between two checkpoints; 0: none but the last."""
    keep: int = 2
    """Checkpoints that are kept, the newest ones."""
    flush_every: int = 10
    """Steps whose signals stay on the device before they are written."""
    signals_every: int = 10
    """Steps between two measurements of the costly signals (update, moments, attention), by layer."""
    tensorboard: bool = False
    """Write TensorBoard events as well, to OUT/tensorboard."""
    progress: bool = True
    """Show a progress bar."""

    max_bad_steps: int = 10
    """Non-finite steps in a row that stop the run. With fp16 the loss scale halves at each."""
    rewind: bool = True
    """At a loss spike drop the step and leave its rows out; if the next step spikes too, go back to a
    checkpoint."""
    spike_sigmas: float = 12.0
    """How many robust deviations above the running median a loss must jump to be a spike."""
    spike_height: float = 3.0
    """And at least this many nats above it: the noise of small batches is no spike."""
    max_rewinds: int = 3
    """Spikes and rewinds before the run stops."""

    seed: int = 0
    """Seed of everything random: splits, order, weights of the head, dropout, augmentation."""
    seeds: int = 1
    """How many runs, with seeds seed, seed + 1, ...; reported with their spread."""
    stop_after: int | None = None
    """Stop and save after this many updates, as if interrupted; None: never."""
    out: Path = Path("runs/finetune")
    """Folder of the run: config, metrics.jsonl, checkpoints, report.html."""
    overwrite: bool = False
    """Delete the run that is already in that folder."""

    def __post_init__(self):
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "freeze", tuple(self.freeze))
        for name in (
            "steps",
            "batch",
            "max_length",
            "evaluate_every",
            "keep",
            "flush_every",
            "signals_every",
            "max_bad_steps",
            "seeds",
        ):
            self._must(name, getattr(self, name) >= 1, "at least 1")
        for name in ("save_every", "workers", "max_rewinds", "seed"):
            self._must(name, getattr(self, name) >= 0, "at least 0")
        for name in ("micro_batch", "max_train_rows", "patience", "stop_after"):
            self._must(
                name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1, or left out"
            )
        for name in (
            "validation_share",
            "test_share",
            "label_noise",
            "label_smoothing",
            "word_dropout",
            "ema_decay",
            "beta1",
            "beta2",
        ):
            self._must(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("lr", "clip_norm", "loss_scale", "spike_sigmas"):
            self._must(name, getattr(self, name) > 0, "above 0")
        for name in ("eps", "weight_decay", "spike_height"):
            self._must(name, 0 <= getattr(self, name) < math.inf, "at least 0 and finite")
        self._must("lr", math.isfinite(self.lr), "finite")
        self._must("layer_decay", 0 < self.layer_decay <= 1, "in (0, 1]")
        self._must("dropout", self.dropout is None or 0 <= self.dropout < 1, "in [0, 1), or left out")
        self._must("schedule", self.schedule in SCHEDULES, f"one of {sorted(SCHEDULES)}")
        self._must("precision", self.precision in ("fp32", "bf16", "fp16"), "one of fp32, bf16, fp16")
        self._must(
            "warmup_steps", 0 <= self.warmup <= self.steps, f"from 0 to steps = {self.steps}, or left out"
        )
        self._must("label", not (self.label and self.tags), "left out when tags is given")
        if self.micro_batch is not None:
            self._must("micro_batch", self.micro_batch <= self.batch, f"at most batch = {self.batch}")
        if not self.bias_correction and self.optimizer != "adamw":
            raise ValueError(
                "FinetuneConfig: optimizer must be 'adamw' when bias_correction is off; "
                f"got {self.optimizer!r}: torch's AdamW always corrects"
            )

    def _must(self, name: str, holds: bool, constraint: str) -> None:
        if not holds:
            raise ValueError(f"FinetuneConfig: {name} must be {constraint}; got {getattr(self, name)!r}")

    @property
    def warmup(self) -> int:
        """Steps of warm-up, `warmup_steps` or a tenth of the steps."""
        return self.steps // 10 if self.warmup_steps is None else self.warmup_steps

    def replace(self, **changes) -> "FinetuneConfig":
        """Return a copy with these fields set anew, checked again."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that `files.dumps` can hold."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {"out": str(self.out), "freeze": list(self.freeze)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "FinetuneConfig":
        """Read what `as_dict` wrote, or a config file; an unknown name is an error that suggests the near
        one."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in plain:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"FinetuneConfig: {name!r} is no setting.{hint}")
        numbers = {name: as_number(value) for name, value in plain.items()}
        try:
            return cls(**numbers)
        except TypeError as error:
            raise ValueError(f"FinetuneConfig: a value has the wrong type ({error})") from error

    @classmethod
    def load(cls, path: str | Path) -> "FinetuneConfig":
        """Read a JSON or TOML file of settings; what it leaves out has its default."""
        path = Path(path)
        try:
            if path.suffix == ".toml":
                import tomllib

                plain = tomllib.loads(path.read_text(encoding="utf-8"))
            else:
                plain = loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"FinetuneConfig.load: {path} must be JSON or TOML ({error})") from error
        if not isinstance(plain, dict):
            raise ValueError(
                f"FinetuneConfig.load: {path} must hold settings by name; got a {type(plain).__name__}"
            )
        return cls.from_dict(plain)
