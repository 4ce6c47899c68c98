"""metrics.jsonl and TensorBoard events side by side, for those who watch runs there."""

import math
from pathlib import Path

from stabviz.trace.log import MetricsLog


class TensorBoardLog(MetricsLog):
    """A MetricsLog that writes every number to TensorBoard as well; signal names become tags."""

    def __init__(self, path: str | Path, config: dict, *, keep_bytes: int | None = None, first_step: int = 0):
        """Start or go on, as MetricsLog; an earlier run's events of `first_step` and later are voided.

        Raises: ValueError if TensorBoard is not installed
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "finetune: tensorboard must be off, or installed: pip install tensorboard"
            ) from error
        super().__init__(path, config, keep_bytes=keep_bytes)
        self._board = SummaryWriter(Path(path).parent / "tensorboard", purge_step=first_step or None)

    def step(self, step: int, values: dict[str, float]) -> None:
        super().step(step, values)
        self._add(step, values)

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        super().evaluation(step, values)
        self._add(step, values)

    def event(self, step: int, kind: str, **details) -> None:
        super().event(step, kind, **details)
        self._board.add_text("event", f"{kind} {details}", step)

    def flush(self) -> int:
        if hasattr(self, "_board"):  # the base class flushes its header before there is a board
            self._board.flush()
        return super().flush()

    def close(self) -> None:
        self._board.close()
        super().close()

    def _add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, math.nan if value is None else value, step)
