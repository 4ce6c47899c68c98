"""What a run is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stabviz.finetune.config import LoopConfig
from stabviz.finetune.data.batches import count_targets
from stabviz.finetune.data.loader import Rows
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.evaluation import Evaluation
from stabviz.methods.objective import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a run is made of; `stabviz.finetune.run.prepare` makes it from a config."""

    config: LoopConfig
    processes: ProcessGroup
    model: nn.Module
    objective: Objective
    rows: Rows
    collate: Callable[[list], dict[str, Tensor]]
    evaluate: Callable[[nn.Module, Callable[[], None]], Evaluation]
    """evaluate(model, check): calls check() between batches, which may raise StopRequested."""
    save_model: Callable[[nn.Module, Path, dict[str, Tensor]], None]
    """save_model(model, folder, whole weights): write what `model` of another run can name."""
    fingerprint: str
    """Of the data: a resume on other data is refused."""
    loss_unit: str = "nats"
    """Unit of the loss; "" of one that is no cross-entropy."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the run starts from, which its config.json keeps."""
    row_numbers: Sequence[int] | None = None
    """Number of each row in its file, by which people find it; None: rows are called by their index."""
    weigh: Callable[[dict[str, Tensor]], float] = count_targets
    """What a batch's loss is divided by: the number of its targets, or their total weight."""

    def numbers(self, indices: list[int]) -> list[int]:
        """Return the numbers by which people find these rows in the data."""
        return indices if self.row_numbers is None else [self.row_numbers[i] for i in indices]
