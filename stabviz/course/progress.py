"""The learner's own store: what was predicted, solved, answered and claimed. One small local JSON file.

The file is replaced whole, so a crash never leaves half of it. One that cannot be read is set aside under a
name that says so, and the course goes on with an empty store: nothing is deleted.
"""

import os
import sys
import time
from itertools import count
from pathlib import Path

from stabviz.files import dumps, loads, locked, write_atomically

FILE = "progress.json"
KINDS = ("predictions", "exercises", "quizzes", "claims")


def home() -> Path:
    """Return the folder of the store: the environment's STABVIZ_HOME, or .stabviz beside the notebooks."""
    return Path(os.environ.get("STABVIZ_HOME") or ".stabviz")


def load() -> dict:
    """Return the whole store, {kind: {name: record}}; a damaged file is set aside and named."""
    path = home() / FILE
    try:
        store = loads(path.read_text(encoding="utf-8"))
        if not isinstance(store, dict) or not all(isinstance(store.get(kind, {}), dict) for kind in KINDS):
            raise ValueError("not a store of predictions, exercises, quizzes and claims")
    except FileNotFoundError:
        store = {}
    except (ValueError, UnicodeDecodeError) as error:
        names = (path.with_name(f"{path.stem}.damaged-{number}{path.suffix}") for number in count(1))
        aside = next(
            name for name in names if not name.exists()
        )  # os.replace would take an older one's place
        os.replace(path, aside)
        print(
            f"stabviz: {path} could not be read ({error}); it is kept as {aside.name}, a new one begins.",
            file=sys.stderr,
        )
        store = {}
    return {kind: dict(store.get(kind, {})) for kind in KINDS}


def record(kind: str, name: str, **entry) -> None:
    """Write one record under its name, in place of an earlier one, with the time.

    Raises: ValueError for an unknown kind; OSError where the folder cannot be written
    """
    if kind not in KINDS:
        raise ValueError(f"record: kind must be one of {KINDS}; got {kind!r}")
    with locked(home() / FILE):  # two notebooks may record at once
        # Read under the lock too: what the other has just written would be lost with an older copy.
        store = load()
        store[kind][name] = {**entry, "at": time.strftime("%Y-%m-%dT%H:%M:%S")}
        write_atomically(home() / FILE, dumps(store, indent=1))


def try_to_record(kind: str, name: str, **entry) -> str:
    """Record, and return "" or the reason why it could not be kept: a full disk must not stop a lesson."""
    try:
        record(kind, name, **entry)
    except OSError as error:
        return f"This could not be kept in {home()} ({error.strerror or error})."
    return ""


def report() -> str:
    """Return what has been done so far, as text for the command line."""
    store = load()
    lines = [f"Progress, kept in {(home() / FILE).absolute()}"]
    if not any(store.values()):
        return lines[0] + "\nNothing yet. Open a lesson and try its first exercise."
    done = sum(entry.get("done", False) for entry in store["exercises"].values())
    lines.append(f"exercises    {done} solved of {len(store['exercises'])} tried")
    for name, entry in sorted(store["exercises"].items()):
        lines.append(f"  {'✓' if entry.get('done') else '·'} {name}")
    lines.append(f"predictions  {len(store['predictions'])} made")
    for name, entry in sorted(store["predictions"].items()):
        beside = "" if entry.get("measured") is None else f" (measured {entry['measured']})"
        lines.append(f"  · {name}: {entry.get('answer')}{beside}")
    lines.append(f"quizzes      {len(store['quizzes'])} begun")
    for name, entry in sorted(store["quizzes"].items()):
        lines.append(f"  · {name}: {entry.get('right')} of {entry.get('asked')} right")
    lines.append(f"claims       {len(store['claims'])} seen to hold on this machine")
    return "\n".join(lines)
