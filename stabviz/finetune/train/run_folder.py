"""The folder of a run: what it holds, whether a resume fits it, and the log that stays open while it trains.

    config.json      settings, fingerprint of the data, offset of the seeds, version of torch
    metrics.jsonl    the signals and events of every step      (tensorboard/, wandb/: with --log)
    timings.jsonl    how long each step took: clocks differ from run to run, so they stand beside the log
    checkpoints/     what a resume and a rewind go on from
    best/            the model with the best score

All processes have a RunFolder; the leading one alone opens the log and writes.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from stabviz.files import as_number, dumps, loads, replace_folder, write_atomically
from stabviz.finetune.config import MAY_CHANGE
from stabviz.finetune.distributed import bare
from stabviz.finetune.train.checkpoint import (
    check_room,
    newest_checkpoint,
    prune_checkpoints,
    write_checkpoint,
)
from stabviz.finetune.train.guard import TrainingFailed
from stabviz.finetune.train.optimizer import Parameter
from stabviz.finetune.train.progress import Progress
from stabviz.finetune.train.setup import Setup
from stabviz.finetune.train.trackers import TrackedLog, check_installed
from stabviz.seeds import OFFSET, offset
from stabviz.trace.log import MetricsLog

_CONTENT = (
    "config.json",
    "metrics.jsonl",
    "timings.jsonl",
    "checkpoints",
    "best",
    "scores.json",
    "report.html",
    "tensorboard",
    "wandb",
    "wandb.id",
    "mlflow.id",
)


class RunFolder:
    """Reads and writes the folder `run.out` of a config."""

    def __init__(self, setup: Setup):
        self.config, self.fingerprint, self.save_model = setup.config, setup.fingerprint, setup.save_model
        self.about, self.loss_unit = setup.about, setup.loss_unit
        self.run = setup.config.run
        self.checkpoints = self.run.out / "checkpoints"
        self.log: MetricsLog | None = None
        """Open in the leading process."""
        self._timings: list[dict] = []
        check_installed(self.run.log)

    # Before the first step

    def clear(self, model: nn.Module, parameters: list[Parameter]) -> None:
        """Make the folder of a new run, with room for the checkpoints of this model.

        Raises: ValueError if it holds a run, and `overwrite` is off; OSError if it cannot be written, or is
                too small: before any time is spent
        """
        out = self.run.out
        there = [out / name for name in _CONTENT if (out / name).exists()]
        if there and not self.run.overwrite:
            raise ValueError(
                f"finetune: out must not hold a run already; {out} does. Resume it "
                f"(python -m stabviz resume {out}), choose another folder, or --overwrite"
            )
        for path in there:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        out.mkdir(parents=True, exist_ok=True)
        weights = 4 * sum(x.numel() for x in bare(model).parameters())
        trained = 4 * sum(x.tensor.numel() for x in parameters)
        copies = 3 if self.config.train.ema_decay else 2  # two moments, and an average
        checkpoint = weights + copies * trained
        # one more than is kept, while the next is written; best/ likewise, with its successor
        check_room(out, (self.run.keep + 1) * checkpoint + 2 * weights)

    def to_resume(self, force: bool) -> Path:
        """Return the newest whole checkpoint, after a look at whether the run is the same.

        Raises: ValueError if there is none, or settings, data or seed offset are others and `force` is off
        """
        self._check_same(force)
        path, problems = newest_checkpoint(self.checkpoints)
        for problem in problems:
            print(f"passed over: {problem}")
        if path is None:
            raise ValueError(f"finetune: {self.checkpoints} holds no whole checkpoint to resume from")
        return path

    def _check_same(self, force: bool) -> None:
        """Refuse a resume under other settings or on other data, unless forced."""
        out = self.run.out
        try:
            before = loads((out / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"finetune: {out} holds no run to resume: config.json is missing") from None
        old = {name: as_number(value) for name, value in before["config"].items()}
        changed = [
            f"{name} was {old.get(name)!r}, is {value!r}"
            for name, value in self.config.as_dict().items()
            # a name that an older version did not write yet is no change
            if name in old and name not in MAY_CHANGE and old[name] != value
        ]
        if before["data_fingerprint"] != self.fingerprint:
            changed.append("the data are others")
        # The offset comes from the environment: no setting shows it, and every draw depends on it.
        if (was := before.get("seed_offset", 0)) != offset():
            changed.append(f"{OFFSET} was {was}, is {offset()}")
        if changed and not force:
            raise ValueError(
                f"finetune: a resume must have the settings of the run; {'; '.join(changed)}. "
                "--force goes on all the same, and is no exact resume any more"
            )

    def open_log(self, attempts: int, keep_bytes: int | None) -> None:
        """Write config.json, and open the log: a new one, or where a checkpoint at `attempts` left it."""
        plain = self.config.as_dict()
        described = {
            "config": plain,
            "data_fingerprint": self.fingerprint,
            "seed_offset": offset(),
            "torch": torch.__version__,
            **({"about": self.about} if self.about else {}),
        }
        write_atomically(self.run.out / "config.json", dumps(described, indent=2) + "\n")
        # What may change from resume to resume is no part of the header: the same run, the same bytes.
        settings = {name: value for name, value in plain.items() if name not in MAY_CHANGE}
        settings |= {} if self.loss_unit == "nats" else {"loss_unit": self.loss_unit}
        path = self.run.out / "metrics.jsonl"
        self.log = TrackedLog(path, settings, self.run.log, keep_bytes=keep_bytes, first_step=attempts)

    # While it trains

    def event(self, step: int, kind: str, **details) -> None:
        """Log what happened at a step and show it, so that whoever watches sees it at once."""
        if self.log:
            self.log.event(step, kind, **details)
            self.log.flush()
            if self.run.progress and kind != "overflow":  # fp16 overflows now and then by design
                tqdm.write(
                    f"step {step}: {kind}  " + "  ".join(f"{k} {shown(v)}" for k, v in details.items())
                )

    def evaluation(self, progress: Progress, values: dict[str, float], name: str, value: float) -> None:
        """Log the scores measured after the last step, and show the one that counts."""
        if self.log:
            self.log.evaluation(progress.attempts - 1, values)
            self.log.flush()
            if self.run.progress:
                best = " (best)" if progress.best_at == progress.updates else ""
                tqdm.write(f"step {progress.updates}: validation {name} {value:.4f}{best}")

    def time(self, step: int, batch: dict[str, Tensor], seconds: float) -> None:
        """Keep how long a step took, and how much of it there was, until the next save."""
        if self.log:
            mask = batch["attention_mask"]
            self._timings.append(
                {
                    "step": step,
                    "ms": 1e3 * seconds,
                    "rows": len(batch["rows"]),
                    "tokens_padded": int(mask.shape[0] * mask.shape[-1]),
                }
            )

    def save(self, tensors: dict[str, dict[str, Tensor]], progress: Progress) -> None:
        """Write a checkpoint, and remove what is no longer needed; the leading process alone calls."""
        assert self.log is not None
        # The log goes to the disk first: the checkpoint counts on that many bytes of it.
        state = {"progress": asdict(progress), "log_bytes": self.log.sync()}
        write_checkpoint(self.checkpoints, progress.attempts, tensors, state)
        # By name, not the newest `keep`: a save that a stop asked for must push out no place to rewind to.
        prune_checkpoints(self.checkpoints, 1, also=progress.scheduled)
        with open(self.run.out / "timings.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in self._timings)
        self._timings = []

    def keep_best(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Put a model in the place of the best one so far."""
        replace_folder(self.run.out / "best", lambda folder: self.save_model(model, folder, weights))

    def failure(self, what: str, hint: str) -> TrainingFailed:
        """Return the error that ends a run, which says where it can be taken up again."""
        path, _ = newest_checkpoint(self.checkpoints)
        good = f"the last good checkpoint is {path}" if path else "there is no checkpoint"
        return TrainingFailed(f"finetune: stopped, because {what}; {good}. {hint}")

    def close(self) -> None:
        """Close the log."""
        if self.log:
            self.log.close()


def shown(value) -> str:
    """Return a detail of an event in a few words: of many rows the first eight."""
    if not isinstance(value, list):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return ", ".join(map(str, value[:8])) + (f" and {len(value) - 8} more" if len(value) > 8 else "")
