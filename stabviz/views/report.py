"""`html_report`: runs side by side as one HTML file that needs no network, no script and no font of its own.

Everything that comes from a run is text and is escaped as such; a policy in the page forbids to load
anything.
"""

from collections.abc import Sequence

import numpy as np

from stabviz.trace import Trace, Verdict, verdict
from stabviz.views.curves import EVENT_MARKERS, ReportFigure, report_figures
from stabviz.views.drawing import COLOURS, LINE_STYLES
from stabviz.views.svg import figure_svg
from stabviz.views.tables import configuration, escaped, event_table, mistakes, score_tables

_GLYPHS = {"<": "◀", "^": "▲", "s": "■", "v": "▼", "d": "◆"}
STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --card: #ffffff; --ink: #1d1d1f; --quiet: #5c5c61;
  --line: #dcdce0; --shade: 38, 110, 200; --good: #1a7340; --bad: #b3261e; --warn: #8a5a00;
  --differs: #fff3cf; }
@media (prefers-color-scheme: dark) { :root { --ground: #161618; --card: #1e1e21; --ink: #ececee;
  --quiet: #a9a9b2;
  --line: #3a3a40; --shade: 90, 160, 255; --good: #6fd39a; --bad: #ff8f85; --warn: #f0bf5a;
  --differs: #453a14; }
  figure svg, .key svg { filter: invert(0.883) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 24px 20px 64px; background: var(--ground);
  color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 40px 0 10px; padding-top: 10px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 20px 0 6px; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 80ch; overflow-wrap: anywhere;
  } .quiet, figcaption, caption { color: var(--quiet); }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--quiet);
  border-radius: 6px; padding: 12px 16px; min-width: 0; }
.card h3 { margin: 0 0 2px; } .card ul { margin: 4px 0; padding-left: 1.2em; overflow-wrap: anywhere; }
.card.good { border-left-color: var(--good); } .card.bad { border-left-color: var(--bad); }
.card.warn { border-left-color: var(--warn); }
.kind { font-weight: 650; } .good .kind { color: var(--good); } .bad .kind { color: var(--bad); }
.warn .kind { color: var(--warn); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  margin: 4px 0; }
caption { text-align: left; padding-bottom: 4px; font-size: 0.92rem; }
caption span { display: block; position: sticky; left: 0; width: max-content;
  max-width: calc(min(100vw, 1120px) - 48px); }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } thead th { vertical-align: bottom; } th[scope=row], .left { text-align: left; }
th[scope=row], td.run { white-space: nowrap; } th.long, td.long { white-space: normal; min-width: 14em;
  max-width: 24em; overflow-wrap: anywhere; }
td.left { overflow-wrap: break-word; min-width: 5em; max-width: 44em; }
tfoot th, tfoot td { border-bottom: 0; } tfoot tr:first-child > * { border-top: 2px solid var(--line); }
.confusion td { text-align: center; min-width: 2.6em; border: 1px solid var(--line); padding: 4px 6px; }
.confusion thead th { text-align: center; font-size: 0.85rem; padding: 4px 6px; }
.confusion .hit { font-weight: 700; }
tr.differs > * { background: var(--differs); }
.figures { display: grid; gap: 20px 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); }
figure { margin: 0; min-width: 0; overflow-x: auto; }
figure.wide { grid-column: 1 / -1; } figure h3 { margin: 0 0 2px; }
figure svg { display: block; width: 100%; height: auto; } figure.wide svg { min-width: 620px; }
figure h3, figcaption { position: sticky; left: 0; } figcaption { font-size: 0.9rem; max-width: 90ch;
  overflow-wrap: anywhere; }
.key { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 0 0 10px; padding: 6px 0; list-style: none;
  position: sticky; top: 0; background: var(--ground); z-index: 1; border-bottom: 1px solid var(--line);
  max-height: 30vh; overflow-y: auto; }
.key li { overflow-wrap: anywhere; } .key svg { vertical-align: middle; margin-right: 6px; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; } .card summary { font-weight: 400; }
@media print { .key { position: static; } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def html_report(
    traces: Sequence[Trace],
    *,
    names: Sequence[str],
    scores: Sequence[dict | None] = (),
    configs: Sequence[dict] = (),
    diagnoses: Sequence = (),
    summary: dict | None = None,
    title: str = "Fine-tuning report",
) -> str:
    """Return one self-contained HTML page: verdicts, scores, curves, events, mistakes and configuration of
    the runs.

    `scores` are those of stabviz.scores, one dict a run, or several by split ({"test": {...}}); a
    run without any has None. `summary` holds what only several seeds can say: "churn". `diagnoses` carry
    kind, step, evidence, remedy and lesson. `configs` default to what each Trace holds.

    Raises: ValueError for no run, a Trace of several runs, or a list that is not one entry a run
    Lesson: 11-classification

    >>> trace = Trace(steps=[0, 1], signals={"loss_nats": [[2.0, 1.0]]}, runs=[{}])
    >>> html_report([trace], names=["<b>"]).count("&lt;b&gt;") > 0
    True
    """
    names = [_clean(name) for name in names]
    scores = list(scores) or [None] * len(traces)
    configs = list(configs) or [{**trace.config, **trace.runs[0]} for trace in traces]
    diagnoses = list(diagnoses) or [None] * len(traces)
    _check(traces, names, scores, configs, diagnoses)
    judged = [_verdict(trace) for trace in traces]
    parts = [
        _head(title, names, traces, configs),
        _verdicts(names, judged, diagnoses),
        score_tables(names, scores, summary),
        _curves(report_figures(traces, names), names, traces),
        event_table(names, traces),
        mistakes(names, scores),
        configuration(names, configs),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escaped(_page_title(title, names))}"
        f'</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style></head>\n'
        f"<body><main>\n{''.join(parts)}</main></body></html>\n"
    )


def _head(title, names, traces, configs) -> str:
    counts = sorted({trace.n_steps for trace in traces})
    steps = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    what = f"{names[0]}: {steps} steps." if len(names) == 1 else f"{len(names)} runs of {steps} steps."
    shared = [
        f"{key.capitalize()} {configs[0][key]}"
        for key in ("data", "label", "tags", "model")
        if configs[0].get(key) and len({repr(config.get(key)) for config in configs}) == 1
    ]
    on = f" {'; '.join(shared)}." if shared else ""
    return f'<h1>{escaped(title)}</h1>\n<p class="quiet">{escaped(what + on)}</p>\n'


def _verdicts(names, judged, diagnoses) -> str:
    cards = []
    for name, found, diagnosis in zip(names, judged, diagnoses, strict=True):
        kind, evidence = (
            ("no verdict", "The loss was not recorded") if found is None else (found.kind, found.evidence)
        )
        look = {"healthy": "good", "diverged": "bad", "stalled": "bad", "spiked": "warn"}.get(kind, "")
        if look == "good" and diagnosis is not None and diagnosis.kind != "healthy":
            look = "warn"
        at = "" if found is None or found.step is None else f" at step {found.step}"
        cards.append(
            f'<div class="card {look}"><h3>{escaped(name)}</h3><p><span class="kind">{kind}{at}</span>: '
            f"{escaped(evidence)}.</p>{_diagnosis(diagnosis, evidence)}</div>"
        )
    return f'<h2 id="verdict">Verdict</h2>\n<div class="cards">{"".join(cards)}</div>\n'


def _diagnosis(diagnosis, known: str) -> str:
    """Kind, evidence beyond what the verdict said, remedy and lesson; of a healthy run folded away."""
    if diagnosis is None:
        return ""
    at = "" if diagnosis.step is None else f" at step {diagnosis.step}"
    head = f"Diagnosis: <strong>{escaped(diagnosis.kind.replace('_', ' '))}</strong>{at}"
    lines = "".join(f"<li>{escaped(line)}</li>" for line in diagnosis.evidence if line != known)
    evidence = f"<ul>{lines}</ul>" if lines else ""
    if diagnosis.kind == "healthy":
        return f"<details><summary>{head}</summary>{evidence}</details>"
    words = f"<p>{head}</p>{evidence}"
    if diagnosis.remedy:
        words += f"<p>Remedy: {escaped(diagnosis.remedy)}</p>"
    if diagnosis.lesson:
        words += f'<p class="quiet">Lesson: {escaped(diagnosis.lesson)}</p>'
    return words


def _curves(figures: list[ReportFigure], names, traces) -> str:
    if not figures:
        return '<h2 id="curves">Curves</h2>\n<p class="quiet">No step was recorded yet.</p>\n'
    drawn = []
    for number, one in enumerate(figures):
        svg = figure_svg(one.figure, one.finding, prefix=f"f{number}")
        wide = ' class="wide"' if one.wide else ""
        drawn.append(
            f"<figure{wide}><h3>{escaped(one.title)}</h3>{svg}<figcaption>{escaped(one.finding)}</figcaption>"
            "</figure>\n"
        )
    return f'<h2 id="curves">Curves</h2>\n{_key(names, traces)}<div class="figures">{"".join(drawn)}</div>\n'


def _key(names, traces) -> str:
    """What colours, lines and marks mean, once for all figures."""
    items = (
        [f"<li>{_swatch(r)}{escaped(name)}</li>" for r, name in enumerate(names)] if len(names) > 1 else []
    )
    kinds = {event["kind"] for trace in traces for event in trace.events}
    for kind, marker in EVENT_MARKERS.items():
        named = sorted(
            k for k in kinds if k == kind or kind == "other" and k not in (*EVENT_MARKERS, "non_finite")
        )
        items += [f"<li>{_GLYPHS[marker]} {escaped(name.replace('_', ' '))}</li>" for name in named]
    lost = any(
        not np.isfinite(trace[name]).all()
        for trace in traces
        for name in ("loss_nats", "grad_norm_preclip")
        if name in trace
    )
    items += ["<li>✕ not finite</li>"] if lost else []
    return f'<ul class="key" aria-label="Key to the curves">{"".join(items)}</ul>\n' if items else ""


def _swatch(r: int) -> str:
    pattern = {"-": (), "--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}
    line = LINE_STYLES[(r + r // 10) % 10]
    dashes = " ".join(f"{2 * d:g}" for d in (pattern[line] if isinstance(line, str) else line[1]))
    return (
        f'<svg width="40" height="8" aria-hidden="true"><path d="M0 4H40" fill="none" stroke-width="2.5" '
        f'stroke="{COLOURS[r % 10]}" stroke-dasharray="{dashes or "none"}"/></svg>'
    )


def _verdict(trace: Trace) -> Verdict | None:
    if "loss_nats" not in trace or not trace.n_steps:
        return None
    return verdict(trace, 0)


def _page_title(title, names) -> str:
    return f"{title}: {names[0] if len(names) == 1 else f'{len(names)} runs'}"


def _clean(name) -> str:
    """A name on one line, without characters that no page can show."""
    return "".join(c if c.isprintable() else " " for c in str(name)).strip() or "(no name)"


def _check(traces, names, scores, configs, diagnoses) -> None:
    if not traces:
        raise ValueError("html_report: traces must hold at least one run; got none")
    for what, given in (("names", names), ("scores", scores), ("configs", configs), ("diagnoses", diagnoses)):
        if len(given) != len(traces):
            raise ValueError(
                f"html_report: {what} must hold one entry a run, {len(traces)}; got {len(given)}"
            )
