"""The processes of one run: one without `torchrun`, several with it. PyTorch's own DDP and FSDP2."""

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessGroup:
    """Who this process is among the processes of the run."""

    rank: int
    size: int
    device: torch.device
    owns_group: bool
    """Whether this ProcessGroup started the process group, and so must end it."""

    @classmethod
    def join(cls, device: str) -> "ProcessGroup":
        """Join the other processes where torchrun started several; else be alone.

        Raises: ValueError if the device is not there
        """
        if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls(rank=0, size=1, device=_device(device, 0), owns_group=False)
        chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        owns = not dist.is_initialized()
        if owns:  # an outer caller, as the series of seeds, may have joined already
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen, owns_group=owns)

    def leave(self) -> None:
        """End the process group that `join` started."""
        if self.owns_group and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes; the same bits on each of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def table(self, *mine: float) -> list[list[float]]:
        """Return some numbers of every process, in the order of the ranks."""
        if self.size == 1:
            return [list(mine)]
        # a sum with zeros elsewhere: one all_reduce, which gloo and nccl both have
        table = torch.zeros(self.size, len(mine), dtype=torch.float64, device=self.device)
        table[self.rank] = torch.tensor(mine, dtype=torch.float64)
        return self.total(table).tolist()

    def first(self, action: Callable[[], Any]) -> Any:
        """Let the leading process act while the others wait, and return what came of it.

        Raises: in every process what `action` raised in the leading one: none is left waiting for the others
        """
        if self.size == 1:
            return action()
        result_and_error: list[Any] = [None, None]
        if self.leads:
            try:
                result_and_error[0] = action()
            except Exception as error:
                result_and_error[1] = error
        dist.broadcast_object_list(result_and_error, src=0)
        dist.barrier()  # gloo's threads have let go of Python's objects by now: a process may end after this
        if result_and_error[1] is not None:
            raise result_and_error[1]
        return result_and_error[0]

    def any(self, flag: bool) -> bool:
        """Tell every process whether the flag is up in one of them."""
        if self.size == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=self.device)).item())

    def gather(self, item) -> list:
        """Return every process's item, in the order of the ranks."""
        if self.size == 1:
            return [item]
        items = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()


def share(model: nn.Module, processes: ProcessGroup, parallel: str) -> nn.Module:
    """Put the model on the device, and wrap it for several processes: DDP, or FSDP2 layer by layer.

    Raises: ValueError if `parallel` is "fsdp" and the model has no list of layers
    """
    model = model.to(processes.device)
    if processes.size == 1:
        return model
    if parallel == "ddp":
        ids = [processes.device] if processes.device.type == "cuda" else None
        # what a head does not use (a pooler, say) gets no gradient
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(
            f"share: model must hold its layers in a ModuleList for fsdp; got {type(model).__name__}"
        )
    # it warns of edits in place of what a model returns: objectives make none
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    for layer in max(lists, key=len):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)  # in place
    return model


def bare(model: nn.Module) -> nn.Module:
    """Return the model itself, without DDP around it."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def without_sync(model: nn.Module, last: bool):
    """Context for both passes of a micro-batch: DDP exchanges gradients at the last one only.

    FSDP2 exchanges them each time: whole gradients kept until the last would take the memory that sharding
    saves.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor, gathered from all processes if it is shared out: all must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign(tensor: Tensor, value: Tensor) -> None:
    """Overwrite a tensor, shared out or not, with a whole value."""
    value = value.to(tensor.device, tensor.dtype)
    if isinstance(tensor, DTensor):
        # every process has the value and cuts its own share: nothing is sent, and no order of names has to
        # agree
        value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return every weight and buffer that is kept, whole and on the CPU: all processes must call."""
    model = bare(model)
    kept = model.state_dict(keep_vars=True)  # without buffers that are not persistent
    # named_parameters lists a tied weight once, state_dict under each of its names
    tensors = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n in kept}
    return {name: whole(tensor.detach()).cpu() for name, tensor in tensors.items()}


def load_weights(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Overwrite the weights and buffers with what `whole_weights` returned."""
    here = dict(bare(model).named_parameters()) | dict(bare(model).named_buffers())
    for name, value in saved.items():
        assign(here[name].data, value)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"ProcessGroup: device must be auto, cpu, cuda, cuda:N or mps; got {name!r}"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"ProcessGroup: device must be one that is there; got {name!r}, and torch sees no CUDA device. "
            "Try --device cpu, or see On a GPU in the README"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"ProcessGroup: device must be one that is there; got {name!r}. Try --device cpu")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    return device
