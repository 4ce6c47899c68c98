"""`StabilityCallback`: signals, Trace and diagnosis of this course for runs of transformers' Trainer.

    callback = StabilityCallback("runs/mine")
    trainer = Trainer(..., callbacks=[callback])
    trainer.train()
    print(callback.diagnosis)

The Trainer clips before its first event of a step, and its log holds means without the NaN steps. So the loss
and the gradient are read where they are whole and raw: when `training_step` returns, after the backward pass
and before clipping. Update and moments are read at `on_optimizer_step`, evaluations at `on_evaluate`.
"""

import inspect
import json
import math
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from stabviz.finetune.config import OptimizerConfig, RunConfig
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.train.optimizer import trained_parameters
from stabviz.finetune.train.telemetry import AttentionProbe, Telemetry
from stabviz.trace import Trace, Verdict
from stabviz.trace.diagnosis import Diagnosis, diagnose
from stabviz.trace.log import MetricsLog, read_metrics

SCORES = ("eval_accuracy", "eval_f1", "eval_macro_f1", "eval_f1_macro")
"""Where an evaluation's score is looked for, the first that is there."""
_CLASSIFIES = ("ForSequenceClassification", "ForTokenClassification")


class StabilityCallback(TrainerCallback):
    """Records what a Trainer's run measures to OUT/metrics.jsonl, and diagnoses it at the end.

    One process records what it sees: under several, the loss is that of the first one's rows. Adam's update
    and moments are measured for optimizers of torch that keep "exp_avg" and "exp_avg_sq".

    Lesson: 11-classification
    """

    def __init__(
        self, out: str | Path, *, signals_every: int = 10, flush_every: int = 10, report: bool = True
    ):
        self.out = Path(out)
        self.signals_every, self.flush_every, self.report = signals_every, flush_every, report
        self.trainer: Trainer | None = None
        self.trace: Trace | None = None
        """The run's record; there when training has ended."""
        self.log: MetricsLog | None = None
        self._micro: list[dict] = []

    @property
    def diagnosis(self) -> Diagnosis:
        """What the run has, and what to do."""
        return diagnose(self._recorded())

    @property
    def verdict(self) -> Verdict:
        """How the run went: what the diagnosis is a cause of."""
        return self.diagnosis.verdict

    def _recorded(self) -> Trace:
        """The whole record, or so far as it goes where training goes on or broke off."""
        if self.trace is not None:
            return self.trace
        if not (self.out / "metrics.jsonl").exists():
            raise ValueError(f"StabilityCallback: out must hold a run; got {str(self.out)!r}. Train first")
        self._flush()
        return read_metrics(self.out / "metrics.jsonl")

    def watch(self, trainer: Trainer) -> "StabilityCallback":
        """Read a Trainer's loss and gradients where they are raw, as training does by itself; return this."""
        if self.trainer is not None:
            raise ValueError(
                "StabilityCallback: watch must be called once, with one Trainer; got a second call"
            )
        self.trainer, inner = trainer, trainer.training_step

        def training_step(model, inputs, num_items_in_batch=None):
            if self.log is None:
                return inner(model, inputs, num_items_in_batch)
            return self._observe(inner, model, inputs, num_items_in_batch)

        trainer.training_step = training_step  # type: ignore[method-assign]
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        return self

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the log, or go on with that of the run that is resumed."""
        if self.trainer is None or self.trainer.state is not state:  # the first Trainer, or another one
            self.trainer = None
            self.watch(_calling_trainer())
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self.trace, self.log, self._micro = None, None, []
        if not state.is_world_process_zero:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "metrics.jsonl"
        keep = _bytes_before(path, state.global_step) if state.global_step and path.exists() else None
        self.log = MetricsLog(path, _described(args, model), keep_bytes=keep)
        processes = ProcessGroup(rank=0, size=1, device=args.device, owns_group=False)
        # What the optimizer really uses: one handed to the Trainer does not follow the arguments.
        group = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        group |= optimizer.param_groups[0]
        adam = OptimizerConfig(beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"])
        run = RunConfig(out=self.out, signals_every=self.signals_every, flush_every=self.flush_every)
        self.telemetry = Telemetry(trained_parameters(model, adam), adam, run, processes, self.log)
        self.probe = AttentionProbe(model)
        self.classifies = type(model).__name__.endswith(_CLASSIFIES)

    def _observe(self, inner, model, inputs, num_items_in_batch):
        """One micro-batch: forward and backward by the Trainer, and what they leave behind."""
        mask, labels, held = inputs.get("attention_mask"), inputs.get("labels"), {}
        due = self.telemetry.due(self.trainer.state.global_step) and not self._micro and mask is not None
        bare = self.trainer.model
        handle = bare.register_forward_hook(
            lambda module, args, out: held.__setitem__("logits", _logits(out))
        )
        try:
            with self.probe if due else nullcontext():
                loss = inner(model, inputs, num_items_in_batch)
        finally:
            handle.remove()
        seen = {"loss_nats": loss.detach()}
        if due:
            seen |= self.probe.measured(mask.to(loss.device))
        if self.classifies and labels is not None and held.get("logits") is not None:
            seen |= _right(held["logits"], labels.to(loss.device))
        self._micro.append(seen)
        # Only the last micro-batch leaves the whole gradient; before it, it is a part of the sum.
        if self.trainer.accelerator.gradient_state.sync_gradients:
            scale = self._loss_scale()
            gradients = [p.tensor.grad for p in self.telemetry.parameters]
            self._norms = self.telemetry.norms(gradients) / scale
        return loss

    def _loss_scale(self) -> float:
        assert self.trainer is not None
        scaler = self.trainer.accelerator.scaler
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def on_step_begin(self, args, state, control, **kwargs):
        """Forget micro-batches of a step that was broken off (memory ran out) and is done again."""
        self._micro = []

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        """The gradients are clipped by now; the weights are still those that the loss was measured with."""
        if self.log is None:
            return
        self._lr, self._scale = float(optimizer.param_groups[0]["lr"]), self._loss_scale()
        self._param_norm = self.telemetry.param_norms() if self.telemetry.due(state.global_step) else None

    def on_optimizer_step(self, args, state, control, optimizer, **kwargs):
        """Measure the update just made, and keep the step; its values stay on the device until a flush."""
        if self.log is None:
            return
        micro, self._micro = self._micro, []
        device = {
            "grad_norm_preclip": self._norms,
            "loss_nats": torch.stack([m["loss_nats"] for m in micro]).sum(),
        }
        if all("right" in m for m in micro):
            counted = torch.stack([m["counted"] for m in micro]).sum()
            device["accuracy"] = torch.stack([m["right"] for m in micro]).sum() / counted
        device |= {name: value for name, value in micro[0].items() if name.endswith(("_logit", "_entropy"))}
        # the Trainer clips nothing where max_grad_norm is 0 or less
        limit = args.max_grad_norm if args.max_grad_norm > 0 else math.inf
        device["clipped"] = (self._norms[0] > limit).float()
        # with a fused optimizer accelerate reports a skipped step as taken; the scale that fell tells
        skipped = self.trainer.accelerator.optimizer_step_was_skipped or self._loss_scale() < self._scale
        if self._param_norm is not None:
            device["param_norm"] = self._param_norm
            if not skipped and _keeps_moments(optimizer, self.telemetry.parameters):
                device |= self.telemetry.update_signals(_Moments(optimizer))
        host = {"lr": self._lr} | (
            {"loss_scale": self._scale} if self.trainer.accelerator.scaler is not None else {}
        )
        if skipped:
            self.log.event(state.global_step, "overflow", signal="grad_norm_preclip")
        self.telemetry.record(state.global_step, host, device)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Keep what an evaluation measured, beside the step that it came after."""
        if self.log is None or not metrics or not state.global_step:
            return
        found = {
            "validation_" + name.removeprefix("eval_"): float(value)
            for name, value in metrics.items()
            if name.startswith("eval_")
            and isinstance(value, (int, float))
            and not name.endswith(("runtime", "per_second"))
        }
        if "validation_loss" in found:
            found["validation_loss_nats"] = found.pop("validation_loss")
        score = next((metrics[name] for name in SCORES if name in metrics), None)
        self._flush()
        self.log.evaluation(
            state.global_step - 1, found | ({} if score is None else {"validation_score": score})
        )

    def on_train_end(self, args, state, control, **kwargs):
        """Close the log, read it back, and say what became of the run."""
        if self.log is None:
            return
        self._flush()
        self.log.close()
        self.log = None
        if state.global_step:
            self.trace = read_metrics(self.out / "metrics.jsonl")
            if self.report:
                print(_summary(self.diagnosis))

    def _flush(self) -> None:
        if self.log is not None:
            self.telemetry.flush()
            self.log.flush()


def _calling_trainer() -> Trainer:
    """The Trainer that called: transformers hands a callback the model and the optimizer, but not itself."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(trainer := frame.f_locals.get("self"), Trainer):
            return trainer
        frame = frame.f_back
    raise ValueError(
        "StabilityCallback: training must be begun by a Trainer of transformers; got another caller. "
        "Say StabilityCallback(out).watch(trainer)"
    )


class _Moments:
    """Gives Telemetry the moments of an Adam of torch."""

    def __init__(self, optimizer):
        self.state = optimizer.state

    def moments(self, parameter):
        state = self.state[parameter.tensor]
        step = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.tensor.device)
        return state["exp_avg"], state["exp_avg_sq"], step


def _keeps_moments(optimizer, parameters) -> bool:
    with_gradient = [p for p in parameters if p.tensor.grad is not None]
    return bool(with_gradient) and all(
        {"exp_avg", "exp_avg_sq", "step"} <= set(optimizer.state.get(p.tensor, ())) for p in with_gradient
    )


def _logits(output):
    return output.get("logits") if isinstance(output, dict) else None


def _right(logits, labels) -> dict[str, torch.Tensor]:
    """How many labels there are, and how many of them are the most likely class."""
    if logits.shape[:-1] != labels.shape:
        return {}
    counts = labels != -100
    return {"right": ((logits.detach().argmax(dim=-1) == labels) & counts).sum(), "counted": counts.sum()}


def _described(args, model: nn.Module) -> dict:
    """What the header of the log says of the run."""
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    classifies = type(model).__name__.endswith(_CLASSIFIES)
    return {
        "source": "transformers.Trainer",
        "model": type(model).__name__,
        "optimizer": str(args.optim.value),
        "lr": args.learning_rate,
        "clip_norm": args.max_grad_norm,
        "label_smoothing": args.label_smoothing_factor,
        "batch": args.per_device_train_batch_size * args.gradient_accumulation_steps,
        "seed": args.seed,
        "precision": "fp16" if args.fp16 else "bf16" if args.bf16 else "fp32",
        **({"chance_nats": math.log(labels)} if classifies and labels and labels > 1 else {}),
    }


def _bytes_before(path: Path, step: int) -> int:
    """Length of the part of a log that a resume at `step` goes on from."""
    kept = 0  # in bytes: the rest is cut off, also half a line that a kill left
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line).get("step", -1) >= step:
                break
            kept += len(line)
    return kept


def _summary(found: Diagnosis) -> str:
    rows = [f"diagnosis  {found.headline}", *(f"           {line}" for line in found.evidence)]
    lesson = f" Lesson {found.lesson}." if found.lesson else ""
    rows += [f"remedy     ({found.confidence}) {found.remedy}{lesson}"] if found.remedy else []
    return "\n".join(rows)
