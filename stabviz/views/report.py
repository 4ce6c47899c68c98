"""`html_report`: runs side by side as one HTML file that needs no network, no script and no font of its own.

The page is templates/report.html, with autoescape on: what comes from a run is text. A policy in the page
forbids to load anything.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from stabviz.trace import Diagnosis, Trace, diagnose
from stabviz.views.points import WATCHED
from stabviz.views.report_figures import EVENT_MARKERS, ReportFigure, marker_kind, report_figures
from stabviz.views.report_tables import (
    SCORES,
    event_table,
    figure,
    mistake_tables,
    score_tables,
    setting_tables,
)
from stabviz.views.style import curve_style
from stabviz.views.svg import figure_svg

# StrictUndefined: a name that the template misspells is an error, not an empty cell.
_PAGES = Environment(
    loader=PackageLoader("stabviz.views"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_PAGES.filters["figure"] = figure
_GLYPHS = {"<": "◀", "^": "▲", "s": "■", "v": "▼", "d": "◆"}
_LOOK_OF_VERDICT = {"healthy": "good", "diverged": "bad", "stalled": "bad", "too_short": ""}
"""Verdict -> look of its card; a warning for what is not here, and for a healthy loss with a fault."""
_DASHES = {"-": (), "--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}
"""matplotlib's patterns in line widths, for the swatches of the key."""


def html_report(
    traces: Sequence[Trace],
    *,
    names: Sequence[str],
    scores: Sequence[dict | None] = (),
    configs: Sequence[dict] = (),
    summary: dict | None = None,
    facts: Sequence[dict[str, str]] = (),
    title: str = "Fine-tuning report",
) -> str:
    """Return one HTML page: verdicts, scores, curves, events, mistakes and configuration of the runs.

    `scores` are those of stabviz.scores, one dict a run, or several by split ({"test": {...}}); a run without
    any has None. `summary` holds what only several seeds can say: "churn". `configs` default to what each
    Trace holds; `facts` say in words what each run started from.

    Raises: ValueError for no run, a Trace of several runs, or a list that is not one entry a run

    >>> trace = Trace(steps=[0, 1], signals={"loss_nats": [[2.0, 1.0]]}, runs=[{}])
    >>> html_report([trace], names=["<b>"]).count("&lt;b&gt;") > 0
    True
    """
    names = [_one_line(name) for name in names]
    scores = list(scores) or [None] * len(traces)
    configs = list(configs) or [{**trace.config, **trace.runs[0]} for trace in traces]
    facts = list(facts) or [{}] * len(traces)
    _check(traces, names, scores, configs, facts)
    differing, shared = setting_tables(configs)
    return _PAGES.get_template("report.html").render(
        SCORES=SCORES,
        title=title,
        names=names,
        overview=_overview(names, traces, configs),
        cards=[_card(name, diagnose(trace)) for name, trace in zip(names, traces, strict=True)],
        score_tables=score_tables(names, scores, configs),
        churn=(summary or {}).get("churn"),
        key=_key(names, traces),
        figures=[_drawn(number, one) for number, one in enumerate(report_figures(traces, names))],
        events=event_table(names, traces),
        facts=[(name, list(told.items())) for name, told in zip(names, facts, strict=True) if told],
        mistakes=mistake_tables(names, scores),
        differing=differing,
        shared=shared,
    )


def _overview(names, traces, configs) -> str:
    counts = sorted({trace.n_steps for trace in traces})
    steps = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    runs = f"{names[0]}: {steps} steps." if len(names) == 1 else f"{len(names)} runs of {steps} steps."
    shared = [
        f"{key.capitalize()} {configs[0][key]}"
        for key in ("data", "label", "tags", "model")
        if configs[0].get(key) and len({repr(config.get(key)) for config in configs}) == 1
    ]
    return f"{runs} {'; '.join(shared)}." if shared else runs


def _card(name: str, found: Diagnosis) -> dict[str, Any]:
    """What is said of a run, with the look that the outcome and its cause ask for."""
    look = _LOOK_OF_VERDICT.get(found.verdict.kind, "warn")
    look = "warn" if look == "good" and found.kind != "healthy" else look
    return {"name": name, "look": look, "found": found}


def _drawn(number: int, one: ReportFigure) -> dict[str, Any]:
    svg = figure_svg(one.figure, one.finding, prefix=f"f{number}")
    return {"title": one.title, "finding": one.finding, "wide": one.wide, "svg": svg}


def _key(names, traces) -> list[tuple]:
    """What colours, lines and marks mean, once for all figures: (glyph or line, words)."""
    items: list[tuple] = [(_swatch(r), name) for r, name in enumerate(names)] if len(names) > 1 else []
    kinds = {event["kind"] for trace in traces for event in trace.events}
    for kind, marker in EVENT_MARKERS.items():
        named = sorted(name for name in kinds if marker_kind(name) == kind)
        items += [(_GLYPHS[marker], name.replace("_", " ")) for name in named]
    lost = any(not np.isfinite(trace[name]).all() for trace in traces for name in WATCHED if name in trace)
    return items + ([("✕", "not finite")] if lost else [])


def _swatch(r: int) -> dict[str, str]:
    """Colour and dashes of run r's line, as the template draws it in the key."""
    look = curve_style(r)
    line = look["linestyle"]
    dashes = " ".join(f"{2 * d:g}" for d in (_DASHES[line] if isinstance(line, str) else line[1]))
    return {"colour": look["color"], "dashes": dashes or "none"}


def _one_line(name) -> str:
    """A name on one line, without characters that no page can show."""
    return "".join(c if c.isprintable() else " " for c in str(name)).strip() or "(no name)"


def _check(traces, names, scores, configs, facts) -> None:
    if not traces:
        raise ValueError("html_report: traces must hold at least one run; got none")
    lists = {"names": names, "scores": scores, "configs": configs, "facts": facts}
    for what, given in lists.items():
        if len(given) != len(traces):
            wanted = f"one entry a run, {len(traces)}"
            raise ValueError(f"html_report: {what} must hold {wanted}; got {len(given)}")
