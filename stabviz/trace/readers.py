"""Runs that other programs recorded, as Traces: transformers' Trainer, TensorBoard, CSV; `read_run` chooses.

What stands in the file is kept. Its step numbers are kept too, but for the Trainer's, which count the update
that was just made: its line "step 10" becomes step 9, the update before which the loss was measured. A value
that was logged between two losses (an evaluation) goes to the loss before it; how many met on one row and
gave way to the last is in config["thinned"].
"""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np

from stabviz.trace.log import read_metrics
from stabviz.trace.signals import SIGNALS
from stabviz.trace.storage import load
from stabviz.trace.trace import WATCHED, Trace

_HELD_OUT = ("val", "valid", "validation", "eval", "dev", "test")
_SCORES = """accuracy acc f1 macro_f1 f1_macro overall_f1 matthews_correlation exact_match rougel rouge_l
    bleu map mean_iou pearson spearmanr auc mean_token_accuracy""".split()
_ERRORS = "wer cer mae rmse mse perplexity".split()
SYNONYMS = {
    "loss_nats": ("train_loss", "loss", "training_loss", "train_loss_step", "loss_train", "loss_step"),
    "grad_norm_preclip": (
        "grad_norm",
        "train_grad_norm",
        "gradient_norm",
        "total_grad_norm",
        "grad_norm_total",
        "global_grad_norm",
        "grad_2_0_norm_total",
    ),
    "lr": ("learning_rate", "train_learning_rate", "train_lr", "lr_adamw", "lr_adam", "lr_sgd"),
    "validation_loss_nats": tuple(
        f"{split}_loss{suffix}" for suffix in ("", "_epoch") for split in _HELD_OUT
    ),
    "validation_score": tuple(f"{split}_{score}" for score in (*_SCORES, *_ERRORS) for split in _HELD_OUT),
    "accuracy": ("train_accuracy", "train_acc", "acc"),
    "loss_scale": ("grad_scale", "scale", "train_loss_scale"),
    "max_attention_logit": ("max_attn_logit",),
    "reward": (
        "train_reward",
        "rewards_accuracies",  # preference learning: how often the preferred answer is the likelier one
        "train_rewards_accuracies",
        "rewards_margins",
        "train_rewards_margins",
        "objective_rlhf_reward",
        "env_reward_mean",
        "mean_reward",
        "episode_reward",
        "rollout_ep_rew_mean",
    ),
}
"""Our name of a signal -> what others call it, the likeliest first, written as `_plain` writes names."""
_PART_LOSS = re.compile(rf"({'|'.join(_HELD_OUT)})_.+_loss")
"""Losses of several validation sets: their mean stands for them."""
TRAINER_DEFAULTS = {"optimizer": "adamw", "assumed": "AdamW, and clipping at a gradient norm of 1"}
"""What the Trainer does unless it was told otherwise, and never writes into its log."""
_LFS = b"version https://git-lfs.github.com/spec/"
STEP_COLUMNS = """train_global_step trainer_global_step global_step step iteration iter steps update
    epoch""".split()
"""The count of updates before the one of log calls, which W&B calls "step"."""
_TIMES = re.compile(r"runtime|per_second|flos|wall_time|^epoch$")
GRADIENT_SHARE = 0.5
"""With a gradient norm on at least half of the losses, the other losses are left out rather than a gap be
read as a NaN; with fewer, the norm is set aside as "grad_norm_sparse"."""


def from_trainer_state(path: str | Path) -> Trace:
    """Read transformers' trainer_state.json, or the newest one in a folder of checkpoints.

    A line without a step is passed over and counted; a state without a loss has the rows of its evaluations,
    or none. A logged loss is the mean since the line before; with the Trainer's filter on (its default) steps
    with a NaN loss are left out of it, and 0.0 stands where all were NaN. That 0.0 is kept, and an event
    "filtered_loss" says so wherever the gradient norm beside a finite loss is not finite.

    Raises: ValueError that names file and line for what is no such state
    Source: transformers 5.23, Trainer._maybe_log_save_evaluate and the filter in Trainer._run_epoch
    Lesson: 11-classification
    """
    path = _newest_state(Path(path))
    try:
        state = json.loads(_read_text("from_trainer_state", path))  # NaN and Infinity stand bare in it
    except json.JSONDecodeError as error:
        where = f"{path} line {error.lineno}"
        raise ValueError(f"from_trainer_state: {where}: must be JSON ({error.msg})") from error
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise ValueError(
            f"from_trainer_state: {path}: must hold a list log_history; got none. "
            "Is it the trainer_state.json of a checkpoint?"
        )
    columns: dict[str, dict[int, float]] = {}
    summary: dict = {}
    without_step = 0
    for place, line in enumerate(history):
        where = f"{path} log_history[{place}]"
        if not isinstance(line, dict):
            raise ValueError(f"from_trainer_state: {where}: must be a line of names and values; got {line!r}")
        if type(line.get("step")) is not int:  # callbacks write such lines, of predictions for example
            without_step += 1
            continue
        # The summary after the last step: its train_loss is the mean of the whole run, no loss of a step.
        if "train_runtime" in line:
            summary = {"train_loss_mean": line.get("train_loss")}
            continue
        for name, value in line.items():
            if name != "step" and not _TIMES.search(name) and isinstance(value, (int, float)):
                # Its step counts the updates made; ours the updates before the measurement: one less. An
                # evaluation before the first update stands at step 0 in both.
                columns.setdefault(name, {})[max(line["step"] - 1, 0)] = float(value)
            elif name in ("loss", "grad_norm", "learning_rate", "eval_loss"):
                raise ValueError(f"from_trainer_state: {where}: {name} must be a number; got {value!r}")
    kept = ("logging_steps", "eval_steps", "max_steps", "num_train_epochs", "train_batch_size", "best_metric")
    config = {
        "source": "trainer_state.json",
        "loss_is": "mean since the line before, perhaps without NaN steps",
        **TRAINER_DEFAULTS,
        **{name: state[name] for name in kept if name in state},
        **summary,
    }
    config |= {"lines_without_step": without_step} if without_step else {}
    return _assembled("from_trainer_state", path, columns, config, needs_loss=False)


def from_tensorboard(path: str | Path) -> Trace:
    """Read the scalars of a TensorBoard event file or of a folder of them (one run).

    Raises: RuntimeError where tensorboard is not installed; ValueError without a loss, or with several runs
            inside
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise RuntimeError(
            "from_tensorboard: tensorboard must be installed to read event files; "
            "pip install tensorboard, or export the scalars as CSV"
        ) from error
    path = Path(path)
    folder = path if path.is_file() else _events_folder(path)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})  # 0: all of them
    events.Reload()
    # A run that was resumed writes its last steps again: the later value of a step stays.
    columns = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    for tag in events.Tags()["tensors"]:  # what TensorFlow 2 writes for a scalar
        values = {e.step: make_ndarray(e.tensor_proto) for e in events.Tensors(tag)}
        if all(value.size == 1 and value.dtype.kind in "fiu" for value in values.values()):
            columns[tag] = {step: float(value) for step, value in values.items()}
    columns = {tag: values for tag, values in columns.items() if not _TIMES.search(_plain(tag))}
    return _assembled("from_tensorboard", folder, columns, {"source": "tensorboard"})


def from_csv(path: str | Path) -> Trace:
    """Read a CSV file of one run: a column of steps, one of losses, and what else it has.

    Columns are known by the usual names (SYNONYMS); others keep theirs. An empty cell was not measured, a
    line without a step is passed over and counted. Commas, semicolons or tabs; also what W&B exports, a
    run's history or the chart of one run, and Lightning's metrics.csv.

    Raises: ValueError that names file, line and column
    """
    path = Path(path)
    text = _read_text("from_csv", path)
    first = text.partition("\n")[0]
    reader = csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count))
    names = _of_one_run(path, [name.strip() for name in next(reader, [])])
    plain = [_plain(name) for name in names]
    step_column = next((column for column in STEP_COLUMNS if column in plain), None)
    if step_column is None or len(set(names)) != len(names):
        raise ValueError(
            f"from_csv: {path} line 1: must name each column once, a step among them; got {names!r}"
        )
    step_name = names[plain.index(step_column)]
    columns, notes = _read_rows(path, reader, names, step_name)
    config = {"source": "csv", "step_column": step_name, **notes}
    if _plain(step_name) == "train_global_step":  # the name that the Trainer gives it
        config |= TRAINER_DEFAULTS
    return _assembled("from_csv", path, columns, config)


def _of_one_run(path: Path, names: list[str]) -> list[str]:
    """The names without what W&B's charts put around them: "run - train/loss", and its range over a bin."""
    runs = sorted({name.rpartition(" - ")[0] for name in names if " - " in name})
    if len(runs) > 1:
        raise ValueError(
            f"from_csv: {path} line 1: must hold one run; got a chart of {len(runs)}, {runs[:9]}. Export one"
        )
    return [name.rpartition(" - ")[2] for name in names]


def _read_rows(path: Path, reader, names: list[str], step_name: str):
    """Name -> step -> number; and which columns hold text that we do not know, and how many lines no step."""
    ours = _chosen(names)
    columns: dict[str, dict[int, float]] = {name: {} for name in names if name != step_name}
    texts, last, without_step = set(), -math.inf, 0
    for cells in reader:
        where = f"from_csv: {path} line {reader.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            raise ValueError(f"{where}: must have {len(names)} cells, as line 1 has; got {len(cells)}")
        row = dict(zip(names, (cell.strip() for cell in cells), strict=True))
        cell = row.pop(step_name)
        if not cell:
            without_step += 1
            continue
        step = _step(where, step_name, cell)
        # An equal step is no fault: Lightning writes training and evaluation of one step on two lines.
        if step < last:
            raise ValueError(
                f"{where}, column {step_name!r}: must not fall, a file holds one run; got {step} after {last}"
            )
        last = step
        for name, cell in row.items():
            try:
                if cell:
                    columns[name][step] = float(cell)
            except ValueError:
                if name in ours:
                    raise ValueError(f"{where}, column {name!r}: must be a number; got {cell!r}") from None
                texts.add(name)
    columns = {name: values for name, values in columns.items() if values and name not in texts}
    notes: dict = {"text_columns": sorted(texts)} if texts else {}
    return columns, notes | ({"lines_without_step": without_step} if without_step else {})


def read_run(path: str | Path) -> Trace:
    """Read one run, whatever recorded it: a file, or a folder that holds one.

    Looks for metrics.jsonl, a saved Trace (.jsonl, .parquet), trainer_state.json (also in checkpoint-*),
    TensorBoard events, CSV, in this order.

    Raises: FileNotFoundError, or ValueError that says what was found instead
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"read_run: path must exist; got {str(path)!r}")
    if path.is_file():
        return _read_file(path)
    inside = sorted(path.iterdir())
    found = [path / "metrics.jsonl"] if (path / "metrics.jsonl").exists() else []
    found = found or [p for p in inside if p.suffix == ".parquet" or p.suffix == ".jsonl" and _is_trace(p)]
    if not found and _states(path):
        return from_trainer_state(path)
    if not found and next(path.rglob("*tfevents*"), None):
        return from_tensorboard(path)
    found = found or [p for p in inside if p.suffix in (".csv", ".tsv")]
    if len(found) != 1:
        got = [p.name for p in found or inside][:12]
        raise ValueError(f"read_run: {path}: must hold the record of one run; got {got}. Name one of them")
    return _read_file(found[0])


def _read_file(path: Path) -> Trace:
    if "tfevents" in path.name:
        return from_tensorboard(path)
    if path.suffix == ".json":
        return from_trainer_state(path)
    if path.suffix in (".csv", ".tsv"):
        return from_csv(path)
    if path.suffix == ".jsonl" and not _is_trace(path):
        return read_metrics(path)
    if path.suffix in (".jsonl", ".parquet"):
        return load(path)
    raise ValueError(
        f"read_run: path must be metrics.jsonl, trainer_state.json, TensorBoard events, .csv or a saved "
        f"Trace; got {str(path)!r}"
    )


def _read_text(function: str, path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(_LFS):
        raise ValueError(
            f"{function}: {path}: must be the file itself; got a Git LFS pointer to it. Run: git lfs pull"
        )
    try:
        return content.decode("utf-8-sig")  # spreadsheets begin a CSV file with a byte-order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{function}: {path}: must be UTF-8 text ({error})") from error


def _is_trace(path: Path) -> bool:
    with open(path, "rb") as file:
        return b'"stabviz.trace/' in file.readline(4096)


def _states(path: Path) -> list[Path]:
    """The trainer_state.json of a folder, else those of its checkpoints, the newest last."""
    if (path / "trainer_state.json").exists():
        return [path / "trainer_state.json"]
    found = path.glob("checkpoint-*/trainer_state.json")
    # by number: as text checkpoint-1000 stands before checkpoint-200
    return sorted(found, key=lambda state: int(re.sub(r"\D", "", state.parent.name) or 0))


def _newest_state(path: Path) -> Path:
    states = [path] if path.is_file() else _states(path)
    if not states:
        raise FileNotFoundError(
            f"from_trainer_state: path must be a trainer_state.json or a folder with one; got {str(path)!r}"
        )
    return states[-1]


def _events_folder(path: Path) -> Path:
    folders = sorted({file.parent for file in path.rglob("*tfevents*")})
    if not folders:
        raise FileNotFoundError(f"from_tensorboard: path must hold an event file; got {str(path)!r}")
    if len(folders) > 1:
        raise ValueError(
            f"from_tensorboard: path must hold one run; got {[str(f) for f in folders][:9]}. Name one"
        )
    return folders[0]


def _plain(name: str) -> str:
    """A name in small letters, digits and single underscores: "Train/Loss " -> "train_loss"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _chosen(names) -> dict[str, str]:
    """Their name -> our signal, for each signal that is there; of several synonyms the likeliest."""
    chosen = {name: name for name in names if name.partition("/")[0] in SIGNALS}
    for signal, synonyms in SYNONYMS.items():
        by_plain = {_plain(name): name for name in names if name not in chosen}
        theirs = next((by_plain[s] for s in (signal, *synonyms) if s in by_plain), None)
        if signal not in chosen.values() and theirs is not None:
            chosen[theirs] = signal
    return chosen


def _step(where: str, column: str, cell: str) -> int:
    try:
        number = float(cell)
        if number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"{where}, column {column!r}: must be a whole number; got {cell!r}") from None
    return int(number)


def _assembled(
    function: str, path: Path, columns: dict[str, dict[int, float]], config: dict, needs_loss: bool = True
) -> Trace:
    """One row for each step with a loss; what was logged in between goes to the row before."""
    columns = {name: values for name, values in columns.items() if not name.endswith(("__MIN", "__MAX"))}
    chosen = _chosen(columns)
    series = {chosen.get(name, name): values for name, values in columns.items()}
    parts = [values for name, values in columns.items() if _PART_LOSS.fullmatch(_plain(name))]
    if "validation_loss_nats" not in series and parts:
        common = set.intersection(*map(set, parts))
        series["validation_loss_nats"] = {at: float(np.mean([part[at] for part in parts])) for at in common}
        config = {**config, "validation_loss_is": f"mean of {len(parts)} losses"}
    config = {"loss_unit": "", **config}  # cross-entropy or not, summed or not: the file does not say
    score = next((theirs for theirs, ours in chosen.items() if ours == "validation_score"), "")
    if _plain(score).endswith(tuple(f"_{error}" for error in _ERRORS)):
        config["score_is_error"] = True
    if not series.get("loss_nats") and not needs_loss:
        series["loss_nats"] = {}
        steps = sorted(series.get("validation_loss_nats", ()))
    elif not series.get("loss_nats"):
        raise ValueError(
            f"{function}: {path}: must have a loss, under one of {SYNONYMS['loss_nats']}; "
            f"got {sorted(columns)[:20]}"
        )
    else:
        steps = sorted(series["loss_nats"])
    norm = series.get("grad_norm_preclip", {})
    both = [step for step in steps if step in norm]
    if norm and len(both) >= GRADIENT_SHARE * len(steps):
        if len(both) < len(steps):
            config = {**config, "losses_without_gradient_norm": len(steps) - len(both)}
        steps = both
    elif norm and series["loss_nats"]:
        series["grad_norm_sparse"] = series.pop("grad_norm_preclip")
    series["loss_nats"] = {step: series["loss_nats"][step] for step in steps if series["loss_nats"]}
    thinned, signals = {}, {}
    for name, values in series.items():
        if not values or not steps:
            continue
        logged = np.array(sorted(values.items()))
        # what was logged before the first loss has no row before it, and goes to the first
        at = np.maximum(np.searchsorted(steps, logged[:, 0], side="right") - 1, 0)
        row = np.full(len(steps), np.nan)
        row[at] = logged[:, 1]  # of several on one row the last stays
        signals[name] = row[None]
        if len(set(at)) < len(at):
            thinned[name] = len(at) - len(set(at))
    config = {**config, "names": {ours: theirs for theirs, ours in chosen.items() if theirs != ours}}
    config |= {"thinned": thinned} if thinned else {}
    loss_S, norm_S = (signals.get(name, np.zeros((1, len(steps))))[0] for name in WATCHED)
    hidden = {"run": 0, "kind": "filtered_loss", "signal": "loss_nats"}
    # a finite loss beside a gradient that is not: the log has hidden a NaN
    at = np.flatnonzero(np.isfinite(loss_S) & ~np.isfinite(norm_S))
    events = [{**hidden, "step": steps[s], "logged": loss_S[s]} for s in at]
    return Trace(steps=np.array(steps), signals=signals, runs=[{}], config=config, events=events)
