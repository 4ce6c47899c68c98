"""diagnose: how runs went, and what ailed them; imports nothing that takes long."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from stabviz.cli.read import each_run
from stabviz.trace import Diagnosis, diagnose, read_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnose:
    """Say how runs went and what ailed them, with the evidence, the remedy and the lesson about it.

    Reads a run's folder, a saved Trace, trainer_state.json, TensorBoard events, or CSV (W&B's and Lightning's
    too). Several runs are a table with a row each.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Files or folders, one run each; a folder of seeds counts as its seeds."""
    json: bool = False
    """Print a list with one JSON object a run."""


def diagnose_runs(options: Diagnose) -> int:
    """Print what is found of each run; a file that holds none is told among the others, and by the status."""
    paths = each_run(options.runs)
    if not paths:
        raise ValueError("diagnose: runs must name at least one folder or file of a run; got none")
    found: dict[Path, Diagnosis | str] = {}
    for path in paths:
        try:
            found[path] = _of(path)
        except (ValueError, OSError, RuntimeError) as error:
            if len(paths) == 1:
                raise
            found[path] = str(error)
    if options.json:
        print(json.dumps([_record(path, one) for path, one in found.items()], indent=2, allow_nan=False))
    elif len(paths) > 1:
        print(_table(found))
    else:
        print(*(f"{path}: {_words(one)}" for path, one in found.items() if isinstance(one, Diagnosis)))
    return 2 if any(isinstance(one, str) for one in found.values()) else 0


def _of(path: Path) -> Diagnosis:
    trace = read_run(path)
    if trace.n_runs > 1:
        raise ValueError(
            f"diagnose: runs must be one run each; got {trace.n_runs} in {path}. See their verdicts "
            "with: python -m stabviz report"
        )
    return diagnose(trace)


def _words(found: Diagnosis) -> str:
    lines = [found.headline, *(f"  evidence: {line}" for line in found.evidence)]
    lines += [f"  remedy ({found.confidence}): {found.remedy}"] if found.remedy else []
    return "\n".join([*lines, f"  lesson: {found.lesson}"] if found.lesson else lines)


def _record(path: Path, found: Diagnosis | str) -> dict:
    if isinstance(found, str):
        return {"run": str(path), "error": found}
    return {
        "run": str(path),
        "verdict": found.verdict.kind,
        "verdict_step": found.verdict.step,
        "kind": found.kind,
        "step": found.step,
        "confidence": found.confidence,
        "headline": found.headline,
        "evidence": list(found.evidence),
        "remedy": found.remedy,
        "lesson": found.lesson,
    }


def _table(found: dict[Path, Diagnosis | str]) -> str:
    rows = [("run", "found", "evidence")]
    for path, one in found.items():
        rows.append(
            (str(path), "not read", one)
            if isinstance(one, str)
            else (str(path), one.headline, one.evidence[0])
        )
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{run:{widths[0]}}  {what:{widths[1]}}  {why}" for run, what, why in rows)


COMMANDS = {Diagnose: diagnose_runs}
