"""The training loop: one story, with its points of measurement, and what it does when something goes wrong.

    batch         = the rows at this position of the stream
    lr            = schedule(updates)
    loss          = objective(model, batch), by micro-batches, weighted by the targets that count
    grads         = its gradient                        # norms by layer, BEFORE clipping
    finite?       no  -> record the raw values, leave weights, moments and schedule as they are
    spike?        yes -> drop the step and leave its rows out; at once again -> back to a checkpoint
    grads         = clip(grads)
    params, state = optimizer(params, grads, state)      # update and moments by layer, every signals_every
    steps evaluate, save where it is due

`Progress` is everything that a step depends on besides weights, moments and averages: what a checkpoint
keeps. Dropout is keyed to the seed and the position, not to a running generator.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from stabviz.files import as_number, dumps, loads, replace_folder, write_atomically
from stabviz.finetune.config import MAY_CHANGE, FinetuneConfig
from stabviz.finetune.data.batches import count_targets, split_batch
from stabviz.finetune.data.loader import Loader
from stabviz.finetune.distributed import ProcessGroup, assign, bare, local, share, whole, without_sync
from stabviz.finetune.evaluation import Evaluation
from stabviz.finetune.train.checkpoint import (
    check_room,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from stabviz.finetune.train.interrupt import Interrupt, StopRequested
from stabviz.finetune.train.optimizer import (
    OPTIMIZERS,
    WeightAverage,
    load_moments,
    save_moments,
    trained_parameters,
)
from stabviz.finetune.train.telemetry import AttentionProbe, Telemetry
from stabviz.finetune.train.tensorboard import TensorBoardLog
from stabviz.methods.objective import Objective
from stabviz.ops import SCHEDULES, loss_scale_state, update_loss_scale
from stabviz.seeds import integer
from stabviz.trace.log import MetricsLog

SPIKE_WINDOW, SPIKE_HISTORY = 50, 20
"""Losses before the one in question that say what is usual, and how many there must be."""
_SUSPECT_BATCHES = 3
"""After a second spike the batches before it are suspect too, and left out."""


class TrainingFailed(RuntimeError):
    """A run that cannot go on; the message names the last good checkpoint."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run has come: with the tensors of a checkpoint, all that the next step depends on."""

    updates: int = 0
    """Updates made; the schedule's clock."""
    attempts: int = 0
    """Batches taken, skipped ones included: the `step` of metrics.jsonl. It only grows."""
    position: int = 0
    """Place in the stream of batches that comes next."""
    micro_batch: int = 1
    """Rows that go through the model at once, in each process; halved when memory runs out."""
    loss_scale: float = 1.0
    good_steps: float = 0.0
    bad_steps: int = 0
    """Non-finite steps in a row."""
    spikes: int = 0
    last_spike: int = -2
    """Attempt at which the loss last spiked."""
    recent_losses: list[float] = field(default_factory=list)
    recent_rows: list[list[int]] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    """Indices of rows that are not used any more, after spikes."""
    scheduled: list[int] = field(default_factory=list)
    """Attempts of the newest `keep` checkpoints that were due: a spike goes back to one, stopped in between
    or not."""
    evaluated_at: int = 0
    """Updates at the last evaluation."""
    best_score: float | None = None
    best_at: int = 0
    stale_evaluations: int = 0
    finished: str = ""
    """"" while there is more to do; else why it ended: "all steps", "no better score"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a run is made of; `stabviz.finetune.run.prepare` makes it from a config."""

    config: FinetuneConfig
    processes: ProcessGroup
    model: nn.Module
    objective: Objective
    rows: Dataset
    """`rows[(epoch, index)]` is an encoded row; `rows.lengths` holds their lengths."""
    collate: Callable[[list], dict[str, Tensor]]
    evaluate: Callable[[nn.Module, Callable[[], None]], Evaluation]
    """evaluate(model, check): calls check() between batches, which may raise StopRequested."""
    save_model: Callable[[nn.Module, Path, dict[str, Tensor]], None]
    """save_model(model, folder, whole weights): write what `model` of another run can name."""
    fingerprint: str
    """Of the data: a resume on other data is refused."""
    row_numbers: Sequence[int] | None = None
    """Number of each row in its file, by which people find it; None: rows are called by their index."""


def train(
    setup: Setup, *, resume: bool = False, force: bool = False, interrupt: Interrupt | None = None
) -> Progress:
    """Train to the end, or until Ctrl-C, SIGTERM or `interrupt.ask()`; what was reached is saved either way.

    Raises: TrainingFailed after too many bad steps or spikes; ValueError for a resume that would not be
            exact; OSError where the folder cannot be written, before the first step
    Lesson: 11-classification
    """
    return Training(setup, resume=resume, force=force).run(interrupt or Interrupt())


def autocast(config: FinetuneConfig, device: torch.device):
    """Context in which the model computes in the run's precision."""
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(
        device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    )


class Training:
    def __init__(self, setup: Setup, *, resume: bool, force: bool):
        c, processes = setup.config, setup.processes
        self.setup, self.config, self.processes = setup, c, processes
        self.checkpoints = c.out / "checkpoints"
        if c.deterministic:
            torch.use_deterministic_algorithms(True)
        trained_parameters(setup.model, c)  # freezes before the model is wrapped
        self.model = share(setup.model, processes, c.parallel)
        self.model.train()  # from_pretrained hands models over in evaluation mode, without dropout
        self.parameters = trained_parameters(bare(self.model), c)
        self.optimizer = OPTIMIZERS[c.optimizer](self.parameters, c)
        self.average = WeightAverage(self.parameters, c.ema_decay) if c.ema_decay else None
        self.loader = Loader(setup.rows, setup.collate, c, processes)
        rows_here = math.ceil(c.batch / processes.size)
        self.progress = Progress(
            micro_batch=min(c.micro_batch or rows_here, rows_here),
            loss_scale=c.loss_scale if c.precision == "fp16" else 1.0,
        )
        self.log: MetricsLog | None = None  # the leading process has one
        self._open(resume, force)
        self.telemetry = Telemetry(self.parameters, c, processes, self.log)
        self.probe = AttentionProbe(bare(self.model))
        self.schedule = SCHEDULES[c.schedule]
        if c.compile:
            self.model.compile(dynamic=True)
        self.batches = None
        self.timings = []

    def run(self, interrupt: Interrupt) -> Progress:
        c, p = self.config, self.progress
        self.bar = tqdm(
            total=c.steps,
            initial=p.updates,
            desc=f"seed {c.seed}",
            unit="step",
            mininterval=0.2,
            disable=not (c.progress and self.processes.leads),
        )
        try:
            with interrupt:
                try:
                    self.go_on(interrupt)
                except StopRequested:
                    pass
                if self.progress.finished or self.progress.scheduled[-1:] != [self.progress.attempts]:
                    self.save()  # still listening: a signal now must not end the program in mid-save
        finally:
            self.bar.close()
            self.batches = None  # ends the workers
        if self.log:
            self.log.close()
        return self.progress

    def go_on(self, interrupt: Interrupt) -> None:
        """Evaluate, step and save by turns, until the run is finished or asked to stop."""
        c, p = self.config, self.progress
        if not p.scheduled:
            self.save(
                due=True
            )  # what a first spike goes back to; and a disk that cannot be written shows now
        taken = 0
        while not p.finished:
            if p.evaluated_at < p.updates and (p.updates % c.evaluate_every == 0 or p.updates >= c.steps):
                self.evaluate(interrupt)
                continue  # it may have ended the run
            if self.processes.any(interrupt.requested) or taken == c.stop_after:
                break
            began = time.perf_counter()
            position, batch = self.next_batch(interrupt)
            taken += 1
            self.step(position, batch)
            p = self.progress
            self.time(batch, began)
            if c.save_every and p.updates and p.updates % c.save_every == 0 and p.bad_steps == 0:
                self.save(due=True)

    def step(self, position: int, batch: dict[str, Tensor]) -> None:
        """One training step on one batch; see the head of this module."""
        c, p = self.config, self.progress
        lr = c.lr * float(self.schedule(p.updates, total_steps=c.steps, warmup_steps=c.warmup))
        due = self.telemetry.due(p.attempts)
        rows = _indices(batch["rows"])

        loss, measured, micro_losses = self.forward_backward(position, batch, probe=due)
        gradients = [x.tensor.grad for x in self.parameters]
        if c.precision == "fp16":
            torch._foreach_mul_([local(g) for g in gradients if g is not None], 1 / p.loss_scale)
        norms = self.telemetry.norms(gradients)
        loss_nats, norm = torch.stack(
            [loss.float(), norms[0].to(loss.device)]
        ).tolist()  # the one wait for it

        host = {
            "lr": lr,
            "loss_nats": loss_nats,
            "updates": p.updates,
            "targets": measured.pop("targets"),
            "clipped": float(norm > c.clip_norm),
        }
        if c.precision == "fp16":
            host["loss_scale"] = p.loss_scale
        p.position, finite = position + 1, math.isfinite(loss_nats) and math.isfinite(norm)
        if finite and not self.is_spike(loss_nats):
            if norm > c.clip_norm:  # g * min(1, max_norm / norm), as stabviz.ops.clip_by_global_norm
                torch._foreach_mul_([local(g) for g in gradients if g is not None], c.clip_norm / norm)
            if due:
                measured["param_norm"] = self.telemetry.param_norms()
            self.update(lr)
            if due:
                measured |= self.telemetry.update_signals(self.optimizer)
            if self.average:
                self.average.update()
            p.updates, p.bad_steps = p.updates + 1, 0
            p.recent_losses = [*p.recent_losses, loss_nats][-SPIKE_WINDOW:]
            p.recent_rows = [*p.recent_rows, self.loader.indices(position)][-_SUSPECT_BATCHES:]
            self.bar.update(1)
            self.bar.set_postfix_str(
                f"loss {loss_nats:.3f}  grad norm {norm:.3f}  lr {lr:.2g}", refresh=False
            )
        self.telemetry.record(p.attempts, host, {"grad_norm_preclip": norms, **measured})
        if c.precision == "fp16":
            state = loss_scale_state(p.loss_scale) | {"good_steps": torch.tensor(p.good_steps)}
            state = update_loss_scale(state, finite)
            p.loss_scale, p.good_steps = state["scale"].item(), state["good_steps"].item()
        p.attempts += 1
        self.drop_gradients()
        if not finite:
            self.bad_step(loss_nats, micro_losses, rows)
        elif p.updates == host["updates"]:
            self.spike(position, loss_nats)

    def forward_backward(self, position: int, batch: dict[str, Tensor], *, probe: bool):
        """Accumulate the gradient of the mean over all targets; with smaller micro-batches if memory runs
        out."""
        while True:
            try:
                return self.accumulate(position, batch, probe=probe)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                p = self.progress
                if self.processes.size > 1 or p.micro_batch == 1:
                    raise TrainingFailed(
                        f"finetune: memory ran out at step {p.attempts} with micro_batch "
                        f"{p.micro_batch}; {self.last_good()}. Try a smaller micro_batch or "
                        "max_length, or activation_checkpointing"
                    ) from error
            # outside of the handler: the error's traceback holds the tensors that are to be freed
            p.micro_batch = math.ceil(p.micro_batch / 2)
            self.drop_gradients()
            if self.processes.device.type == "cuda":
                torch.cuda.empty_cache()
            self.log.event(p.attempts, "out_of_memory", micro_batch=p.micro_batch)

    def accumulate(self, position: int, batch: dict[str, Tensor], *, probe: bool):
        c, processes, device = self.config, self.processes, self.processes.device
        pieces = split_batch(batch, self.progress.micro_batch, trim=not c.fixed_length)
        told = processes.table(count_targets(batch), len(pieces))
        total, n_pieces = float(sum(count for count, _ in told)), max(n for _, n in told)
        nothing = torch.zeros((), device=device)
        sums: dict[str, Tensor] = {"loss_nats": nothing}
        largest: dict[str, Tensor] = {}
        micro_losses = []
        for m in range(n_pieces):
            # all processes take part in every exchange: one with fewer pieces, or a piece without targets,
            # adds 0
            piece = pieces[min(m, len(pieces) - 1)]
            count = count_targets(piece) if m < len(pieces) else 0
            if not count and processes.size == 1:
                continue
            piece = {name: x.to(device, non_blocking=True) for name, x in piece.items()}
            torch.manual_seed(integer(c.seed, "dropout", position, m, processes.rank))
            look = probe and m == 0 and not c.compile
            bare(self.model).measure = look
            share_of_total = count / total if total else 0.0
            with without_sync(self.model, m == n_pieces - 1):
                with autocast(c, device), self.probe if look else nullcontext():
                    loss, measured = self.setup.objective(self.model, piece)
                (loss * (share_of_total * processes.size * self.progress.loss_scale)).backward()
            if look:
                measured |= self.probe.measured(piece["attention_mask"])
            if count:
                micro_losses.append((loss.detach(), piece["rows"]))
            for name, value in {"loss_nats": loss.detach(), **measured}.items():
                if name.startswith("max_") or name == "attention_entropy":  # of the first micro-batch alone
                    largest[name] = value
                else:  # a mean over no targets is NaN, and counts nothing
                    sums[name] = sums.get(name, 0.0) + (value.float() * share_of_total if count else nothing)
        if not total:  # nothing counts: no mean exists
            sums = {name: value + math.nan for name, value in sums.items()}
        vector = processes.total(torch.stack(list(sums.values())))
        measured = dict(zip(sums, vector.unbind(), strict=True))
        return measured.pop("loss_nats"), {**measured, **largest, "targets": total}, micro_losses

    def update(self, lr: float) -> None:
        try:
            self.optimizer.step(lr)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            counts = {
                float(self.optimizer.moments(x)[2]) for x in self.parameters if x.tensor.grad is not None
            }
            if not _is_out_of_memory(error) or len(counts) != 1:
                raise
            began = counts == {self.progress.updates + 1.0}
            if self.processes.size > 1 or began:
                raise
            if self.processes.device.type == "cuda":
                torch.cuda.empty_cache()
            self.log.event(self.progress.attempts, "out_of_memory", in_="optimizer")
            self.optimizer.step(lr)  # nothing had been changed yet

    def drop_gradients(self) -> None:
        for x in self.parameters:
            x.tensor.grad = None

    def next_batch(self, interrupt: Interrupt):
        p = self.progress
        if self.batches is None:
            self.batches = self.loader.batches(p.position, set(p.left_out))
        # under torchrun all processes must leave at the same step: there a request waits for its turn
        with interrupt.interruptible() if self.processes.size == 1 else nullcontext():
            return next(self.batches)

    def bad_step(self, loss: float, micro_losses, rows: list[int]) -> None:
        p, c = self.progress, self.config
        p.bad_steps += 1
        suspects = [
            r for micro, ids in micro_losses if not bool(torch.isfinite(micro)) for r in _indices(ids)
        ]
        suspects, rows = (
            self.numbers([r for part in self.processes.gather(mine) for r in part])
            for mine in (suspects, rows)
        )
        overflow = c.precision == "fp16" and math.isfinite(loss)
        self.event(
            "overflow" if overflow else "non_finite",
            p.attempts - 1,
            rows=suspects or rows,
            signal="loss_nats" if suspects or not math.isfinite(loss) else "grad_norm_preclip",
        )
        if p.bad_steps >= c.max_bad_steps:
            self.fail(
                f"{p.bad_steps} steps in a row were not finite, up to step {p.attempts - 1} (rows "
                f"{_few(suspects or rows)})",
                "Look at those rows, lower lr, or lengthen warmup_steps",
            )

    def numbers(self, indices: list[int]) -> list[int]:
        """Return the numbers by which people find these rows in the data."""
        known = self.setup.row_numbers
        return indices if known is None else [known[i] for i in indices]

    def is_spike(self, loss: float) -> bool:
        recent = np.array(self.progress.recent_losses)
        if not self.config.rewind or len(recent) < SPIKE_HISTORY:
            return False
        middle = float(np.median(recent))
        deviation = 1.4826 * float(np.median(np.abs(recent - middle)))
        return loss > middle + max(self.config.spike_sigmas * deviation, self.config.spike_height)

    def spike(self, position: int, loss: float) -> None:
        """The step was dropped before it reached the weights. A second one in a row: the weights are bad
        already."""
        p = self.progress
        again = p.last_spike == p.attempts - 2
        p.spikes, p.last_spike = p.spikes + 1, p.attempts - 1
        rows = self.loader.indices(position)
        self.event(
            "spike",
            p.attempts - 1,
            rows=self.numbers(rows),
            loss_nats=loss,
            usual=float(np.median(p.recent_losses)),
        )
        if p.spikes > self.config.max_rewinds:
            self.fail(
                f"the loss spiked {p.spikes} times, at last at step {p.attempts - 1} (rows "
                f"{_few(self.numbers(rows))})",
                "Lower lr, look at those rows, or set spike_height higher",
            )
        suspects = [*rows, *(r for batch in p.recent_rows for r in batch)] if again else rows
        p.left_out = sorted({*p.left_out, *suspects})
        if again:
            self.rewind()
        self.batches = None  # what was prepared ahead may hold rows that are left out now

    def rewind(self) -> None:
        """Go back to the newest checkpoint from well before the spike; attempts and what was learned of rows
        stay."""
        now = self.progress
        early = [attempt for attempt in now.scheduled if attempt <= now.attempts - 5] or now.scheduled[:1]
        path = self.checkpoints / f"step-{early[-1]:08d}"
        self.restore(path)
        for name in ("attempts", "spikes", "left_out", "micro_batch", "last_spike"):
            setattr(self.progress, name, getattr(now, name))
        self.event("rewind", now.attempts - 1, to=path.name, updates=self.progress.updates)
        self.bar.n = self.progress.updates

    def event(self, kind: str, step: int, **details) -> None:
        self.telemetry.flush()
        if self.log:
            self.log.event(step, kind, **details)
            self.log.flush()
        if self.processes.leads and self.config.progress and kind != "overflow":
            self.bar.write(f"step {step}: {kind}  " + "  ".join(f"{k} {_few(v)}" for k, v in details.items()))

    def fail(self, what: str, hint: str) -> None:
        self.telemetry.flush()
        raise TrainingFailed(f"finetune: stopped, because {what}; {self.last_good()}. {hint}")

    def last_good(self) -> str:
        path, _ = newest_checkpoint(self.checkpoints)
        return f"the last good checkpoint is {path}" if path else "there is no checkpoint"

    def evaluate(self, interrupt: Interrupt) -> None:
        """Score the validation split, keep the best weights; a request to stop ends it, and a resume does it
        again."""
        p, c = self.progress, self.config
        alone = self.processes.size == 1
        self.telemetry.flush()
        if self.average:
            self.average.swap()
        try:
            with interrupt.interruptible() if alone else nullcontext():
                found = self.setup.evaluate(self.model, interrupt.check if alone else lambda: None)
            better = p.best_score is None or not found.score <= p.best_score
            weights = self.weights() if better else {}
            if better:
                self.processes.first(
                    lambda: replace_folder(
                        c.out / "best",
                        lambda folder: self.setup.save_model(bare(self.model), folder, weights),
                    )
                )
        finally:
            if self.average:
                self.average.swap()
        p.evaluated_at = p.updates
        if better:
            p.best_score, p.best_at, p.stale_evaluations = found.score, p.updates, 0
        else:
            p.stale_evaluations += 1
        if p.updates >= c.steps:
            p.finished = "all steps"
        elif c.patience is not None and p.stale_evaluations >= c.patience:
            p.finished = "no better score"
        if self.log:
            loss = found.scores.get("loss_nats", math.nan)
            self.log.evaluation(
                p.attempts - 1, {"validation_loss_nats": loss, "validation_score": found.score}
            )
            self.log.flush()
        if self.processes.leads and c.progress:
            self.bar.write(
                f"step {p.updates}: validation score {found.score:.4f}" + (" (best)" if better else "")
            )

    def weights(self) -> dict[str, Tensor]:
        """Every weight and buffer that is kept, whole and on the CPU; all processes call."""
        model = bare(self.model)
        kept = model.state_dict(keep_vars=True)
        tensors = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n in kept}
        return {name: whole(tensor.detach()).cpu() for name, tensor in tensors.items()}

    def save(self, *, due: bool = False) -> None:
        """Write a checkpoint; all processes call, one writes. One that a stop asks for is no place to rewind
        to."""
        p = self.progress
        if due:
            p.scheduled = [*(a for a in p.scheduled if a != p.attempts), p.attempts][-self.config.keep :]
        self.telemetry.flush()
        tensors = {"model": self.weights(), "optimizer": save_moments(self.optimizer)}
        if self.average:
            tensors["average"] = {name: whole(x) for name, x in self.average.averages.items()}

        def write():
            state = {"progress": asdict(p), "log_bytes": self.log.sync()}
            write_checkpoint(self.checkpoints, p.attempts, tensors, state)
            prune_checkpoints(self.checkpoints, 1, also=p.scheduled)
            self._write_timings()

        self.processes.first(write)

    def restore(self, path: Path) -> dict:
        """Load weights, moments, averages and progress from a checkpoint; return its state."""
        tensors, state = read_checkpoint(path)
        model = bare(self.model)
        here = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, value in tensors["model"].items():
            assign(here[name].data, value)
        load_moments(self.optimizer, tensors["optimizer"])
        if self.average:
            for name, value in tensors["average"].items():
                assign(self.average.averages[name], value)
        self.progress = Progress(**state["progress"])
        self.batches = None
        return state

    def _open(self, resume: bool, force: bool) -> None:
        """Check the folder, load the newest checkpoint if asked, and open the log where that left it."""
        c, state = self.config, None
        if resume:
            path = self.processes.first(lambda: self._newest(force))
            state = self.restore(path)

        def begin():
            if not resume:
                _clear(c)
                weights = 4 * sum(x.numel() for x in bare(self.model).parameters())
                trained = 4 * sum(x.tensor.numel() for x in self.parameters)
                checkpoint = weights + (3 if self.average else 2) * trained
                check_room(c.out, (c.keep + 1) * checkpoint + 2 * weights)  # and best/, with its successor
            described = {
                "config": c.as_dict(),
                "data_fingerprint": self.setup.fingerprint,
                "torch": torch.__version__,
            }
            write_atomically(c.out / "config.json", dumps(described, indent=2) + "\n")
            settings = {name: value for name, value in c.as_dict().items() if name not in MAY_CHANGE}
            kind = partial(TensorBoardLog, first_step=self.progress.attempts) if c.tensorboard else MetricsLog
            self.log = kind(
                c.out / "metrics.jsonl",
                settings | {"clip_norm": c.clip_norm},
                keep_bytes=state["log_bytes"] if state else None,
            )

        self.processes.first(begin)

    def _newest(self, force: bool) -> Path:
        _check_same(self.config, self.setup.fingerprint, force)
        path, problems = newest_checkpoint(self.checkpoints)
        for problem in problems:
            print(f"passed over: {problem}")
        if path is None:
            raise ValueError(f"finetune: {self.checkpoints} holds no whole checkpoint to resume from")
        return path

    def time(self, batch: dict[str, Tensor], began: float) -> None:
        if not self.processes.leads:
            return
        tokens = int(batch["attention_mask"].shape[0] * batch["attention_mask"].shape[-1])
        self.timings.append(
            {
                "step": self.progress.attempts - 1,
                "ms": 1e3 * (time.perf_counter() - began),
                "rows": len(batch["rows"]),
                "tokens_padded": tokens,
            }
        )

    def _write_timings(self) -> None:
        """Clocks differ from run to run: they stand beside metrics.jsonl, not in it."""
        with open(self.config.out / "timings.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.timings)
        self.timings = []


def _check_same(config: FinetuneConfig, fingerprint: str, force: bool) -> None:
    """Refuse a resume under other settings or on other data, unless forced."""
    try:
        before = loads((config.out / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"finetune: {config.out} holds no run to resume: config.json is missing") from None
    now = config.as_dict()
    old = {name: as_number(value) for name, value in before["config"].items()}
    changed = [
        f"{k} was {old.get(k)!r}, is {v!r}" for k, v in now.items() if k not in MAY_CHANGE and old.get(k) != v
    ]
    if before["data_fingerprint"] != fingerprint:
        changed.append("the data are others")
    if changed and not force:
        raise ValueError(
            f"finetune: a resume must have the settings of the run; {'; '.join(changed)}. "
            "--force goes on all the same, and is no exact resume any more"
        )


def _clear(config: FinetuneConfig) -> None:
    """Make the folder of a new run; one that holds a run is only cleared with `overwrite`."""
    names = (
        "config.json",
        "metrics.jsonl",
        "timings.jsonl",
        "checkpoints",
        "best",
        "scores.json",
        "report.html",
        "tensorboard",
    )
    there = [config.out / name for name in names if (config.out / name).exists()]
    if there and not config.overwrite:
        raise ValueError(
            f"finetune: out must not hold a run already; {config.out} does. Resume it "
            f"(python -m stabviz resume {config.out}), choose another folder, or --overwrite"
        )
    for path in there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    config.out.mkdir(parents=True, exist_ok=True)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def _indices(rows: Tensor) -> list[int]:
    """The rows of a batch; packed ones stand several in a line, filled up with -1."""
    return [r for r in rows.flatten().tolist() if r >= 0]


def _few(values) -> str:
    if not isinstance(values, list):
        return f"{values:.4g}" if isinstance(values, float) else str(values)
    return ", ".join(map(str, values[:8])) + (f" and {len(values) - 8} more" if len(values) > 8 else "")
