"""What a learner waits for: a panel of lesson 00 in a real browser, and the notebooks as CI runs them."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.table import Row

ROOT = Path(__file__).resolve().parents[2]
FIRST, WHOLE = (
    "panel of lesson 00, first curve after a move",
    "panel of lesson 00, 8 seeds x 200 steps after a move",
)
NOTEBOOKS = "notebooks under nbval"


def panel_rows(moves: int = 7) -> list[Row]:
    """Move the first slider of lesson 00 by keyboard, and time the first new picture and the last."""
    lesson = sorted((ROOT / "notebooks").glob("00-*.ipynb"))
    if not lesson:
        return _not_run("there is no lesson 00 yet")
    try:
        from playwright.sync_api import sync_playwright

        from tests.browser.conftest import HOW_TO_GET_ONE, QUIET, find_chromium
    except ImportError as error:
        return _not_run(f"{error.name} is not installed")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        chromium = find_chromium(playwright)
        if chromium is None:
            return _not_run(HOW_TO_GET_ONE)
        browser = playwright.chromium.launch(executable_path=chromium, args=list(QUIET))
        try:
            first_s, whole_s = _moves(browser, Path(folder), lesson[0], moves)
        except Exception as error:  # whatever went wrong is the row's note: a missing figure is not hidden
            return _not_run(f"the browser run failed: {str(error).splitlines()[0]}")
        finally:
            browser.close()
    return [_seconds(FIRST, first_s, 0.3), _seconds(WHOLE, whole_s, 4.0)]


def _moves(browser, folder, lesson, moves):
    from tests.browser.conftest import Lab, Notebook

    lab = Lab(folder, "perCommTarget").wait()
    try:
        (folder / "notebooks" / lesson.name).write_text(_up_to_the_first_panel(lesson))
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        page.problems = []
        notebook = Notebook(page, lab, lesson.name)
        notebook.run_all(timeout_s=180)
        panel = notebook.panel()
        handle = panel.root.locator(".noUi-handle").first
        first_s, whole_s = [], []
        for _ in range(moves):
            panel.wait_status("^ready")
            page.wait_for_timeout(300)
            handle.focus()
            panel.watch()
            began = time.perf_counter()
            page.keyboard.press("ArrowRight")
            first_s.append(panel.first_picture_ms() / 1e3)
            panel.wait_status("^ready")
            whole_s.append(time.perf_counter() - began)
        notebook.close()
    finally:
        lab.close()
    return first_s, whole_s


def _up_to_the_first_panel(lesson: Path) -> str:
    """The lesson without stored outputs and without what follows its first panel, so that only that one
    computes."""
    notebook = json.loads(lesson.read_text())
    kept = []
    for cell in notebook["cells"]:
        kept.append(cell)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            if any(line.startswith("panel(") for line in cell["source"]):
                break
    return json.dumps(notebook | {"cells": kept})


def _seconds(what, seconds, target) -> Row:
    middle = statistics.median(seconds)
    return Row(
        what=what,
        ours=middle,
        unit="s",
        ratio=middle,
        target=target,
        spread=(min(seconds), max(seconds)),
        note=f"median of {len(seconds)} moves; spread is smallest and largest",
    )


def _not_run(why: str) -> list[Row]:
    return [Row(what=FIRST, target=0.3, note=why), Row(what=WHOLE, target=4.0, note=why)]


def notebook_row() -> Row:
    """Time nbval on all notebooks, as `make test` runs it."""
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not notebooks:
        return Row(what=NOTEBOOKS, target=300.0, note="there are no notebooks yet")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "--nbval",
        "--nbval-sanitize-with",
        "tests/nbval_sanitize.cfg",
        "notebooks",
    ]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    spent = time.perf_counter() - start
    last = (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    return Row(
        what=f"{NOTEBOOKS} ({len(notebooks)})",
        ours=spent,
        unit="s",
        ratio=spent,
        target=300.0,
        note="" if done.returncode == 0 else f"with failures: {last}",
    )
