"""What a run starts from, in plain data: said before it begins, kept in config.json, in reports.

about["rows"]      {"train": 3600, "validation": 600, "test": 600}
about["classes"]   {"refund": 361, ...}   rows of training, for tags entities, by falling number
about["lengths"]   {"median": 24, "longest": 61, "max_length": 128, "cut": 0}   in word pieces
about["device"], ["precision"], ["parameters"], ["trained"], ["versions"], ["warnings"]
"""

import platform
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers

from stabviz.files import loads
from stabviz.finetune.config import FinetuneConfig
from stabviz.finetune.data.encode import TokenRows
from stabviz.finetune.data.splits import SPLITS, Splits

MOST_CLASSES = 12


def device_name(device: str) -> str:
    """Say what a run computed on, in words that mean something on another machine."""
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.exists():
        pairs = [line.partition(":") for line in info.read_text().splitlines()]
        fields = {name.strip(): value.strip() for name, _, value in pairs}
        if "model name" in fields:  # not on ARM
            # Several generations share a marketing name, and differ in the last bit of a sum.
            return "{model name}, family {cpu family} model {model}".format(**fields)
    return platform.processor() or platform.machine()


def describe(
    config: FinetuneConfig,
    splits: Splits,
    rows: TokenRows,
    *,
    parameters: int,
    trained: int,
    device: torch.device,
) -> dict[str, Any]:
    """Return what a run starts from; `rows` are the encoded rows of training."""
    threads = f", torch threads {torch.get_num_threads()}" if device.type == "cpu" else ""
    return {
        "data": config.data.source,
        "rows": {split: len(getattr(splits, split)) for split in SPLITS},
        "classes": class_counts(splits),
        "lengths": {
            "median": int(np.median(rows.lengths)),
            "longest": int(rows.lengths.max()),
            "max_length": config.data.max_length,
            "cut": rows.truncated,
        },
        "model": config.model.name,
        "parameters": parameters,
        "trained": trained,
        "device": f"{device}: {device_name(device.type)}{threads}",
        "precision": config.train.compute.precision,
        "steps": config.train.steps,
        "batch": config.train.batch,
        "lr": config.train.lr,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "datasets": datasets.__version__,
        },
        "warnings": list(splits.warnings),
    }


def class_counts(splits: Splits) -> dict[str, int]:
    """Count training's rows by class, or its entities by type; the most frequent first. Empty for numbers."""
    counts: Counter[str] = Counter()
    if splits.kind == "tags":
        names = [label.removeprefix("B-") if label.startswith("B-") else "" for label in splits.labels]
        counts.update(names[tag] for tags in splits.train["tags"][:] for tag in tags if names[tag])
    elif splits.kind == "classes":
        counts.update({name: 0 for name in splits.labels})
        counts.update(splits.labels[label] for label in splits.train["label"][:])
    elif splits.kind == "multi_label":
        ones_C = np.sum(splits.train["label"][:], axis=0)
        counts.update({name: int(n) for name, n in zip(splits.labels, ones_C, strict=True)})
    return dict(counts.most_common())


def facts(about: dict[str, Any]) -> dict[str, str]:
    """Return the same in words, for a terminal and a report: name -> a line."""
    rows, lengths, batch = about["rows"], about["lengths"], about["batch"]
    epochs = about["steps"] * batch / rows["train"]
    found = {
        "data": f"{about['data']}: "
        + ", ".join(f"{rows[split]:,} {word}" for split, word in zip(SPLITS, _WORDS, strict=True)),
        "classes": _classes(about["classes"]),
        "lengths": f"median {lengths['median']} word pieces, longest {lengths['longest']}; max_length "
        f"{lengths['max_length']} cuts {lengths['cut']:,} of {rows['train']:,} training rows",
        "model": f"{about['model']}: {about['parameters']:,} parameters, {about['trained']:,} trained",
        "device": f"{about['device']}; {about['precision']}",
        "training": f"{about['steps']:,} steps of {batch} rows: {epochs:.1f} epochs; "
        f"peak rate {about['lr']:g}",
        "versions": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
    }
    return {name: line for name, line in found.items() if line}


_WORDS = ("rows to train on", "to validate", "to test")


def _classes(counts: dict[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:MOST_CLASSES]]
    if len(counts) > MOST_CLASSES:
        rarest, count = list(counts.items())[-1]
        shown.append(f"and {len(counts) - MOST_CLASSES} more, the rarest {rarest} {count:,}")
    return f"{len(counts)}: {', '.join(shown)}" if counts else ""


def start_summary(about: dict[str, Any]) -> str:
    """Return what is shown before the first step, a line a fact; warnings have been logged by then."""
    return "\n".join(f"{name:9} {line}" for name, line in facts(about).items() if name != "versions")


def facts_of_run(folder: Path) -> dict[str, str]:
    """Return the facts of a run in a folder, with the time that it took; {} where nothing says so."""
    if not (folder / "config.json").exists():
        return {}
    about = loads((folder / "config.json").read_text(encoding="utf-8")).get("about")
    if about is None:  # of an older version
        return {}
    found = facts(about) | ({"warnings": "; ".join(about["warnings"])} if about["warnings"] else {})
    if (folder / "timings.jsonl").exists():
        lines = (folder / "timings.jsonl").read_text(encoding="utf-8").splitlines()
        found["time in steps"] = f"{sum(loads(line)['ms'] for line in lines) / 1e3:,.1f} s"
    if (folder / "wall_time.json").exists():
        seconds = loads((folder / "wall_time.json").read_text(encoding="utf-8"))["wall_s"]
        found["wall time"] = f"{seconds:,.1f} s from the last start or resume to the test score"
    return found
