"""The report in a real browser, offline: it loads nothing, fits wide and narrow windows, can be read light
and dark."""

import math

import numpy as np
import pytest

from stabviz.trace import Trace
from stabviz.views import html_report

CONTRAST = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const lightness = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = channels(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  let least = [99, ''];
  for (const e of document.querySelectorAll(
      'h1, h2, h3, p, li, th, td, caption span, figcaption, summary, .kind')) {
    const [a, b] = [lightness(channels(getComputedStyle(e).color)), lightness(ground(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least[0]) least = [contrast, e.outerHTML.slice(0, 80)];
  }
  return least;
}"""


def make(seed):
    rng = np.random.default_rng(seed)
    loss = 2 * np.exp(-np.arange(101) / 30) + rng.normal(0, 0.02, 101) + 0.3
    loss[50] = math.nan
    signals = {
        "loss_nats": loss,
        "grad_norm_preclip": np.where(np.isfinite(loss), 1.0, math.nan),
        "grad_norm_preclip/layer0": loss,
        "validation_score": np.where(np.arange(101) % 25 == 24, 0.5, math.nan),
    }
    return Trace(
        steps=range(101),
        signals={name: [values] for name, values in signals.items()},
        runs=[{"seed": seed}],
        config={"clip_norm": 1.0, "lr": 10.0**-seed},
        events=[{"run": 0, "step": 50, "kind": "non_finite", "rows": list(range(32))}],
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    classes = ["a_rather_long_class_name", *"bcdefgh"]
    scores = {
        "accuracy": 0.5,
        "macro_f1": 0.4,
        "ece": 0.1,
        "loss_nats": 1.0,
        "classes": classes,
        "confusion": (np.eye(8, dtype=int) * 5 + 1).tolist(),
        "rows": 104,
    }
    page = html_report(
        [make(s) for s in range(3)],
        scores=[scores] * 3,
        names=[f"runs/in-a-folder-with-a-long-name/and-another/seed-{s}" for s in range(3)],
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_report_opens_offline_fits_and_can_be_read(browser, report, scheme, width):
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 900})
    try:
        page = context.new_page()
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(report.as_uri())
        assert asked == [report.as_uri()]
        assert said == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        contrast, where = page.evaluate(CONTRAST)
        assert contrast >= 4.5, where  # WCAG 2.1, level AA
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
        pictures = page.get_by_role("img")
        assert pictures.count() == page.locator("figure").count() == 6
        assert pictures.first.get_attribute("aria-label").startswith("Training loss: median of 3 runs")
        assert all(box["width"] > 250 for box in (one.bounding_box() for one in pictures.all()))
    finally:
        context.close()
