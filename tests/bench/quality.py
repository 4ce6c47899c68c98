"""What fine-tuning reaches by default, beside a bag of words, other models and transformers' Trainer.

Usage: python -m tests.bench.quality [--rows default ...] [--tasks intent ...] [--seeds 5] [--data FOLDER]
Stores data/measured/quality.json and quality.md after every run, and takes up what is already there. Tasks
that are not of this repository (reviews, banking77, wikiann-en) are folders of FOLDER.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from stabviz.finetune.baseline import baseline_scores
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
    "reviews": {"data": "reviews"},
    "banking77": {"data": "banking77", "label": "category"},
    "wikiann-en": {"data": "wikiann-en", "text": "words", "tags": "tags"},
}
ELSEWHERE = ("reviews", "banking77", "wikiann-en")
ROWS: dict[str, dict] = {
    "default": {},
    "minilm:3": {"model": "minilm:3"},
    "minilm:4": {"model": "minilm:4"},
    "random weights": {"from_scratch": True},
    "stabviz-mini": {"model": "stabviz-mini", "steps": 300, "batch": 32},
    # the mistake of lesson 11 and its control, on a published model: data/measured/bias_correction.json
    **{
        f"twice the rate, {name} bias correction": {
            "optimizer": "adamw",
            "lr": 4e-4,
            "warmup_steps": 0,
            "steps": 100,
            "evaluate_every": 50,
            "bias_correction": name == "with",
        }
        for name in ("with", "without")
    },
    # what a start is worth: lesson 09 reads these from data/measured/pretraining.json
    **{
        f"{row}, {steps} steps": {**changes, "steps": steps, "batch": 32}
        for steps in (100, 300)
        for row, changes in {
            "small student": {"model": "stabviz-mini"},
            "its shape, random weights": {"model": "stabviz-mini", "from_scratch": True},
            "its shape, random weights, twice the rate": {
                "model": "stabviz-mini",
                "from_scratch": True,
                "lr": 1.4e-3,
            },
            "minilm": {"model": "minilm"},
        }.items()
    },
}
"""Row -> what differs from `python -m stabviz finetune`."""
BAGS: dict[str, Callable] = {
    "counts of words": CountVectorizer,
    "counts of words and pairs": partial(CountVectorizer, ngram_range=(1, 2), min_df=2),
    "tf-idf of words": TfidfVectorizer,
}


def config_of(row: str, task: str, seed: int, folder: Path, data: Path) -> FinetuneConfig:
    """The default settings of the command on this task, with what the row changes."""
    settings = {"seed": seed, "save_every": 0, "progress": False, "baseline": False, "out": folder / "run"}
    there = {"data": str(data / task)} if task in ELSEWHERE else {}
    return FinetuneConfig.of(**(settings | TASKS[task] | there | ROWS[row]))


def ours(config: FinetuneConfig) -> float:
    """Test score of our loop, of the best weights by the validation split: accuracy, or F1 of entities."""
    return finetune(config).scores["score"]


def theirs(config: FinetuneConfig) -> float:
    """Test score of the last weights of transformers' Trainer: the same settings, its own order of rows."""
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


def bags(config: FinetuneConfig) -> dict[str, float]:
    """Test scores of what knows no language: that of `finetune` itself, and bags of words with scikit-learn's
    own settings."""
    splits = read_splits(config.data, config.run.seed)
    name = "f1" if splits.kind == "tags" else "accuracy"
    found = {kind: scores[name] for kind, scores in baseline_scores(splits, config.run.seed).items()}
    if splits.kind == "tags":
        return found
    labels_N = np.array(splits.test["label"][:])
    for kind, bag in BAGS.items():
        model = make_pipeline(bag(), LogisticRegression(max_iter=2000))
        model.fit(splits.train["text"][:], splits.train["label"][:])
        found[f"{kind} + logistic regression"] = float(
            (model.predict(splits.test["text"][:]) == labels_N).mean()
        )
    return found


SIDES = {"loop": ours, "Trainer": theirs}


def table(found: dict) -> str:
    """A line for each row, a column for each task."""
    tasks = list(dict.fromkeys(key.rsplit(" / ", 1)[1] for key in found["runs"] | found["bags"]))
    lines = ["| | " + " | ".join(tasks) + " | CPU s a run |", "|---" * (len(tasks) + 2) + "|"]
    for row in dict.fromkeys(key.rsplit(" / ", 1)[0] for key in found["bags"]):
        cells = [
            f"{x:.3f}" if (x := found["bags"].get(f"{row} / {task}")) is not None else "" for task in tasks
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " | |")
    for row in dict.fromkeys(key.rsplit(" / ", 1)[0] for key in found["runs"]):
        runs = [list(found["runs"].get(f"{row} / {task}", {}).values()) for task in tasks]
        seconds = fmean(run["cpu_s"] for of_task in runs for run in of_task)
        lines.append(f"| {row} | " + " | ".join(map(cell, runs)) + f" | {seconds:.0f} |")
    return "\n".join(lines)


def cell(runs: list[dict]) -> str:
    """Mean and spread of some runs in words."""
    if not runs:
        return ""
    said = spread([{"score": run["score"]} for run in runs], "score")
    around = f" +- {said['std']:.3f}, worst {said['min']:.3f}" if len(runs) > 1 else ""
    return f"{said['mean']:.3f}{around} ({len(runs)})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what fine-tuning reaches.")
    parser.add_argument("--rows", nargs="+", default=["default"], choices=list(ROWS))
    parser.add_argument(
        "--tasks", nargs="+", default=["intent", "sentiment", "entities"], choices=list(TASKS)
    )
    parser.add_argument("--sides", nargs="+", default=["loop"], choices=list(SIDES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--data", type=Path, default=Path("."))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "measured" / "quality.json")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    found = json.loads(chosen.out.read_text()) if chosen.out.exists() else {"runs": {}, "bags": {}}
    found["machine"] = {name: value for name, value in device().items() if name != "load before"}
    for task in chosen.tasks:
        config = config_of("default", task, 0, Path("unused"), chosen.data)
        for kind, score in bags(config).items():
            found["bags"][f"{kind} / {task}"] = score
    for seed in chosen.seeds:  # all tasks of a seed first: an interrupted run leaves whole columns
        for row in chosen.rows:
            for task in chosen.tasks:
                for side in chosen.sides:
                    name = row if side == "loop" else f"{row}, {side}"
                    runs = found["runs"].setdefault(f"{name} / {task}", {})
                    if str(seed) not in runs:
                        runs[str(seed)] = run_of(row, task, seed, side, chosen.data)
                        print(name, task, seed, runs[str(seed)], flush=True)
                        store(found, chosen.out)


def run_of(row: str, task: str, seed: int, side: str, data: Path) -> dict:
    """Make one run; return its test score and what it cost, from reading the data to the score."""
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = time.process_time(), time.perf_counter()
        score = SIDES[side](config_of(row, task, seed, Path(folder), data))
        return {"score": score, "cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def store(found: dict, path: Path) -> None:
    """Write the figures, and the table beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    words = (
        "Written by `python -m tests.bench.quality`: test scores (accuracy, of entities F1), mean +- sample "
        "standard deviation and the worst over seeds, whose number stands in brackets. `default` is "
        "`python -m stabviz finetune`; each other row changes what its name says. The loop keeps the weights "
        "that were best on the validation split, the Trainer its last ones."
    )
    machine = "\n".join(f"- {name}: {value}" for name, value in found["machine"].items())
    path.with_suffix(".md").write_text(
        f"# What fine-tuning reaches\n\n{words}\n\n{table(found)}\n\n{machine}\n"
    )


if __name__ == "__main__":
    main()
