"""Tables of a report as HTML: scores side by side, events, mistakes, configuration. All text is escaped."""

import html
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

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
_SPOKEN = {
    "non_finite": "not finite, so no update was made",
    "overflow": "fp16 overflow, the loss scale halved",
    "spike": "loss far above its running median",
    "rewind": "went back to the last good state",
    "out_of_memory": "out of memory, the micro-batch halved",
    "oom": "out of memory",
}


def score_tables(names, scores, summary) -> str:
    """Return a table a split and kind: each run's scores, and mean and spread of several."""
    splits = list(dict.fromkeys(split for one in scores for split in _by_split(one)))
    if not splits:
        return '<h2 id="scores">Scores</h2>\n<p class="quiet">No run was scored.</p>\n'
    parts = ['<h2 id="scores">Scores</h2>\n']
    for split in splits:
        rows = [
            (name, one[split])
            for name, one in zip(names, map(_by_split, scores), strict=True)
            if split in one
        ]
        for classes in (True, False):  # classes and entities have no score in common
            of_kind = [(name, row) for name, row in rows if ("accuracy" in row) == classes]
            parts += [_score_table(of_kind, split)] if of_kind else []
    churn = (summary or {}).get("churn")
    if churn is not None:
        parts.append(
            f"<p>Churn: two of these runs disagree on {churn:.1%} of the inputs, averaged over all pairs.</p>"
        )
    return "".join(parts)


def _score_table(named_rows, split) -> str:
    rows = [row for _, row in named_rows]
    keys = [key for key in SCORES if any(key in row for row in rows)]
    if "accuracy" not in keys and "majority_share" in keys:
        keys.remove("majority_share")  # always O: finds no entity, and needs no column
    head = "".join(f'<th scope="col" title="{escaped(SCORES[key][1])}">{SCORES[key][0]}</th>' for key in keys)
    lines = []
    for name, row in named_rows:
        said = " (failed)" if row.get("failed") else ""
        lines.append(f"<tr>{_row_head(name + said)}{_cells(row.get(key) for key in keys)}</tr>")
    foot = _spread_rows(rows, keys) if len(rows) > 1 else ""
    failed = sum(bool(row.get("failed")) for row in rows)
    counted = (
        f" {failed} of {len(rows)} runs failed (no better than the majority, or not finite)."
        if failed
        else ""
    )
    number = next((row["rows"] for row in rows if "rows" in row), None)
    of = f"{split}: " if split else ""
    caption = f"{of}{number} inputs." if number is not None else of
    meanings = "; ".join(f"{SCORES[key][0]}: {SCORES[key][1]}" for key in keys)
    head = _column("run", left=True) + head
    return f'{_table(caption + counted, head, lines, foot=foot)}<p class="quiet">{escaped(meanings)}.</p>\n'


def _spread_rows(rows, keys) -> str:
    columns = [np.array([row[key] for row in rows if key in row], dtype=np.float64) for key in keys]
    means = _cells(float(values.mean()) for values in columns)
    stds = _cells(float(values.std(ddof=1)) if len(values) > 1 else None for values in columns)
    ranges = "".join(f"<td>{_number(float(v.min()))} to {_number(float(v.max()))}</td>" for v in columns)
    return (
        f'<tfoot><tr><th scope="row">mean of {len(rows)} runs</th>{means}</tr>'
        f'<tr><th scope="row">standard deviation</th>{stds}</tr>'
        f'<tr><th scope="row">lowest to highest</th>{ranges}</tr></tfoot>'
    )


def event_table(names, traces) -> str:
    """Return what happened, in the order of the steps."""
    rows = sorted(
        (
            (event["step"], name, event)
            for name, trace in zip(names, traces, strict=True)
            for event in trace.events
        ),
        key=lambda row: row[0],
    )
    if not rows:
        return '<h2 id="events">Events</h2>\n<p>None: no step was skipped, nothing was rewound.</p>\n'
    lines = []
    for step, name, event in rows[:MOST_EVENTS]:
        kind = event["kind"]
        spoken = f": {_SPOKEN[kind]}" if kind in _SPOKEN else ""
        details = "; ".join(
            f"{key.strip('_').replace('_', ' ')} {_detail(value)}"
            for key, value in event.items()
            if key not in ("run", "step", "kind")
        )
        run = (
            f'<td class="left {"long" if len(name) > 40 else "run"}">{escaped(name)}</td>'
            if len(names) > 1
            else ""
        )
        lines.append(
            f'<tr><th scope="row">{step}</th>{run}<td class="left">{escaped(kind.replace("_", " ") + spoken)}'
            f'</td><td class="left">{escaped(details)}</td></tr>'
        )
    columns = ["step", *(["run"] if len(names) > 1 else []), "what", "details"]
    more = f'<p class="quiet">and {len(rows) - MOST_EVENTS} more</p>' if len(rows) > MOST_EVENTS else ""
    counts = Counter(event["kind"] for _, _, event in rows)
    caption = ", ".join(f"{kind.replace('_', ' ')}: {count}" for kind, count in counts.items())
    head = "".join(_column(name, left=True) for name in columns)
    return f'<h2 id="events">Events</h2>\n{_table(caption, head, lines)}{more}\n'


def mistakes(names, scores) -> str:
    """Return for each run the confusion matrix and the scores by class or type."""
    parts = []
    for name, one in zip(names, scores, strict=True):
        for split, found in _by_split(one).items():
            tables = _confusion(found) + _by_name(found)
            if tables:
                of = f"{name}{', ' + split if split else ''}"
                first = "" if parts else " open"
                parts.append(f"<details{first}><summary>{escaped(of)}</summary>{tables}</details>")
    return f'<h2 id="mistakes">Mistakes</h2>\n{"".join(parts)}\n' if parts else ""


def _confusion(found) -> str:
    counts_CC, classes = found.get("confusion"), found.get("classes")
    if not counts_CC or not classes:
        return ""
    head = "".join(f'<th scope="col">{escaped(name).replace("_", "_<wbr>")}</th>' for name in classes)
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
        lines.append(f"<tr>{_row_head(classes[true])}{''.join(cells)}</tr>")
    often = "; ".join(words for _, words in sorted(wrong, key=lambda pair: -pair[0])[:3])
    worst = f"Most often: {often}" if often else "No mistake"
    caption = f"Rows: the true class; columns: what was predicted. {worst}."
    return _table(caption, f"<td></td>{head}", lines, look="confusion")


def _by_name(found) -> str:
    rows = found.get("by_class") or found.get("by_type")
    if not rows:
        return ""
    keys = [
        key
        for key in ("precision", "recall", "f1", "support", "predicted")
        if key in next(iter(rows.values()))
    ]
    lines = [f"<tr>{_row_head(name)}{_cells(row[key] for key in keys)}</tr>" for name, row in rows.items()]
    what = "class" if found.get("by_class") else "type"
    head = _column(what, left=True) + "".join(_column("F1" if key == "f1" else key) for key in keys)
    return _table(f"By {what}; support: how many there are, predicted: how many were said.", head, lines)


def configuration(names, configs) -> str:
    """Return the settings: first those in which the runs that have them differ; where a run is kept is no
    setting."""
    keys = list(
        dict.fromkeys(key for config in configs for key in config if key != "out" or len(configs) == 1)
    )
    if not keys:
        return ""
    differing = [key for key in keys if len({repr(config[key]) for config in configs if key in config}) > 1]
    parts = ['<h2 id="configuration">Configuration</h2>\n']
    if differing:
        head = "".join(_column(name, left=True) for name in ("setting", *names))
        lines = [_setting_row(key, configs, "differs") for key in differing]
        parts.append(_table("What differs between the runs", head, lines))
    elif len(configs) > 1:
        parts.append("<p>The runs have the same configuration.</p>")
    lines = [
        _setting_row(key, [next(config for config in configs if key in config)])
        for key in keys
        if key not in differing
    ]
    if lines:
        what = "The other settings" if len(configs) > 1 else "All settings"
        table = _table(what, _column("setting", left=True) + _column("value", left=True), lines)
        parts.append(f"<details><summary>{what}</summary>{table}</details>\n")
    return "".join(parts)


def _setting_row(key, configs, look: str = "") -> str:
    values = "".join(f'<td class="left">{escaped(_setting(config, key))}</td>' for config in configs)
    kind = f' class="{look}"' if look else ""
    return f"<tr{kind}>{_row_head(key)}{values}</tr>"


def _table(caption: str, head: str, lines: Sequence[str], *, look: str = "", foot: str = "") -> str:
    kind = f' class="{look}"' if look else ""
    return (
        f'<div class="scroll"><table{kind}><caption><span>{escaped(caption)}</span></caption>'
        f"<thead><tr>{head}</tr>"
        f"</thead><tbody>{''.join(lines)}</tbody>{foot}</table></div>\n"
    )


def _column(name, *, left: bool = False) -> str:
    look = ' class="left"' if left else ""
    return f'<th scope="col"{look}>{escaped(name)}</th>'


def _by_split(scores: dict | None) -> dict[str, dict]:
    """Scores by split; a dict that holds scores itself has the split ""."""
    if not scores:
        return {}
    if any(key in scores for key in SCORES):
        return {"": scores}
    return {
        split: found
        for split, found in scores.items()
        if isinstance(found, dict) and any(key in found for key in SCORES)
    }


def _cells(values) -> str:
    return "".join(f"<td>{_number(value)}</td>" for value in values)


def _number(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escaped(value)
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
    return (
        f"{value:g}"
        if isinstance(value, float)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


def _row_head(name) -> str:
    long = ' class="long"' if len(str(name)) > 40 else ""
    return f'<th scope="row"{long}>{escaped(name)}</th>'


def escaped(value) -> str:
    """Return a value as text that no browser takes for markup."""
    return html.escape(str(value), quote=True)
