"""The fine-tuning loop against transformers' Trainer: losses, rows a second, memory; what telemetry and
saving cost."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from stabviz.finetune.config import FinetuneConfig
from stabviz.finetune.data.splits import read_splits
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.run import prepare
from stabviz.finetune.train.checkpoint import newest_checkpoint, read_checkpoint
from stabviz.finetune.train.interrupt import Interrupt
from stabviz.finetune.train.loop import Training, train
from stabviz.trace.log import read_metrics
from tests.bench.table import Row, quiet, row_of
from tests.finetune.reference import losses_of, trainer_of

STEPS = 30
"""Updates of one timed run; the first third is left out."""

MEMORY = """
import sys, torch
from pathlib import Path
from tests.bench.finetune_rows import config_of, run_ours, run_theirs
side, folder = sys.argv[1:]
run = {"ours": run_ours, "theirs": run_theirs}[side]
run(config_of(Path(folder), steps=12, bucket=False), same_order=True)
print(int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024)
"""


def rows(rounds: int, device: str = "cpu"):
    """Yield the rows of the loop; `rounds` is shared out, as one round is a whole short run of both sides."""
    rounds = max(3, rounds // 6)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        yield losses_row(folder, device)
        yield throughput_row(
            "fixed padding, 64 pieces",
            folder,
            rounds,
            1.0,
            device,
            fixed_length=True,
            max_length=64,
            bucket=False,
        )
        yield throughput_row(
            "texts of mixed length, bucketed",
            folder,
            rounds,
            1.3,
            device,
            data="docstrings",
            max_length=128,
            bucket=True,
        )
        yield telemetry_row(folder, rounds, device)
        yield memory_row(folder)
        yield from saving_rows(folder)


def config_of(folder: Path, **settings) -> FinetuneConfig:
    """The run that is timed: the shipped model on the support desk, all telemetry on."""
    defaults = {
        "model": "stabviz-mini",
        "steps": STEPS,
        "batch": 32,
        "evaluate_every": 10**6,
        "save_every": 0,
        "progress": False,
        "out": folder / "run",
        "overwrite": True,
        "warmup_steps": 3,
        "dropout": 0.0,
        "rewind": False,
    }
    return FinetuneConfig.of(**(defaults | settings))


def run_ours(config: FinetuneConfig, *, same_order: bool = False) -> tuple[list[float], list[float]]:
    """Train without evaluation; return losses and seconds by step."""
    splits = read_splits(config.data, config.run.seed)
    processes = ProcessGroup.join(config.train.compute.device)
    training = Training(prepare(config, splits, processes)[0], resume=False, force=False)
    training.evaluate = lambda interrupt: setattr(training.progress, "finished", "all steps")
    training.run(Interrupt())
    lines = (config.run.out / "timings.jsonl").read_text().splitlines()
    return (
        read_metrics(config.run.out / "metrics.jsonl")["loss_nats"][0].tolist(),
        [json.loads(line)["ms"] / 1e3 for line in lines],
    )


class _Clock(TrainerCallback):
    def __init__(self):
        self.at = []

    def on_step_end(self, args, state, control, **kwargs):
        self.at.append(time.perf_counter())


def run_theirs(config: FinetuneConfig, *, same_order: bool = False) -> tuple[list[float], list[float]]:
    """Train transformers' Trainer; return losses and seconds by step (its first step has none)."""
    splits = read_splits(config.data, config.run.seed)
    processes = ProcessGroup.join(config.train.compute.device)
    clock = _Clock()
    trainer = trainer_of(config, splits, processes, config.run.out.parent / "theirs", same_order=same_order)
    trainer.add_callback(clock)
    losses = losses_of(trainer)
    return losses, np.diff(clock.at).tolist()


def losses_row(folder: Path, device: str) -> Row:
    config = config_of(folder, steps=50, device=device)
    ours, theirs = run_ours(config)[0], run_theirs(config, same_order=True)[0]
    gap = float(np.abs(np.array(ours) - np.array(theirs)).max())
    return Row(
        what="loop against Trainer, 50 steps, largest difference of the loss",
        ours=ours[-1],
        reference=theirs[-1],
        unit="nats",
        ratio=gap,
        target=1e-4,
        note="float32, same batches, rates and fused AdamW; no dropout",
    )


def throughput_row(name: str, folder: Path, rounds: int, target: float, device: str, **settings) -> Row:
    config = config_of(folder, device=device, **settings)
    seconds = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for side, run in (("ours", run_ours), ("theirs", run_theirs)):
            seconds[side].append(float(np.mean(run(config)[1][STEPS // 3 :])))
    return row_of(
        f"loop against Trainer, steps a second, {name}",
        seconds["theirs"],
        seconds["ours"],
        ours=seconds["ours"],
        reference=seconds["theirs"],
        target=target,
        at_least=True,
        note="mean step; batch 32, telemetry on",
    )


def telemetry_row(folder: Path, rounds: int, device: str) -> Row:
    """Step time with every signal against a loop that measures the total norm alone, which clipping needs
    anyway."""
    seconds = {"all": [], "few": []}
    for _ in range(rounds):
        for side, every in (("all", 10), ("few", 10**9)):
            config = config_of(
                folder, device=device, signals_every=every, fixed_length=True, max_length=64, bucket=False
            )
            seconds[side].append(float(np.mean(run_ours(config)[1][STEPS // 3 :])))
    return row_of(
        "loop, all signals every 10 steps against gradient norms alone",
        seconds["all"],
        seconds["few"],
        ours=seconds["all"],
        reference=seconds["few"],
        target=1.02,
        note="mean step, shipped model",
    )


def memory_row(folder: Path) -> Row:
    what = "loop against Trainer, peak memory of the process"
    try:
        ours, theirs = (
            float(
                subprocess.run(
                    [sys.executable, "-c", MEMORY, side, str(folder)],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.split()[-1]
            )
            for side in ("ours", "theirs")
        )
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        return Row(what=what, target=1.0, note=f"could not be measured: {type(error).__name__}")
    return Row(
        what=what,
        ours=ours,
        reference=theirs,
        unit="MiB",
        ratio=ours / theirs,
        target=1.0,
        note="imports included, processes of their own",
    )


def saving_rows(folder: Path):
    """Seconds of a checkpoint's write, of its verified read, and of a whole resume, against its bytes."""
    config = config_of(folder, steps=4, stop_after=2)
    splits, processes = read_splits(config.data, config.run.seed), ProcessGroup.join("cpu")
    train(prepare(config, splits, processes)[0])
    training = Training(
        prepare(config.replace(overwrite=False), splits, processes)[0], resume=True, force=False
    )
    writes, reads, resumes = [], [], []
    for _ in range(5):
        start = time.perf_counter()
        training.save()
        writes.append(time.perf_counter() - start)
        path, _ = newest_checkpoint(training.folder.checkpoints)
        start = time.perf_counter()
        read_checkpoint(path)
        reads.append(time.perf_counter() - start)
        start = time.perf_counter()
        training.restore(path)
        resumes.append(time.perf_counter() - start)
    size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    plain = []
    blob = bytes(int(size * 2**20))
    for _ in range(5):
        start = time.perf_counter()
        (folder / "plain").write_bytes(blob)
        plain.append(time.perf_counter() - start)
    yield Row(
        what=f"checkpoint of {size:.1f} MiB, write (hashes, fsync) against a bare write of as many bytes",
        ours=quiet(writes) * 1e3,
        reference=quiet(plain) * 1e3,
        ratio=quiet(writes) / quiet(plain),
        note="shipped model with moments",
    )
    for what, seconds in (
        ("verified read", reads),
        ("resume: that read, and weights and moments put back", resumes),
    ):
        yield Row(
            what=f"checkpoint of {size:.1f} MiB, {what}, against a bare write",
            ours=quiet(seconds) * 1e3,
            reference=quiet(plain) * 1e3,
            ratio=quiet(seconds) / quiet(plain),
            note="shipped model with moments",
        )
    shutil.rmtree(config.run.out, ignore_errors=True)
    torch.manual_seed(0)


def cuda_rows(rounds: int):
    """Yield the rows of a GPU: a BERT of base size, 64 rows of 128 pieces a step, beside Trainer in the same
    run."""
    rounds = max(3, rounds // 10)
    with tempfile.TemporaryDirectory() as folder:
        model = base_sized(Path(folder) / "base")
        settings = {
            "model": str(model),
            "batch": 64,
            "max_length": 128,
            "fixed_length": True,
            "bucket": False,
            "lr": 5e-5,
            "device": "cuda",
        }
        tokens, flops = 64 * 128, 6 * 64 * 128 * 86e6  # 86M parameters outside of the embeddings
        for precision in ("bf16", "fp16"):
            config = config_of(Path(folder), precision=precision, **settings)
            seconds = {"ours": [], "theirs": []}
            for _ in range(rounds):
                for side, run in (("ours", run_ours), ("theirs", run_theirs)):
                    losses, steps = run(config)
                    seconds[side].append(float(np.mean(steps[STEPS // 3 :])))
            ours, theirs = quiet(seconds["ours"]), quiet(seconds["theirs"])
            yield Row(
                what=f"BERT-base size, {precision}, 64 x 128, against Trainer",
                ours=tokens / ours,
                reference=tokens / theirs,
                unit="tokens/s",
                ratio=theirs / ours,
                target=1.0,
                at_least=True,
                note=f"last loss {losses[-1]:.3f} nats; telemetry on",
            )
            rate = product_rate({"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
            yield Row(
                what=f"BERT-base size, {precision}, share of the device's matrix rate",
                ours=flops / ours / 1e12,
                reference=rate / 1e12,
                unit="TFLOP/s",
                ratio=flops / ours / rate,
                note="8192^3 product, same run",
            )


def base_sized(folder: Path) -> Path:
    """A random BERT of base size with the shipped tokenizer: time does not ask what the weights are."""
    from transformers import BertConfig, BertModel

    from stabviz.models.pretrained import load_tokenizer

    tokenizer = load_tokenizer("stabviz-mini")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)
