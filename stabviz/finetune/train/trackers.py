"""metrics.jsonl and, beside it, the programs in which people watch runs: TensorBoard, W&B, MLflow.

A tracker is told what the log is told, in the leading process alone. Where it sends its numbers is its own
business: WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI and their like are read by those programs.
"""

import importlib
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from stabviz.trace.log import MetricsLog


class Tracker(Protocol):
    """What is told of a run's numbers."""

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Take the signals of a step, or the scores measured after it."""

    def event(self, step: int, text: str) -> None:
        """Take what happened at a step."""

    def flush(self) -> None:
        """Hand over what was kept back."""

    def close(self) -> None:
        """End the run."""


class TensorBoard:
    """TensorBoard events in OUT/tensorboard; signal names are tags."""

    def __init__(self, folder: Path, config: dict, first_step: int | None):
        from torch.utils.tensorboard import SummaryWriter

        # the events of an earlier attempt at these steps are voided
        self._board = SummaryWriter(folder / "tensorboard", purge_step=first_step or None)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def event(self, step: int, text: str) -> None:
        self._board.add_text("event", text, step)

    def flush(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class WeightsAndBiases:
    """A run of Weights & Biases, which a resume goes on with: a step that it has is dropped."""

    def __init__(self, folder: Path, config: dict, first_step: int | None):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "stabviz"),
            name=folder.name,
            dir=folder,
            config=config,
            id=_kept(folder / "wandb.id", lambda: uuid.uuid4().hex[:8], new=first_step is None),
            resume="allow",
        )

    def values(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def event(self, step: int, text: str) -> None:
        self._run.log({"event": text}, step=step)

    def flush(self) -> None:
        pass  # a process of its own sends as it goes

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, which a resume goes on with; events are its tags."""

    BATCH = 1000
    """The most numbers that a server takes at once."""

    def __init__(self, folder: Path, config: dict, first_step: int | None):
        import mlflow
        from mlflow.entities import Param

        self._client = mlflow.MlflowClient()
        self._waiting: list[Any] = []
        self._last: dict[str, int] = {}  # name -> the last step that the server has, after a resume
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "stabviz"))

        def create() -> str:
            run = self._client.create_run(experiment.experiment_id, run_name=folder.name)
            params = [Param(name, str(value)[:500]) for name, value in config.items()]
            self._client.log_batch(run.info.run_id, params=params[:100])
            return run.info.run_id

        self._resumed = first_step is not None and (folder / "mlflow.id").exists()
        self._id = _kept(folder / "mlflow.id", create, new=first_step is None)
        self._client.update_run(self._id, status="RUNNING")

    def values(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        # a number sent twice would stand twice; after an exact resume it is the same one
        new = {name: value for name, value in values.items() if step > self._last_step(name)}
        self._waiting += [Metric(name, value, now, step) for name, value in new.items()]

    def _last_step(self, name: str) -> int:
        if self._resumed and name not in self._last:
            history = self._client.get_metric_history(self._id, name)
            self._last[name] = max((metric.step for metric in history), default=-1)
        return self._last.get(name, -1)

    def event(self, step: int, text: str) -> None:
        self._client.set_tag(self._id, f"event at step {step}", text)

    def flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self.BATCH], self._waiting[self.BATCH :]
            self._client.log_batch(self._id, metrics=batch)

    def close(self) -> None:
        self.flush()
        self._client.set_terminated(self._id)


TRACKERS: dict[str, tuple[Callable[[Path, dict, int | None], Tracker], str]] = {
    "tensorboard": (TensorBoard, "torch.utils.tensorboard"),
    "wandb": (WeightsAndBiases, "wandb"),
    "mlflow": (MLflow, "mlflow"),
}
"""Name -> (tracker(folder, config, first step of a resume or None), module that it needs)."""


def check_installed(names: Sequence[str]) -> None:
    """Raise a ValueError that says what to install, before anything is written."""
    for name in names:
        try:
            importlib.import_module(TRACKERS[name][1])
        except ImportError as error:
            raise ValueError(
                f"finetune: log must be what is installed; got {name!r}: pip install {name}"
            ) from error


class TrackedLog(MetricsLog):
    """A MetricsLog that tells trackers what it writes; one that fails is dropped, and the run goes on."""

    def __init__(
        self,
        path: str | Path,
        config: dict,
        names: Sequence[str],
        *,
        keep_bytes: int | None = None,
        first_step: int = 0,
    ):
        """Start or go on, as MetricsLog; trackers are told to go on at `first_step` then."""
        self._trackers: dict[str, Tracker] = {}
        super().__init__(path, config, keep_bytes=keep_bytes)
        for name in names:
            resumed = None if keep_bytes is None else first_step
            self._trackers[name] = TRACKERS[name][0](Path(path).parent, config, resumed)

    def step(self, step: int, values: dict[str, float]) -> None:
        super().step(step, values)
        self._tell("values", step, _as_numbers(values))

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        super().evaluation(step, values)
        self._tell("values", step, _as_numbers(values))

    def event(self, step: int, kind: str, **details) -> None:
        super().event(step, kind, **details)
        self._tell("event", step, f"{kind} {details}")

    def flush(self) -> int:
        self._tell("flush")
        return super().flush()

    def close(self) -> None:
        self._tell("close")
        super().close()

    def _tell(self, what: str, *details) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                getattr(tracker, what)(*details)
            except Exception as error:  # a server that is away must not end a run of days
                del self._trackers[name]
                tqdm.write(
                    f"log: {name} failed and is told nothing more ({type(error).__name__}: {error}); "
                    f"{self.path} has every step"
                )


def _as_numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def _kept(path: Path, make: Callable[[], str], *, new: bool) -> str:
    """Return the id of a run that a file keeps for its resume, or a new one."""
    if new or not path.exists():
        path.write_text(make(), encoding="utf-8")
    return path.read_text(encoding="utf-8")
