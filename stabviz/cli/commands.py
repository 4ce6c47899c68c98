"""What the commands finetune, resume, pretrain, evaluate, predict, report and diagnose do. Imports all
rooms."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from stabviz.finetune.config import FinetuneConfig
from stabviz.finetune.pretrain.config import PretrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """Fine-tune a model for classes or entities, with a Trace, a verdict and a report.

    Without a flag: the support-desk corpus, the shipped checkpoint, 300 steps, about two minutes on two
    cores.
    """

    run: tyro.conf.OmitArgPrefixes[FinetuneConfig]
    config: Path | None = None
    """A JSON or TOML file of the settings below; a flag overrules it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrain:
    """Make a small BERT from the texts of the standard library and the support desk: masked words, next
    sentences.

    Without a flag: what made data/stabviz-mini. The folder then holds pretrained/, which `finetune --model`
    takes.
    """

    run: tyro.conf.OmitArgPrefixes[PretrainConfig]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Go on with a run that was stopped or killed, from its newest whole checkpoint, to the bit."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    force: bool = False
    """Go on although settings or data changed: no exact resume any more."""
    steps: int | None = None
    """A new number of steps in all; changes the schedule, and so needs --force."""
    workers: int | None = None
    """Processes that prepare batches."""
    stop_after: int | None = None
    """Stop and save again after this many updates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Score the best weights of a run, on its own test split or on other data."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    data: str | None = None
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
    file: Path | None = None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnose:
    """Name what went wrong in a run, with the evidence, the remedy and the lesson about it.

    Reads a run's folder, a saved Trace, trainer_state.json, TensorBoard events, or CSV.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Files or folders, one run each."""


def finetune(options: Finetune) -> int:
    from stabviz.finetune.run import finetune_seeds

    config = options.run
    outcomes, found = finetune_seeds(config)
    return _finish(config, outcomes, found)


def pretrain(options: Pretrain) -> int:
    return _pretrained(options.run)


def _pretrained(config: PretrainConfig, **how) -> int:
    from stabviz.finetune.pretrain.run import pretrain as make
    from stabviz.finetune.train.interrupt import STOPPED

    made = make(config, **how)
    if not made.scores:
        print(f"stopped and saved; go on with: python -m stabviz resume {config.out}")
        return STOPPED
    write_report([("pretraining", made.trace, None, config.as_dict())], config.out / "report.html")
    print("\n".join(f"{name}: {value}" for name, value in made.scores.items()))
    print(verdict_line(made.trace, "pretraining"))
    print(f"report: {config.out / 'report.html'}\ncheckpoint: {made.folder}")
    return 0


def resume(options: Resume) -> int:
    from stabviz.finetune.run import finetune_seeds, load_config

    folder = options.run
    if (folder / "pretrain.json").exists():
        return _resume_pretraining(folder, options)
    config = load_config(folder)
    changes = {"steps": options.steps, "workers": options.workers}
    config = config.replace(
        stop_after=options.stop_after, **{k: v for k, v in changes.items() if v is not None}
    )
    if (folder / "scores.json").exists() and not options.force:
        raise ValueError(f"resume: {folder} is finished; --force with --steps trains on")
    outcomes, found = finetune_seeds(config, resume=True, force=options.force)
    return _finish(config, outcomes, found)


def _resume_pretraining(folder: Path, options: Resume) -> int:
    config = PretrainConfig.load(folder).replace(stop_after=options.stop_after)
    return _pretrained(config, resume=True, force=options.force)


def _finish(config: FinetuneConfig, outcomes: list, found: dict | None) -> int:
    """Print the table and the verdicts, write the report; the exit code says whether the run came to its
    end."""
    from stabviz.finetune.train.interrupt import STOPPED

    if int(os.environ.get("RANK", "0")):
        return (
            0  # one of torchrun's processes writes and speaks; a failure of another would end it before that
        )
    print(scores_table(outcomes, found))
    begun = [o for o in outcomes if o.trace.n_steps]  # a run may be stopped before its first step
    for outcome in begun:
        print(verdict_line(outcome.trace, f"seed {outcome.config.seed}"))
    if begun:
        path = config.out / "report.html"
        write_report(
            [(f"seed {o.config.seed}", o.trace, o.scores, o.config.as_dict()) for o in begun], path, found
        )
        print(f"report: {path}")
    if outcomes[-1].finished:
        print(f"best weights: {outcomes[-1].config.out / 'best'}")
        return 0
    print(
        f"stopped after {outcomes[-1].progress.updates} updates and saved; "
        f"go on with: python -m stabviz resume {config.out}"
    )
    return STOPPED


def scores_table(outcomes: list, found: dict | None) -> str:
    """Return the test scores of the runs as aligned text, with mean, spread, failed runs and churn of
    several."""
    from stabviz.views import text_table

    done = [o for o in outcomes if o.scores]
    if not done:
        return "no run has come to its end yet"
    keys = [
        k
        for k in ("accuracy", "macro_f1", "ece", "precision", "recall", "f1", "loss_nats")
        if k in done[0].scores
    ]
    rows = [
        {
            "seed": o.config.seed,
            "updates": o.progress.updates,
            **{k: float(o.scores[k]) for k in keys},
            "failed": "yes" if o.scores["failed"] else "no",
        }
        for o in done
    ]
    lines = [text_table(rows)]
    if found and found["runs"] > 1:
        lines.append(
            f"{found['score_name']} over {found['runs']} seeds: mean {found['mean']:.4f}, "
            f"standard deviation {found['std']:.4f}, {found['min']:.4f} to {found['max']:.4f}; "
            f"{found['failed']} failed; churn {found['churn']:.4f}"
        )
    skipped = done[0].scores["skipped_rows"]
    if skipped:
        first = skipped[0]
        lines.append(
            f"{len(skipped)} bad rows were skipped, the first: {first['file']} row {first['row']}: "
            f"{first['problem']}"
        )
    return "\n".join(lines)


def verdict_line(trace, name: str) -> str:
    """Return verdict and diagnosis of a run in one or two lines."""
    from stabviz.trace import verdict
    from stabviz.trace.diagnosis import diagnose as find

    judged, cause = verdict(trace, 0), find(trace)
    line = f"{name}: {judged.kind}. {judged.evidence}"
    if cause.kind not in ("healthy", "not_known"):
        line += (
            f"\n{name}: diagnosis {cause.kind}: {cause.evidence[0]}. {cause.remedy} (lesson {cause.lesson})"
        )
    return line


def write_report(
    runs: list[tuple[str, object, dict | None, dict]], path: Path, summary: dict | None = None
) -> None:
    """Write the HTML report of (name, Trace, scores, config) of each run, and what only several seeds can
    say."""
    from stabviz.finetune.train.checkpoint import write_atomically
    from stabviz.trace.diagnosis import diagnose as find
    from stabviz.views.report import html_report

    names, traces, scores, configs = zip(*runs, strict=True)
    page = html_report(
        list(traces),
        names=list(names),
        scores=[s or {} for s in scores],
        configs=list(configs),
        diagnoses=[find(trace) for trace in traces],
        summary=summary,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)


def evaluate(options: Evaluate) -> int:
    from stabviz.finetune.data.splits import read_splits
    from stabviz.finetune.distributed import ProcessGroup
    from stabviz.finetune.run import evaluate_model, load_config
    from stabviz.models.pretrained import load_tokenizer

    config = load_config(options.run)
    if not (config.out / "best").is_dir():
        raise ValueError(
            f"evaluate: {options.run} must hold best/, which the first evaluation of a run writes"
        )
    config = config.replace(
        model=str(config.out / "best"),
        from_scratch=False,
        device=options.device,
        freeze=(),
        data=options.data or config.data,
    )
    splits = read_splits(config)
    known = json.loads((config.out / "best" / "stabviz.json").read_text(encoding="utf-8"))["labels"]
    if list(splits.labels) != known:
        raise ValueError(
            f"evaluate: data must have the labels of the run, {known}; got {list(splits.labels)}"
        )
    found = evaluate_model(
        config, splits, load_tokenizer(config.model), ProcessGroup.join(options.device), options.split
    )
    numbers = {k: v for k, v in found.scores.items() if isinstance(v, float | int)}
    print(
        "\n".join(
            f"{name:16} {value:.4f}" if isinstance(value, float) else f"{name:16} {value}"
            for name, value in numbers.items()
        )
    )
    return 0


def predict(options: Predict) -> int:
    from stabviz.finetune.run import predict as say

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
    for text, said in zip(texts, say(options.run, texts, device=options.device), strict=True):
        print(json.dumps({"text": text, **said}, ensure_ascii=False))
    return 0


def report(options: Report) -> int:
    from stabviz.finetune.run import load_outcome
    from stabviz.trace.readers import read_run

    _some(options.runs, "report")
    runs = []
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


def _some(paths: tuple[Path, ...], command: str) -> None:
    if not paths:
        raise ValueError(f"{command}: runs must name at least one folder or file of a run; got none")


def diagnose(options: Diagnose) -> int:
    from stabviz.trace.diagnosis import diagnose as find
    from stabviz.trace.readers import read_run

    _some(options.runs, "diagnose")
    for path in options.runs:
        trace = read_run(path)
        if trace.n_runs > 1:
            raise ValueError(
                f"diagnose: runs must be one run each; got {trace.n_runs} in {path}. See their verdicts "
                "with: python -m stabviz report"
            )
        found = find(trace)
        where = f" at step {found.step}" if found.step is not None else ""
        print(f"{path}: {found.kind}{where}")
        print("".join(f"  evidence: {line}\n" for line in found.evidence), end="")
        if found.remedy:
            print(f"  remedy: {found.remedy}")
        if found.lesson:
            print(f"  lesson: {found.lesson}")
    return 0


def with_config_file(arguments: list[str]) -> FinetuneConfig:
    """Return the defaults of `finetune`: those of the file that --config names, else our own."""
    for i, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return FinetuneConfig.load(argument.partition("=")[2])
        if argument == "--config" and i + 1 < len(arguments):
            return FinetuneConfig.load(arguments[i + 1])
    return FinetuneConfig()


def command_types(arguments: list[str]):
    """Return the subcommands of this module for tyro, `finetune` with the defaults of its config file."""
    start = Finetune(run=with_config_file(arguments) if arguments[:1] == ["finetune"] else FinetuneConfig())
    return (
        Annotated[Finetune, tyro.conf.subcommand("finetune", default=start)]
        | Annotated[Pretrain, tyro.conf.subcommand("pretrain")]
        | Annotated[Resume, tyro.conf.subcommand("resume")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Predict, tyro.conf.subcommand("predict")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    )


COMMANDS = {
    Finetune: finetune,
    Pretrain: pretrain,
    Resume: resume,
    Evaluate: evaluate,
    Predict: predict,
    Report: report,
    Diagnose: diagnose,
}
