"""finetune, resume and pretrain: the commands that train one real model."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import tyro

from stabviz.cli.read import verdict_line, write_report
from stabviz.finetune.config import FinetuneConfig, MaybeInt, paths, suggestion
from stabviz.finetune.pretrain.config import PretrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """Fine-tune a model for classes or entities, with a Trace, a verdict and a report.

    Without a flag: the support-desk corpus, all-MiniLM-L6-v2, 200 steps, two minutes on two cores.
    """

    run: Annotated[tyro.conf.OmitArgPrefixes[FinetuneConfig], tyro.conf.arg(name="")]
    config: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """A JSON, TOML or YAML file of the settings below, or a run's config.json; a flag overrules it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrain:
    """Make a small BERT from docstrings and the support desk's texts: masked words, next sentences.

    With --teacher it learns the hidden states of another model instead; the card of data/stabviz-mini has the
    command that made it. The folder then holds pretrained/, which `finetune --model` takes.
    """

    run: Annotated[tyro.conf.OmitArgPrefixes[PretrainConfig], tyro.conf.arg(name="")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Go on with a run that was stopped or killed, from its newest whole checkpoint, to the bit."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    force: bool = False
    """Go on although settings or data changed: no exact resume any more."""
    steps: MaybeInt = None
    """A new number of steps in all; changes the schedule, and so needs --force."""
    workers: MaybeInt = None
    """Processes that prepare batches."""
    stop_after: MaybeInt = None
    """Stop and save again after this many updates."""


def finetune(options: Finetune) -> int:
    from stabviz.finetune.run import finetune_seeds

    return _finish(options.run, *finetune_seeds(options.run))


def pretrain(options: Pretrain) -> int:
    return _pretrained(options.run)


def _pretrained(config: PretrainConfig, **how) -> int:
    from stabviz.finetune.pretrain.run import pretrain as make
    from stabviz.finetune.train.interrupt import STOPPED

    made = make(config, **how)
    if not made.scores:
        print(f"stopped and saved; go on with: python -m stabviz resume {config.run.out}")
        return STOPPED
    write_report([("pretraining", made.trace, None, config.as_dict())], config.run.out / "report.html")
    print("\n".join(f"{name}: {value}" for name, value in made.scores.items()))
    print(verdict_line(made.trace, "pretraining"))
    print(f"report: {config.run.out / 'report.html'}\ncheckpoint: {made.folder}")
    return 0


def resume(options: Resume) -> int:
    from stabviz.finetune.run import finetune_seeds, load_config

    folder, flags = options.run, {"steps": options.steps, "workers": options.workers}
    # stop_after in any case: where the run stopped before says nothing of where this one is to stop
    changes = {"stop_after": options.stop_after} | {k: v for k, v in flags.items() if v is not None}
    if (folder / "pretrain.json").exists():
        started = PretrainConfig.of_folder(folder).replace(**changes)
        return _pretrained(started, resume=True, force=options.force)
    if options.steps is not None:
        changes["epochs"] = None  # the steps are counted anew
    config = load_config(folder).replace(**changes)
    if (folder / "scores.json").exists() and not options.force:
        raise ValueError(f"resume: {folder} is finished; --force with --steps trains on")
    return _finish(config, *finetune_seeds(config, resume=True, force=options.force))


def _finish(config: FinetuneConfig, outcomes: list, found: dict | None) -> int:
    """Print table and verdicts, write the report; the exit code says what became of the run."""
    from stabviz.finetune.run import best_outcome
    from stabviz.finetune.train.guard import FAILED
    from stabviz.finetune.train.interrupt import STOPPED

    if int(os.environ.get("RANK", "0")):
        return 0  # one of torchrun's processes writes and speaks; a failure of another has ended it by now
    print(scores_table(outcomes, found))
    begun = [o for o in outcomes if o.trace.n_steps]  # a run may be stopped before its first step
    for outcome in begun:
        print(verdict_line(outcome.trace, f"seed {outcome.config.run.seed}"))
    if begun:
        path = config.run.out / "report.html"
        write_report(
            [(f"seed {o.config.run.seed}", o.trace, o.scores, o.config.as_dict()) for o in begun], path, found
        )
        print(f"report: {path}")
    if found is not None:  # else the run, or the series, was stopped
        print("".join(f"{line}\n" for o in outcomes if (line := _ended_early(o))), end="")
        best = best_outcome(outcomes)
        of = (
            f" (best validation score of {len(outcomes)} seeds: {best.best[0]:.4f})"
            if found["runs"] > 1
            else ""
        )
        print(f"best weights: {best.config.run.out / 'best'}{of}")
        if config.model.push_to_hub:
            print(f"pushed to the hub: {config.model.push_to_hub}")
        failed = [f"seed {o.config.run.seed} {what}" for o in outcomes if (what := _failure(o))]
        if failed:
            print(f"failed (exit code {FAILED}): {'; '.join(failed)}", file=sys.stderr)
        return FAILED if failed else 0
    print(
        f"stopped after {outcomes[-1].progress.updates} updates and saved; "
        f"go on with: python -m stabviz resume {config.run.out}"
    )
    return STOPPED


def _ended_early(outcome) -> str | None:
    if outcome.progress.finished != "no better score":
        return None
    c, (score, updates) = outcome.config, outcome.best
    return (
        f"seed {c.run.seed}: stopped early, after {outcome.progress.updates} of {c.train.steps} steps: no "
        f"better score in {c.train.patience} evaluations (--patience); the best, {score:.4f}, was at step "
        f"{updates}"
    )


def _failure(outcome) -> str | None:
    """What is wrong with a run that came to its end."""
    from stabviz.trace import verdict

    if verdict(outcome.trace, 0).kind == "diverged":
        return "diverged"
    return "is no better than the majority's answer" if outcome.scores["failed"] else None


def scores_table(outcomes: list, found: dict | None) -> str:
    """Return the runs' test scores as aligned text, with mean, spread, failed runs and churn of several."""
    from stabviz.views import text_table

    done = [o for o in outcomes if o.scores]
    if not done:
        return "no run has come to its end yet"
    shown = (
        *("accuracy", "macro_f1", "ece", "micro_f1", "subset_accuracy", "precision", "recall", "f1"),
        *("pearson", "spearman", "rmse", "loss_nats"),
    )
    first = done[0].scores
    keys = [name for name in dict.fromkeys((first["score_name"], *shown)) if name in first]
    rows = [
        {
            "seed": o.config.run.seed,
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
    lines += baseline_line(done)
    skipped = done[0].scores["skipped_rows"]
    if skipped:
        first = skipped[0]
        lines.append(
            f"{len(skipped)} bad rows were skipped, the first: {first['file']} row {first['row']}: "
            f"{first['problem']}"
        )
    return "\n".join(lines)


def baseline_line(done: list) -> list[str]:
    """Say what a model gets that knows no language, and whether ours is better; nothing if nobody asked."""
    from stabviz.scores import LOWER_IS_BETTER

    name = done[0].scores["score_name"]
    beside = [o.scores["baselines"] for o in done if "baselines" in o.scores]
    if not beside:
        return []
    reached, means = fmean(o.scores[name] for o in done), {}
    for kind in beside[0]:
        values = [scores[kind][name] for scores in beside if name in scores.get(kind, {})]
        if values:
            means[kind] = fmean(values)
    if not means:
        return [f"no baseline could be fitted: {beside[0]}"]
    sign = -1 if name in LOWER_IS_BETTER else 1
    verdict = "better" if sign * reached > max(sign * value for value in means.values()) else "NO better"
    listed = ", ".join(f"{kind} {value:.4f}" for kind, value in means.items())
    return [f"baselines ({name}, same rows): {listed}; the model is {verdict} than the best of them"]


def exit_code(error: Exception) -> int:
    """Return 2 for what the caller got wrong, and a code of its own for training that could not go on."""
    if not isinstance(error, RuntimeError):
        return 2  # and torch is not waited for
    from stabviz.finetune.train.guard import FAILED, TrainingFailed

    return FAILED if isinstance(error, TrainingFailed) else 2


def unknown_flags(named: str) -> str:
    """Say what is meant by flags that `finetune` does not have, as far as can be guessed."""
    known = {*paths(FinetuneConfig), "config"}
    said = []
    for name in re.findall(r"(?<!\S)--([a-zA-Z][\w-]*)", named):
        near = suggestion(name, known)
        meant = f"; did you mean --{near.replace('_', '-')}?" if near else ""
        said.append(f"--{name} is no option{meant}")
    told = "; ".join(said) or f"no such options: {named}"
    return f"finetune: {told}. All of them: python -m stabviz finetune --help"


def with_config_file(arguments: list[str]) -> FinetuneConfig:
    """Return the defaults of `finetune`: those of the file that --config names, else our own."""
    if arguments[:1] == ["finetune"]:
        for i, argument in enumerate(arguments):
            flag, _, value = argument.partition("=")
            if flag == "--config" and (value or i + 1 < len(arguments)):
                return FinetuneConfig.load(value or arguments[i + 1])
    return FinetuneConfig()


COMMANDS = {Finetune: finetune, Pretrain: pretrain, Resume: resume}
