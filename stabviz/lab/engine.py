"""Train many runs at once and yield growing Traces.

The only room with a run axis. A model, a loss, an optimizer step are written for ONE run; `torch.vmap` maps
them over R, and one backward pass of the sum of the losses gives every run its own gradient, because no run's
loss depends on another's parameters. The parameters of a batch of runs are one buffer (R, P), so that
clipping and the optimizer are a handful of operations, whatever the number of tensors.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from stabviz.lab.curvature import Curvature
from stabviz.lab.experiment import Experiment, Run
from stabviz.lab.problems import problem_of
from stabviz.lab.replay import record
from stabviz.lab.threads import Threads
from stabviz.ops import (
    OPTIMIZERS,
    SCHEDULES,
    clip_adaptive,
    clip_by_global_norm,
    clip_by_value,
    plateau_state,
    reduce_on_plateau,
)
from stabviz.trace import Trace

NUMBERS_TOGETHER = 2**20
"""Size of the largest intermediate result of the runs that are trained as one batch on a CPU: 4 MB of
float32."""

WRITTEN_STEPS = 3
"""Steps done as they are written before one is recorded: recording takes a tenth of a second, and a first
curve should not wait for it."""

PLATEAU_EVERY = 10
"""Steps between two looks of the "plateau" schedule at the mean loss since the last look."""


def train(experiment: Experiment, *, device: str | None = None, measure: bool = True) -> Trace:
    """Train all runs to the end and return their Trace.

    Raises: what `stream` raises
    Lesson: 00-start-here

    >>> from stabviz.lab import grid
    >>> plain = dict(optimizer="sgd", schedule="constant", warmup_steps=0)
    >>> trace = train(grid("bowl", **plain, lr=[0.1, 3.0], steps=40))
    >>> [bool(loss < 1) for loss in trace.final()]
    [True, False]
    """
    *_, trace = stream(experiment, every=experiment.runs[0].steps, device=device, measure=measure)
    return trace


def stream(
    experiment: Experiment,
    *,
    every: int = 10,
    cancelled: Callable[[], bool] | None = None,
    device: str | None = None,
    measure: bool = True,
) -> Iterator[Trace]:
    """Train all runs together and yield the Trace so far, every `every` steps and at the end.

    A run whose loss or gradient goes non-finite is recorded and frozen at that step (or what its knob
    `on_non_finite` says); its neighbours do not notice. `cancelled` is asked before each step; when it
    answers True, what was done is yielded and the run is over. `measure=False` leaves only loss, rate and
    gradient norm.

    Shapes: signals (R, steps so far), R in the order of experiment.runs
    Raises: ValueError if every < 1; RuntimeError if the device asked for is not there
    Lesson: 00-start-here
    """
    if every < 1:
        raise ValueError(f"stream: every must be at least 1; got {every!r}")
    where = _device(device)
    groups = _groups(experiment, where)
    steps = experiment.runs[0].steps
    with torch.enable_grad(), Threads(None if where.type == "cpu" else 1) as threads:
        batches = [_Batch([experiment.runs[r] for r in rows], where, measure) for rows in groups]
        done = 0
        for step in range(steps):
            if cancelled is not None and cancelled():
                break
            threads.each(_Batch.step, batches)
            done = step + 1
            if done % every == 0 and done < steps:
                yield _trace(experiment, groups, batches, done)
                if not any(batch.alive for batch in batches):
                    break
        yield _trace(experiment, groups, batches, done)


def _groups(experiment: Experiment, device: torch.device) -> list[list[int]]:
    """Runs that are trained as one batch: of one structure, and on a CPU no more than pays.

    The sizes depend on the experiment alone, not on the machine, so that neither do the curves.
    """
    by_structure: dict[tuple, list[int]] = {}
    for index, run in enumerate(experiment.runs):
        by_structure.setdefault(run.structure, []).append(index)
    if device.type != "cpu":
        return list(by_structure.values())
    groups = []
    for rows in by_structure.values():
        largest = problem_of(experiment.runs[rows[0]]).numbers_per_run
        pieces = min(len(rows), max(1, round(len(rows) * largest / NUMBERS_TOGETHER)))
        groups += [piece.tolist() for piece in np.array_split(rows, pieces)]
    return groups


class _Batch:
    """R runs of one structure, trained in lockstep."""

    def __init__(self, runs: list[Run], device: torch.device, measure: bool):
        first = runs[0]
        self.runs, self.device, self.measure = runs, device, measure
        self.problem = problem_of(first)
        dtype = getattr(torch, first.dtype)
        per_run = [self.problem.init(run) for run in runs]
        self.shapes = {name: tensor.shape for name, tensor in per_run[0].items()}
        self.layers = _layers(self.shapes)
        self.params_RP = torch.stack(
            [torch.cat([tensor.flatten() for tensor in params.values()]) for params in per_run]
        ).to(device, dtype)
        self.next_batch = self.problem.batches(runs, device)
        self.knob = {name: self._knob(name, dtype) for name in _KNOBS}
        self.optimizer = OPTIMIZERS[first.optimizer]
        state = torch.vmap(self.optimizer.init)(self.params_RP)
        self.state = {
            name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()
        }
        self.lr_SR = torch.stack([_rates(run) for run in runs], dim=1).to(device, dtype)
        self.plateau = _Plateau(len(runs), device) if first.schedule == "plateau" else None
        self.curvature = Curvature(self.params_RP) if first.sharpness else None
        self.alive_R = torch.ones(len(runs), dtype=torch.bool, device=device)
        self.step_index = torch.zeros((), dtype=torch.int64, device=device)
        self.signals: dict[str, Tensor] = {}
        self.steps_done, self.replay, self.news = 0, None, None

    def _knob(self, name, dtype):
        """A knob that all runs share stays a number, and costs what a number costs; else (R,)."""
        values = [getattr(run, name) for run in self.runs]
        if all(value == values[0] for value in values):
            return values[0]
        kind = torch.bool if isinstance(values[0], bool) else dtype
        return torch.tensor(values, device=self.device, dtype=kind)

    @property
    def alive(self) -> bool:
        return bool(self.alive_R.any())

    def step(self) -> None:
        """The first steps as they are written, later ones by replay: of a CUDA graph, or of a recording."""
        if self.curvature is not None:
            self._commit(*self._step())
        elif self.device.type == "cuda":
            self._step_on_gpu()
        elif self.steps_done < WRITTEN_STEPS:
            self._commit(*self._step())
        elif self.replay is None:
            self.replay, self.news = record(self._step, (self.params_RP, *self.state.values()))
            self._commit(*self.news)
        else:
            with torch.no_grad():
                for action in self.replay:
                    action()
                self._commit(*self.news)
        self.steps_done += 1

    def _step_on_gpu(self) -> None:
        """Run three steps as they are, capture the fourth as a CUDA graph, replay it from then on."""
        if self.steps_done < 3:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._commit(*self._step())
            torch.cuda.current_stream().wait_stream(side)
            return
        if self.replay is None:
            self.replay = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.replay):
                self._commit(*self._step())
        self.replay.replay()

    def views(self, flat_RP: Tensor) -> dict[str, Tensor]:
        """The buffer as a dict of tensors with a leading run axis, sharing its memory."""
        pieces = flat_RP.split([shape.numel() for shape in self.shapes.values()], dim=1)
        return {
            name: piece.view(len(self.runs), *shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def losses(self, params: dict[str, Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of every run, (R,), and what was measured."""
        varying = {
            name: self.knob[name] for name in self.problem.knobs if isinstance(self.knob[name], Tensor)
        }

        def one(params, batch, varying):
            return self.problem.loss(params, batch, self.knob | varying, self.measure)

        return torch.vmap(one)(params, batch, varying)

    def _step(self) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients, clipping, the optimizer; what comes out is written over the old values by `_commit`."""
        batch = self.next_batch(self.step_index)
        leaves = {name: view.detach().requires_grad_() for name, view in self.views(self.params_RP).items()}
        loss_R, measured = self.losses(leaves, batch)
        objective_R = loss_R * self._poison() if any(run.poison_step >= 0 for run in self.runs) else loss_R
        second_order = self.curvature is not None
        grads = torch.autograd.grad(objective_R.sum(), list(leaves.values()), create_graph=second_order)
        grads_RP = torch.cat([grad.reshape(len(self.runs), -1) for grad in grads], dim=1)
        if second_order:
            measured |= self.curvature.measure(leaves, grads_RP, self.optimizer, self.state, self.knob)
        with torch.no_grad():
            grads_RP = grads_RP.detach()
            if not _is(self.knob["gradient_scale"], 1.0):
                grads_RP = grads_RP * _column(self.knob["gradient_scale"])
            lr_R = self.lr_SR.index_select(0, self.step_index[None])[0]
            if self.plateau is not None:
                lr_R = lr_R * self.plateau.multiplier(objective_R.detach(), self.step_index)
            clipped_RP, norm_R = self._clip(grads_RP)
            finite_R = objective_R.isfinite() & norm_R.isfinite()
            record = {"loss_nats": objective_R.detach(), "lr": lr_R, "grad_norm_preclip": norm_R}
            if self.measure:
                record |= {name: value.detach() for name, value in measured.items()}
                record |= self._norms_by_layer(grads_RP) | {
                    "clipped": self._was_clipped(grads_RP, clipped_RP, norm_R)
                }
            news, update = self._update(clipped_RP, lr_R)
            self._write(record | (update if self.measure else {}))
            goes_R = self.alive_R & (finite_R | (self.runs[0].on_non_finite == "apply"))
            if self.runs[0].on_non_finite == "freeze":
                self.alive_R &= finite_R
            self.step_index += 1
            return news, goes_R

    @torch.no_grad()
    def _commit(self, news: dict[str, Tensor], goes_R: Tensor) -> None:
        """Take over the new parameters and state of every run that goes on; the others keep theirs to the
        bit."""
        # Only a CPU may look: a GPU would have to wait for it. Copying is five times as fast as choosing.
        all_go = self.device.type == "cpu" and bool(goes_R.all())
        for name, old in ({"param": self.params_RP} | self.state).items():
            if all_go:
                old.copy_(news[name])
            else:
                torch.where(goes_R if old.ndim == 1 else goes_R[:, None], news[name], old, out=old)

    def _poison(self) -> Tensor:
        at = torch.as_tensor(self.knob["poison_step"], device=self.device)
        scale = torch.as_tensor(self.knob["poison_scale"], device=self.device, dtype=self.params_RP.dtype)
        return torch.where(self.step_index == at, scale, torch.ones_like(scale)).expand(len(self.runs))

    def _clip(self, grads_RP):
        """Clip by the rules that are on: unit by unit, then by value, then by norm. The norm is that before
        all."""
        norm_R, clipped_RP = None, grads_RP
        if _on(self.knob["clip_adaptive"]):
            grads, params, factor_R = (
                self.views(clipped_RP),
                self.views(self.params_RP),
                self._each("clip_adaptive"),
            )
            pieces = [
                torch.vmap(clip_adaptive)(grads[name], params[name], factor_R)[0] for name in self.shapes
            ]
            clipped_RP = torch.cat([piece.reshape(len(self.runs), -1) for piece in pieces], dim=1)
            norm_R = torch.linalg.vector_norm(grads_RP, dim=1)
        for rule, name in ((clip_by_value, "clip_value"), (clip_by_global_norm, "clip_norm")):
            if _on(self.knob[name]):
                clipped_RP, here_R = torch.vmap(rule)(clipped_RP, self._each(name))
                norm_R = here_R if norm_R is None else norm_R
        if norm_R is None:
            norm_R = torch.linalg.vector_norm(grads_RP, dim=1)
        return clipped_RP, norm_R

    def _was_clipped(self, grads_RP, clipped_RP, norm_R):
        """1 for each run that a rule touched. The norm alone tells it where only the rule of the norm is
        on."""
        if clipped_RP is grads_RP:
            return torch.zeros_like(norm_R)
        if _on(self.knob["clip_adaptive"]) or _on(self.knob["clip_value"]):
            return (clipped_RP != grads_RP).any(dim=1).to(norm_R.dtype)
        return (~(norm_R <= self._each("clip_norm"))).to(norm_R.dtype)

    def _each(self, name: str) -> Tensor:
        """A knob as one value per run, whether it varies or not."""
        return torch.as_tensor(self.knob[name], device=self.device, dtype=self.params_RP.dtype).expand(
            len(self.runs)
        )

    def _norms_by_layer(self, grads_RP):
        squares = grads_RP.square().split([size for _, size in self.layers], dim=1)
        return {
            f"grad_norm_preclip/{name}": square.sum(dim=1).sqrt()
            for (name, _), square in zip(self.layers, squares, strict=True)
        }

    def _update(self, grads_RP, lr_R):
        """One optimizer step: new parameters and state, and what was measured."""
        names = self.optimizer.hyperparameters
        fixed = {name: self.knob[name] for name in names if not isinstance(self.knob[name], Tensor)}
        varying = {name: self.knob[name] for name in names if isinstance(self.knob[name], Tensor)}

        def one(param, grad, state, lr, varying):
            return self.optimizer.step(param, grad, state, lr=lr, measure=self.measure, **fixed, **varying)

        if self.optimizer.per_tensor:
            params_RP, state, measured = self._update_by_tensor(one, grads_RP, lr_R, varying)
        else:
            params_RP, state, measured = torch.vmap(one)(self.params_RP, grads_RP, self.state, lr_R, varying)
        update = {"update_rms": measured.update_rms, "second_moment_ratio": measured.second_moment_ratio}
        return state | {"param": params_RP}, update

    def _update_by_tensor(self, one, grads_RP, lr_R, varying):
        """For a rule that looks at whole tensors: one call per tensor; measures are those of all together."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        moments = [name for name in self.state if name != "step"]
        columns = [tensor.split(sizes, dim=1) for tensor in (self.params_RP, grads_RP)]
        moment_columns = {name: self.state[name].split(sizes, dim=1) for name in moments}
        results = []
        for index, (param, grad) in enumerate(zip(*columns, strict=True)):
            state = {"step": self.state["step"]} | {name: moment_columns[name][index] for name in moments}
            results.append(torch.vmap(one)(param, grad, state, lr_R, varying))
        state = {"step": results[0][1]["step"]}
        state |= {name: torch.cat([result[1][name] for result in results], dim=1) for name in moments}
        weights = torch.tensor(sizes, dtype=self.params_RP.dtype, device=self.device) / sum(sizes)
        measured = [
            (torch.stack([result[2][field].square() for result in results], dim=1) @ weights).sqrt()
            for field in (0, 1)
        ]
        return torch.cat([result[0] for result in results], dim=1), state, type(results[0][2])(*measured)

    def _write(self, record: dict[str, Tensor]) -> None:
        """Add this step's row to the buffers, which stay on the device; frozen runs write NaN."""
        steps = self.lr_SR.shape[0]
        for name, value_R in record.items():
            if name not in self.signals:
                self.signals[name] = torch.full(
                    (steps, len(self.runs)), math.nan, device=self.device, dtype=self.params_RP.dtype
                )
            row_1R = torch.where(self.alive_R, value_R.to(self.params_RP.dtype), math.nan)[None]
            self.signals[name].index_copy_(0, self.step_index[None], row_1R)


_KNOBS = (
    "clip_norm",
    "clip_value",
    "clip_adaptive",
    "beta1",
    "beta2",
    "eps",
    "weight_decay",
    "bias_correction",
    "label_smoothing",
    "z_loss",
    "softcap",
    "gradient_scale",
    "poison_step",
    "poison_scale",
    "condition",
)


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


def _on(limit) -> bool:
    return isinstance(limit, Tensor) or math.isfinite(limit)


def _is(knob, number) -> bool:
    return not isinstance(knob, Tensor) and knob == number


def _column(knob):
    return knob[:, None] if isinstance(knob, Tensor) else knob


def _rates(run: Run) -> Tensor:
    """The learning rate of every step, (S,), known before the run starts."""
    schedule = SCHEDULES["warmup" if run.schedule == "plateau" else run.schedule]
    step_S = torch.arange(run.steps, dtype=torch.float64)
    share_S = schedule(step_S, total_steps=run.steps, warmup_steps=min(run.warmup_steps, run.steps))
    if run.schedule == "cosine" and run.final_lr_share:
        after_S = step_S >= run.warmup_steps
        share_S = torch.where(after_S, run.final_lr_share + (1 - run.final_lr_share) * share_S, share_S)
    return run.lr * share_S


class _Plateau:
    """The schedule that looks at the loss: every PLATEAU_EVERY steps, at the mean since the last look."""

    def __init__(self, runs: int, device: torch.device):
        self.state = {name: value.to(device).expand(runs).clone() for name, value in plateau_state().items()}
        self.sum_R = torch.zeros(runs, device=device)

    def multiplier(self, loss_R, step_index):
        self.sum_R += loss_R.to(self.sum_R.dtype)
        look = (step_index + 1) % PLATEAU_EVERY == 0

        def one(state, value):
            return reduce_on_plateau(state, value, factor=0.5, patience=2, threshold=1e-2)[0]

        after = torch.vmap(one)(self.state, self.sum_R / PLATEAU_EVERY)
        for name, value in self.state.items():
            torch.where(look, after[name], value, out=value)
        self.sum_R *= ~look
        return self.state["multiplier"].to(loss_R.dtype)


def _device(name: str | None) -> torch.device:
    """The device asked for, else a GPU where there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(
            f"stream: device must be one that this machine has; got {name!r}. Try device='cpu'."
        )
    return torch.device(name)


def _trace(experiment: Experiment, groups: list[list[int]], batches: list[_Batch], done: int) -> Trace:
    """Join what the batches measured so far into one Trace, runs in their order."""
    names = dict.fromkeys(name for batch in batches for name in batch.signals)
    signals = {name: np.full((len(experiment.runs), done), np.nan, dtype=np.float32) for name in names}
    for rows, batch in zip(groups, batches, strict=True):
        for name, values_SR in batch.signals.items():
            signals[name][rows] = values_SR[:done].T.cpu().numpy()
    if any(run.dtype == "float64" for run in experiment.runs):
        for rows, batch in zip(groups, batches, strict=True):
            for name, values_SR in batch.signals.items():
                signals[name] = signals[name].astype(np.float64)
                signals[name][rows] = values_SR[:done].T.cpu().numpy()
    first = batches[0].problem
    config = experiment.shared | {"device": str(batches[0].device)}
    config |= {"floor_nats": first.floor_nats, "chance_nats": first.chance_nats, "loss_unit": first.loss_unit}
    return Trace(
        config=config,
        steps=np.arange(done),
        signals=signals,
        runs=[dict(label) for label in experiment.labels],
        events=_events(signals, experiment),
    )


def _events(signals, experiment: Experiment) -> list[dict]:
    """The first non-finite step of each run, and every skipped one where steps are skipped."""
    events = []
    for r, run in enumerate(experiment.runs):
        bad_S = ~(np.isfinite(signals["loss_nats"][r]) & np.isfinite(signals["grad_norm_preclip"][r]))
        steps = np.flatnonzero(bad_S)
        for step in steps if run.on_non_finite == "skip" else steps[:1]:
            signal = "grad_norm_preclip" if np.isfinite(signals["loss_nats"][r][step]) else "loss_nats"
            events.append({"run": r, "step": int(step), "kind": "non_finite", "signal": signal})
    return events
