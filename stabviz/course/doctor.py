"""Look at the environment and say what to do: `python -m stabviz doctor`."""

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from stabviz.course.progress import home

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ROOM_WANTED_GB = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "warn", "fail"]
    """fail: the course will not work; warn: a part of it will not, or differs; ok: nothing to do."""
    subject: str
    """What was looked at, in a word or two."""
    text: str
    """What was found."""
    advice: str = ""
    """What to do about it; empty where nothing is to be done."""


def examine(requirements: list[str] | None = None) -> list[Finding]:
    """Return every finding; `requirements` are those of the installed package unless given."""
    return [
        _python(),
        *_packages(requirements),
        _kernel(),
        _device(),
        _threads(),
        _text(),
        _browser(),
        _writable(home().absolute()),
        _room(Path.cwd()),
    ]


def report(findings: list[Finding]) -> str:
    """Return the findings as text, one line each and the advice below it, and a closing line."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<4}  {finding.subject:<9} {finding.text}")
        if finding.advice:
            lines.append(f"{'':16}-> {finding.advice}")
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    lines.append("ready" if not failed + warned else f"{failed} to mend, {warned} to know about")
    return "\n".join(lines)


def _python() -> Finding:
    version, system = platform.python_version(), platform.platform(terse=True)
    return Finding("ok", "python", f"{version} on {system}, in {sys.prefix}")


def _packages(requirements: list[str] | None) -> Iterator[Finding]:
    """Compare what is installed with what is required; only the tests' own packages may be missing."""
    if requirements is None:
        try:
            requirements = metadata.requires("stabviz") or []
        except metadata.PackageNotFoundError:
            yield Finding("fail", "packages", "stabviz is not installed", "run: pip install -e .")
            return
    fitting = []
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        extras = [e for e in ("course", "test") if marker is None or marker.evaluate({"extra": e})]
        if not extras:  # another platform's, or of an extra that the course does without
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        # a local build such as 2.13.0+cpu or 2.14.0.dev counts: who installed it meant it
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            fitting.append(f"{requirement.name} {version}")
            continue
        wanted = requirement.specifier or "any version"
        text = f"{requirement.name} {version or 'is missing'}; wanted {wanted}"
        advice = "run: make setup, or: pip install -r requirements.txt"
        if extras == ["test"]:
            yield Finding("warn", "packages", text + " (only the tests need it)", advice)
        else:
            yield Finding("fail", "packages", text, advice)
    yield Finding("ok", "packages", ", ".join(fitting))


def _kernel() -> Finding:
    """Find the kernel that notebooks start: another Python's kernel is why `import stabviz` fails in them."""
    if importlib.util.find_spec("jupyter_client") is None:
        return Finding("fail", "kernel", "Jupyter is missing", "run: make setup")
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return Finding("fail", "kernel", "no kernel python3", "run: make setup")
    # A bare name stands for the Python that Jupyter itself runs in.
    found = sys.executable if command in ("python", "python3") else shutil.which(command) or command
    if os.path.dirname(os.path.realpath(found)) == os.path.dirname(os.path.realpath(sys.executable)):
        return Finding("ok", "kernel", found)
    advice = "start Jupyter from the environment that stabviz is installed in: make lab"
    return Finding("warn", "kernel", f"notebooks start {found}, not {sys.executable}", advice)


def _device() -> Finding:
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Finding("ok", "device", f"cuda: {card.name}, {card.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        return Finding("ok", "device", "cpu (mps is there, and asked for by device='mps')")
    if shutil.which("nvidia-smi"):
        # the driver is there and torch does not see the card: most often a build of torch for the CPU alone
        text = f"cpu, though this machine seems to have an NVIDIA GPU; torch is {torch.__version__}"
        return Finding("warn", "device", text, "see 'On a GPU' in README.md; the course itself needs none")
    return Finding("ok", "device", "cpu, which is all that the course needs")


def _threads() -> Finding:
    # In a container the process may use fewer cores than the machine has: its affinity says how many.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"torch uses {torch.get_num_threads()} on {cores} cores"
    # threads that outnumber the cores wait for each other at every operation
    if torch.get_num_threads() > cores:
        advice = f"more threads than cores is slow; set OMP_NUM_THREADS={cores}"
        return Finding("warn", "threads", text, advice)
    return Finding("ok", "threads", text)


def _text() -> Finding:
    text = "pydoc_data, the text that the lessons train on"
    if importlib.util.find_spec("pydoc_data") and importlib.util.find_spec("pydoc_data.topics"):
        return Finding("ok", "text", text)
    advice = "use the full standard library: Python from python.org, conda, or your system's packages"
    return Finding("fail", "text", f"this Python was stripped of {text}", advice)


def _browser() -> Finding:
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache/ms-playwright"))
    installed = [*filter(None, map(shutil.which, BROWSERS)), *cache.glob("chromium*")]
    if found := os.environ.get("STABVIZ_CHROMIUM") or next(iter(installed), None):
        return Finding("ok", "browser", str(found))
    advice = "run: python -m playwright install chromium, or install your system's chromium package"
    return Finding("warn", "browser", "no Chromium found; only the browser tests need one", advice)


def _writable(folder: Path) -> Finding:
    """Try a file in `folder`, or in the nearest folder above it that exists."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:  # to write and see: permission bits say nothing of a read-only mount or a full quota
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        advice = "your answers are kept there; set STABVIZ_HOME to a folder of your own"
        return Finding("fail", "writing", f"cannot write in {existing}: {error.strerror}", advice)
    return Finding("ok", "writing", f"your answers are kept in {folder}")


def _room(folder: Path) -> Finding:
    free_gb = shutil.disk_usage(folder).free / 1e9
    text = f"{free_gb:.1f} GB free in {folder}"
    if free_gb < ROOM_WANTED_GB:
        return Finding("warn", "disk", text, f"make room: {ROOM_WANTED_GB:.0f} GB is comfortable")
    return Finding("ok", "disk", text)
