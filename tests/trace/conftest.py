"""Real small runs with a planted fault, and healthy ones: what `diagnose` is tested on.

`plant(seeds)` trains one run of each recipe for each seed. A run's fault is what was planted, not what a rule
says:

    rate_too_high            rates of 1 and more with QK-norm, so that attention is not the reason; LSTM; a
    ravine no_warmup                a rate that a warm-up makes harmless (`twins` trains the pairs)
    missing_bias_correction  AdamW without it, beta2 = 0.999
    explosion                unclipped SGD: an LSTM at a rate that clipping makes harmless; x^4; one batch
    times 1,000 hidden_nan               one NaN applied, logged raw, or through the filter of transformers'
    Trainer, or as 0 fp16_overflow            float16 autocast, loss scaling, activations beyond 65504
    attention_logit_growth   a rate that QK-norm makes harmless
    epsilon_too_large        epsilon of 0.1 and more, or gradients scaled by 1e-7 or less
    stall                    a rate of 1e-5 and less; deep post-LN
    overfit                  more weights than so few rows can hold down
    label_noise              a quarter to two fifths of the training labels wrong, validation clean
    spike                    one batch times 100, clipped
    healthy                  usual settings of all of the above
"""

import math

import numpy as np
import pytest
import torch

from stabviz.lab import grid, train
from stabviz.trace import Trace

INF = math.inf
TRANSFORMER = {
    "batch": 8,
    "context": 16,
    "width": 32,
    "layers": 2,
    "clip_norm": 1.0,
    "steps": 100,
    "warmup_steps": 15,
}
WIDE = TRANSFORMER | {"width": 64, "steps": 70, "warmup_steps": 12}
LSTM = {"model": "lstm", "layers": 1, "width": 32, "batch": 8, "context": 16, "steps": 80}
SGD = {"optimizer": "sgd", "schedule": "constant", "warmup_steps": 0, "clip_norm": INF}
C, INPUTS = 4, 20


def lab_recipes(seeds):
    """(fault, experiment) for each way of planting it in the laboratory."""
    few = seeds[::2]
    yield "healthy", grid("markov", lr=[2e-3, 1e-2], seed=seeds, **TRANSFORMER)
    yield "healthy", grid("markov", lr=2e-3, beta2=0.999, seed=few, **TRANSFORMER | {"warmup_steps": 0})
    yield "healthy", grid("markov", lr=0.02, qk_norm=True, seed=few, **TRANSFORMER)
    yield "healthy", grid("text", lr=0.03, seed=few, **LSTM)
    yield "healthy", grid("text", lr=5.0, seed=few, **LSTM | SGD)
    yield "spike", grid("markov", lr=5e-3, poison_step=50, poison_scale=100.0, seed=few, **TRANSFORMER)
    yield (
        "healthy",
        grid(
            "markov",
            lr=5e-3,
            poison_step=50,
            poison_scale=math.nan,
            on_non_finite="skip",
            seed=few,
            **TRANSFORMER,
        ),
    )
    yield "healthy", grid("bowl", lr=[0.1, 1.5], seed=seeds[:1], **SGD | {"steps": 60})
    yield "rate_too_high", grid("markov", lr=[1.0, 3.0], qk_norm=True, seed=few, **TRANSFORMER)
    yield "rate_too_high", grid("markov", lr=1.0, seed=few, **LSTM | {"clip_norm": 1.0})
    yield "rate_too_high", grid("ravine", lr=[0.11, 0.2], seed=seeds[:1], **SGD | {"steps": 60})
    yield "no_warmup", grid("markov", lr=[0.06, 0.08], seed=few, **WIDE | {"warmup_steps": 0})
    yield (
        "missing_bias_correction",
        grid("markov", lr=[1e-3, 0.01], beta2=0.999, bias_correction=False, seed=few, **TRANSFORMER),
    )
    yield "explosion", grid("text", lr=60.0, seed=few, **LSTM | SGD)
    yield "explosion", grid("text", lr=5.0, poison_step=40, poison_scale=1000.0, seed=few, **LSTM | SGD)
    yield "explosion", grid("quartic", lr=[0.0055, 0.006, 0.01], seed=seeds[:1], **SGD | {"steps": 40})
    yield (
        "hidden_nan",
        grid(
            "markov",
            lr=5e-3,
            poison_step=37,
            poison_scale=math.nan,
            on_non_finite="apply",
            seed=few,
            **TRANSFORMER | {"steps": 60},
        ),
    )
    yield "attention_logit_growth", grid("markov", lr=0.3, seed=seeds, **TRANSFORMER)
    yield "epsilon_too_large", grid("markov", lr=5e-3, eps=[0.1, 1.0], seed=few, **TRANSFORMER)
    yield "epsilon_too_large", grid("markov", lr=5e-3, gradient_scale=1e-8, seed=few, **TRANSFORMER)
    yield "stall", grid("markov", lr=[1e-6, 1e-5], seed=few, **TRANSFORMER)
    yield (
        "stall",
        grid("markov", lr=1e-3, norm="post", seed=few[:2], **TRANSFORMER | {"layers": 8, "steps": 60}),
    )


def bare(trace, run):
    """One run without its knobs: a rule that read the fault off the configuration would prove nothing."""
    known = {
        key: trace.config[key] for key in ("floor_nats", "chance_nats", "loss_unit") if key in trace.config
    }
    one = trace.take([run])
    return Trace(steps=one.steps, signals=one.signals, runs=[{}], config=known, events=one.events)


def classifiers(
    seeds,
    *,
    rows=512,
    distance=3.0,
    noise=0.0,
    hidden=32,
    steps=200,
    lr=3e-3,
    dropout=0.0,
    batch=32,
    every=10,
    poison=None,
):
    """Train one small perceptron for each seed, all in one pass, on Gaussian clusters; evaluate on 500 clean
    rows.

    `poison`: step whose loss becomes NaN, and is applied. Signals as a training loop writes them.
    """
    R = len(seeds)
    draws = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]

    def draw(*shape, scale=1.0):
        return torch.stack([torch.randn(shape, generator=g) * scale for g in draws])

    def choose(high, *shape):
        return torch.stack([torch.randint(high, shape, generator=g) for g in draws])

    means_RCI = draw(C, INPUTS)
    means_RCI = means_RCI / means_RCI.norm(dim=-1, keepdim=True) * distance

    def sample(n):
        label_RN = choose(C, n)
        centre_RNI = means_RCI.gather(1, label_RN[..., None].expand(-1, -1, INPUTS))
        return centre_RNI + draw(n, INPUTS), label_RN

    x_RNI, label_RN = sample(rows)
    wrong_RN = torch.stack([torch.rand(rows, generator=g) for g in draws]) < noise
    label_RN = torch.where(wrong_RN, (label_RN + 1 + choose(C - 1, rows)) % C, label_RN)
    held_RNI, held_label_RN = sample(500)
    params = [
        draw(INPUTS, hidden, scale=INPUTS**-0.5),
        torch.zeros(R, 1, hidden),
        draw(hidden, hidden, scale=hidden**-0.5),
        torch.zeros(R, 1, hidden),
        draw(hidden, C, scale=0.3 * hidden**-0.5),
        torch.zeros(R, 1, C),
    ]
    params = [p.requires_grad_() for p in params]
    optimizer = torch.optim.AdamW(params, lr=lr)

    def logits(x_RNI, drop=0.0):
        hidden_RNF = torch.relu(x_RNI @ params[0] + params[1])
        if drop:
            kept = torch.stack([torch.rand(hidden_RNF.shape[1:], generator=g) for g in draws]) >= drop
            hidden_RNF = hidden_RNF * kept / (1 - drop)
        return torch.relu(hidden_RNF @ params[2] + params[3]) @ params[4] + params[5]

    def scores(x_RNI, label_RN, drop=0.0):
        logits_RNC = logits(x_RNI, drop)
        loss_RN = torch.nn.functional.cross_entropy(logits_RNC.mT, label_RN, reduction="none")
        return loss_RN.mean(dim=1), (logits_RNC.argmax(dim=-1) == label_RN).float().mean(dim=1).detach()

    names = (
        "loss_nats",
        "accuracy",
        "lr",
        "grad_norm_preclip",
        "update_rms",
        "validation_loss_nats",
        "validation_score",
    )
    signals = {name: np.full((R, steps), np.nan) for name in names}
    for step in range(steps):
        rate = lr * min(1.0, (step + 1) / 20, (steps - step) / steps * 1.1)
        optimizer.param_groups[0]["lr"] = rate
        pick_RB = choose(rows, batch)
        loss_R, accuracy_R = scores(
            x_RNI.gather(1, pick_RB[..., None].expand(-1, -1, INPUTS)), label_RN.gather(1, pick_RB), dropout
        )
        loss_R = loss_R * math.nan if step == poison else loss_R
        optimizer.zero_grad()
        loss_R.sum().backward()
        before = [p.detach().clone() for p in params]
        squares_R = sum(p.grad.square().sum(dim=(1, 2)) for p in params)
        optimizer.step()
        moves = [(p.detach() - old) / rate for p, old in zip(params, before, strict=True)]
        moved_R = sum(move.square().sum(dim=(1, 2)) for move in moves)
        size = sum(p[0].numel() for p in params)
        row = [loss_R.detach(), accuracy_R, torch.full((R,), rate), squares_R.sqrt(), (moved_R / size).sqrt()]
        if (step + 1) % every == 0:
            with torch.no_grad():
                row += scores(held_RNI, held_label_RN)
        for name, value_R in zip(names, row, strict=False):
            signals[name][:, step] = value_R.numpy()
    return Trace(
        steps=np.arange(steps),
        signals=signals,
        runs=[{"seed": seed} for seed in seeds],
        config={"chance_nats": math.log(C)},
    )


def classifier_recipes(seeds):
    """(fault, trace) with held-out data."""
    few = seeds[::2]
    yield "healthy", classifiers(seeds)
    yield "healthy", classifiers(few, dropout=0.2, distance=2.5)
    yield "healthy", classifiers(few, rows=2000, distance=2.0, lr=1e-3, steps=150)
    yield "overfit", classifiers(seeds, rows=64, distance=2.0, hidden=64, steps=300)
    yield "label_noise", classifiers(few, noise=0.4, distance=4.0)
    yield "label_noise", classifiers(few, noise=0.25, rows=256, distance=4.0, hidden=64, steps=400)


def as_trainer_logs(trace, every):
    """The lines that transformers' Trainer logs of this run: means over `every` steps, without the NaN
    ones."""
    loss_RS, kept = trace["loss_nats"], slice(every - 1, None, every)
    logged = np.zeros((trace.n_runs, trace.n_steps // every))
    for r, row in enumerate(logged):
        total = 0.0
        for s, loss in enumerate(loss_RS[r, : row.size * every]):
            total += loss if np.isfinite(loss) else total / (1 + s % every)
            if (s + 1) % every == 0:
                row[s // every], total = total / every, 0.0
    return Trace(
        steps=trace.steps[kept],
        runs=trace.runs,
        config=trace.config,
        signals={
            "loss_nats": logged,
            "grad_norm_preclip": trace["grad_norm_preclip"][:, kept],
            "lr": trace["lr"][:, kept],
        },
    )


def replaced_by_zero(trace):
    """The log of a loop that says `loss = torch.nan_to_num(loss)`: zeros where it was NaN."""
    return Trace(
        steps=trace.steps,
        runs=trace.runs,
        config=trace.config,
        signals={"loss_nats": np.nan_to_num(trace["loss_nats"]), "lr": trace["lr"]},
    )


def hidden_recipes(seeds):
    """("hidden_nan", trace) as logs hide it, and the same logs of healthy runs."""
    few = seeds[::2]
    poisoned, spared = classifiers(few, poison=83, steps=150), classifiers(few, steps=150)
    yield "hidden_nan", as_trainer_logs(poisoned, 1)
    yield "hidden_nan", as_trainer_logs(poisoned, 5)
    yield "hidden_nan", replaced_by_zero(poisoned)
    yield "healthy", as_trainer_logs(spared, 5)


def half_precision(seed, *, scale, loss_scale=2.0**16, steps=80):
    """Train a perceptron under float16 autocast with torch's loss scaling; `scale` multiplies the hidden
    layer."""
    generator = torch.Generator().manual_seed(2000 + seed)
    means = torch.randn(C, INPUTS, generator=generator) * 0.7
    first = torch.randn(INPUTS, 32, generator=generator) * INPUTS**-0.5
    second = torch.randn(32, C, generator=generator) * 0.2
    params = [p.requires_grad_() for p in (first, second)]
    optimizer, scaler = torch.optim.AdamW(params, lr=0.01), torch.amp.GradScaler("cpu", init_scale=loss_scale)
    signals = {
        name: np.full((1, steps), np.nan) for name in ("loss_nats", "lr", "grad_norm_preclip", "loss_scale")
    }
    events = []
    for step in range(steps):
        label = torch.randint(C, (32,), generator=generator)
        x = means[label] + torch.randn(32, INPUTS, generator=generator)
        with torch.autocast("cpu", torch.float16):
            logits = (torch.relu(x @ first) * scale) @ second / scale
        loss = torch.nn.functional.cross_entropy(logits.float(), label)
        optimizer.zero_grad()
        signals["loss_scale"][0, step] = scaler.get_scale()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        scaler.step(optimizer)
        scaler.update()
        if not norm.isfinite():
            events.append({"run": 0, "step": step, "kind": "overflow"})
        for name, value in (("loss_nats", loss.detach()), ("lr", 0.01), ("grad_norm_preclip", norm)):
            signals[name][0, step] = float(value)
    return Trace(
        steps=np.arange(steps),
        signals=signals,
        runs=[{"seed": seed}],
        events=events,
        config={"chance_nats": math.log(C)},
    )


def plant(seeds):
    """Train every recipe with these seeds: a list of (fault, trace of one run)."""
    seeds = list(seeds)
    runs = [
        (fault, bare(trace, r))
        for fault, experiment in lab_recipes(seeds)
        for trace in [train(experiment, device="cpu")]
        for r in range(trace.n_runs)
    ]
    for recipes in (classifier_recipes, hidden_recipes):
        runs += [(fault, bare(trace, r)) for fault, trace in recipes(seeds) for r in range(trace.n_runs)]
    runs += [
        ("fp16_overflow", bare(half_precision(seed, scale=1e4 if seed % 2 else 2e5), 0)) for seed in seeds
    ]
    runs += [
        ("healthy", bare(half_precision(seed, scale=1.0, loss_scale=2.0 ** (16 + 2 * (seed % 4))), 0))
        for seed in seeds
    ]
    return runs


@pytest.fixture(scope="session")
def planted():
    """The function that trains runs with planted faults; it takes the seeds."""
    torch.set_num_threads(1)
    return plant
