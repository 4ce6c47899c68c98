"""`html_report`: runs side by side as one HTML file that needs no network, no script and no font of its own.

Everything that comes from a run is text and is escaped as such; a policy in the page forbids to load anything.
"""

import html
import math
from collections.abc import Sequence

import numpy as np

from stabviz.trace import Trace, Verdict, verdict
from stabviz.views.curves import EVENT_MARKERS, ReportFigure, report_figures
from stabviz.views.drawing import COLOURS, LINE_STYLES
from stabviz.views.svg import figure_svg

SCORES = {
    "accuracy": ("accuracy", "share of inputs whose most likely class is the right one"),
    "macro_f1": ("macro F1", "F1 averaged over classes, however rare"),
    "f1": ("F1", "of whole entities: same words, same type"),
    "precision": ("precision", "share of what was found that is right"),
    "recall": ("recall", "share of what is there that was found"),
    "tag_accuracy": ("tag accuracy", "word by word, mostly a count of O"),
    "ece": ("calibration error", "mean gap between confidence and accuracy, 15 bins; 0 is best"),
    "loss_nats": ("loss (nats)", "mean negative log-likelihood; lower is better"),
    "majority_share": ("majority", "accuracy of always giving the most frequent class"),
}
"""Scores that the table shows where a run has them: key -> (heading, meaning)."""
MOST_EVENTS = 200
MOST_ROWS = 12
"""Row numbers of an event that are listed."""
_GLYPHS = {"<": "◀", "^": "▲", "s": "■", "v": "▼", "d": "◆"}
_SPOKEN = {"non_finite": "not finite, so no update was made", "overflow": "fp16 overflow, the loss scale halved",
           "spike": "the loss spiked", "rewind": "went back to the last good state",
           "out_of_memory": "out of memory, the micro-batch halved", "oom": "out of memory"}

STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --card: #ffffff; --ink: #1d1d1f; --quiet: #5c5c61;
  --line: #dcdce0; --shade: 38, 110, 200; --good: #1a7340; --bad: #b3261e; --warn: #8a5a00; --differs: #fff3cf; }
@media (prefers-color-scheme: dark) { :root { --ground: #161618; --card: #1e1e21; --ink: #ececee; --quiet: #a9a9b2;
  --line: #3a3a40; --shade: 90, 160, 255; --good: #6fd39a; --bad: #ff8f85; --warn: #f0bf5a; --differs: #453a14; }
  figure svg, .key svg { filter: invert(0.883) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 24px 20px 64px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 40px 0 10px; padding-top: 10px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 20px 0 6px; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 80ch; overflow-wrap: anywhere; } .quiet, figcaption, caption { color: var(--quiet); }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--quiet);
  border-radius: 6px; padding: 12px 16px; min-width: 0; }
.card h3 { margin: 0 0 2px; } .card ul { margin: 4px 0; padding-left: 1.2em; overflow-wrap: anywhere; }
.card.good { border-left-color: var(--good); } .card.bad { border-left-color: var(--bad); }
.card.warn { border-left-color: var(--warn); }
.kind { font-weight: 650; } .good .kind { color: var(--good); } .bad .kind { color: var(--bad); }
.warn .kind { color: var(--warn); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 4px 0; }
caption { text-align: left; padding-bottom: 4px; font-size: 0.92rem; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } thead th { vertical-align: bottom; } th[scope=row], .left { text-align: left; }
th[scope=row] { min-width: 7em; max-width: 24em; overflow-wrap: break-word; }
td.left { overflow-wrap: break-word; min-width: 5em; max-width: 44em; }
tfoot th, tfoot td { border-bottom: 0; } tfoot tr:first-child > * { border-top: 2px solid var(--line); }
.confusion td { text-align: center; min-width: 2.6em; border: 1px solid var(--line); padding: 4px 6px; }
.confusion thead th { text-align: center; font-size: 0.85rem; max-width: 9em; overflow-wrap: break-word; }
.confusion .hit { font-weight: 700; }
tr.differs > * { background: var(--differs); }
.figures { display: grid; gap: 20px 16px; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); }
figure { margin: 0; min-width: 0; overflow-x: auto; }
figure.wide { grid-column: 1 / -1; } figure h3 { margin: 0 0 2px; }
figure svg { display: block; width: 100%; height: auto; } figure.wide svg { min-width: 620px; }
figure h3, figcaption { position: sticky; left: 0; } figcaption { font-size: 0.9rem; max-width: 90ch;
  overflow-wrap: anywhere; }
.key { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 0 0 10px; padding: 6px 0; list-style: none;
  position: sticky; top: 0; background: var(--ground); z-index: 1; border-bottom: 1px solid var(--line);
  max-height: 30vh; overflow-y: auto; }
.key li { overflow-wrap: anywhere; } .key svg { vertical-align: middle; margin-right: 6px; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; }
@media print { .key { position: static; } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def html_report(traces: Sequence[Trace], *, names: Sequence[str], scores: Sequence[dict | None] = (),
                configs: Sequence[dict] = (), diagnoses: Sequence = (), summary: dict | None = None,
                title: str = "Fine-tuning report") -> str:
    """Return one self-contained HTML page: verdicts, scores, curves, events, mistakes and configuration of the runs.

    `scores` are those of stabviz.finetune.scores, one dict a run, or several by split ({"test": {...}}); a run
    without any has None. `summary` holds what only several seeds can say: "churn". `diagnoses` carry kind, step,
    evidence, remedy and lesson. `configs` default to what each Trace holds.

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
        _head(title, names, traces),
        _verdicts(names, judged, diagnoses),
        _score_tables(names, scores, summary),
        _curves(report_figures(traces, names), names, traces),
        _events(names, traces),
        _mistakes(names, scores),
        _configuration(names, configs),
    ]
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(_page_title(title, names))}'
            f'</title><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style></head>\n'
            f'<body><main>\n{"".join(parts)}</main></body></html>\n')


def _head(title, names, traces) -> str:
    counts = sorted({trace.n_steps for trace in traces})
    steps = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    what = f"{names[0]}: {steps} steps." if len(names) == 1 else f"{len(names)} runs of {steps} steps."
    return f'<h1>{_text(title)}</h1>\n<p class="quiet">{_text(what)}</p>\n'


def _verdicts(names, judged, diagnoses) -> str:
    cards = []
    for name, found, diagnosis in zip(names, judged, diagnoses, strict=True):
        kind, evidence = ("no verdict", "The loss was not recorded.") if found is None else (found.kind, found.evidence)
        look = {"healthy": "good", "diverged": "bad", "stalled": "bad", "spiked": "warn"}.get(kind, "")
        at = "" if found is None or found.step is None else f" at step {found.step}"
        cards.append(f'<div class="card {look}"><h3>{_text(name)}</h3><p><span class="kind">{kind}{at}</span>: '
                     f'{_text(evidence)}.</p>{_diagnosis(diagnosis)}</div>')
    return f'<h2 id="verdict">Verdict</h2>\n<div class="cards">{"".join(cards)}</div>\n'


def _diagnosis(diagnosis) -> str:
    if diagnosis is None:
        return ""
    at = "" if diagnosis.step is None else f" at step {diagnosis.step}"
    lines = "".join(f"<li>{_text(line)}</li>" for line in diagnosis.evidence)
    words = f"<p>Diagnosis: <strong>{_text(diagnosis.kind.replace('_', ' '))}</strong>{at}</p><ul>{lines}</ul>"
    if diagnosis.remedy:
        words += f"<p>Remedy: {_text(diagnosis.remedy)}</p>"
    if diagnosis.lesson:
        words += f'<p class="quiet">Lesson: {_text(diagnosis.lesson)}</p>'
    return words


def _score_tables(names, scores, summary) -> str:
    splits = list(dict.fromkeys(split for one in scores for split in _by_split(one)))
    if not splits:
        return '<h2 id="scores">Scores</h2>\n<p class="quiet">No run was scored.</p>\n'
    parts = ['<h2 id="scores">Scores</h2>\n']
    for split in splits:
        parts.append(_score_table(names, [_by_split(one).get(split, {}) for one in scores], split))
    churn = (summary or {}).get("churn")
    if churn is not None:
        parts.append(f"<p>Churn: two of these runs disagree on {churn:.1%} of the inputs, averaged over all pairs.</p>")
    return "".join(parts)


def _score_table(names, rows, split) -> str:
    keys = [key for key in SCORES if any(key in row for row in rows)]
    head = "".join(f'<th scope="col" title="{_text(SCORES[key][1])}">{SCORES[key][0]}</th>' for key in keys)
    lines = []
    for name, row in zip(names, rows, strict=True):
        said = " (failed)" if row.get("failed") else ""
        lines.append(f'<tr><th scope="row">{_text(name)}{said}</th>{_cells(row.get(key) for key in keys)}</tr>')
    scored = [row for row in rows if keys[0] in row]
    foot = _spread_rows(scored, keys) if len(scored) > 1 else ""
    failed = sum(bool(row.get("failed")) for row in scored)
    counted = f" {failed} of {len(scored)} runs failed (no better than the majority, or not finite)." if failed else ""
    number = next((row["rows"] for row in scored if "rows" in row), None)
    of = f"{split}: " if split else ""
    caption = f"{of}{number} inputs." if number is not None else of
    meanings = "; ".join(f"{SCORES[key][0]}: {SCORES[key][1]}" for key in keys)
    return (f'<div class="scroll"><table><caption>{_text(caption + counted)}</caption><thead><tr><th scope="col" '
            f'class="left">run</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody>{foot}</table></div>\n'
            f'<p class="quiet">{_text(meanings)}.</p>\n')


def _spread_rows(rows, keys) -> str:
    columns = [np.array([row[key] for row in rows if key in row], dtype=np.float64) for key in keys]
    means = _cells(float(values.mean()) for values in columns)
    stds = _cells(float(values.std(ddof=1)) if len(values) > 1 else None for values in columns)
    ranges = "".join(f"<td>{_number(float(v.min()))} to {_number(float(v.max()))}</td>" for v in columns)
    return (f'<tfoot><tr><th scope="row">mean of {len(rows)} runs</th>{means}</tr>'
            f'<tr><th scope="row">standard deviation</th>{stds}</tr>'
            f'<tr><th scope="row">lowest to highest</th>{ranges}</tr></tfoot>')


def _curves(figures: list[ReportFigure], names, traces) -> str:
    if not figures:
        return '<h2 id="curves">Curves</h2>\n<p class="quiet">No step was recorded yet.</p>\n'
    drawn = []
    for number, one in enumerate(figures):
        svg = figure_svg(one.figure, one.finding, prefix=f"f{number}")
        wide = ' class="wide"' if one.wide else ""
        drawn.append(f'<figure{wide}><h3>{_text(one.title)}</h3>{svg}<figcaption>{_text(one.finding)}</figcaption>'
                     "</figure>\n")
    return f'<h2 id="curves">Curves</h2>\n{_key(names, traces)}<div class="figures">{"".join(drawn)}</div>\n'


def _key(names, traces) -> str:
    """What colours, lines and marks mean, once for all figures."""
    items = [f"<li>{_swatch(r)}{_text(name)}</li>" for r, name in enumerate(names)] if len(names) > 1 else []
    kinds = {event["kind"] for trace in traces for event in trace.events}
    for kind, marker in EVENT_MARKERS.items():
        named = sorted(k for k in kinds if k == kind or kind == "other" and k not in (*EVENT_MARKERS, "non_finite"))
        items += [f"<li>{_GLYPHS[marker]} {_text(name.replace('_', ' '))}</li>" for name in named]
    lost = any(not np.isfinite(trace[name]).all() for trace in traces for name in ("loss_nats", "grad_norm_preclip")
               if name in trace)
    items += ["<li>✕ not finite</li>"] if lost else []
    return f'<ul class="key" aria-label="Key to the curves">{"".join(items)}</ul>\n' if items else ""


def _swatch(r: int) -> str:
    pattern = {"-": (), "--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}
    line = LINE_STYLES[(r + r // 10) % 10]
    dashes = " ".join(f"{2 * d:g}" for d in (pattern[line] if isinstance(line, str) else line[1]))
    return (f'<svg width="40" height="8" aria-hidden="true"><path d="M0 4H40" fill="none" stroke-width="2.5" '
            f'stroke="{COLOURS[r % 10]}" stroke-dasharray="{dashes or "none"}"/></svg>')


def _events(names, traces) -> str:
    rows = sorted(((event["step"], name, event) for name, trace in zip(names, traces, strict=True)
                   for event in trace.events), key=lambda row: row[0])
    if not rows:
        return '<h2 id="events">Events</h2>\n<p>None: no step was skipped, nothing was rewound.</p>\n'
    lines = []
    for step, name, event in rows[:MOST_EVENTS]:
        kind = event["kind"]
        spoken = f": {_SPOKEN[kind]}" if kind in _SPOKEN else ""
        details = "; ".join(f"{key.strip('_').replace('_', ' ')} {_detail(value)}" for key, value in event.items()
                            if key not in ("run", "step", "kind"))
        run = f'<td class="left">{_text(name)}</td>' if len(names) > 1 else ""
        lines.append(f'<tr><th scope="row">{step}</th>{run}<td class="left">{_text(kind.replace("_", " ") + spoken)}'
                     f'</td><td class="left">{_text(details)}</td></tr>')
    run = '<th scope="col" class="left">run</th>' if len(names) > 1 else ""
    more = f'<p class="quiet">and {len(rows) - MOST_EVENTS} more</p>' if len(rows) > MOST_EVENTS else ""
    counts = {}
    for _, _, event in rows:
        counts[event["kind"]] = counts.get(event["kind"], 0) + 1
    caption = ", ".join(f"{kind.replace('_', ' ')}: {count}" for kind, count in counts.items())
    return (f'<h2 id="events">Events</h2>\n<div class="scroll"><table><caption>{_text(caption)}</caption><thead><tr>'
            f'<th scope="col" class="left">step</th>{run}<th scope="col" class="left">what</th>'
            f'<th scope="col" class="left">details</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
            f"{more}\n")


def _mistakes(names, scores) -> str:
    parts, shown = [], 0
    for name, one in zip(names, scores, strict=True):
        for split, found in _by_split(one).items():
            tables = _confusion(found) + _by_name(found)
            if tables:
                of = f"{name}{', ' + split if split else ''}"
                parts.append(f'<details{" open" if not shown else ""}><summary>{_text(of)}</summary>{tables}</details>')
                shown += 1
    return f'<h2 id="mistakes">Mistakes</h2>\n{"".join(parts)}\n' if parts else ""


def _confusion(found) -> str:
    counts_CC, classes = found.get("confusion"), found.get("classes")
    if not counts_CC or not classes:
        return ""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in classes)
    lines, wrong = [], []
    for true, row in enumerate(counts_CC):
        total = sum(row)
        cells = []
        for said, count in enumerate(row):
            share = count / total if total else 0.0
            hit = ' class="hit"' if true == said else ""
            shade = f' style="background: rgba(var(--shade), {0.5 * share:.2f})"' if count else ""
            cells.append(f"<td{hit}{shade}>{count if count else '·'}</td>")
            if true != said and count:
                wrong.append((count, f"{classes[true]} taken for {classes[said]} ({count} of {total})"))
        lines.append(f'<tr><th scope="row">{_text(classes[true])}</th>{"".join(cells)}</tr>')
    often = "; ".join(words for _, words in sorted(wrong, key=lambda pair: -pair[0])[:3])
    caption = f"Rows: the true class; columns: what was predicted. {'Most often: ' + often if often else 'No mistake'}."
    return (f'<div class="scroll"><table class="confusion"><caption>{_text(caption)}</caption><thead><tr>'
            f'<td></td>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>')


def _by_name(found) -> str:
    rows = found.get("by_class") or found.get("by_type")
    if not rows:
        return ""
    keys = [key for key in ("precision", "recall", "f1", "support", "predicted") if key in next(iter(rows.values()))]
    head = "".join(f'<th scope="col">{"F1" if key == "f1" else key}</th>' for key in keys)
    body = "".join(f'<tr><th scope="row">{_text(name)}</th>{_cells(row[key] for key in keys)}</tr>'
                   for name, row in rows.items())
    what = "class" if found.get("by_class") else "type"
    caption = f"By {what}; support: how many there are, predicted: how many were said."
    return (f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>'
            f'<th scope="col" class="left">{what}</th>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def _configuration(names, configs) -> str:
    keys = list(dict.fromkeys(key for config in configs for key in config))
    if not keys:
        return ""
    differing = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    parts = ['<h2 id="configuration">Configuration</h2>\n']
    if len(configs) > 1:
        head = "".join(f'<th scope="col" class="left">{_text(name)}</th>' for name in names)
        rows = [f'<th scope="row">{_text(key)}</th>'
                + "".join(f'<td class="left">{_text(_setting(config, key))}</td>' for config in configs)
                for key in differing]
        body = "".join(f'<tr class="differs">{row}</tr>' for row in rows)
        parts.append('<div class="scroll"><table><caption>What differs between the runs</caption><thead><tr>'
                     f'<th scope="col" class="left">setting</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
                     if differing else "<p>The runs have the same configuration.</p>")
    same = [key for key in keys if key not in differing]
    body = "".join(f'<tr><th scope="row">{_text(key)}</th><td class="left">{_text(_setting(configs[0], key))}</td></tr>'
                   for key in same)
    what = "What all runs share" if len(configs) > 1 else "All settings"
    parts.append(f'<details><summary>{what}</summary><div class="scroll"><table><caption>{what}</caption><thead><tr>'
                 f'<th scope="col" class="left">setting</th><th scope="col" class="left">value</th></tr></thead>'
                 f"<tbody>{body}</tbody></table></div></details>\n" if same else "")
    return "".join(parts)


def _by_split(scores: dict | None) -> dict[str, dict]:
    """Scores by split; a dict that holds scores itself has the split ""."""
    if not scores:
        return {}
    if any(key in scores for key in SCORES):
        return {"": scores}
    return {split: found for split, found in scores.items()
            if isinstance(found, dict) and any(key in found for key in SCORES)}


def _verdict(trace: Trace) -> Verdict | None:
    if "loss_nats" not in trace or not trace.n_steps:
        return None
    return verdict(trace, 0)


def _cells(values) -> str:
    return "".join(f"<td>{_number(value)}</td>" for value in values)


def _number(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _text(value)
    return f"{value:.3f}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _detail(value) -> str:
    if isinstance(value, list):
        words = ", ".join(map(_detail, value[:MOST_ROWS]))
        return f"{words} and {len(value) - MOST_ROWS} more" if len(value) > MOST_ROWS else words
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _setting(config, key) -> str:
    if key not in config:
        return "-"
    value = config[key]
    return f"{value:g}" if isinstance(value, float) else ", ".join(map(str, value)) if isinstance(value, list) \
        else str(value)


def _page_title(title, names) -> str:
    return f"{title}: {names[0] if len(names) == 1 else f'{len(names)} runs'}"


def _clean(name) -> str:
    """A name on one line, without characters that no page can show."""
    return "".join(c if c.isprintable() else " " for c in str(name)).strip() or "(no name)"


def _text(value) -> str:
    return html.escape(str(value), quote=True)


def _check(traces, names, scores, configs, diagnoses) -> None:
    if not traces:
        raise ValueError("html_report: traces must hold at least one run; got none")
    for what, given in (("names", names), ("scores", scores), ("configs", configs), ("diagnoses", diagnoses)):
        if len(given) != len(traces):
            raise ValueError(f"html_report: {what} must hold one entry a run, {len(traces)}; got {len(given)}")
