"""One step of R runs at once: the story from the batch of data to the new parameters.

The only room with a run axis. A model, a loss, an optimizer step are written for ONE run; `torch.vmap` maps
them over R, and one backward pass of the sum of the losses gives every run its own gradient, because no run's
loss depends on another's parameters. The parameters of a batch of runs are one buffer (R, P), so that
clipping and the optimizer are a handful of operations, whatever the number of tensors.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from stabviz.lab.curvature import Curvature
from stabviz.lab.experiment import KNOBS, Run, numeric_knobs
from stabviz.lab.functions import YourOptimizer, YourTensor, examine, made_up
from stabviz.lab.fuse import fuse
from stabviz.lab.problems import Batch, problem_of
from stabviz.lab.rates import Plateau, rates
from stabviz.lab.replay import Action, record
from stabviz.ops import OPTIMIZERS, clip_adaptive, clip_by_global_norm, clip_by_value, qk_clip

WRITTEN_STEPS = 3
"""Steps done as they are written before one is recorded: recording takes a tenth of a second, and a first
curve should not wait for it."""

RATES = {"qk_lr_scale": ("query", "key"), "vo_lr_scale": ("value", "output")}
"""Knobs that give weights of attention a rate of their own, and which weights."""

HELD_OUT_EVERY = 20
"""Steps between two measurements on the held-out end of the corpus; the last step is always measured."""


class RunBatch:
    """R runs of one structure, trained in lockstep.

    One step is `_step`, then `_commit`. What lasts from step to step (parameters, state, counters, signals)
    is edited in place: a recording or a CUDA graph works on the very tensors that it was made with.
    """

    def __init__(self, runs: list[Run], device: torch.device, measure: bool):
        first = runs[0]
        self.runs, self.device, self.measure = runs, device, measure
        self.dtype = getattr(torch, first.dtype)
        self.problem = problem_of(first)
        per_run = [self.problem.init(run) for run in runs]
        self.shapes = {name: tensor.shape for name, tensor in per_run[0].items()}
        self.layers = _layers(self.shapes)
        self.is_scaled_P = {
            knob: _attention_weights(self.shapes, *parts).to(device) for knob, parts in RATES.items()
        }
        self.params_RP = torch.stack(
            [torch.cat([tensor.flatten() for tensor in params.values()]) for params in per_run]
        ).to(device, self.dtype)
        self.next_batch = self.problem.batches(runs, device)
        self.held_out = self.problem.held_out(device)
        self.knob = {name: self._knob(name) for name in KNOBS}
        self.optimizer = _optimizer(first.optimizer)
        state = torch.vmap(self.optimizer.init)(self.params_RP)
        self.state = {
            # vmap hands out one zero expanded over runs, which nothing can be written to in place.
            name: value.clone(memory_format=torch.contiguous_format)
            for name, value in state.items()
        }
        self.clip = YourTensor("clip", first.clip) if first.clip else None
        self.lr_SR = torch.stack([rates(run) for run in runs], dim=1).to(device, self.dtype)
        self.plateau = Plateau(len(runs), device) if first.schedule == "plateau" else None
        self.curvature = Curvature(self.params_RP, first.sharpness_every) if first.sharpness else None
        self.alive_R = torch.ones(len(runs), dtype=torch.bool, device=device)
        self.step_index = torch.zeros((), dtype=torch.int64, device=device)
        self.anchor: Batch = {}
        self.signals: dict[str, Tensor] = {}
        self.steps_done = 0
        self.replay: list[Action] | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self._examine_yours()

    def _knob(self, name: str):
        """A knob that all runs share stays a number, and costs what a number costs; else (R,)."""
        values = [getattr(run, name) for run in self.runs]
        if all(value == values[0] for value in values):
            return values[0]
        kind = torch.bool if isinstance(values[0], bool) else self.dtype
        return torch.tensor(values, device=self.device, dtype=kind)

    def _examine_yours(self) -> None:
        """Try the reader's functions before the first step: which can be mapped over runs, and recorded?"""
        trials = self.problem.yours(self.device, self.dtype)
        grad_P = made_up(self.params_RP.shape[1]).to(self.params_RP)
        if self.clip is not None:
            trials.append((self.clip.yours, self.clip, (grad_P, self._each("clip_norm")[0])))
        if isinstance(self.optimizer, YourOptimizer):
            state = {name: value[0] for name, value in self.state.items()}
            example = (self.params_RP[0], grad_P, state, self.lr_SR[0, 0])
            trials.append((self.optimizer.yours, self._one_update, example))
        rows = min(2, len(self.runs))
        varying = {name: value[:rows] for name, value in self.knob.items() if isinstance(value, Tensor)}
        fixed = {name: value for name, value in self.knob.items() if name not in varying}
        findings = {}
        for mine, call, example in trials:
            example = tree_map(lambda x: x.expand(rows, *x.shape).clone(), example)

            def one(*arguments, call=call):
                return call(*arguments[:-1], fixed | arguments[-1])

            findings[mine.knob] = examine(mine, one, (*example, varying))
        self.notes = [finding.note for finding in findings.values() if finding.note]
        self.run_by_run = {knob for knob, finding in findings.items() if not finding.mapped}
        # What changes from step to step cannot be replayed.
        changes = self.curvature is not None or self.runs[0].linearise_step >= 0
        self.recorded = not changes and all(finding.recorded for finding in findings.values())

    def _over_runs(self, one: Callable, *args, knobs: tuple[str, ...], part: set[str]):
        """Call one(*args, knobs) for every run: by vmap, or in turn where a function of yours needs it."""
        if part & self.run_by_run:
            results = [
                one(*tree_map(lambda x, r=r: x[r], args), {name: getattr(run, name) for name in knobs})
                for r, run in enumerate(self.runs)
            ]
            return tree_map(lambda *rows: torch.stack(rows), *results)
        fixed = {name: self.knob[name] for name in knobs if not isinstance(self.knob[name], Tensor)}
        varying = {name: self.knob[name] for name in knobs if name not in fixed}

        def mapped(args, varying):
            return one(*args, fixed | varying)

        return torch.vmap(mapped)(args, varying)

    @property
    def alive(self) -> bool:
        return bool(self.alive_R.any())

    def params_of(self, place: int) -> dict[str, Tensor]:
        """The parameters of one run, copied."""
        return {name: view[place].clone() for name, view in self.views(self.params_RP).items()}

    def step(self) -> None:
        """The first steps as they are written, later ones by replay: of a CUDA graph, or of a recording."""
        if not self.recorded:
            self._commit(*self._step())
        elif self.device.type == "cuda":
            self._step_on_gpu()
        elif self.steps_done < WRITTEN_STEPS:
            self._commit(*self._step())
        elif self.replay is None:
            changing = (self.params_RP, *self.state.values())
            self.replay, self.outcome = record(self._step, changing, rewrite=fuse)
            self._commit(*self.outcome)
        else:
            with torch.no_grad():
                for action in self.replay:
                    action()
                self._commit(*self.outcome)
        self.steps_done += 1
        if self.held_out and (self.steps_done % HELD_OUT_EVERY == 0 or self.steps_done == self.runs[0].steps):
            self._measure_held_out()

    def _step_on_gpu(self) -> None:
        """Run three steps as they are, capture the fourth as a CUDA graph, replay it from then on."""
        if self.steps_done < WRITTEN_STEPS:
            # On a stream of their own, as a capture asks for: what warms up there is not captured.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._commit(*self._step())
            torch.cuda.current_stream().wait_stream(side)
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._commit(*self._step())
        self.graph.replay()

    def views(self, flat_RP: Tensor) -> dict[str, Tensor]:
        """The buffer as a dict of tensors with a leading run axis, sharing its memory."""
        parts = flat_RP.split([shape.numel() for shape in self.shapes.values()], dim=1)
        return {
            name: part.view(len(self.runs), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def _step(self) -> tuple[dict[str, Tensor], Tensor]:
        """Measure, clip, update: return the new parameters and state, and which runs take them over."""
        batch = self.next_batch(self.step_index) | self._anchor()
        objective_R, grads_RP, measured = self._gradients(batch)
        with torch.no_grad():
            grads_RP = grads_RP.detach()
            scale = self.knob["gradient_scale"]
            if isinstance(scale, Tensor) or scale != 1:
                grads_RP = grads_RP * (scale[:, None] if isinstance(scale, Tensor) else scale)
            lr_R = self._rate(objective_R)
            clipped_RP, norm_R = self._clip(grads_RP)
            new, update = self._update(clipped_RP, lr_R)
            for knob, is_scaled_P in self.is_scaled_P.items():
                new["param"] = self._scale_update(new["param"], knob, is_scaled_P)
            if self.runs[0].qk_clip < math.inf:
                new["param"] = self._clip_query_and_key(new["param"], measured.pop("max_logit_by_head"))
            signals = {"loss_nats": objective_R, "lr": lr_R, "grad_norm_preclip": norm_R}
            if self.measure:
                signals |= measured | self._norms_by_layer(grads_RP)
                signals |= {"clipped": self._was_clipped(grads_RP, clipped_RP, norm_R)} | update
            self._write(signals)
            return new, self._judge(objective_R.isfinite() & norm_R.isfinite())

    def _anchor(self) -> Batch:
        """The parameters at which the model is linearised, from that step on; before it none."""
        if self.steps_done == self.runs[0].linearise_step:
            # Cloned: the buffer goes on changing.
            self.anchor = {
                f"anchor {name}": view.clone() for name, view in self.views(self.params_RP).items()
            }
        return self.anchor

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The objective of every run, (R,), its gradient, (R, P), and what was measured."""
        # Leaves of their own, not the buffer: each parameter gets a gradient of its shape.
        leaves = {name: view.detach().requires_grad_() for name, view in self.views(self.params_RP).items()}
        loss_R, measured = self.losses(leaves, batch)
        objective_R = loss_R * self._poison() if any(run.poison_step >= 0 for run in self.runs) else loss_R
        curvature = self.curvature if self.steps_done % self.runs[0].sharpness_every == 0 else None
        second = curvature is not None  # the Hessian is a derivative of the gradient
        # The sum: no run's loss depends on another's parameters, so its gradient is each run's own.
        # A block or attention of yours may leave a parameter unused: its gradient is then 0, not an error.
        grads = torch.autograd.grad(
            objective_R.sum(),
            list(leaves.values()),
            create_graph=second,
            allow_unused=True,
            materialize_grads=True,
        )
        grads_RP = torch.cat([grad.reshape(len(self.runs), -1) for grad in grads], dim=1)
        if curvature is not None:
            measured |= curvature.measure(leaves, grads_RP, self.optimizer, self.state, self.knob)
        return objective_R.detach(), grads_RP, {name: value.detach() for name, value in measured.items()}

    def losses(self, params: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of every run, (R,), and what was measured."""

        def one(params, batch, knobs):
            return self.problem.loss(params, batch, knobs, self.measure)

        knobs = (*numeric_knobs("objective"), *self.problem.knobs)
        return self._over_runs(one, params, batch, knobs=knobs, part={"attention", "block", "loss"})

    def _poison(self) -> Tensor:
        at = torch.as_tensor(self.knob["poison_step"], device=self.device)
        scale = torch.as_tensor(self.knob["poison_scale"], device=self.device, dtype=self.dtype)
        # No `if` on the step: a replay repeats operations, not Python.
        return torch.where(self.step_index == at, scale, torch.ones_like(scale)).expand(len(self.runs))

    def _rate(self, objective_R: Tensor) -> Tensor:
        # The step is a tensor: a number would be the same at every replay.
        lr_R = self.lr_SR.index_select(0, self.step_index[None])[0]
        if self.plateau is not None:
            lr_R = lr_R * self.plateau.multiplier(objective_R, self.step_index)
        return lr_R

    def _clip(self, grads_RP: Tensor) -> tuple[Tensor, Tensor]:
        """Clip by your rule, or unit by unit, by value, by norm: what is on; and the norm before all that."""
        norm_R, clipped_RP = None, grads_RP
        if self.clip is not None:
            args, knobs = (grads_RP, self._each("clip_norm")), self.clip.yours.knobs
            clipped_RP = self._over_runs(self.clip, *args, knobs=knobs, part={"clip"})
            return clipped_RP, torch.linalg.vector_norm(grads_RP, dim=1)
        if _on(self.knob["clip_adaptive"]):
            grads, params = self.views(clipped_RP), self.views(self.params_RP)
            factor_R = self._each("clip_adaptive")
            parts: list[Any] = [
                torch.vmap(clip_adaptive)(grads[name], params[name], factor_R)[0] for name in self.shapes
            ]
            clipped_RP = torch.cat([part.reshape(len(self.runs), -1) for part in parts], dim=1)
            norm_R = torch.linalg.vector_norm(grads_RP, dim=1)
        rules: dict[str, Callable] = {"clip_value": clip_by_value, "clip_norm": clip_by_global_norm}
        for name, rule in rules.items():
            if _on(self.knob[name]):
                clipped_RP, here_R = torch.vmap(rule)(clipped_RP, self._each(name))
                norm_R = here_R if norm_R is None else norm_R  # a later rule sees a clipped gradient
        return clipped_RP, torch.linalg.vector_norm(grads_RP, dim=1) if norm_R is None else norm_R

    def _was_clipped(self, grads_RP, clipped_RP, norm_R):
        """1 for each run that a rule touched; where only the norm's rule is on, the norm alone tells it."""
        if clipped_RP is grads_RP:
            return torch.zeros_like(norm_R)
        if self.clip is not None or _on(self.knob["clip_adaptive"]) or _on(self.knob["clip_value"]):
            return (clipped_RP != grads_RP).any(dim=1).to(norm_R.dtype)
        # Not norm > limit: the rule changes a gradient whose norm is NaN, too.
        return (~(norm_R <= self._each("clip_norm"))).to(norm_R.dtype)

    def _each(self, name: str) -> Tensor:
        """A knob as one value per run, whether it varies or not."""
        return torch.as_tensor(self.knob[name], device=self.device, dtype=self.dtype).expand(len(self.runs))

    def _norms_by_layer(self, grads_RP):
        squares = grads_RP.square().split([size for _, size in self.layers], dim=1)
        return {
            f"grad_norm_preclip/{name}": square.sum(dim=1).sqrt()
            for (name, _), square in zip(self.layers, squares, strict=True)
        }

    def _update(self, grads_RP: Tensor, lr_R: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One optimizer step: new parameters and state, and what was measured."""
        if self.optimizer.per_tensor:
            return self._update_by_tensor(grads_RP, lr_R)
        args = (self.params_RP, grads_RP, self.state, lr_R)
        new_RP, state, measured = self._over_runs(
            self._one_update, *args, knobs=tuple(self.optimizer.hyperparameters), part={"optimizer"}
        )
        return state | {"param": new_RP}, measured

    def _scale_update(self, new_RP: Tensor, knob: str, is_scaled_P: Tensor) -> Tensor:
        """Let some weights go a share of their way, a rate of their own: every rule is linear in the rate."""
        scale = self.knob[knob]
        if not isinstance(scale, Tensor) and scale == 1:
            return new_RP
        way_RP = self._each(knob)[:, None] * (new_RP - self.params_RP)
        return torch.where(is_scaled_P, self.params_RP + way_RP, new_RP)

    def _clip_query_and_key(self, new_RP: Tensor, max_logit_RNH: Tensor) -> Tensor:
        """Apply QK-clip block by block, by the logits of this step's forward pass."""
        weights, threshold = self.views(new_RP), self.runs[0].qk_clip
        for block, logit_RH in enumerate(max_logit_RNH.unbind(1)):
            query, key = (f"block{block}.attention.{side}.weight" for side in ("query", "key"))

            def clip(query, key, logit_H):
                return qk_clip(query, key, logit_H, threshold)

            weights[query], weights[key] = torch.vmap(clip)(weights[query], weights[key], logit_RH)
        return torch.cat([weights[name].reshape(len(self.runs), -1) for name in self.shapes], dim=1)

    def _one_update(self, param, grad, state, lr, knobs):
        """The optimizer's step for ONE run."""
        knobs = {name: knobs[name] for name in self.optimizer.hyperparameters}
        new, state, measured = self.optimizer.step(param, grad, state, lr=lr, measure=self.measure, **knobs)
        return new, state, measured if isinstance(measured, dict) else measured._asdict()

    def _update_by_tensor(self, grads_RP, lr_R):
        """For a rule that looks at whole tensors: one call per tensor; measures are those of all together."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        moments = [name for name in self.state if name != "step"]
        columns = [tensor.split(sizes, dim=1) for tensor in (self.params_RP, grads_RP)]
        moment_columns = {name: self.state[name].split(sizes, dim=1) for name in moments}
        names = tuple(self.optimizer.hyperparameters)
        results = []
        for index, (param, grad) in enumerate(zip(*columns, strict=True)):
            state = {"step": self.state["step"]} | {name: moment_columns[name][index] for name in moments}
            results.append(
                self._over_runs(self._one_update, param, grad, state, lr_R, knobs=names, part=set())
            )
        params, states, measures = zip(*results, strict=True)
        new = {"param": torch.cat(params, dim=1), "step": states[0]["step"]}
        new |= {name: torch.cat([state[name] for state in states], dim=1) for name in moments}
        # The RMS over all tensors is the root of their mean squares, weighted by size.
        weights = torch.tensor(sizes, dtype=self.dtype, device=self.device) / sum(sizes)
        measured = {
            name: (torch.stack([m[name].square() for m in measures], dim=1) @ weights).sqrt()
            for name in measures[0]
        }
        return new, measured

    def _judge(self, finite_R: Tensor) -> Tensor:
        """Count the step, and return which runs take it: not the frozen ones, nor a step that is skipped."""
        # After the row was written: the step at which a run dies shows what it died of.
        rule = self.runs[0].on_non_finite
        goes_R = self.alive_R & (finite_R | (rule == "apply"))
        if rule == "freeze":
            self.alive_R &= finite_R
        self.step_index += 1
        return goes_R

    @torch.no_grad()
    def _commit(self, new: dict[str, Tensor], goes_R: Tensor) -> None:
        """Take over new parameters and state of every run that goes on; the others keep theirs to the bit."""
        # Only a CPU may look: a GPU would have to wait for it. Copying is five times as fast as choosing.
        all_go = self.device.type == "cpu" and bool(goes_R.all())
        for name, old in ({"param": self.params_RP} | self.state).items():
            if all_go:
                old.copy_(new[name])
            else:
                torch.where(goes_R if old.ndim == 1 else goes_R[:, None], new[name], old, out=old)

    def _write(self, measured: dict[str, Tensor]) -> None:
        """Add this step's row to the buffers, which stay on the device; frozen runs write NaN."""
        for name, value_R in measured.items():
            row_1R = torch.where(self.alive_R, value_R.to(self.dtype), math.nan)[None]
            self._buffer(name).index_copy_(0, self.step_index[None], row_1R)

    def _buffer(self, name: str) -> Tensor:
        """The values of a signal so far, (S, R), NaN where it was not measured."""
        if name not in self.signals:
            shape = (self.lr_SR.shape[0], len(self.runs))
            # In one of the written steps: made in a recorded one it would be emptied at every replay.
            self.signals[name] = torch.full(shape, math.nan, device=self.device, dtype=self.dtype)
        return self.signals[name]

    @torch.no_grad()
    def _measure_held_out(self) -> None:
        """Write the loss on the held-out text to the row of the step that was just done."""
        knobs, params = (*numeric_knobs("objective"), *self.problem.knobs), self.views(self.params_RP)
        losses = [
            self._over_runs(
                lambda params, knobs, batch=batch: self.problem.held_out_loss(params, batch, knobs),
                params,
                knobs=knobs,
                part={"attention", "block"},
            )
            for batch in self.held_out
        ]
        mean_R = torch.stack(losses).mean(dim=0).to(self.dtype)
        self._buffer("held_out_loss_nats")[self.steps_done - 1] = torch.where(self.alive_R, mean_R, math.nan)


def _optimizer(choice: str | Callable) -> Any:
    """Find an optimizer by name; a step of `ops` handed over as a function is the one of that name."""
    for known in OPTIMIZERS.values():
        if choice is known.step:  # it wants the state that its own init makes
            return known
    return YourOptimizer(choice) if callable(choice) else OPTIMIZERS[choice]


def _layers(shapes) -> list[tuple[str, int]]:
    """Neighbouring parameters of one layer, joined: what stands before the first dot names the layer."""
    layers: list[tuple[str, int]] = []
    for name, shape in shapes.items():
        layer = name.partition(".")[0]
        if layers and layers[-1][0] == layer:
            layers[-1] = (layer, layers[-1][1] + shape.numel())
        else:
            layers.append((layer, shape.numel()))
    return layers


def _attention_weights(shapes, *parts: str) -> Tensor:
    """Which flat parameters are these parts of attention, (P,) bool; a norm's gains are none of them."""
    is_part = [any(f".attention.{part}." in name for part in parts) for name in shapes]
    return torch.cat(
        [torch.full((shape.numel(),), part) for part, shape in zip(is_part, shapes.values(), strict=True)]
    )


def _on(limit) -> bool:
    return isinstance(limit, Tensor) or math.isfinite(limit)
