"""What the tables of a report hold: scores side by side, events, mistakes, configuration.

Plain data for templates/report.html, which sets it and escapes it.
"""

import math
from collections import Counter

import numpy as np

SCORES = {
    "accuracy": ("accuracy", "share of inputs whose most likely class is the right one"),
    "macro_f1": ("macro F1", "F1 averaged over classes, however rare"),
    "f1": ("F1", "of whole entities: same words, same type; of two classes, of the second"),
    "precision": ("precision", "share of what was found that is right"),
    "recall": ("recall", "share of what is there that was found"),
    "tag_accuracy": ("tag accuracy", "word by word, mostly a count of O"),
    "balanced_accuracy": ("balanced accuracy", "mean recall of the classes"),
    "matthews": ("Matthews", "correlation of labels and predictions; 0 is chance"),
    "micro_f1": ("micro F1", "of all yes and no of all classes together"),
    "subset_accuracy": ("all right", "share of inputs with every class right"),
    "hamming_loss": ("Hamming loss", "share of wrong yes and no"),
    "pearson": ("Pearson", "correlation of true and predicted numbers"),
    "spearman": ("Spearman", "correlation of their ranks"),
    "r2": ("R2", "share of the variance that is explained; 0 is the mean for all"),
    "rmse": ("RMSE", "root of the mean squared error"),
    "mae": ("MAE", "mean absolute error"),
    "ece": ("calibration error", "mean gap between confidence and accuracy, 15 bins; 0 is best"),
    "loss_nats": ("loss (nats)", "mean negative log-likelihood; lower is better"),
    "majority_share": ("majority", "accuracy of always giving the most frequent class"),
}
"""Scores that the table shows where a run has them: key -> (heading, meaning)."""
_FIRST_OF_KIND = ("accuracy", "micro_f1", "pearson", "f1")
"""Scores by which runs on different kinds of task are told apart: they have no table in common."""
_TASK = ("data", "data_config", "text", "text_pair", "label", "multi_label", "regression", "tags")
"""Settings that make two runs learn the same thing: the scores of others have no mean in common."""
MOST_EVENTS = 200
MOST_ROWS = 12
"""Row numbers of an event that are listed."""
_MEANING_OF_EVENT = {
    "non_finite": "not finite, so no update was made",
    "overflow": "fp16 overflow, the loss scale halved",
    "spike": "loss far above its running median",
    "rewind": "went back to the last good state",
    "out_of_memory": "out of memory, the micro-batch halved",
    "oom": "out of memory",
    "early_stop": "no better score for as many evaluations as patience allows",
}


def score_tables(names, scores, configs) -> list[dict]:
    """Return a table a split, task and kind: each run's scores, and mean and spread of several."""
    by_split = [_by_split(one) for one in scores]
    tasks = [tuple(repr(config.get(name)) for name in _TASK) for config in configs]
    tables = []
    for split in dict.fromkeys(split for one in by_split for split in one):
        here = [
            (*each, one[split]) for *each, one in zip(names, tasks, by_split, strict=True) if split in one
        ]
        groups: dict[tuple, list] = {}
        for name, task, row in here:
            kind = next((one for one in _FIRST_OF_KIND if one in row), "")
            groups.setdefault((kind, task, tuple(row.get("classes", ()))), []).append((name, row))
        order = [*_FIRST_OF_KIND, ""]
        for (_, task, _), rows in sorted(groups.items(), key=lambda group: order.index(group[0][0])):
            tables.append(_score_table(rows, split, _named(task) if len(groups) > 1 else ""))
    return tables


def _named(task: tuple[str, ...]) -> str:
    """Name a task where several stand in one report: the data, and the columns that were asked for."""
    told = [value.strip("'") for value in task if value not in ("None", "[]", "''", "()")]
    return " ".join(told[:1] + [f"({', '.join(told[1:])})"] * (len(told) > 1))


def _score_table(named_rows, split, task) -> dict:
    rows = [row for _, row in named_rows]
    columns = [key for key in SCORES if any(key in row for row in rows)]
    if "accuracy" not in columns and "majority_share" in columns:
        columns.remove("majority_share")  # always O: finds no entity, and needs no column
    caption = "".join(f"{part}: " for part in (task, split) if part)
    inputs = next((row["rows"] for row in rows if "rows" in row), None)
    caption += "" if inputs is None else f"{inputs} inputs."
    failed = sum(bool(row.get("failed")) for row in rows)
    if failed:
        caption += f" {failed} of {len(rows)} runs failed (no better than the majority, or not finite)."
    return {
        "caption": caption,
        "columns": columns,
        "rows": [(f"{name} (failed)" if row.get("failed") else name, row) for name, row in named_rows],
        "baselines": _baselines(named_rows),
        "spread": _spread(rows, columns) if len(rows) > 1 else [],
    }


def _baselines(named_rows) -> list[tuple[str, dict]]:
    """Return the scores of what knows no language, once where the runs agree on them."""
    found: dict[str, list[tuple[str, dict]]] = {}
    for name, row in named_rows:
        for kind, scores in row.get("baselines", {}).items():
            of_kind = found.setdefault(kind, [])
            if all(scores != known for _, known in of_kind):
                of_kind.append((name, scores))
    return [
        (f"baseline: {kind}" + (f" (rows of {name})" if len(of_kind) > 1 else ""), scores)
        for kind, of_kind in found.items()
        for name, scores in of_kind
    ]


def _spread(rows, columns) -> list[tuple[str, list[str]]]:
    values = [np.array([row[key] for row in rows if key in row], dtype=np.float64) for key in columns]
    # n - 1: the seeds are a sample of all that might have been drawn
    std = [figure(float(v.std(ddof=1)) if len(v) > 1 else None) for v in values]
    return [
        (f"mean of {len(rows)} runs", [figure(float(v.mean())) for v in values]),
        ("standard deviation", std),
        ("lowest to highest", [f"{figure(float(v.min()))} to {figure(float(v.max()))}" for v in values]),
    ]


def event_table(names, traces) -> dict:
    """Return what happened, in the order of the steps."""
    events = [(name, event) for name, trace in zip(names, traces, strict=True) for event in trace.events]
    events.sort(key=lambda pair: pair[1]["step"])
    counts = Counter(event["kind"] for _, event in events)
    rows = []
    for name, event in events[:MOST_EVENTS]:
        kind = event["kind"]
        meaning = f": {_MEANING_OF_EVENT[kind]}" if kind in _MEANING_OF_EVENT else ""
        others = [(key, value) for key, value in event.items() if key not in ("run", "step", "kind")]
        details = [f"{key.strip('_').replace('_', ' ')} {_detail(value)}" for key, value in others]
        rows.append((event["step"], name, kind.replace("_", " ") + meaning, "; ".join(details)))
    return {
        "caption": ", ".join(f"{kind.replace('_', ' ')}: {count}" for kind, count in counts.items()),
        "rows": rows,
        "more": len(events) - len(rows),
    }


def mistake_tables(names, scores) -> list[dict]:
    """Return for each run that has them the confusion matrix and the scores by class or type."""
    tables = [
        {
            "name": f"{name}{', ' + split if split else ''}",
            "confusion": _confusion(found.get("confusion"), found.get("classes")),
            "confident": found.get("mistakes") or [],
            "by_name": _by_name(found),
        }
        for name, one in zip(names, scores, strict=True)
        for split, found in _by_split(one).items()
    ]
    return [one for one in tables if one["confusion"] or one["by_name"] or one["confident"]]


def _confusion(counts_CC, classes) -> dict | None:
    if not counts_CC or not classes:
        return None
    wrong = [
        (count, f"{classes[true]} taken for {classes[predicted]} ({count} of {sum(row)})")
        for true, row in enumerate(counts_CC)
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    most = "; ".join(words for _, words in sorted(wrong, key=lambda pair: -pair[0])[:3])
    worst = f"Most often: {most}" if most else "No mistake"
    caption = f"Rows: the true class; columns: what was predicted. {worst}."
    return {"caption": caption, "classes": classes, "counts": counts_CC}


def _by_name(found) -> dict | None:
    rows = found.get("by_class") or found.get("by_type")
    if not rows:
        return None
    first = next(iter(rows.values()))
    columns = [key for key in ("precision", "recall", "f1", "support", "predicted") if key in first]
    kind = "class" if found.get("by_class") else "type"
    return {"kind": kind, "columns": columns, "rows": list(rows.items())}


def setting_tables(configs) -> tuple[list, list]:
    """Return (key, values by run) of what differs between runs that have it, and (key, [value]) of the rest.

    Where a run is kept is no setting of several runs.
    """
    several = len(configs) > 1
    keys = dict.fromkeys(key for config in configs for key in config if key != "out" or not several)
    differing, shared = [], []
    for key in keys:
        values = [config[key] for config in configs if key in config]
        if len(set(map(repr, values))) > 1:  # repr: a list has no hash, and 1 is not True here
            differing.append((key, [_setting(config[key]) if key in config else "-" for config in configs]))
        else:
            shared.append((key, [_setting(values[0])]))
    return differing, shared


def _by_split(scores: dict | None) -> dict[str, dict]:
    """Scores by split; a dict that holds scores itself has the split ""."""
    if not scores:
        return {}
    if SCORES.keys() & scores.keys():
        return {"": scores}
    by_split = {split: found for split, found in scores.items() if isinstance(found, dict)}
    return {split: found for split, found in by_split.items() if SCORES.keys() & found.keys()}


def figure(value) -> str:
    """Return a number of a table: three decimals of a real one, "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _detail(value) -> str:
    if isinstance(value, list):
        words = ", ".join(map(_detail, value[:MOST_ROWS]))
        return f"{words} and {len(value) - MOST_ROWS} more" if len(value) > MOST_ROWS else words
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _setting(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
