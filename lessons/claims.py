"""Try every claim on fresh seeds and on torch's other CPU kernels: `make claims` (LESSON=04, SEEDS=20).

A trial is one lesson run from top to bottom in a process of its own, with its environment: seeds shifted by
STABVIZ_SEED_OFFSET, kernels chosen by ATEN_CPU_CAPABILITY, one or two threads. A claim that fails is written
down and hides none after it. Trials of the same code are kept in .claims/, so that an interrupted
run goes on; the table is stored under data/measured/.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch

from lessons.build import NOTEBOOKS, ROOT, read_lesson, sources
from stabviz.course.claims import LOG
from stabviz.files import dumps, loads, write_atomically
from stabviz.seeds import OFFSET

KERNELS = ("default", "avx2", "avx512")
"""Values of ATEN_CPU_CAPABILITY: without vector instructions, with those of 256 and of 512 bits."""
APART = 1000
"""Between the offsets of two sets of seeds; a lesson uses fewer than this many seeds."""
ENOUGH = 0.95
"""Share of the sets of seeds on which a claim must hold: 19 of 20."""
KEPT = ROOT / ".claims"
MEASURED = ROOT / "data" / "measured"
SECONDS_ALLOWED = 1200  # of one trial: a lesson takes 45 at most, on a quiet machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One way to run a lesson."""

    offset: int = 0
    kernels: str = ""
    """"" is what torch chooses on this machine."""
    threads: int = 1

    @property
    def name(self) -> str:
        """Name of the trial in files and tables."""
        return f"seeds+{self.offset}" if not self.kernels else f"{self.kernels}-{self.threads}"

    def environment(self, log: Path, home: str) -> dict[str, str]:
        """Return the environment that the lesson's process gets."""
        ours = {OFFSET: str(self.offset), "OMP_NUM_THREADS": str(self.threads), LOG: str(log)}
        ours |= {"STABVIZ_HOME": home, "PYTHONPATH": str(ROOT)}
        return {**os.environ, **ours} | ({"ATEN_CPU_CAPABILITY": self.kernels} if self.kernels else {})


def trials(seeds: int) -> list[Trial]:
    """Return fresh sets of seeds, then the usual one with each of this machine's kernels."""
    fresh = [Trial(offset=APART * number) for number in range(1, seeds + 1)]
    return fresh + [Trial(kernels=name, threads=count) for name in kernels_here() for count in (1, 2)]


def kernels_here() -> list[str]:
    """Return the kernels that torch really takes on this machine when it is asked for them."""
    ask = "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"
    found = []
    for name in KERNELS:
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": name}
        got = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True)
        if got.stdout.strip() == name:
            found.append(name)
    return found


def run_here(lesson_path: Path) -> bool:
    """Run the cells of a lesson in this process; return whether every one came to its end.

    Panels are left out: they train on a thread of their own, and no claim reads what they show.
    """
    from IPython.core.interactiveshell import InteractiveShell

    import stabviz.views

    stabviz.views.panel = lambda *arguments, **options: None
    os.chdir(NOTEBOOKS)
    shell, whole = InteractiveShell.instance(), True
    for cell in read_lesson(lesson_path).cells:
        if cell.cell_type == "code":
            result = shell.run_cell(cell.source)
            whole &= result.success or "raises-exception" in cell.metadata.get("tags", [])
    return whole


def run_apart(lesson_path: Path, trial: Trial) -> dict:
    """Run a lesson in a process of its own; return its claims, its seconds, whether it came to its end."""
    kept = KEPT / f"{lesson_path.stem}.{trial.name}.{fingerprint(lesson_path)}.json"
    if kept.exists():
        return loads(kept.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as home:
        log = Path(home) / "claims.jsonl"
        command = [sys.executable, "-m", "lessons.claims", "--one", str(lesson_path)]
        started = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=trial.environment(log, home),
            capture_output=True,
            text=True,
            timeout=SECONDS_ALLOWED,
        )
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    found = {
        "claims": [loads(line) for line in lines],
        "whole": done.returncode == 0,
        "last words": "" if done.returncode == 0 else (done.stdout + done.stderr)[-2000:],
        "seconds": round(time.perf_counter() - started, 1),
    }
    KEPT.mkdir(exist_ok=True)
    write_atomically(kept, dumps(found))
    return found


def fingerprint(lesson_path: Path) -> str:
    """Return a short hash of the code that decides what a lesson's claims measure."""
    code = [cell.source for cell in read_lesson(lesson_path).cells if cell.cell_type == "code"]
    # checks, widgets and pictures measure nothing
    apart = ("course/checks", "views", "cli")
    package = ROOT / "stabviz"
    for path in sorted(package.rglob("*.py")):
        if not path.relative_to(package).as_posix().startswith(apart):
            code.append(path.read_text(encoding="utf-8"))
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:12]


def run_all(found: list[Path], wanted: list[Trial], workers: int) -> Iterator[tuple[Path, Trial, dict]]:
    """Yield each lesson's trials as they end: one process a core, those of two threads one at a time."""
    for threads in (1, 2):
        jobs = [(path, trial) for path in found for trial in wanted if trial.threads == threads]
        with ThreadPoolExecutor(max(1, workers // threads)) as pool:
            results = pool.map(lambda job: run_apart(*job), jobs)
            yield from ((path, trial, result) for (path, trial), result in zip(jobs, results, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the trials say of one claim."""

    lesson: str
    claim: str
    seeds_held: int
    seeds_tried: int
    kernels_held: int
    kernels_tried: int
    margin: float | None
    """Smallest margin over the sets of seeds, in standard deviations of the margins; None for a yes or no."""

    @property
    def holds(self) -> bool:
        """Whether it holds on enough sets of seeds, and on all kernels."""
        return self.seeds_held >= ENOUGH * self.seeds_tried and self.kernels_held == self.kernels_tried


def rows_of(lesson: str, results: dict[Trial, dict]) -> list[Row]:
    """Return one row a claim, in the lesson's order; one that a trial never came to did not hold there."""
    statements = list(
        dict.fromkeys(each["claim"] for result in results.values() for each in result["claims"])
    )
    rows = []
    for statement in statements:
        seen = {
            trial: [each for each in result["claims"] if each["claim"] == statement]
            for trial, result in results.items()
        }
        held = {trial: bool(lines) and all(each["held"] for each in lines) for trial, lines in seen.items()}
        seeds = [trial for trial in results if not trial.kernels]
        margins = [[each["margins"] for each in seen[trial]][-1] for trial in seeds if seen[trial]]
        rows.append(
            Row(
                lesson=lesson,
                claim=statement,
                seeds_held=sum(held[trial] for trial in seeds),
                seeds_tried=len(seeds),
                kernels_held=sum(held[trial] for trial in results if trial.kernels),
                kernels_tried=len(results) - len(seeds),
                margin=smallest_margin(margins),
            )
        )
    return rows


def smallest_margin(margins: list[list[float]]) -> float | None:
    """Return the smallest margin in standard deviations of its comparison, over all comparisons.

    None where nothing was compared, or nothing varies: what is the same with every seed is exact.
    """
    found = []
    for column in zip(*margins, strict=True):
        finite = [value for value in column if math.isfinite(value)]
        spread = float(np.std(finite, ddof=1)) if len(finite) > 1 else 0.0
        # rounding alone moves an exact figure by its last digits
        if spread > 1e-6 * max(map(abs, finite), default=0.0):
            found.append(min(column) / spread)
    return min(found, default=None)


def machine() -> dict[str, str]:
    """Return what a reader must know of the machine to judge the table."""
    return {
        "processor": processor(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def store(rows: list[Row], seconds: dict[str, float], folder: Path = MEASURED) -> None:
    """Write claims.json and claims.md; lessons that were not tried now keep their earlier rows."""
    path = folder / "claims.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for lesson, took in seconds.items():
        mine = [row for row in rows if row.lesson == lesson]
        kept[lesson] = {
            "machine": machine(),
            "seconds of a trial, median": took,
            "claims": [
                {name: getattr(row, name) for name in Row.__slots__ if name != "lesson"} for row in mine
            ],
        }
    kept = dict(sorted(kept.items()))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "claims.md").write_text(markdown(kept), encoding="utf-8")


def markdown(kept: dict[str, dict]) -> str:
    """Return the stored figures as a page."""
    text = WORDS
    for lesson, found in kept.items():
        where, took = ", ".join(found["machine"].values()), found["seconds of a trial, median"]
        text += f"\n## {lesson}\n\n{where}; a trial takes {took:.0f} s (median)\n\n"
        text += "| claim | seeds | kernels | margin |\n|---|---|---|---|\n"
        for row in found["claims"]:
            statement = row["claim"].replace("|", "\\|")
            seeds = f"{row['seeds_held']} of {row['seeds_tried']}"
            kernels = f"{row['kernels_held']} of {row['kernels_tried']}"
            margin = "-" if row["margin"] is None else f"{row['margin']:.1f}"
            text += f"| {statement} | {seeds} | {kernels} | {margin} |\n"
    return text


WORDS = """# Claims on fresh seeds and other kernels

Written by `make claims`. A claim must hold on 19 of 20 sets of seeds that its author did not use, and with
every set of torch's CPU kernels that the machine has, with one thread and two. The margin is the smallest
one over the sets of seeds, in standard deviations of the margins; - is a yes or no, or the same with every
seed.
"""


def in_turn(found: list[Path]) -> Path:
    """Return the lesson whose turn it is: each commit tries another, the same one wherever it is tested."""
    git = shutil.which("git")
    command = [git or "git", "-C", str(ROOT), "rev-parse", "HEAD"]
    got = subprocess.run(command, capture_output=True, text=True) if git else None
    # without a history, the day decides
    number = int(got.stdout.strip(), 16) if got and got.returncode == 0 else date.today().toordinal()
    return found[number % len(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Try every claim on fresh seeds and on other kernels.")
    parser.add_argument("--lesson", default="", help="start of a lesson's file name; all of them without it")
    parser.add_argument("--seeds", type=int, default=20, help="fresh sets of seeds")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--one", metavar="NN", help="run one lesson here, as the environment says")
    parser.add_argument(
        "--in-turn", action="store_true", help="one lesson, each commit another, under default"
    )
    chosen = parser.parse_args()
    if chosen.one:
        os.environ.setdefault(LOG, os.devnull)  # a claim that fails is printed, and does not stop the lesson
        with tempfile.TemporaryDirectory() as home:
            os.environ.setdefault("STABVIZ_HOME", home)
            path = Path(chosen.one)
            found = [path] if path.suffix == ".md" else sources(chosen.one)
            sys.exit(
                f"claims: --one must be a lesson; got {chosen.one!r}" if not found else not run_here(found[0])
            )
    found = sources(chosen.lesson)
    if not found:
        sys.exit(f"claims: LESSON must be the start of a file name in lessons/; got {chosen.lesson!r}")
    wanted = trials(chosen.seeds)
    if chosen.in_turn:
        found, wanted = [in_turn(found)], [Trial(kernels="default")]
    results: dict[Path, dict[Trial, dict]] = {path: {} for path in found}
    for path, trial, result in run_all(found, wanted, chosen.workers):
        results[path][trial] = result
        failed = [each["claim"] for each in result["claims"] if not each["held"]]
        print(f"{path.stem} {trial.name}: {len(failed)} of {len(result['claims'])} fail", flush=True)
        for statement in failed:
            print(f"  does not hold: {statement}", flush=True)
        if not result["whole"]:
            print(f"  a cell stopped:\n{result['last words']}", flush=True)
    rows = [row for path in found for row in rows_of(path.stem, results[path])]
    stopped = [path.stem for path in found if not all(result["whole"] for result in results[path].values())]
    if not chosen.in_turn:
        seconds = {p.stem: float(np.median([r["seconds"] for r in results[p].values()])) for p in found}
        store(rows, seconds)
    weak = [row for row in rows if not row.holds]
    print(f"{len(rows) - len(weak)} of {len(rows)} claims hold")
    sys.exit(1 if weak or stopped or not rows else 0)


if __name__ == "__main__":
    main()
