"""The HTML of a panel: style sheet, status line, text table. Text in the page's colours, figures on white."""

import html

from stabviz.trace import Trace
from stabviz.views.text import table_cells

STYLE = """<style>
.stabviz-panel { max-width: 760px; border: 1px solid var(--jp-border-color2, #ccc); border-radius: 4px;
  padding: 8px 12px; overflow: hidden; }
.stabviz-panel .widget-html, .stabviz-panel .widget-html-content { margin: 0; line-height: 1.4; }
.stabviz-title { font-weight: 600; font-size: 1.1em; color: var(--jp-ui-font-color1, #222); }
.stabviz-knob { align-items: center; min-height: 32px; flex-wrap: wrap; }
.stabviz-knob .stabviz-field .widget-label { width: 150px; text-align: left; }
.stabviz-knob .stabviz-field { width: 260px; }
.stabviz-knob .widget-checkbox.stabviz-field { width: auto; }
.stabviz-knob .stabviz-slider { width: 240px; }
.stabviz-knob .stabviz-slider .widget-label { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
.stabviz-note { color: var(--jp-ui-font-color2, #555); font-size: 0.92em; padding-left: 8px;
  white-space: nowrap; }
.stabviz-buttons { align-items: center; flex-wrap: wrap; margin-top: 4px; }
.stabviz-buttons .jupyter-button { width: auto; padding: 0 12px; }
.stabviz-status { display: inline-block; padding: 0 8px; border-left: 4px solid var(--jp-border-color1, #888);
  color: var(--jp-ui-font-color1, #222); font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.stabviz-running { border-left-color: #1f6fd0; }
.stabviz-diverged, .stabviz-error { border-left-color: #c8321c; font-weight: 600; }
.stabviz-panel .stabviz-picture { background: #fff; border-radius: 3px; margin-top: 8px; }
.stabviz-old svg { opacity: 0.3; }
.stabviz-picture svg { display: block; width: 100%; height: 100%; }
.stabviz-table table { border-collapse: collapse; font-size: 0.92em; color: var(--jp-ui-font-color1, #222); }
.stabviz-table th, .stabviz-table td { padding: 1px 10px; text-align: right; border: 0;
  font-variant-numeric: tabular-nums; }
.stabviz-table h4 { margin: 8px 0 2px; color: var(--jp-ui-font-color1, #222); }
.stabviz-table th { border-bottom: 1px solid var(--jp-border-color1, #888); }
</style>"""


def title_html(title: str) -> str:
    """Return the panel's heading with its style sheet, which every panel brings along."""
    heading = f'<div class="stabviz-title">{html.escape(title)}</div>' if title else ""
    return STYLE + heading


def status_html(status: str) -> str:
    """Return the status line; its first word chooses the look, and the words alone say everything."""
    kind = status.split()[0].strip(":·")
    return f'<span role="status" class="stabviz-status stabviz-{kind}">{html.escape(status)}</span>'


def outcome_of(trace: Trace, note: str) -> str:
    """Return what the status line says of a complete Trace."""
    # An event names the step itself; a trace that is looked at every few steps only the one after it.
    ended: dict[int, int] = {}
    for event in trace.events:
        if event["kind"] == "non_finite":
            ended.setdefault(event["run"], event["step"])
    for run in range(trace.n_runs):
        step = trace.non_finite_step(run)
        if step is not None:
            ended.setdefault(run, step)
    runs = f"{trace.n_runs} run" + "s" * (trace.n_runs != 1)
    if ended:
        return f"diverged at step {min(ended.values())} ({len(ended)} of {runs}) · {note}"
    return f"ready · {runs} · {note}"


def table_html(groups: list[dict], runs: list[dict], below: str) -> str:
    """Return the text behind a picture: a row for each curve, one for each run, and a line below them."""
    line = f"<p>{html.escape(below)}</p>" if below else ""
    return "<h4>Each curve</h4>" + _rows_html(groups) + "<h4>Each run</h4>" + _rows_html(runs) + line


def _rows_html(rows: list[dict], most: int = 64) -> str:
    if not rows:
        return ""
    keys, lines = table_cells(rows[:most])
    head = "".join(f'<th scope="col">{html.escape(key.replace("_", " "))}</th>' for key in keys)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines
    )
    more = f"<p>and {len(rows) - most} more</p>" if len(rows) > most else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
