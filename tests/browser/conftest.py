"""Real JupyterLab in a real Chromium: a server, a browser, a notebook that a test opens, runs and moves."""

import ast
import io
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[2] / "test-results"
"""Where screenshots go; ignored by git."""
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOW_TO_GET_ONE = (
    "no Chromium found. Install one (Debian and Ubuntu: `sudo apt install chromium`; anywhere: "
    "`.venv/bin/playwright install chromium`), or name yours in STABVIZ_CHROMIUM"
)
SESSION = "window.jupyterapp?.shell?.currentWidget?.sessionContext"
NO_CURVE = "axes|figure|patch|text|line2d|xtick|ytick|matplotlib|legend|band-|PathCollection|FillBetween"


def find_chromium(playwright):
    """Return the path of a Chromium: the one named, one on the PATH, or playwright's own; or None."""
    named = os.environ.get("STABVIZ_CHROMIUM")
    if named:
        return named
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@pytest.fixture(scope="session")
def browser():
    playwright_api = pytest.importorskip("playwright.sync_api")
    with playwright_api.sync_playwright() as playwright:
        path = find_chromium(playwright)
        if path is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(HOW_TO_GET_ONE)
        chromium = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield chromium
        chromium.close()


class Lab:
    """A JupyterLab server in a folder of its own, with settings of its own."""

    def __init__(self, folder: Path, comms_over_subshells: str):
        self.folder, settings = folder, folder / "settings"
        self._write(
            settings / "@jupyterlab/apputils-extension/kernels-settings.jupyterlab-settings",
            {"commsOverSubshells": comms_over_subshells},
        )
        self._write(
            settings / "@jupyterlab/apputils-extension/notification.jupyterlab-settings",
            {"fetchNews": "false", "checkForUpdates": False},
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        own = {
            "JUPYTERLAB_SETTINGS_DIR": settings,
            "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces",
            "JUPYTER_CONFIG_DIR": folder / "config",
            "JUPYTER_RUNTIME_DIR": folder / "runtime",
            "JUPYTER_DATA_DIR": folder / "data",
            "IPYTHONDIR": folder / "ipython",
            "STABVIZ_HOME": folder / "store",
        }
        self._log = open(folder / "lab.log", "wb")
        (folder / "notebooks").mkdir()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyter",
                "lab",
                "--no-browser",
                f"--ServerApp.port={port}",
                "--ServerApp.ip=127.0.0.1",
                "--IdentityProvider.token=",
                "--ServerApp.password=",
                "--allow-root",
                "--ServerApp.port_retries=0",
                "--expose-app-in-browser",
                "--LabApp.news_url=None",
                f"--ServerApp.root_dir={folder / 'notebooks'}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **{name: str(path) for name, path in own.items()}, "PYTHONUTF8": "1"},
        )

    def wait(self, patience_s=60):
        end_s = time.monotonic() + patience_s
        while time.monotonic() < end_s:
            try:
                with urllib.request.urlopen(self.url + "/api", timeout=2):
                    return self
            except OSError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.1)
        raise RuntimeError("JupyterLab did not start:\n" + (self.folder / "lab.log").read_text()[-3000:])

    def close(self):
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    @staticmethod
    def _write(path, settings):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def lab_servers(tmp_path_factory):
    """Return server(comms_over_subshells): JupyterLab's default "perCommTarget", or "disabled"."""
    servers = {}

    def server(comms_over_subshells="perCommTarget"):
        if comms_over_subshells not in servers:
            servers[comms_over_subshells] = Lab(tmp_path_factory.mktemp("lab"), comms_over_subshells)
            servers[comms_over_subshells].wait()
        return servers[comms_over_subshells]

    yield server
    for each in servers.values():
        each.close()


class Notebook:
    """A notebook open in JupyterLab."""

    def __init__(self, page, server, name):
        self.page, self.server, self.name = page, server, name
        page.goto(f"{server.url}/lab/workspaces/{name.replace('.', '-')}/tree/{name}?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=40_000)
        page.wait_for_function(f"() => {SESSION}?.session?.kernel?.status === 'idle'", timeout=40_000)

    def close(self):
        self.page.evaluate(f"() => {SESSION}?.shutdown?.()")
        self.page.close()

    def command(self, name, **arguments):
        self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, arguments]
        )

    def run_all(self, timeout_s=60):
        """Run every cell, and wait for the last."""
        self.start_all()
        self.wait_idle(timeout_s)

    def start_all(self):
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")

    def wait_idle(self, timeout_s=60):
        self.page.wait_for_function(
            """() => { const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
                       return prompts.length && prompts.every(each => /\\d/.test(each.textContent)); }""",
            timeout=timeout_s * 1000,
        )

    def begin(self, code):
        """Have the kernel run code, as a long cell would, without waiting for it."""
        self.page.evaluate(
            "([path, code]) => { eval(path).session.kernel.requestExecute({code}) }", [SESSION, code]
        )

    def ask(self, expression):
        """Return the value of a Python literal that the kernel computes."""
        reply = self.page.evaluate(
            """async ([path, expression]) => {
            const kernel = eval(path).session.kernel;
            const future = kernel.requestExecute(
                {code: '', user_expressions: {asked: expression}, silent: true});
            return (await future.done).content.user_expressions.asked; }""",
            [SESSION, expression],
        )
        return ast.literal_eval(reply["data"]["text/plain"])

    def errors(self):
        """Return the text of every traceback on the page."""
        kinds = ("stderr", "error")
        return self.page.locator(
            ", ".join(f".jp-RenderedText[data-mime-type='application/vnd.jupyter.{kind}']" for kind in kinds)
        ).all_inner_texts()

    def panel(self, number=0):
        return PanelOnPage(self.page, self.page.locator(".stabviz-panel").nth(number))

    def set_theme(self, dark):
        self.command("apputils:change-theme", theme="JupyterLab Dark" if dark else "JupyterLab Light")
        self.page.wait_for_function(
            "dark => document.body.dataset.jpThemeLight === (dark ? 'false' : 'true')", arg=dark
        )
        self.page.wait_for_timeout(300)


class PanelOnPage:
    """What a learner sees and touches of one panel."""

    def __init__(self, page, root):
        self.page, self.root = page, root

    def status(self):
        return self.root.locator(".stabviz-status").inner_text()

    def wait_status(self, pattern, timeout_s=20):
        """Wait until the status line matches, and return it."""
        end_s = time.monotonic() + timeout_s
        while not re.search(pattern, status := self.status()):
            if time.monotonic() > end_s:
                raise AssertionError(f"status never matched {pattern!r}; it is {status!r}")
            self.page.wait_for_timeout(50)
        return status

    def slider(self, knob):
        return self.root.locator(f".stabviz-knob-{knob} .noUi-handle")

    def field(self, knob):
        return self.root.locator(
            f".stabviz-knob-{knob} .stabviz-field input, .stabviz-knob-{knob} .stabviz-field select"
        )

    def curves(self):
        """Return {gid: path} of every curve that is drawn."""
        found = self.root.evaluate("""root => [...root.querySelectorAll('[data-gid]')]
            .filter(each => each.querySelector('path'))
            .map(each => [each.dataset.gid, each.querySelector('path').getAttribute('d')])""")
        return {gid: path for gid, path in found if not re.match(NO_CURVE, gid)}

    def button(self, name):
        return self.root.get_by_role("button", name=name, exact=True)

    def watch(self):
        """Note from now on when a key goes up or down and when the picture changes."""
        self.root.evaluate("""root => {
            const seen = window.seen = {key: null, picture: null};
            document.addEventListener('keydown', () => { seen.key ??= performance.now() }, {capture: true});
            const watcher = new MutationObserver(() => { if (seen.key !== null && seen.picture === null)
                requestAnimationFrame(() => { seen.picture ??= performance.now(); watcher.disconnect() }) });
            watcher.observe(root.querySelector('.stabviz-picture'), {subtree: true, childList: true}); }""")

    def first_picture_ms(self):
        """Return the time from the key to the frame in which the next picture is painted."""
        self.page.wait_for_function("() => window.seen.picture !== null")
        return self.page.evaluate("() => window.seen.picture - window.seen.key")

    def contrast(self, part):
        """Return the contrast (WCAG 2) between the words of a part and the ground behind them."""
        return self.contrast_of(self.root.locator(part).first)

    @staticmethod
    def contrast_of(locator):
        return locator.evaluate("""part => {
            const numbers = text => text.match(/[\\d.]+/g).map(Number);
            const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
                .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
                .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
            let ground = part, colour = [0, 0, 0, 0];
            while (ground && colour[3] === 0) {
                colour = numbers(getComputedStyle(ground).backgroundColor);
                if (colour.length === 3) colour.push(1);
                ground = ground.parentElement; }
            const both = [light(colour), light(numbers(getComputedStyle(part).color))].sort((a, b) => b - a);
            return (both[0] + 0.05) / (both[1] + 0.05); }""")

    def label(self):
        return self.root.locator("svg[role=img]").get_attribute("aria-label")


@pytest.fixture(scope="session")
def opener(browser, lab_servers):
    """Return open(path or list of cells, comms_over_subshells=...) -> Notebook, for fixtures of any scope.

    Pages share one context, so that JupyterLab's scripts are fetched once.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(60_000)
    numbers = itertools.count(1)

    def open_one(source, *, comms_over_subshells="perCommTarget"):
        server = lab_servers(comms_over_subshells)
        name = f"notebook-{next(numbers)}.ipynb" if isinstance(source, (list, tuple)) else Path(source).name
        target = server.folder / "notebooks" / name
        if isinstance(source, (list, tuple)):
            cells = [nbformat.v4.new_code_cell(text) for text in source]
            kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
            nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), target)
        else:
            shutil.copy(source, target)
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        return Notebook(page, server, name)

    yield open_one
    context.close()


@pytest.fixture
def open_notebook(opener):
    """Return open(...) as above; what a test opens is closed after it, and its kernel ended."""
    opened = []

    def open_one(source, **settings):
        opened.append(opener(source, **settings))
        return opened[-1]

    yield open_one
    for notebook in opened:
        notebook.close()


@pytest.fixture
def slowness():
    """Return how many times slower than a quiet machine this one is now, at what a panel does most:
    drawing."""
    quiet_s = 0.09
    spent_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        figure = Figure(figsize=(7.2, 4.2))
        for axes in figure.subplots(2, 1):
            axes.set_yscale("log")
            axes.plot([1, 2, 3], [1, 10, 100], label="a")
            axes.legend()
        figure.savefig(io.StringIO(), format="svg")
        spent_s.append(time.perf_counter() - began_s)
    return max(1.0, sorted(spent_s)[2] / quiet_s)


@pytest.fixture
def screenshot():
    """Return save(page, name): a picture in test-results/, as the bytes that were written."""
    RESULTS.mkdir(exist_ok=True)
    return lambda page, name: page.screenshot(path=RESULTS / name)
