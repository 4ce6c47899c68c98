"""`make bench`: measure the targets of speed side by side, print one table, store it under data/measured/.

Usage: python -m tests.bench.run [--rounds 30] [--skip engine ops finetune panel notebooks] [--out
data/measured] Never part of the tests: a shared machine must not fail them. A row that cannot run says why.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from tests.bench import course_rows, engine_rows, finetune_rows, ops_rows
from tests.bench.table import Row, device, markdown

ROOT = Path(__file__).resolve().parents[2]


def parts(rounds: int) -> dict[str, Callable[[], Iterable[Row]]]:
    """Name -> what yields the rows of that part."""
    return {
        "engine": lambda: engine_rows.rows(rounds),
        "cuda": lambda: cuda_rows(rounds),
        "ops": lambda: ops_rows.rows(rounds),
        "finetune": lambda: finetune_rows.rows(rounds),
        "finetune-cuda": lambda: finetune_cuda_rows(rounds),
        "panel": course_rows.panel_rows,
        "notebooks": lambda: [course_rows.notebook_row()],
    }


def cuda_rows(rounds: int) -> Iterable[Row]:
    if not torch.cuda.is_available():
        return [
            Row(what="engine on a GPU, CUDA graph, against the tutorial loop", note="this machine has no GPU")
        ]
    return engine_rows.rows(rounds, "cuda")


def finetune_cuda_rows(rounds: int) -> Iterable[Row]:
    if not torch.cuda.is_available():
        return [
            Row(
                what="BERT-base size on a GPU, bf16, 64 x 128: tokens a second",
                note="this machine has no GPU",
            )
        ]
    return finetune_rows.cuda_rows(rounds)


def collect(
    chosen: dict[str, Callable[[], Iterable[Row]]],
    skip: Iterable[str],
    keep: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """Measure part after part; a part that fails becomes a row that says so, and the others go on.

    `keep` gets the rows so far after each part: an interrupted run leaves what it had.
    """
    rows: list[Row] = []
    for name, measure in chosen.items():
        if name in skip:
            rows.append(Row(what=name, note="skipped by --skip"))
            continue
        try:
            for row in measure():
                ratio = "" if row.ratio is None else f"{row.ratio:.3g}, "
                print(f"{row.what}: {ratio}{row.verdict}", flush=True)
                rows.append(row)
        except Exception as error:
            rows.append(Row(what=name, note=f"failed: {type(error).__name__}: {error}"))
        keep(rows)
    return rows


def store(rows: list[Row], machine: dict[str, str], folder: Path) -> str:
    """Write bench.json and bench.md, and return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown(rows, machine)
    found = [asdict(row) | {"verdict": row.verdict} for row in rows]
    (folder / "bench.json").write_text(json.dumps({"machine": machine, "rows": found}, indent=1) + "\n")
    words = "Written by `make bench`. Times are lower quartiles over rounds in which both sides took turns."
    (folder / "bench.md").write_text(f"# Measured speed\n\n{words}\n\n{table}")
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the targets of speed.")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of each comparison")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(parts(1)), help="parts to leave out")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "data" / "measured", help="where the table is stored"
    )
    chosen = parser.parse_args(arguments)
    machine = device()
    rows = collect(parts(chosen.rounds), chosen.skip, lambda rows: store(rows, machine, chosen.out))
    print("\n" + store(rows, machine, chosen.out))


if __name__ == "__main__":
    main()
