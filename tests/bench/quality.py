"""What fine-tuning reaches: the loop beside transformers' Trainer on four tasks, over seeds; not a matter of
speed.

Usage: python -m tests.bench.quality [--models stabviz-mini minilm] [--tasks intent ...] [--seeds 5] [--steps
150] Stores data/measured/quality.json and quality.md after every run, and takes up what is already there.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import torch

from stabviz.finetune.config import FinetuneConfig
from stabviz.finetune.data.encode import TokenRows
from stabviz.finetune.data.splits import read_splits
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.evaluation import evaluate
from stabviz.finetune.run import finetune
from stabviz.finetune.train.micro_batches import autocast
from stabviz.models.pretrained import load_tokenizer
from stabviz.scores import spread
from tests.bench.table import device
from tests.finetune.reference import trainer_of

ROOT = Path(__file__).resolve().parents[2]
TASKS = {
    "intent": {"label": "intent"},
    "sentiment": {"label": "sentiment"},
    "entities": {"tags": "tags", "text": "words"},
    "docstrings": {"data": "docstrings"},
}
RATES = {"stabviz-mini": 1e-3, "minilm": 1e-4}


def config_of(model: str, task: str, seed: int, steps: int, folder: Path) -> FinetuneConfig:
    """The same settings for both sides; the last weights are scored, so that none is chosen."""
    return FinetuneConfig.of(
        model=model,
        seed=seed,
        steps=steps,
        evaluate_every=steps,
        save_every=0,
        progress=False,
        batch=16 if model == "minilm" else 32,
        lr=RATES.get(model, 1e-4),
        out=folder / "run",
        overwrite=True,
        **({"max_length": 64} | TASKS[task]),
    )


def ours(config: FinetuneConfig) -> float:
    """Test score of our loop: accuracy, or F1 of entities."""
    return finetune(config).scores["score"]


def theirs(config: FinetuneConfig) -> float:
    """Test score of transformers' Trainer with the same settings and rates, in its own order of rows."""
    splits, processes, tokenizer = (
        read_splits(config.data, config.run.seed),
        ProcessGroup.join(config.train.compute.device),
        load_tokenizer(config.model.name),
    )
    trainer = trainer_of(config, splits, processes, config.run.out.parent / "theirs", same_order=False)
    trainer.train()
    rows = TokenRows(splits.test, tokenizer, kind=splits.kind, max_length=config.data.max_length)
    return evaluate(
        trainer.model,
        rows,
        splits.labels,
        pad_id=tokenizer.pad_token_id,
        processes=processes,
        autocast=partial(autocast, config.train.compute.precision, processes.device),
    ).score


def table(found: dict) -> str:
    """One line for each model and task: mean and sample standard deviation over the seeds of both sides."""
    lines = ["| model | task | score | loop | Trainer | seeds | updates |", "|---|---|---|---|---|---|---|"]
    for key, sides in found["runs"].items():
        model, task, steps = key.split(" ")
        cells = []
        for side in ("ours", "theirs"):
            values = list(sides.get(side, {}).values())
            said = spread([{"score": value} for value in values], "score") if values else None
            cells.append("not run" if said is None else f"{said['mean']:.3f} +- {said['std']:.3f}")
        name = "entity F1" if task == "entities" else "accuracy"
        seeds = "/".join(str(len(sides.get(side, {}))) for side in ("ours", "theirs"))
        lines.append(f"| {model} | {task} | {name} | {cells[0]} | {cells[1]} | {seeds} | {steps} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what fine-tuning reaches.")
    parser.add_argument("--models", nargs="+", default=["stabviz-mini", "minilm"])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--sides", nargs="+", default=["ours", "theirs"], choices=["ours", "theirs"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "measured" / "quality.json")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    found = json.loads(chosen.out.read_text()) if chosen.out.exists() else {"runs": {}}
    found["machine"] = {name: value for name, value in device().items() if name != "load before"}
    sides = {"ours": ours, "theirs": theirs}
    for seed in range(chosen.seeds):  # all tasks of a seed first: an interrupted run leaves whole rows
        for model in chosen.models:
            for task in chosen.tasks:
                for side in chosen.sides:
                    runs = found["runs"].setdefault(f"{model} {task} {chosen.steps}", {}).setdefault(side, {})
                    if str(seed) in runs:
                        continue
                    with tempfile.TemporaryDirectory() as folder:
                        runs[str(seed)] = sides[side](
                            config_of(model, task, seed, chosen.steps, Path(folder))
                        )
                    print(model, task, side, seed, f"{runs[str(seed)]:.4f}", flush=True)
                    store(found, chosen.out)


def store(found: dict, path: Path) -> None:
    """Write the figures, and the table beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    words = (
        "Written by `python -m tests.bench.quality`: test scores of the last weights, mean and "
        "sample standard "
        "deviation over seeds; the same model, rows, rates, batch and steps on both sides, each in "
        "its own order."
    )
    machine = "\n".join(f"- {name}: {value}" for name, value in found["machine"].items())
    path.with_suffix(".md").write_text(
        f"# What fine-tuning reaches\n\n{words}\n\n{table(found)}\n\n{machine}\n"
    )


if __name__ == "__main__":
    main()
