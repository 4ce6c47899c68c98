"""SVG output: the same bytes each time, readable to a screen reader, ids that do not clash, safe in
threads."""

import re
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stabviz.trace import Trace
from stabviz.views import curve_points, figure_svg, new_figure, plot_attention, plot_loss_fan


def drawing(offset=0.0):
    figure = new_figure(700, 320)
    loss = np.linspace(4, 2, 7 * 11).reshape(7, 11) + offset
    trace = Trace(
        steps=range(11), signals={"loss_nats": loss}, runs=[{"lr": 10.0 ** -(r % 3)} for r in range(7)]
    )
    plot_loss_fan(figure.subplots(), trace)
    return figure


def test_figure_svg_is_one_element_that_states_the_finding():
    svg = figure_svg(drawing(), 'Loss of 7 runs "falls" & 2 < 3.')
    assert svg.startswith("<svg ")
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'Loss of 7 runs "falls" & 2 < 3.'
    assert "<metadata" not in svg
    assert not re.search(r"\b20\d\d-\d\d-\d\d", svg)


def test_figure_svg_gives_the_same_bytes_for_the_same_figure():
    assert figure_svg(drawing(), "a") == figure_svg(drawing(), "a")
    assert figure_svg(drawing(), "a") != figure_svg(drawing(1.0), "a")


def test_figure_svg_ids_are_unique_on_a_page_and_every_reference_resolves():
    attention = new_figure(400, 400)
    plot_attention(attention.subplots(), np.eye(5)[:3])
    pages = [
        figure_svg(drawing(), "a"),
        figure_svg(drawing(1.0), "b"),
        figure_svg(attention, "c"),
        figure_svg(drawing(), "a", prefix="other"),
    ]
    ids = [re.findall(r'\sid="([^"]*)"', page) for page in pages]
    for page, own in zip(pages, ids, strict=True):
        wanted = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', page)
        assert len(wanted) > 10
        assert {a or b for a, b in wanted} <= set(own)
        assert len(own) == len(set(own))
    everything = [one for own in ids for one in own]
    assert len(everything) == len(set(everything))


def test_figure_svg_carries_each_gid_and_its_points():
    figure = drawing()
    svg = figure_svg(figure, "a")
    for lr in ("1", "0.1", "0.01"):
        gid = f"curve-loss_nats-lr={lr}"
        assert f'data-gid="{gid}"' in svg
        (x, y), (u, v) = curve_points(svg, gid), curve_points(figure, gid)
        assert len(x) == len(u) == 11
        assert np.corrcoef(x, u)[0, 1] == pytest.approx(1, abs=1e-9)
        assert np.corrcoef(y, v)[0, 1] == pytest.approx(-1, abs=1e-9)  # pixels grow downwards


def test_figure_svg_leaves_the_settings_of_matplotlib_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure_svg(drawing(), "a")
    assert dict(matplotlib.rcParams) == before


def test_figure_svg_is_safe_in_threads():
    alone = [figure_svg(drawing(i), "a") for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda i: figure_svg(drawing(i), "a"), range(6))) == alone


def test_figure_svg_refuses_a_picture_without_words():
    with pytest.raises(ValueError, match="label must state what the picture shows; got ' '"):
        figure_svg(drawing(), " ")


def test_curve_points_names_the_known_curves():
    for source in (drawing(), figure_svg(drawing(), "a")):
        with pytest.raises(KeyError, match="gid must be one of .*curve-loss_nats-lr=0.1.*; got 'curve-x'"):
            curve_points(source, "curve-x")
