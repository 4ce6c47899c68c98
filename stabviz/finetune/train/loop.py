"""The training loop: one story, with its points of measurement, and what it does when something goes wrong.

    batch         = the rows at this position of the stream
    lr            = schedule(updates)
    loss, grads   = objective(model, batch), by micro-batches, weighted by the targets that count
    norms         = of the gradient, by layer, BEFORE clipping
    outcome       = guard.judge(loss, norm)              # good | not_finite | spike
        not_finite: record the raw values, leave weights, moments and schedule as they are
        spike:      drop the step and leave its rows out; at once again -> back to a checkpoint
    grads         = clip(grads)
    params, state = optimizer(params, grads, state)      # update and moments by layer, every signals_every
    steps evaluate, save where it is due

Beside it: `progress` is what a step depends on, `guard` decides, `micro_batches` accumulates, `telemetry`
measures, `run_folder` keeps what is written.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from stabviz.finetune.data.loader import Loader
from stabviz.finetune.distributed import bare, load_weights, local, share, whole_weights
from stabviz.finetune.train.checkpoint import read_checkpoint
from stabviz.finetune.train.guard import go_back_to, judge, respond, usual_loss
from stabviz.finetune.train.interrupt import Interrupt, StopRequested
from stabviz.finetune.train.micro_batches import Accumulated, MicroBatches, free_memory, is_out_of_memory
from stabviz.finetune.train.optimizer import (
    OPTIMIZERS,
    WeightAverage,
    drop_gradients,
    is_untouched,
    load_moments,
    save_moments,
    trained_parameters,
)
from stabviz.finetune.train.progress import Progress, progress_bar
from stabviz.finetune.train.run_folder import RunFolder, shown
from stabviz.finetune.train.setup import Setup
from stabviz.finetune.train.telemetry import Telemetry
from stabviz.ops import SCHEDULES, clip_scale


def train(
    setup: Setup, *, resume: bool = False, force: bool = False, interrupt: Interrupt | None = None
) -> Progress:
    """Train to the end, or until Ctrl-C, SIGTERM or `interrupt.ask()`; what was reached is saved either way.

    Raises: TrainingFailed after too many bad steps or spikes; ValueError for a resume that would not be
            exact; OSError where the folder cannot be written, before the first step
    Lesson: 11-classification
    """
    return Training(setup, resume=resume, force=force).run(interrupt or Interrupt())


class Training:
    """One run under way."""

    def __init__(self, setup: Setup, *, resume: bool, force: bool):
        c, compute, processes = setup.config.train, setup.config.train.compute, setup.processes
        self.setup, self.config, self.processes = setup, setup.config, processes
        if compute.deterministic:
            torch.use_deterministic_algorithms(True)
        trained_parameters(setup.model, c.optimizer)  # freezes before the model is wrapped
        self.model = share(setup.model, processes, compute.parallel)
        self.model.train()  # from_pretrained hands models over in evaluation mode, without dropout
        self.parameters = trained_parameters(bare(self.model), c.optimizer)
        self.optimizer = OPTIMIZERS[c.optimizer.name](self.parameters, c.optimizer)
        self.average = WeightAverage(self.parameters, c.ema_decay) if c.ema_decay else None
        assert c.lr is not None, "whoever made the setup has chosen a rate"
        self.peak_rate, self.schedule = c.lr, SCHEDULES[c.schedule]
        self.loader = Loader(setup.rows, setup.collate, setup.config, processes)
        self.batches: Iterator | None = None
        rows_here = math.ceil(c.batch / processes.size)
        self.progress = Progress(
            micro_batch=min(compute.micro_batch or rows_here, rows_here),
            loss_scale=compute.loss_scale if compute.precision == "fp16" else 1.0,
        )
        # after weights and moments have their memory: a model too large fails before an old run is cleared
        self.folder = RunFolder(setup)
        if resume:
            log_bytes = self.restore(processes.first(lambda: self.folder.to_resume(force)))["log_bytes"]
            if self.progress.finished == "all steps" and self.progress.updates < c.steps:
                self.progress.finished = ""  # it was: now there are more of them
        else:
            processes.first(lambda: self.folder.clear(self.model, self.parameters))
            log_bytes = None
        processes.first(lambda: self.folder.open_log(self.progress.attempts, log_bytes))
        self.telemetry = Telemetry(self.parameters, c.optimizer, setup.config.run, processes, self.folder.log)
        self.micro_batches = MicroBatches(setup, self.model, self.parameters, self.folder)
        if compute.compile:
            self.model.compile(dynamic=True)

    def run(self, interrupt: Interrupt) -> Progress:
        """Train until the run is finished or is to stop, and save what was reached."""
        run = self.config.run
        shown = run.progress and self.processes.leads
        self.bar = progress_bar(self.progress, self.config.train.steps, f"seed {run.seed}", shown=shown)
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
        self.folder.close()
        return self.progress

    def go_on(self, interrupt: Interrupt) -> None:
        """Evaluate, step and save by turns, until the run is finished or asked to stop."""
        c, run, taken = self.config.train, self.config.run, 0
        if not self.progress.scheduled:
            # what a first spike goes back to; and a disk that cannot be written shows now
            self.save(due=True)
        while not (p := self.progress).finished:  # a rewind puts another Progress in its place
            if p.evaluated_at < p.updates and (p.updates % c.evaluate_every == 0 or p.updates >= c.steps):
                self.evaluate(interrupt)
                continue  # it may have ended the run
            if self.processes.any(interrupt.requested) or taken == run.stop_after:
                break
            began = time.perf_counter()
            position, batch = self.next_batch(interrupt)
            self.step(position, batch)
            taken, p = taken + 1, self.progress
            self.folder.time(p.attempts - 1, batch, time.perf_counter() - began)
            if run.save_every and p.updates and p.updates % run.save_every == 0 and p.bad_steps == 0:
                self.save(due=True)

    def next_batch(self, interrupt: Interrupt) -> tuple[int, dict[str, Tensor]]:
        """Wait for the next batch; return its position in the stream, and this process's rows of it."""
        if self.batches is None:
            self.batches = self.loader.batches(self.progress.position, set(self.progress.left_out))
        # under torchrun all processes must leave at the same step: there a request waits for its turn
        with interrupt.interruptible() if self.processes.size == 1 else nullcontext():
            return next(self.batches)

    def step(self, position: int, batch: dict[str, Tensor]) -> None:
        """One training step on one batch; see the head of this module."""
        c, p = self.config.train, self.progress
        fp16 = c.compute.precision == "fp16"
        lr = self.peak_rate * float(self.schedule(p.updates, total_steps=c.steps, warmup_steps=c.warmup))
        due = self.telemetry.due(p.attempts)

        done = self.micro_batches.gradient(position, batch, p, measure=due)
        gradients = [x.tensor.grad for x in self.parameters]
        grads = [local(g) for g in gradients if g is not None]
        if fp16:
            torch._foreach_mul_(grads, 1 / p.loss_scale)  # clip_norm is meant for the true gradient
        norms = self.telemetry.norms(gradients)
        # the one wait for the device in a step
        loss, norm = torch.stack([done.loss_nats.float(), norms[0].to(done.loss_nats.device)]).tolist()
        recent = p.recent_losses if c.guard.rewind else []
        # the same two numbers in every process, so that all of them decide alike
        outcome = judge(loss, norm, recent, sigmas=c.guard.spike_sigmas, height=c.guard.spike_height)

        known = {"lr": lr, "loss_nats": loss, "updates": p.updates, "targets": done.targets}
        known["clipped"] = float(norm > c.clip_norm)
        if fp16:
            known["loss_scale"] = p.loss_scale
        measured = {"grad_norm_preclip": norms, **done.measured}
        p.position = position + 1  # whatever comes of the step: a bad batch is not tried again
        if outcome == "good":
            if norm > c.clip_norm:
                torch._foreach_mul_(grads, clip_scale(norms[0], c.clip_norm))
            if due:
                measured["param_norm"] = self.telemetry.param_norms()  # of the weights that gave this loss
            self.update(lr)
            if due:
                measured |= self.telemetry.update_signals(self.optimizer)
            if self.average:
                self.average.update()
            p.count_update(loss, self.loader.indices(position))
            self.bar.update(1)
            self.bar.set_postfix_str(f"loss {loss:.3f}  grad norm {norm:.3f}  lr {lr:.2g}", refresh=False)
        self.telemetry.record(p.attempts, known, measured)
        if fp16:
            p.adapt_loss_scale(outcome != "not_finite")
        p.attempts += 1
        drop_gradients(self.parameters)  # None, not 0: a layer without gradient is not measured
        if outcome == "not_finite":
            self.after_not_finite(loss, position, done)
        elif outcome == "spike":
            self.after_spike(loss, position)

    def update(self, lr: float) -> None:
        """Let the optimizer step; once more where it ran out of memory before it had changed anything."""
        try:
            self.optimizer.step(lr)
        except RuntimeError as error:
            again = is_out_of_memory(error) and self.processes.size == 1
            if not again or not is_untouched(self.optimizer, self.progress.updates):
                raise
            free_memory(self.processes.device)
            self.folder.event(self.progress.attempts, "out_of_memory", in_="optimizer")
            self.optimizer.step(lr)

    def after_not_finite(self, loss: float, position: int, done: Accumulated) -> None:
        """Log a step that was not finite, with the rows to suspect; too many in a row stop the run."""
        p, c, step = self.progress, self.config.train, self.progress.attempts - 1
        p.bad_steps += 1
        bad_rows = [row for rows in self.processes.gather(done.bad_rows()) for row in rows]
        in_use = [row for row in self.loader.indices(position) if row not in p.left_out]
        suspects = self.setup.numbers(bad_rows or in_use)
        # in fp16 a gradient too large for the loss scale is the scale's business, and no fault of the run
        overflow = c.compute.precision == "fp16" and math.isfinite(loss)
        self.event(
            "overflow" if overflow else "non_finite",
            rows=suspects,
            signal="loss_nats" if bad_rows or not math.isfinite(loss) else "grad_norm_preclip",
        )
        if respond("not_finite", p, c.guard.max_bad_steps, c.guard.max_rewinds) == "stop":
            raise self.folder.failure(
                f"{p.bad_steps} steps in a row were not finite, up to step {step} (rows {shown(suspects)})",
                "Look at those rows, lower lr, or lengthen warmup_steps",
            )

    def after_spike(self, loss: float, position: int) -> None:
        """Log a spike, which has not reached the weights, and leave out its rows, or go back."""
        p, step, rows = self.progress, self.progress.attempts - 1, self.loader.indices(position)
        p.spikes += 1
        guard = self.config.train.guard
        response = respond("spike", p, guard.max_bad_steps, guard.max_rewinds)
        p.last_spike = step
        numbers = self.setup.numbers(rows)
        self.event("spike", rows=numbers, loss_nats=loss, usual=usual_loss(p.recent_losses)[0])
        if response == "stop":
            raise self.folder.failure(
                f"the loss spiked {p.spikes} times, at last at step {step} (rows {shown(numbers)})",
                "Lower lr, look at those rows, or set spike_height higher",
            )
        p.leave_out(rows)
        if response == "rewind":
            p.leave_out([row for batch in p.recent_rows for row in batch])
            path = self.folder.checkpoints / f"step-{go_back_to(p.scheduled, p.attempts):08d}"
            self.restore(path)
            # the checkpoint's progress, with the rows left out and the spikes counted since
            self.progress = p.rewound_to(self.progress)
            self.event("rewind", to=path.name, updates=self.progress.updates)
            self.bar.n = self.progress.updates
        self.batches = None  # what was prepared ahead may hold rows that are left out now

    def event(self, kind: str, **details) -> None:
        """Log what happened at the step that was just made, after its signals."""
        self.telemetry.flush()
        self.folder.event(self.progress.attempts - 1, kind, **details)

    def evaluate(self, interrupt: Interrupt) -> None:
        """Score the validation split, keep the best weights; where a stop ends it, a resume does it again."""
        p, c, alone = self.progress, self.config.train, self.processes.size == 1
        self.telemetry.flush()
        if self.average:  # in place, and back again: a copy of the model would need its memory twice
            self.average.swap()
        try:
            with interrupt.interruptible() if alone else nullcontext():
                found = self.setup.evaluate(self.model, interrupt.check if alone else lambda: None)
            better = p.is_better(found.score)
            if better:
                weights = whole_weights(self.model)  # all processes take part, one writes
                self.processes.first(lambda: self.folder.keep_best(bare(self.model), weights))
        finally:
            if self.average:
                self.average.swap()
        p.count_evaluation(found.score, steps=c.steps, patience=c.patience)
        values = {"validation_loss_nats": found.loss, "validation_score": found.score}
        self.folder.evaluation(p, values, *found.named)
        if p.finished == "no better score":
            self.event("early_stop", evaluations=p.stale_evaluations, best=p.best_score, best_at=p.best_at)

    def save(self, *, due: bool = False) -> None:
        """Write a checkpoint; all processes call, one writes.

        One that is not `due`, because a stop asks for it, is no place to rewind to: a run that nobody stopped
        would not have it.
        """
        if due:
            self.progress.count_checkpoint(self.config.run.keep)
        self.telemetry.flush()
        tensors = {"model": whole_weights(self.model), "optimizer": save_moments(self.optimizer)}
        if self.average:
            tensors["average"] = self.average.whole()
        self.processes.first(lambda: self.folder.save(tensors, self.progress))

    def restore(self, path: Path) -> dict:
        """Load weights, moments, averages and progress from a checkpoint; return its state."""
        tensors, state = read_checkpoint(path)
        load_weights(self.model, tensors["model"])
        load_moments(self.optimizer, tensors["optimizer"])
        if self.average:
            self.average.load(tensors["average"])
        self.progress = Progress(**state["progress"])  # a new object: `p` of a caller is the old one
        self.batches = None
        return state
