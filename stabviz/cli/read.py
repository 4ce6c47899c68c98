"""evaluate, predict and report: the commands that look into a run."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from stabviz.finetune.config import MaybeText


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Score the best weights of a run, on its own test split or on other data."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    data: MaybeText = None
    """Other data with the same columns and labels; left out: the data of the run."""
    split: Literal["train", "validation", "test"] = "test"
    """Which split."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predict:
    """Say what a fine-tuned model makes of texts: arguments, a file of lines, or standard input."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or of a model that a run has saved."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts."""
    file: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A file with one text a line; - is standard input."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Write one HTML file about one or several runs, side by side; it opens without a network."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or what `diagnose` reads."""
    out: Path = Path("report.html")
    """The file to write."""


def evaluate(options: Evaluate) -> int:
    from stabviz.finetune.data.splits import read_splits
    from stabviz.finetune.distributed import ProcessGroup
    from stabviz.finetune.run import evaluate_model, load_config
    from stabviz.models.pretrained import load_tokenizer

    config = load_config(options.run)
    if not (config.run.out / "best").is_dir():
        raise ValueError(
            f"evaluate: {options.run} must hold best/, which the first evaluation of a run writes"
        )
    best = config.replace(
        model=str(config.run.out / "best"),
        from_scratch=False,
        device=options.device,
        data=options.data or config.data.source,
    )
    splits = read_splits(best.data, best.run.seed)
    known = json.loads((config.run.out / "best" / "stabviz.json").read_text(encoding="utf-8"))["labels"]
    if list(splits.labels) != known:
        raise ValueError(
            f"evaluate: data must have the labels of the run, {known}; got {list(splits.labels)}"
        )
    found = evaluate_model(
        best, splits, load_tokenizer(best.model.name), ProcessGroup.join(options.device), options.split
    )
    for name, value in found.scores.items():
        if isinstance(value, float | int):
            print(f"{name:16} {value:.4f}" if isinstance(value, float) else f"{name:16} {value}")
    return 0


def predict(options: Predict) -> int:
    from stabviz.finetune.run import predict as answers

    texts = list(options.texts)
    if options.file is not None:
        lines = sys.stdin.read() if str(options.file) == "-" else options.file.read_text(encoding="utf-8")
        texts += [line for line in lines.splitlines() if line.strip()]
    elif not texts and not sys.stdin.isatty():
        texts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not texts:
        raise ValueError(
            "predict: texts must be given as arguments, by --file, or on standard input; got none"
        )
    for text, answer in zip(texts, answers(options.run, texts, device=options.device), strict=True):
        print(json.dumps({"text": text, **answer}, ensure_ascii=False))
    return 0


def report(options: Report) -> int:
    from stabviz.finetune.run import load_outcome
    from stabviz.trace.readers import read_run

    if not options.runs:
        raise ValueError("report: runs must name at least one folder or file of a run; got none")
    runs: list[tuple[str, Any, dict | None, dict]] = []
    folders = [inner for folder in options.runs for inner in (sorted(folder.glob("seed-*")) or [folder])]
    for folder in folders:
        if (folder / "config.json").exists() and (folder / "metrics.jsonl").exists():
            outcome = load_outcome(folder)
            runs.append((str(folder), outcome.trace, outcome.scores, outcome.config.as_dict()))
        else:
            trace = read_run(folder)
            alone = [trace.take([r]) for r in range(trace.n_runs)]  # a Trace of the laboratory holds many
            names = (
                [str(folder)]
                if len(alone) == 1
                else [f"{folder} {trace.runs[r]}" for r in range(trace.n_runs)]
            )
            runs += [
                (name, one, None, one.config | one.runs[0]) for name, one in zip(names, alone, strict=True)
            ]
    write_report(runs, options.out)
    print(f"report of {len(runs)} run{'s' * (len(runs) > 1)}: {options.out}")
    return 0


def verdict_line(trace, name: str) -> str:
    """Return what `diagnose` says of a run, and what could not be seen, in one or two lines."""
    from stabviz.trace import diagnose

    found = diagnose(trace)
    line = f"{name}: {found.headline}. {found.evidence[0]}. Not seen: {'; '.join(found.verdict.unseen)}."
    lesson = f" (lesson {found.lesson})" if found.lesson else ""
    return line + (f"\n{name}: remedy, {found.confidence}: {found.remedy}{lesson}" if found.remedy else "")


def write_report(
    runs: Sequence[tuple[str, Any, dict | None, dict]], path: Path, summary: dict | None = None
) -> None:
    """Write the HTML report of runs, each (name, Trace, scores, config), and what only several seeds say."""
    from stabviz.files import write_atomically
    from stabviz.views.report import html_report

    names, traces, scores, configs = zip(*runs, strict=True)
    page = html_report(
        list(traces),
        names=list(names),
        scores=[s or {} for s in scores],
        configs=list(configs),
        summary=summary,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)


COMMANDS = {Evaluate: evaluate, Predict: predict, Report: report}
