"""evaluate, predict and report: the commands that look into a run."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Literal

import tyro

from stabviz.finetune.config import MaybeText


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Score the best weights of a run, on its own test split or on other data."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    data: MaybeText = None
    """Other data with the same columns, all rows of one file; left out: the data of the run."""
    split: Annotated[Literal["train", "validation", "test"] | None, tyro.conf.arg(metavar="NAME")] = None
    """Which split: train, validation or test; left out: test, and of one file of other data all rows."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predict:
    """Say what a fine-tuned model makes of texts: arguments, a file of lines, or standard input."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or of a model that a run has saved."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts."""
    text_pair: tuple[str, ...] = ()
    """The second texts, as many, of a model of pairs; in a file they stand after a tab."""
    file: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A file with one text a line; - is standard input."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    trust_remote_code: bool = False
    """Run the code that the model brings along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Write one HTML file about one or several runs, side by side; it opens without a network."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or what `diagnose` reads."""
    out: Path = Path("report.html")
    """The file to write."""


def evaluate(options: Evaluate) -> int:
    from stabviz.finetune.data.splits import read_rows, read_splits
    from stabviz.finetune.distributed import ProcessGroup
    from stabviz.finetune.run import evaluate_model, load_config
    from stabviz.models.pretrained import load_tokenizer

    rows = []
    for folder in each_run([options.run]):
        config = load_config(folder)
        if not (config.run.out / "best").is_dir():
            raise ValueError(
                f"evaluate: {folder} must hold best/, which the first evaluation of a run writes"
            )
        best = config.replace(
            model=str(config.run.out / "best"),
            from_scratch=False,
            revision=None,
            device=options.device,
            data=options.data or config.data.source,
        )
        known = json.loads((config.run.out / "best" / "stabviz.json").read_text(encoding="utf-8"))
        if options.data:
            splits = read_rows(best.data, tuple(known["labels"]), split=options.split, seed=best.run.seed)
        else:
            splits = read_splits(best.data, best.run.seed)
            if list(splits.labels) != known["labels"]:
                raise ValueError(
                    f"evaluate: the data must have the labels of the run, {known['labels']}; "
                    f"got {list(splits.labels)}. Have they changed since?"
                )
        # what the model says is in the scale of the numbers that it was trained on, not of these
        splits = dataclasses.replace(splits, scale=tuple(known.get("scale", splits.scale)))
        found = evaluate_model(
            best,
            splits,
            load_tokenizer(best.model.name),
            ProcessGroup.join(options.device),
            "test" if options.data else options.split or "test",
        )
        rows.append({k: v for k, v in found.scores.items() if isinstance(v, float | int)})
    for name, value in rows[0].items() if len(rows) == 1 else ():
        print(f"{name:16} {value:.4f}" if isinstance(value, float) else f"{name:16} {value}")
    if len(rows) > 1:
        for name in rows[0]:
            values = [float(row[name]) for row in rows]
            each = " ".join(f"{value:8.4f}" for value in values)
            print(f"{name:16} {each}   mean {mean(values):.4f}, standard deviation {stdev(values):.4f}")
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
    pairs = list(options.text_pair)
    if not pairs and all("\t" in text for text in texts):
        texts, pairs = map(list, zip(*(text.split("\t", 1) for text in texts), strict=True))
    found = answers(
        options.run, texts, pairs=pairs, device=options.device, trust_remote_code=options.trust_remote_code
    )
    for i, answer in enumerate(found):
        pair = {"text_pair": pairs[i]} if pairs else {}
        print(json.dumps({"text": texts[i], **pair, **answer}, ensure_ascii=False))
    return 0


def report(options: Report) -> int:
    from stabviz.finetune.run import load_outcome
    from stabviz.trace.readers import read_run

    if not options.runs:
        raise ValueError("report: runs must name at least one folder or file of a run; got none")
    runs: list[tuple[str, Any, dict | None, dict]] = []
    for folder in each_run(options.runs):
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


def each_run(paths: Sequence[Path]) -> list[Path]:
    """Return the folders of runs, those of a series (`finetune --seeds`) in the order of its seeds."""

    def by_seed(folder: Path) -> list[Path]:
        seeds = [inner for inner in folder.glob("seed-*") if inner.name.removeprefix("seed-").isdigit()]
        return sorted(seeds, key=lambda inner: int(inner.name.removeprefix("seed-")))

    return [inner for path in paths for inner in by_seed(path) or [path]]


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
    from stabviz.finetune.about import facts_of_run
    from stabviz.views.report import html_report

    names, traces, scores, configs = zip(*runs, strict=True)
    page = html_report(
        list(traces),
        names=list(names),
        scores=[s or {} for s in scores],
        configs=list(configs),
        summary=summary,
        facts=[facts_of_run(Path(config["out"])) if "out" in config else {} for config in configs],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)


COMMANDS = {Evaluate: evaluate, Predict: predict, Report: report}
