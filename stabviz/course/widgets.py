"""What the course's widgets share: text made safe for the page, and showing a widget with words behind it."""

import html
import re

STYLE = """<style>
.stabviz-course { max-width: 760px; border-left: 4px solid var(--jp-border-color1, #888); padding: 4px 12px; }
.stabviz-course .widget-radio-box { max-height: none; height: auto; }
.stabviz-course .widget-radio { width: 100%; height: auto; }
.stabviz-course .widget-radio-box label { height: auto; line-height: 1.5; white-space: normal; width: 100%;
  padding: 2px 0; }
.stabviz-course .widget-html-content, .stabviz-course .widget-htmlmath-content { line-height: 1.5;
  color: var(--jp-ui-font-color1, #222); white-space: normal; }
.stabviz-right { border-left: 4px solid #2a8a3e; padding-left: 8px; }
.stabviz-wrong { border-left: 4px solid #c8321c; padding-left: 8px; }
</style>"""


def rich(text: str) -> str:
    """Return text for the page: escaped, with `code` in backticks set as code; $math$ is left to MathJax."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


class Page:
    """Something to show as the last line of a cell: a widget, and words for where widgets do not live."""

    def __init__(self, widget, words: str):
        self.widget, self._words = widget, words
        widget.add_class("stabviz-course")

    def _ipython_display_(self):
        from IPython.display import display

        bundle = self.widget._repr_mimebundle_()
        bundle["text/plain"] = self._words
        display(bundle, raw=True)
