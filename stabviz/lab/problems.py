"""What one run minimises: parameters, batches, a loss that knows ONE run; the engine adds the run axis."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from stabviz.lab.experiment import RECURRENT, SEQUENCES, Run
from stabviz.lab.functions import Yours, YourTensor, made_up
from stabviz.lab.messages import INTENTS, desk_messages, intent_logits
from stabviz.lab.passages import reading_loss, text_passages, unit
from stabviz.lab.tasks import (
    bowl,
    copy_tokens,
    markov_corpus,
    quartic,
    ravine,
    regression_points,
    text_corpus,
)
from stabviz.models import (
    MlpConfig,
    RecurrentConfig,
    TransformerConfig,
    init_mlp,
    init_recurrent,
    init_transformer,
    mlp_outputs,
    recurrent_logits,
    transformer_logits,
)
from stabviz.models.transformer import part, sinusoids
from stabviz.ops import (
    alignment,
    causal_mask,
    cross_entropy,
    info_nce_in_batch,
    log_sum_exp,
    scaled_dot_product_attention,
    uniformity,
)
from stabviz.seeds import generator

HELD_OUT_ROWS = 64
"""Sequences that the held-out loss is measured on, spread evenly; fewer where the held-out end is short."""

Batch = dict[str, Tensor]
Knobs = dict[str, Any]


class Problem(ABC):
    """One structure of run: everything that runs trained as one batch share."""

    floor_nats: float | None
    chance_nats: float | None
    loss_unit: str
    """"nats", or "" where the loss is a height or a squared error."""
    numbers_per_run: int
    """Size of the largest intermediate result of one run."""
    config: Any = None
    """Structure of the model, if there is one."""
    knobs: tuple[str, ...] = ()
    """Knobs that `loss` reads beside the numeric ones of the objective: those that your functions ask for."""

    @abstractmethod
    def init(self, run: Run) -> dict[str, Tensor]:
        """Initial parameters of one run, drawn from its seed."""

    @abstractmethod
    def batches(self, runs: Sequence[Run], device: torch.device) -> Callable[[Tensor], Batch]:
        """A function from the step, a () int64 tensor, to its batch, each tensor with a leading run axis."""

    @abstractmethod
    def loss(
        self, params: Mapping[str, Tensor], batch: Batch, knobs: Knobs, measure: bool
    ) -> tuple[Tensor, Batch]:
        """Loss of one run on one batch, and what was measured on the way."""

    def held_out(self, device: torch.device) -> list[Batch]:
        """Batches of the held-out data, the same for all runs; none where nothing is held out."""
        return []

    def held_out_loss(self, params: Mapping[str, Tensor], batch: Batch, knobs: Knobs) -> Tensor:
        """Loss of one run on held-out data: where training adds terms or takes yours, without these."""
        return self.loss(params, batch, knobs, measure=False)[0]

    def yours(self, device: torch.device, dtype: torch.dtype) -> list[tuple[Yours, Callable, tuple]]:
        """Functions of the reader's inside the loss: each with a call(*example, knobs) and an example."""
        return []


def problem_of(run: Run) -> Problem:
    """Return the problem that a run's structure asks for."""
    if run.task in SEQUENCES:
        return SequenceProblem(run)
    if run.task == "intents":
        return IntentsProblem(run)
    if run.task == "pairs":
        return PairsProblem(run)
    return RegressionProblem(run) if run.task == "regression" else SurfaceProblem(run)


def _per_seed(runs: Sequence[Run], draw: Callable[[Run], Tensor]) -> Tensor:
    """Stack what `draw` gives for each run's seed; runs of one seed get equal rows, drawn once."""
    drawn = {run.seed: draw(run) for run in {run.seed: run for run in runs}.values()}
    return torch.stack([drawn[run.seed] for run in runs])


class SequenceProblem(Problem):
    """Predict the next token with a transformer or an LSTM, or hidden ones with a transformer."""

    loss_unit = "nats"

    def __init__(self, run: Run):
        self.run = run
        self.numbers_per_run = run.batch * run.context * max(4 * run.width, run.heads * run.context)
        if run.task == "copy":
            self.corpus, vocab_size = None, 17
            self.floor_nats, self.chance_nats = 0.0, float(torch.tensor(16.0).log())
        else:
            self.corpus = markov_corpus() if run.task == "markov" else text_corpus()
            vocab_size = len(self.corpus.symbols)
            self.floor_nats, self.chance_nats = self.corpus.floor_nats, self.corpus.chance_nats
        self.masks = run.task == "masked"
        if self.masks:
            # The mask is a symbol more, which is never the answer; what context leaves open is not known.
            self.mask_id, vocab_size, self.floor_nats = vocab_size, vocab_size + 1, None
        if run.model in RECURRENT:
            self.config = RecurrentConfig(
                vocab_size=vocab_size,
                width=run.width,
                layers=run.layers,
                cell=run.model,
                detach_state=run.detach_state,
            )
        else:
            self.config = TransformerConfig(
                vocab_size=vocab_size,
                width=run.width,
                layers=run.layers,
                heads=run.heads,
                context=run.context,
                norm=run.norm,
                qk_norm=run.qk_norm,
                causal=not self.masks,
            )

        self.attend = YourTensor("attention", run.attention) if run.attention else None
        self.your_block = YourTensor("block", run.block) if run.block else None
        self.your_loss = YourTensor("loss", run.loss) if run.loss else None
        mine = (self.attend, self.your_block, self.your_loss)
        self.knobs = tuple(name for f in mine if f for name in f.yours.knobs)

    def init(self, run):
        start = generator(run.seed, "initial weights")
        if run.model == "transformer":
            params = init_transformer(self.config, start, run.init_scale, run.init_scale_of)
            if self.masks:
                # as in pretraining: one projection then finds a neighbour anywhere
                params["embedding.position"] = sinusoids(run.context, run.width)
            return params
        return init_recurrent(self.config, start, run.init_scale, run.recurrent_scale)

    def batches(self, runs, device):
        batch, context, steps = self.run.batch, self.run.context, self.run.steps
        if self.corpus is None:
            # All steps at once, a byte a token: a batch is then an indexed read, which a replay can repeat.
            def draw_rows(run):
                return copy_tokens(steps, batch, context, generator(run.seed, "data")).to(torch.uint8)

            rows_RSBL = _per_seed(runs, draw_rows).to(device)
            second_half_L = torch.arange(context, device=device) >= context // 2

            def copy_batch(step):
                rows_RBL = rows_RSBL.index_select(1, step[None]).squeeze(1).long()
                return {"tokens": rows_RBL[..., :-1], "targets": rows_RBL[..., 1:].where(second_half_L, -100)}

            return copy_batch
        corpus_N = self.corpus.tokens_N[: self._training_tokens()].to(device)
        last_start = len(corpus_N) - context - 1

        def draw_starts(run):
            return torch.randint(last_start, (steps, batch), generator=generator(run.seed, "data"))

        starts_RSB = _per_seed(runs, draw_starts).to(device)
        offsets_L = torch.arange(context + 1, device=device)

        def corpus_batch(step):
            starts_RB = starts_RSB.index_select(1, step[None]).squeeze(1)
            rows_RBL = corpus_N.take(starts_RB[..., None] + offsets_L)
            return {"tokens": rows_RBL[..., :-1], "targets": rows_RBL[..., 1:]}

        return self._spoiled(runs, device, corpus_batch) if self.masks else corpus_batch

    def _spoiled(self, runs, device, batch_of):
        """Hide some characters of each batch by the 80/10/10 rule, and ask for these alone."""
        shape = (self.run.steps, self.run.batch, self.run.context)

        def draw(run):
            return torch.rand(3, *shape, generator=generator(run.seed, "masks"))

        draws_R3SBL = _per_seed(runs, draw).to(device)
        share_R11 = torch.tensor([run.mask_share for run in runs], device=device)[:, None, None]

        def spoiled_batch(step):
            true_RBL = batch_of(step)["tokens"]
            draw_RBL, fate_RBL, other_RBL = draws_R3SBL.index_select(2, step[None]).squeeze(2).unbind(1)
            chosen_RBL = draw_RBL < share_R11
            other_RBL = (other_RBL * self.mask_id).long()
            seen_RBL = torch.where(chosen_RBL & (fate_RBL < 0.8), self.mask_id, true_RBL)
            seen_RBL = torch.where(chosen_RBL & (fate_RBL >= 0.9), other_RBL, seen_RBL)
            return {"tokens": seen_RBL, "targets": torch.where(chosen_RBL, true_RBL, -100)}

        return spoiled_batch

    def _training_tokens(self) -> int:
        """How many tokens of the corpus batches are drawn from: all before the held-out end."""
        assert self.corpus is not None, "Run refuses held_out for the copy task"
        return len(self.corpus.tokens_N) - round(self.run.held_out * len(self.corpus.tokens_N))

    def held_out(self, device):
        if not self.run.held_out:
            return []
        tail_N, length = self.corpus.tokens_N[self._training_tokens() :], self.run.context + 1
        rows = min(HELD_OUT_ROWS, len(tail_N) // length)
        if rows < 1 or self._training_tokens() <= length:
            raise ValueError(
                f"train: held_out must leave a sequence of {length} on both sides; got {self.run.held_out!r}"
            )
        starts_N = torch.linspace(0, len(tail_N) - length, rows).long()
        rows_NL = tail_N[starts_N[:, None] + torch.arange(length)].to(device)
        # In batches of the run's own size: held out or not, a step needs no more memory.
        return [{"tokens": b[:, :-1], "targets": b[:, 1:]} for b in rows_NL.split(self.run.batch)]

    def held_out_loss(self, params, batch, knobs):
        logits_BLV, _ = self._logits(params, batch["tokens"], knobs, measure=False)
        return cross_entropy(logits_BLV.flatten(0, 1), batch["targets"].flatten())[0]

    def loss(self, params, batch, knobs, measure):
        logits_BLV, measured = self._logits(params, batch["tokens"], knobs, measure)
        logits_NV, targets_N = logits_BLV.flatten(0, 1), batch["targets"].flatten()
        if measure:
            measured = measured | {"mean_logit": logits_NV.detach().mean()}
        if self.your_loss is not None:
            if measure:  # your loss returns one number: log Z is taken beside it, over all tokens
                measured["log_z"] = log_sum_exp(logits_NV.detach()).mean()
            return self.your_loss(logits_NV, targets_N, knobs), measured
        loss_nats, seen = cross_entropy(
            logits_NV, targets_N, label_smoothing=knobs["label_smoothing"], z_loss=knobs["z_loss"]
        )
        return loss_nats, measured | ({"log_z": seen.log_z} if measure else {})

    def _logits(self, params, tokens_BL, knobs, measure):
        if self.run.model in RECURRENT:
            return recurrent_logits(params, tokens_BL, self.config)
        clips = self.run.qk_clip < float("inf")  # the rule needs the logits, measured or not
        softcap = knobs["softcap"]
        off = not isinstance(softcap, Tensor) and softcap == float("inf")
        logits_BLV, measured = transformer_logits(
            params,
            tokens_BL,
            self.config,
            softcap=None if off else softcap,
            measure=measure or clips,
            attend=self._attend_with(knobs) if self.attend else scaled_dot_product_attention,
            block=self._block_with(knobs) if self.your_block else None,
        )
        by_head = measured.pop("max_logit_by_head", None)
        return logits_BLV, (measured if measure else {}) | ({"max_logit_by_head": by_head} if clips else {})

    def _attend_with(self, knobs):
        def attend(query_BHLK, key_BHMK, value_BHMK, **_):
            mask_LM = self._may_attend(query_BHLK)
            return self.attend(query_BHLK, key_BHMK, value_BHMK, mask_LM, not self.masks, knobs), None

        return attend

    def _block_with(self, knobs):
        def block(params, stream_BLD):
            mask_LM = self._may_attend(stream_BLD)
            return self.your_block(params, stream_BLD, mask_LM, not self.masks, knobs)

        return block

    def _may_attend(self, x_LX):
        """What functions of the reader get as `mask`, (L, L): all of it where text is read to both sides."""
        mask_LM = causal_mask(x_LX.shape[-2], device=x_LX.device)
        return torch.ones_like(mask_LM) if self.masks else mask_LM

    def yours(self, device, dtype):
        B, L, H, V = self.run.batch, self.run.context, self.run.heads, self.config.vocab_size
        found = []
        if self.attend is not None:
            example = tuple(made_up(3, B, H, L, self.run.width // H).to(device, dtype))
            call = lambda *example: self._attend_with(example[3])(*example[:3])[0]  # noqa: E731
            found.append((self.attend.yours, call, example))
        if self.your_block is not None:
            first_block = part(self.init(self.run), "block0")
            example = tree_map(lambda x: x.to(device, dtype), (first_block, made_up(B, L, self.run.width)))
            call = lambda *example: self._block_with(example[2])(*example[:2])  # noqa: E731
            found.append((self.your_block.yours, call, example))
        if self.your_loss is not None:
            example = (made_up(B * L, V).to(device, dtype), torch.arange(B * L, device=device) % V)
            found.append((self.your_loss.yours, self.your_loss, example))
        return found


class IntentsProblem(Problem):
    """Tell two intents of messages apart with an encoder, read at its first position."""

    loss_unit = "nats"
    floor_nats, chance_nats = 0.0, math.log(len(INTENTS))

    def __init__(self, run: Run):
        self.run = run
        self.messages = desk_messages()
        self.numbers_per_run = run.batch * run.context * max(4 * run.width, run.heads * run.context)
        self.config = TransformerConfig(
            vocab_size=len(self.messages.words),
            width=run.width,
            layers=run.layers,
            heads=run.heads,
            context=run.context,
            norm=run.norm,
            qk_norm=run.qk_norm,
            causal=False,
        )
        self.your_loss = YourTensor("loss", run.loss) if run.loss else None
        self.knobs = self.your_loss.yours.knobs if self.your_loss else ()

    def init(self, run):
        params = init_transformer(
            self.config, generator(run.seed, "initial weights"), run.init_scale, run.init_scale_of
        )
        params["head.weight"] = params["head.weight"][: len(INTENTS)]
        return params

    def batches(self, runs, device):
        def draw(run):
            shape = (run.steps, run.batch)
            return torch.randint(len(self.messages.train_N), shape, generator=generator(run.seed, "data"))

        rows_RSB = _per_seed(runs, draw).to(device)
        train_NL = self.messages.train_NL[:, : self.run.context].to(device)
        train_N = self.messages.train_N.to(device)

        def batch(step):
            rows_RB = rows_RSB.index_select(1, step[None]).squeeze(1)
            tokens_RBL = train_NL.index_select(0, rows_RB.flatten()).unflatten(0, rows_RB.shape)
            return {"tokens": tokens_RBL, "targets": train_N.take(rows_RB)}

        return batch

    def loss(self, params, batch, knobs, measure):
        softcap = knobs["softcap"]
        logits_BC, measured = intent_logits(
            params,
            batch["tokens"],
            self.config,
            softcap=None if not isinstance(softcap, Tensor) and math.isinf(softcap) else softcap,
            measure=measure,
        )
        targets_B = batch["targets"]
        measured.pop("max_logit_by_head", None)
        if measure:
            # How differently a batch's messages are answered: 0 where all of them look alike to the head.
            gap_B = (logits_BC[:, 1] - logits_BC[:, 0]).detach()
            measured["logit_spread"] = (gap_B - gap_B.mean()).square().mean().sqrt()
            measured["accuracy"] = (logits_BC.detach().argmax(dim=-1) == targets_B).to(logits_BC.dtype).mean()
        if self.your_loss is not None:
            return self.your_loss(logits_BC, targets_B, knobs), measured
        smoothing, z_loss = knobs["label_smoothing"], knobs["z_loss"]
        return cross_entropy(logits_BC, targets_B, label_smoothing=smoothing, z_loss=z_loss)[0], measured

    def yours(self, device, dtype):
        if self.your_loss is None:
            return []
        B, C = self.run.batch, len(INTENTS)
        example = (made_up(B, C).to(device, dtype), torch.arange(B, device=device) % C)
        return [(self.your_loss.yours, self.your_loss, example)]


class SurfaceProblem(Problem):
    """Descend a surface in one or two dimensions; the parameters are a position."""

    numbers_per_run = 2
    floor_nats, chance_nats, loss_unit = 0.0, None, ""

    def __init__(self, run: Run):
        self.run = run

    def init(self, run):
        start = [run.start_x, run.start_y] if run.task == "ravine" else [run.start_x]
        return {"position": torch.tensor(start)}

    def batches(self, runs, device):
        dimensions = 2 if self.run.task == "ravine" else 1
        if not any(run.noise_scale for run in runs):
            return lambda step: {}

        def draw(run):
            # Student-t with 1.5 degrees of freedom is normal / sqrt(chi2 / 1.5); chi2(1.5) = 2 Gamma(0.75).
            noise = generator(run.seed, "noise")
            shape = (run.steps, dimensions)
            normal = torch.randn(shape, generator=noise, dtype=torch.float64)
            gamma = torch._standard_gamma(torch.full(shape, 0.75, dtype=torch.float64), generator=noise)
            return normal / (2 * gamma / 1.5).sqrt()

        noise_RSD = _per_seed(runs, draw)
        scale_R = torch.tensor([run.noise_scale for run in runs], dtype=torch.float64)
        noise_RSD = (noise_RSD * scale_R[:, None, None]).to(device)
        return lambda step: {"noise": noise_RSD.index_select(1, step[None]).squeeze(1)}

    def loss(self, params, batch, knobs, measure):
        position = params["position"]
        if self.run.task == "ravine":
            loss = ravine(position, knobs["condition"])
        else:
            loss = {"quartic": quartic, "bowl": bowl}[self.run.task](position)
        measured = dict(zip(("x", "y"), position.detach().unbind(-1), strict=False)) if measure else {}
        if "noise" in batch:
            # Noise on the gradient, none on the loss that is reported: its value is that of a zero.
            noise = batch["noise"].to(position.dtype)
            loss = loss + ((position - position.detach()) * noise).sum()
        return loss, measured


class RegressionProblem(Problem):
    """Fit 200 points with a tanh perceptron, all points at every step: gradient descent without noise."""

    floor_nats, chance_nats, loss_unit = 0.0, None, ""

    def __init__(self, run: Run):
        self.config = MlpConfig(inputs=2, width=run.width, layers=run.layers)
        x_N2, y_N1 = regression_points()
        dtype = getattr(torch, run.dtype)
        self.x_N2, self.y_N1 = x_N2.to(dtype), y_N1.to(dtype)
        self.numbers_per_run = len(x_N2) * run.width

    def init(self, run):
        return init_mlp(self.config, generator(run.seed, "initial weights"), run.init_scale)

    def batches(self, runs, device):
        self.x_N2, self.y_N1 = self.x_N2.to(device), self.y_N1.to(device)
        return lambda step: {}

    def loss(self, params, batch, knobs, measure):
        def outputs(params):
            return mlp_outputs(params, self.x_N2, self.config)

        anchor = {name: batch[f"anchor {name}"] for name in params if f"anchor {name}" in batch}
        if anchor:
            # The tangent: outputs at the anchor and their directional derivative, linear in the parameters.
            moved = {name: params[name] - anchor[name] for name in params}
            here_N1, slope_N1 = torch.func.jvp(outputs, (anchor,), (moved,))
            predicted_N1 = here_N1 + slope_N1
        else:
            predicted_N1 = outputs(params)
        return (predicted_N1 - self.y_N1).square().mean(), {}


class PairsProblem(Problem):
    """Embed the halves of passages with one perceptron, so that halves of one passage find each other."""

    floor_nats = None
    embedding = 16
    measured_rows = 64
    """Rows of a batch that uniformity is measured on: its cost grows with their square."""

    def __init__(self, run: Run):
        self.run = run
        self.passages = text_passages()
        self.train_N, self.held_N = self.passages.split(run.held_out)
        inputs = self.passages.pairs_NHD.shape[-1]
        self.config = MlpConfig(inputs=inputs, outputs=self.embedding, width=run.width, layers=run.layers)
        self.numbers_per_run = 2 * run.batch * max(inputs, run.width, run.batch)
        self.your_loss = YourTensor("loss", run.loss, "loss of pairs") if run.loss else None
        self.knobs = self.your_loss.yours.knobs if self.your_loss else ()
        # A loss of yours may be a distance: nothing is known of its unit, or of what a guess costs.
        self.chance_nats, self.loss_unit = (None, "") if self.your_loss else (math.log(run.batch), "nats")
        asked = self.your_loss.yours.fed_from.values() if self.your_loss else ()
        self.predicts = "x_predicted" in asked or "y_predicted" in asked

    def init(self, run):
        params = init_mlp(self.config, generator(run.seed, "initial weights"), run.init_scale)
        if self.predicts:
            square = torch.randn(self.embedding, self.embedding, generator=generator(run.seed, "predictor"))
            params["predictor.weight"] = square / self.embedding**0.5
        return params

    def batches(self, runs, device):
        def draw(run):
            rows_SB = torch.randint(
                len(self.train_N), (run.steps, run.batch), generator=generator(run.seed, "passages")
            )
            return self.train_N[rows_SB]

        rows_RSB = _per_seed(runs, draw).to(device)
        pairs_NHD = self.passages.pairs_NHD.to(device, getattr(torch, self.run.dtype))

        def batch(step):
            rows_RB = rows_RSB.index_select(1, step[None]).squeeze(1)
            pairs_RBHD = pairs_NHD.index_select(0, rows_RB.flatten()).unflatten(0, rows_RB.shape)
            return {"x": pairs_RBHD[:, :, 0], "y": pairs_RBHD[:, :, 1]}

        return batch

    def loss(self, params, batch, knobs, measure):
        x_BE, y_BE = (mlp_outputs(params, batch[name], self.config) for name in "xy")
        if self.your_loss is None:
            loss = info_nce_in_batch(unit(x_BE), unit(y_BE), knobs["temperature"])
        else:
            predicted = [z @ params["predictor.weight"].mT if self.predicts else z for z in (x_BE, y_BE)]
            loss = self.your_loss(x_BE, y_BE, *predicted, knobs)
        return loss, self._measured(x_BE.detach(), y_BE.detach()) if measure else {}

    def _measured(self, x_BE, y_BE):
        x_BE, y_BE = (unit(z[: self.measured_rows]) for z in (x_BE, y_BE))
        measured = {"alignment": alignment(x_BE, y_BE), "embedding_std": x_BE.std(dim=0).mean()}
        return measured | ({"uniformity": uniformity(x_BE)} if len(x_BE) > 1 else {})

    def held_out(self, device):
        if not len(self.held_N):
            return []
        pairs_NHD = self.passages.pairs_NHD[self.held_N].to(device, getattr(torch, self.run.dtype))
        return [{"x": pairs_NHD[:, 0], "y": pairs_NHD[:, 1]}]

    def held_out_loss(self, params, batch, knobs):
        return reading_loss(*(mlp_outputs(params, batch[name], self.config) for name in "xy"))

    def yours(self, device, dtype):
        if self.your_loss is None:
            return []
        example = tuple(made_up(4, self.run.batch, self.embedding).to(device, dtype))
        return [(self.your_loss.yours, self.your_loss, example)]
