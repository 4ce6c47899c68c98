"""The settings of a run, nested as the work is; the command line's flags and their help come from them.

    FinetuneConfig      data    DataConfig           what is learned from
                        model   ModelConfig          what learns
                        run     RunConfig            folder, seeds, logging
                        train   TrainConfig          schedule and evaluation, and with them
                                  .optimizer, .compute, .guard

Each setting has a flat name as well, that of its flag: `FinetuneConfig.of(lr=1e-4)`, `as_dict`, config files
and `config.replace(seed=1)` use these. What needs a part is handed that part, as `config.train.optimizer`.
"""

import dataclasses
import difflib
import functools
import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

import yaml
from tyro.conf import arg as flag

from stabviz.files import as_number, loads

DATA = Path(__file__).resolve().parent.parent.parent / "data"
"""The project's own corpora, present in a clone."""
ScheduleName = Literal["constant", "warmup", "cosine", "inverse_sqrt", "linear", "warmup_stable_decay"]
KindName = Literal["classes", "multi_label", "regression", "tags"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
MaybeInt = Annotated[int | None, flag(metavar="INT")]
MaybeFloat = Annotated[float | None, flag(metavar="FLOAT")]
MaybeText = Annotated[str | None, flag(metavar="STR")]


KNOWN_ELSEWHERE = {
    **dict.fromkeys(("model_name_or_path", "model_name", "pretrained_model"), "model"),
    **dict.fromkeys(("dataset", "dataset_name", "train_file", "data_files"), "data"),
    "dataset_config_name": "data_config",
    **dict.fromkeys(("text_column", "text_column_name", "sentence_column"), "text"),
    **dict.fromkeys(("label_column", "label_column_name", "target"), "label"),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "max_len"), "max_length"),
    **dict.fromkeys(("max_train_samples", "train_size"), "max_train_rows"),
    **dict.fromkeys(("learning_rate", "rate"), "lr"),
    **dict.fromkeys(("max_steps", "num_steps", "total_steps", "iterations"), "steps"),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(
        ("batch_size", "train_batch_size", "per_device_train_batch_size", "per_gpu_train_batch_size", "bs"),
        "batch",
    ),
    **dict.fromkeys(("gradient_accumulation_steps", "micro_batch_size"), "micro_batch"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler"), "schedule"),
    **dict.fromkeys(("warmup_ratio", "warmup"), "warmup_steps"),
    **dict.fromkeys(("max_grad_norm", "clip", "gradient_clipping", "gradient_clip_val"), "clip_norm"),
    "optim": "optimizer",
    "wd": "weight_decay",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    **dict.fromkeys(("adam_epsilon", "epsilon"), "eps"),
    "label_smoothing_factor": "label_smoothing",
    "hidden_dropout_prob": "dropout",
    **dict.fromkeys(("fp16", "bf16", "mixed_precision"), "precision"),
    "gradient_checkpointing": "activation_checkpointing",
    "torch_compile": "compile",
    "group_by_length": "bucket",
    **dict.fromkeys(("no_cuda", "use_cpu", "cuda"), "device"),
    **dict.fromkeys(("output_dir", "output", "out_dir", "save_dir"), "out"),
    "overwrite_output_dir": "overwrite",
    **dict.fromkeys(("num_seeds", "n_seeds", "runs"), "seeds"),
    **dict.fromkeys(("eval_steps", "eval_every", "eval_interval"), "evaluate_every"),
    **dict.fromkeys(("save_steps", "save_interval"), "save_every"),
    "save_total_limit": "keep",
    "logging_steps": "flush_every",
    **dict.fromkeys(("early_stopping_patience", "early_stopping"), "patience"),
    "metric_for_best_model": "metric",
    **dict.fromkeys(("num_workers", "dataloader_num_workers"), "workers"),
    **dict.fromkeys(("report_to", "logger"), "log"),
    "hub_model_id": "push_to_hub",
    "disable_tqdm": "progress",
}
"""What others call a setting, transformers' Trainer first -> our name, which an error then suggests."""


def suggestion(name: str, known: Collection[str]) -> str | None:
    """Return the setting that a wrong name may mean: what others call it, else the nearest spelling.

    >>> suggestion("learning-rate", ["lr", "steps"]), suggestion("stepz", ["lr", "steps"])
    ('lr', 'steps')
    """
    plain = name.replace("-", "_").lower()
    near = [KNOWN_ELSEWHERE.get(plain), *difflib.get_close_matches(plain, known, n=1)]
    return next((one for one in near if one in known), None)


def must(part: Any, names: str, holds: Callable[[Any], bool], constraint: str) -> None:
    """Raise a ValueError that names the first of these settings for which the constraint does not hold."""
    for name in names.split():
        if not holds(value := getattr(part, name)):
            raise ValueError(f"{type(part).__name__}: {name} must be {constraint}; got {value!r}")


def at_least(least: int) -> tuple[Callable[[Any], bool], str]:
    """Return a constraint for `must`: a number that is not below `least`."""
    return lambda value: value >= least, f"at least {least}"


def share(value: float) -> bool:
    """Tell whether a number is in [0, 1)."""
    return 0 <= value < 1


def or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Let a constraint hold for None as well."""
    return lambda value: value is None or holds(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitsConfig:
    """Which parts of the source are training, validation and test."""

    data_config: MaybeText = None
    """Configuration of a Hugging Face data set that has several."""
    data_revision: MaybeText = None
    """Branch, tag or commit of a Hugging Face data set; None: the newest."""
    split_train: MaybeText = None
    """Name of the training split, or of its file without suffix; None: train or training."""
    split_validation: MaybeText = None
    """The same for validation; None: validation, valid, val or dev. "none": set rows of training aside."""
    split_test: MaybeText = None
    """The same for test; None: test or testing. "none" where the test split has no labels, as GLUE's."""
    validation_share: float = 0.1
    """Share of the training rows set aside where the data has no validation split: by seed, stratified by
    class."""
    test_share: float = 0.1
    """The same for a test split."""

    def __post_init__(self):
        must(self, "validation_share test_share", share, "in [0, 1)")
        must(self, "split_train", lambda name: name != "none", "the name of a split")
        names = [name for name in self.named.values() if name != "none"]
        for split in self.named:
            must(self, f"split_{split}", lambda name: names.count(name) < 2, "another split than the others")

    @property
    def named(self) -> dict[str, str]:
        """The splits that have a name of the caller's: split -> name in the data."""
        names = {"train": self.split_train, "validation": self.split_validation, "test": self.split_test}
        return {split: name for split, name in names.items() if name}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What is learned from: the rows, their splits, and their length in word pieces."""

    source: Annotated[str, flag(name="data")] = "support-desk"
    """support-desk, docstrings, a .csv, .jsonl, .json or .parquet file, a folder of them, or a Hugging Face
    id."""
    text: str = "text"
    """Column of the text; with tags a list of words, or one string that is split at spaces."""
    text_pair: MaybeText = None
    """Column of a second text, for tasks on pairs: premise and hypothesis, question and answer."""
    label: MaybeText = None
    """Column of the class. Left out with the three below; the data set's own default otherwise."""
    multi_label: tuple[str, ...] = ()
    """Column of any number of classes a row: a list, or one string with commas or semicolons between; or
    several columns, one a class, of 0 and 1."""
    regression: MaybeText = None
    """Column of a number to predict."""
    tags: MaybeText = None
    """Column of BIO tags, one a word: named entities instead of classes."""
    max_length: int = 128
    """Longest text in word pieces, special tokens included."""
    max_train_rows: MaybeInt = None
    """Use only this many training rows, chosen by seed."""
    label_noise: float = 0.0
    """Share of training labels replaced by a wrong one, by seed. Validation and test stay clean."""
    word_dropout: float = 0.0
    """Share of word pieces replaced by the mask token, anew in each epoch: augmentation."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """An unknown label, empty text, ragged tags, a broken line: stop with file, row and column, or skip and
    count."""
    splits: SplitsConfig = SplitsConfig()

    def __post_init__(self):
        object.__setattr__(self, "multi_label", tuple(self.multi_label))
        must(self, "max_length", *at_least(1))
        must(self, "max_train_rows", or_none(lambda n: n >= 1), "at least 1, or left out")
        must(self, "label_noise word_dropout", share, "in [0, 1)")
        given = [name for name in ("label", "multi_label", "regression", "tags") if getattr(self, name)]
        for extra in given[:-1]:
            must(self, extra, lambda _: False, f"left out when {given[-1]} is given")
        must(self, "text_pair", lambda pair: not (pair and self.tags), "left out when tags is given")
        noisy = self.kind in ("classes", "tags")
        must(self, "label_noise", lambda x: noisy or not x, f"0 for {self.kind}")

    @property
    def kind(self) -> KindName:
        """What is learned, by the column that is given: a row of `stabviz.finetune.tasks.KINDS`."""
        kinds: tuple[KindName, ...] = ("tags", "multi_label", "regression")
        return next((name for name in kinds if getattr(self, name)), "classes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What learns."""

    name: Annotated[str, flag(name="model")] = "minilm"
    """minilm (all-MiniLM-L6-v2) or minilm:K, its first K layers; stabviz-mini, the small checkpoint in data/;
    a folder; or a Hugging Face model id."""
    implementation: Literal["transformers", "stabviz"] = "transformers"
    """Who computes the model: transformers, or our own BERT on stabviz.ops (BERT checkpoints only)."""
    from_scratch: bool = False
    """Draw the weights anew, by seed, instead of loading them: what pretraining is worth."""
    dropout: MaybeFloat = None
    """Dropout of hidden states and attention; None: as the checkpoint says."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    class_weights: MaybeText = None
    """Weight of each class in the loss: "balanced" (rare classes count more, in inverse proportion), or a
    JSON file of them by name; classes left out have 1."""
    revision: MaybeText = None
    """Branch, tag or commit of a Hugging Face model; None: the newest."""
    trust_remote_code: bool = False
    """Run the code that a Hugging Face model brings along. Only for authors whom you trust."""
    push_to_hub: MaybeText = None
    """Repository of the Hugging Face hub, OWNER/NAME, for the best weights and their card; a new one is made
    private."""
    baseline: bool = True
    """Print beside the test score what a model gets that knows no language; see README."""

    def __post_init__(self):
        must(self, "dropout", or_none(share), "in [0, 1), or left out")
        must(self, "label_smoothing", share, "in [0, 1)")
        must(self, "push_to_hub", lambda x: x is None or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", x), "OWNER/NAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """How a gradient becomes an update, and which parameters take part."""

    name: Annotated[Literal["adamw", "adamw_fused"], flag(name="optimizer")] = "adamw_fused"
    """adamw: ours, from stabviz.ops. adamw_fused: torch's, the same trajectory and faster."""
    weight_decay: float = 0.01
    """Decoupled weight decay; biases and layer norms are spared."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Adam's epsilon; a gradient far below it starves."""
    bias_correction: bool = True
    """False: the Adam of the first BERT code, see lesson 11. Needs optimizer adamw."""
    layer_decay: float = 1.0
    """Learning rate of a layer over that of the layer above it; 1: the same for all."""
    freeze: tuple[str, ...] = ()
    """Parameters whose name contains one of these stay as they are, e.g. embeddings encoder.layer.0."""

    def __post_init__(self):
        object.__setattr__(self, "freeze", tuple(self.freeze))
        must(self, "beta1 beta2", share, "in [0, 1)")
        must(self, "eps weight_decay", lambda x: 0 <= x < math.inf, "at least 0 and finite")
        must(self, "layer_decay", lambda x: 0 < x <= 1, "in (0, 1]")
        if not self.bias_correction and self.name != "adamw":
            raise ValueError(
                "OptimizerConfig: optimizer must be 'adamw' when bias_correction is off; "
                f"got {self.name!r}: torch's AdamW always corrects"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeConfig:
    """Where and in which form a step is computed: speed and memory."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward and backward pass; weights and optimizer stay float32."""
    micro_batch: MaybeInt = None
    """Rows that go through the model at once; None: the whole batch. Accumulation is exact, see README."""
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
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: a whole model in each process (DDP), or its weights shared out over all of them
    (FSDP2)."""
    deterministic: bool = False
    """Ask torch for deterministic kernels: the same bytes from the same seed, and slower on a GPU."""
    loss_scale: float = 65536.0
    """First loss scale with fp16; it adapts."""

    def __post_init__(self):
        must(self, "micro_batch", or_none(lambda n: n >= 1), "at least 1, or left out")
        must(self, "loss_scale", lambda x: x > 0, "above 0")
        must(self, "precision", lambda name: name in ("fp32", "bf16", "fp16"), "one of fp32, bf16, fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """When a step is dropped, and when the run goes back or stops."""

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

    def __post_init__(self):
        must(self, "max_bad_steps", *at_least(1))
        must(self, "max_rewinds", *at_least(0))
        must(self, "spike_sigmas", lambda x: x > 0, "above 0")
        must(self, "spike_height", lambda x: 0 <= x < math.inf, "at least 0 and finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How long and how fast: schedule, batch, evaluations; a length is in updates."""

    steps: int = 200
    """Updates."""
    epochs: MaybeFloat = None
    """Passes over the training rows; where given, it sets the steps."""
    batch: int = 16
    """Rows of one update, over all micro-batches and all processes."""
    lr: MaybeFloat = None
    """Peak learning rate. None: one that suits the size of the model, 7e-4 for stabviz-mini, 2e-4 for minilm,
    5e-5 for BERT-base."""
    schedule: ScheduleName = "linear"
    """Shape of the learning rate over the steps, a name in stabviz.ops.SCHEDULES."""
    warmup_steps: Annotated[float | None, flag(metavar="FLOAT", aliases=["--warmup"])] = None
    """Steps over which the rate rises linearly; below 1 a share of the steps; None: a tenth of them."""
    clip_norm: float = 1.0
    """Largest L2 norm of the gradient; inf is off."""
    ema_decay: float = 0.0
    """Decay of an average of the weights that is evaluated and kept in place of the last weights; 0 is
    off."""
    evaluate_every: int = 50
    """Steps between two evaluations on the validation split; the last step is always evaluated."""
    metric: MaybeText = None
    """Score by which the best weights are chosen, patience counts and the run is judged: accuracy, macro_f1,
    matthews, f1, ..., as the kind of task has them. None: accuracy, micro_f1 of several labels, pearson, f1
    of entities."""
    patience: MaybeInt = None
    """Stop after this many evaluations without a better score; None: never."""
    optimizer: OptimizerConfig = OptimizerConfig()
    compute: ComputeConfig = ComputeConfig()
    guard: GuardConfig = GuardConfig()

    def __post_init__(self):
        must(self, "steps batch evaluate_every", *at_least(1))
        must(self, "patience", or_none(lambda n: n >= 1), "at least 1, or left out")
        must(self, "ema_decay", share, "in [0, 1)")
        must(self, "clip_norm", lambda x: x > 0, "above 0")
        must(self, "lr", or_none(lambda x: 0 < x < math.inf), "above 0 and finite, or left out")
        names = get_args(ScheduleName)
        must(self, "schedule", lambda name: name in names, f"one of {sorted(names)}")
        must(self, "epochs", or_none(lambda x: 0 < x < math.inf), "above 0, or left out")
        whole = or_none(lambda x: 0 <= x < 1 or x == int(x))
        must(self, "warmup_steps", whole, "a share below 1 or a whole number of steps")
        # with epochs the steps are not known yet
        in_range = 0 <= self.warmup and (self.warmup <= self.steps or self.epochs is not None)
        must(self, "warmup_steps", lambda _: in_range, f"from 0 to steps = {self.steps}, or left out")
        must(self.compute, "micro_batch", or_none(lambda n: n <= self.batch), f"at most batch = {self.batch}")

    @property
    def warmup(self) -> int:
        """Steps of warm-up: `warmup_steps`, or that share of the steps."""
        if self.warmup_steps is None:
            return self.steps // 10
        return int(self.warmup_steps if self.warmup_steps >= 1 else round(self.warmup_steps * self.steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where a run is kept, what it writes, and from which seed it comes."""

    out: Path = Path("runs/finetune")
    """Folder of the run: config, metrics.jsonl, checkpoints, report.html."""
    seed: int = 0
    """Seed of everything random: splits, order, weights of the head, dropout, augmentation."""
    seeds: int = 1
    """How many runs, with seeds seed, seed + 1, ...; reported with their spread."""
    overwrite: bool = False
    """Delete the run that is already in that folder."""
    progress: bool = True
    """Show what the run starts from, and a progress bar."""
    save_every: int = 100
    """Steps between two checkpoints; 0: none but the last."""
    keep: int = 2
    """Checkpoints that are kept, the newest ones."""
    stop_after: MaybeInt = None
    """Stop and save after this many updates, as if interrupted; None: never."""
    workers: int = 0
    """Processes that prepare batches."""
    log: tuple[TrackerName, ...] = ()
    """Where else the numbers are shown: tensorboard (in OUT/tensorboard), wandb, mlflow."""
    signals_every: int = 10
    """Steps between two measurements of the costly signals (update, moments, attention), by layer."""
    flush_every: int = 10
    """Steps whose signals stay on the device before they are written."""

    def __post_init__(self):
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "log", tuple(self.log))
        known = set(get_args(TrackerName))
        must(self, "log", lambda names: set(names) <= known, f"some of {sorted(known)}")
        must(self, "keep flush_every signals_every seeds", *at_least(1))
        must(self, "save_every workers seed", *at_least(0))
        must(self, "stop_after", or_none(lambda n: n >= 1), "at least 1, or left out")


MAY_CHANGE = {field.name for field in dataclasses.fields(RunConfig)} - {"seed", "signals_every"} | {
    "push_to_hub"
}
"""Settings that a resumed run may set anew: they do not touch the mathematics of a step, nor the log."""


def paths(kind: Any) -> dict[str, tuple[str, ...]]:
    """Return where each setting of a config is, by its flat name: beta1 -> train, optimizer, beta1."""
    found: dict[str, tuple[str, ...]] = {}
    hints = get_type_hints(kind, include_extras=True)
    for name, hint in ((field.name, hints[field.name]) for field in dataclasses.fields(kind)):
        if dataclasses.is_dataclass(hint):
            found |= {flat: (name, *path) for flat, path in paths(hint).items()}
        else:
            named = (getattr(note, "name", None) for note in getattr(hint, "__metadata__", ()))
            found[next(filter(None, named), name)] = (name,)
    return found


class LoopConfig:
    """What every config of a run has: the parts that the loop needs, and flat names for all settings."""

    __slots__ = ()
    train: TrainConfig
    run: RunConfig

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """Make a config from settings by their flat names; the others have their defaults.

        Raises: ValueError for a name that is no setting, and as the checks of the parts

        >>> config = FinetuneConfig.of(data="docstrings", lr=1e-4, beta2=0.98)
        >>> config.data.source, config.train.lr, config.train.optimizer.beta2
        ('docstrings', 0.0001, 0.98)
        """
        return cls().replace(**settings)

    def replace(self, **settings: Any) -> Self:
        """Return a copy with these settings, by their flat names, checked again."""
        known, changes = paths(type(self)), {}
        for name, value in settings.items():
            if name not in known:
                near = suggestion(name, known)
                hint = f" Did you mean {near!r}?" if near else ""
                raise ValueError(f"{type(self).__name__}: {name!r} is no setting.{hint}")
            changes[known[name]] = value
        return _changed(self, changes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that `files.dumps` can hold, by flat names."""
        plain: dict[str, Any] = {}
        for name, path in paths(type(self)).items():
            value: Any = functools.reduce(getattr, path, self)
            value = list(value) if isinstance(value, tuple) else value
            plain[name] = str(value) if isinstance(value, Path) else value
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read what `as_dict` wrote, or a config file: flat names, which sections like "train" may group."""
        sections = {name for path in paths(cls).values() for name in path[:-1]}

        def flat(plain: Mapping[str, Any]) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name, value in plain.items():
                # "data" and "model" are sections and settings both: what is no table is the setting
                in_section = name in sections and isinstance(value, Mapping)
                found |= flat(value) if in_section else {name: as_number(value)}
            return found

        try:
            settings = flat(plain)
            if settings.pop("tensorboard", False):  # the name of log, in runs of before there were others
                settings["log"] = ("tensorboard",)
            return cls.of(**settings)
        except TypeError as error:
            raise ValueError(f"{cls.__name__}: a value has the wrong type ({error})") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a JSON, TOML or YAML file of settings, or a run's config.json; the rest has its default."""
        path = Path(path)
        parse = _PARSERS.get(path.suffix, loads)
        try:
            plain = parse(path.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{cls.__name__}.load: {path} must be JSON, TOML or YAML ({reason})") from error
        if isinstance(plain, dict) and isinstance(plain.get("config"), dict):  # of a run, or of a series
            plain = {k: v for k, v in plain["config"].items() if k not in ("stop_after", "overwrite")}
        if not isinstance(plain, dict):
            raise ValueError(
                f"{cls.__name__}.load: {path} must hold settings by name; got a {type(plain).__name__}"
            )
        return cls.from_dict(plain)


class _Yaml(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as YAML 1.2 has it; PyYAML keeps to 1.1, where it is a text."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_PARSERS: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    **dict.fromkeys((".yaml", ".yml"), functools.partial(yaml.load, Loader=_Yaml)),
}


def _changed(part: Any, changes: Mapping[tuple[str, ...], Any]) -> Any:
    """Copy a config with other values at these paths; each part is made once: its checks see all."""
    own = {path[0]: value for path, value in changes.items() if len(path) == 1}
    for name in dict.fromkeys(path[0] for path in changes if len(path) > 1):
        inside = {path[1:]: value for path, value in changes.items() if path[0] == name}
        own[name] = _changed(getattr(part, name), inside)
    return dataclasses.replace(part, **own)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig(LoopConfig):
    """One fine-tuning run, from text to a verdict."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    run: RunConfig = RunConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        kind = self.data.kind
        # a class stands on a whole text, not on its word pieces
        must(self.train.compute, "packing", lambda on: kind == "tags" or not on, f"off for {kind}")
        one_class = kind in ("classes", "tags")
        must(self.model, "label_smoothing", lambda x: one_class or not x, f"0 for {kind}")
        must(self.model, "class_weights", lambda x: kind != "regression" or not x, "left out for regression")
