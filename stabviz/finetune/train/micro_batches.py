"""Gradient accumulation: the gradient of a whole batch, by micro-batches that fit into memory.

The loss is a mean over all targets of the batch, weighted by class where there are class weights. So a
micro-batch counts by its share of them, not as one mean among others, and its size changes memory and time
but no result.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stabviz.finetune.data.batches import count_targets, row_indices, split_batch
from stabviz.finetune.distributed import bare, without_sync
from stabviz.finetune.train.optimizer import Parameter, drop_gradients
from stabviz.finetune.train.progress import Progress
from stabviz.finetune.train.run_folder import RunFolder
from stabviz.finetune.train.setup import Setup
from stabviz.finetune.train.telemetry import AttentionProbe
from stabviz.seeds import integer


class Accumulated(NamedTuple):
    """What the passes of one batch measured; their gradient stands in the parameters."""

    loss_nats: Tensor
    """Mean over the targets of all processes; NaN where there is none."""
    measured: dict[str, Tensor]
    targets: float
    micro_losses: list[tuple[Tensor, Tensor]]
    """(loss, rows) of each micro-batch of this process."""

    def bad_rows(self) -> list[int]:
        """Return the rows of the micro-batches whose loss was not finite."""
        bad = [rows for loss, rows in self.micro_losses if not bool(torch.isfinite(loss))]
        return [index for rows in bad for index in row_indices(rows)]


def autocast(precision: str, device: torch.device):
    """Context in which the model computes in the run's precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


class MicroBatches:
    """Takes batches through forward and backward pass."""

    def __init__(self, setup: Setup, model: nn.Module, parameters: list[Parameter], folder: RunFolder):
        self.compute, self.seed = setup.config.train.compute, setup.config.run.seed
        self.processes, self.objective, self.weigh = setup.processes, setup.objective, setup.weigh
        self.model, self.parameters, self.folder = model, parameters, folder
        self.probe = AttentionProbe(bare(model))

    def gradient(
        self, position: int, batch: dict[str, Tensor], progress: Progress, *, measure: bool
    ) -> Accumulated:
        """Accumulate the gradient of a batch; with micro-batches of half the size when memory runs out.

        Raises: TrainingFailed if it runs out with single rows, or with several processes: one of them alone
                cannot take another number of passes
        """
        while True:
            try:
                return self.accumulate(position, batch, progress, measure=measure)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.processes.size > 1 or progress.micro_batch == 1:
                    raise self.folder.failure(
                        f"memory ran out at step {progress.attempts} with micro_batch {progress.micro_batch}",
                        "Try a smaller micro_batch or max_length, or activation_checkpointing",
                    ) from error
            # outside of the handler: the error's traceback holds the tensors that are to be freed
            progress.micro_batch = math.ceil(progress.micro_batch / 2)
            drop_gradients(self.parameters)
            free_memory(self.processes.device)
            self.folder.event(progress.attempts, "out_of_memory", micro_batch=progress.micro_batch)

    def accumulate(
        self, position: int, batch: dict[str, Tensor], progress: Progress, *, measure: bool
    ) -> Accumulated:
        """Add up the gradients of a batch's micro-batches of `progress.micro_batch` rows."""
        processes = self.processes
        micro_batches = split_batch(batch, progress.micro_batch, trim=not self.compute.fixed_length)
        # exchanged before the first pass: the weight of a micro-batch needs the targets of all processes
        table = processes.table(count_targets(batch), self.weigh(batch), len(micro_batches))
        total, total_weight = (float(sum(row[column] for row in table)) for column in (0, 1))
        n_passes = int(max(row[2] for row in table))
        zero = torch.zeros((), device=processes.device)
        means: dict[str, Tensor] = {"loss_nats": zero}
        first_pass: dict[str, Tensor] = {}
        micro_losses = []
        for m in range(n_passes):
            # All processes take part in every exchange: one with fewer micro-batches, or with one that has
            # no targets, adds 0.
            micro_batch = micro_batches[min(m, len(micro_batches) - 1)]
            targets = count_targets(micro_batch) if m < len(micro_batches) else 0
            if not targets and processes.size == 1:
                continue
            # Dropout is keyed to the seed and the position, not to a running generator: a resume draws alike.
            torch.manual_seed(integer(self.seed, "dropout", position, m, processes.rank))
            share, weight = (
                targets / max(total, 1),
                self.weigh(micro_batch) / total_weight if targets else 0.0,
            )
            loss, measured = self._pass(
                micro_batch,
                # DDP and FSDP take the mean over the processes: times their number it is the sum again
                weight=weight * processes.size * progress.loss_scale,
                last=m == n_passes - 1,
                look=measure and m == 0 and not self.compute.compile,
            )
            if targets:
                micro_losses.append((loss, micro_batch["rows"]))
            for name, value in {"loss_nats": loss, **measured}.items():
                if name.startswith("max_") or name == "attention_entropy":  # of the first pass alone
                    first_pass[name] = value
                else:  # a mean over no targets is NaN, and counts nothing
                    part = value.float() * (weight if name == "loss_nats" else share) if targets else zero
                    means[name] = means.get(name, zero) + part
        if not total:  # nothing counts: no mean exists
            means = {name: value + math.nan for name, value in means.items()}
        over_all = processes.total(torch.stack(list(means.values())))
        measured = dict(zip(means, over_all.unbind(), strict=True))
        return Accumulated(measured.pop("loss_nats"), measured | first_pass, total, micro_losses)

    def _pass(
        self, micro_batch: dict[str, Tensor], *, weight: float, last: bool, look: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward of one micro-batch; `look` into its attention on the way."""
        device = self.processes.device
        micro_batch = {name: x.to(device, non_blocking=True) for name, x in micro_batch.items()}
        bare(self.model).measure = look  # type: ignore[assignment]  # a plain flag, which our own BERT reads
        with without_sync(self.model, last):
            with autocast(self.compute.precision, device), self.probe if look else nullcontext():
                loss, measured = self.objective(self.model, micro_batch)
            # inside of `without_sync`, whose hooks look at backward; outside of autocast, as torch asks
            (loss * weight).backward()
        if look:  # after backward: what is measured here must not lie beside its activations
            measured |= self.probe.measured(micro_batch["attention_mask"])
        return loss.detach(), measured


def is_out_of_memory(error: BaseException) -> bool:
    """Tell want of memory from other errors: CUDA has a class for it, the CPU's allocator only a message."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def free_memory(device: torch.device) -> None:
    """Give back what torch's allocator keeps, so that other sizes find room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
