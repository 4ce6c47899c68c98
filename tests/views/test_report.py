"""The report: one file that loads nothing, says what the runs say, and shows names as text."""

import html
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from stabviz.trace import Trace, diagnose
from stabviz.views import curve_points
from stabviz.views.report import html_report

VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = "<script>alert('x')</script> & \"$x_1$\""
CLASSES = ["billing", "<i>delivery</i>", "login"]
SCORES = {
    "accuracy": 0.75,
    "macro_f1": 0.6512,
    "ece": 0.0421,
    "loss_nats": 0.9,
    "majority_share": 0.4,
    "rows": 20,
    "failed": False,
    "classes": CLASSES,
    "confusion": [[7, 1, 0], [3, 4, 0], [0, 1, 4]],
    "by_class": {
        name: {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 8, "predicted": 10}
        for name in CLASSES
    },
}


class Page(HTMLParser):
    """What a browser would make of the page: elements with attributes, text, and whether tags are
    balanced."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words, self.text = [], [], [], text
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def all(self, *tags):
        return [attrs for tag, attrs in self.elements if tag in tags]

    @property
    def said(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def make(S=300, seed=0, *, broken=False, config=None):
    """A run as the loop records it; `broken` plants a NaN, an infinite norm, a spike, and a hostile event."""
    rng = np.random.default_rng(seed)
    steps = np.arange(S)
    loss = 2.2 * np.exp(-steps / 80) + 0.3 + rng.normal(0, 0.05, S)
    norm = np.exp(rng.normal(0, 0.4, S))
    every = np.where(steps % 10 == 0, 1.0, math.nan)
    events = []
    if broken:
        loss[60], norm[60], norm[80], loss[120] = math.nan, math.nan, math.inf, 9.0
        events = [
            {"run": 0, "step": 60, "kind": "non_finite", "signal": "loss_nats", "rows": list(range(40))},
            {"run": 0, "step": 80, "kind": "overflow", "rows": [1, 2]},
            {"run": 0, "step": 120, "kind": "spike", "loss_nats": 9.0, "usual": 0.8},
            {"run": 0, "step": 120, "kind": "rewind", "to": "step 100"},
            {"run": 0, "step": 150, "kind": "out_of_memory", "micro_batch": 8},
            {"run": 0, "step": 200, "kind": EVIL, "note": f"</td>{EVIL}"},
        ]
    layers = {
        f"grad_norm_preclip/{name}": norm * (1 + i)
        for i, name in enumerate(
            ["embeddings", "layer0", "layer1", "layer2", "layer3", EVIL if broken else "head"]
        )
    }
    evaluated = np.where(steps % 50 == 49, 1.0, math.nan)
    signals = {
        "loss_nats": loss,
        "grad_norm_preclip": norm,
        **layers,
        "lr": 1e-3 * (1 - steps / S),
        "update_rms": every,
        "second_moment_ratio": every,
        "max_attention_logit": every * 3,
        "attention_entropy": every * 2,
        "loss_scale": np.full(S, 65536.0),
        "validation_loss_nats": evaluated * loss,
        "validation_score": evaluated * 0.5,
    }
    config = {"lr": 1e-3, "clip_norm": 1.0, "steps": S, "seed": seed, "freeze": ["a", "b"]} | (config or {})
    return Trace(
        steps=steps,
        signals={name: values[None] for name, values in signals.items()},
        runs=[{"seed": seed}],
        config=config,
        events=events,
    )


@pytest.fixture(scope="module")
def broken():
    return Page(
        html_report(
            [make(broken=True, config={"floor_nats": 0.0})],
            names=[f"runs/{EVIL}"],
            scores=[SCORES],
            title=f"Report {EVIL}",
        )
    )


@pytest.fixture(scope="module")
def several():
    runs = [make(S=60, seed=s, config={"lr": 1e-3 * (1 + s), "secret": EVIL}) for s in range(3)]
    scores = [{"test": SCORES | {"accuracy": a, "failed": a < 0.5}, "best_step": 50} for a in (0.8, 0.2, 0.5)]
    return Page(html_report(runs, names=["a", "b", "c"], scores=scores, summary={"churn": 0.125}))


@pytest.mark.parametrize("which", ["broken", "several"])
def test_html_report_loads_nothing(which, request):
    page = request.getfixturevalue(which)
    assert not [
        tag for tag, _ in page.elements if tag in ("script", "link", "img", "iframe", "object", "base")
    ]
    for tag, attrs in page.elements:
        assert not [
            name for name in attrs if name in ("src", "srcset", "action", "data") or name.startswith("on")
        ], tag
        for name in ("href", "xlink:href"):
            assert attrs.get(name, "#").startswith("#"), (tag, attrs)
    style = re.findall(r"url\(([^)]*)\)", page.text)
    assert style
    assert all(target.startswith("#") for target in style)
    assert "@import" not in page.text
    assert "@font-face" not in page.text
    policy = [
        attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    addresses = {found for found in re.findall(r"https?://[^\s\"'<>]+", page.text)}
    assert addresses == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }  # names of formats, not loaded


@pytest.mark.parametrize("which", ["broken", "several"])
def test_html_report_can_be_read_aloud(which, request):
    page = request.getfixturevalue(which)
    assert page.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption"))
    pictures = [attrs for attrs in page.all("svg") if attrs.get("aria-hidden") != "true"]
    assert len(pictures) == len(page.all("figure")) >= 6
    for attrs in pictures:
        assert attrs["role"] == "img"
        assert re.search(r"\d", attrs["aria-label"])  # a finding in figures, not the name of a picture
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_html_report_looks_at_the_scheme_of_the_reader(broken):
    assert "color-scheme: light dark" in broken.text
    assert "@media (prefers-color-scheme: dark)" in broken.text


def test_html_report_shows_names_as_text(broken):
    assert "<script" not in broken.text.lower()
    assert "<i>" not in broken.text
    assert html.escape(EVIL, quote=True) in broken.text
    for words in (f"runs/{EVIL}", f"Report {EVIL}", f"</td>{EVIL}", "<i>delivery</i>"):
        assert words in broken.said


def test_html_report_says_what_diagnose_says_in_one_sentence(broken):
    found = diagnose(make(broken=True, config={"floor_nats": 0.0}))
    assert found.headline == "spiked at step 120"
    assert f"{found.headline} : {found.evidence[0]}." in broken.said  # the headline stands in a tag
    assert f"Remedy ({found.confidence}): {found.remedy}" in broken.said
    assert f"Lesson: {found.lesson}" in broken.said
    assert 'class="card warn"' in broken.text


def test_html_report_folds_away_what_a_diagnosis_looked_at():
    trace = make(S=60)
    page = Page(html_report([trace], names=["a"]))
    assert page.said.count(diagnose(trace).evidence[0]) == 1
    assert re.search("<details><summary>What it rests on</summary><ul>.*<li>looked at loss_nats", page.text)
    assert "Remedy" not in page.said
    assert 'class="card good"' in page.text
    updates = {**trace.signals, "update_rms": np.full((1, 60), 3.2), "second_moment_ratio": np.ones((1, 60))}
    faulty = Trace(steps=trace.steps, signals=updates, runs=[{}])
    ill = Page(html_report([faulty], names=["a"]))
    assert "healthy by its loss, with a fault: missing_bias_correction at step 0 (shown)" in ill.said
    assert 'class="card warn"' in ill.text  # a healthy curve with a fault is not shown as good


def test_html_report_lists_and_marks_events(broken):
    rows = broken.said[broken.said.index("Events") : broken.said.index("Mistakes")]
    assert "non finite: 1, overflow: 1, spike: 1, rewind: 1, out of memory: 1" in rows
    assert "rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 28 more" in rows
    assert "loss nats 9; usual 0.8" in rows
    assert "micro batch 8" in rows
    marks = [
        f"{kind}-0"
        for kind in (
            "event-rewind",
            "event-spike",
            "event-out_of_memory",
            "event-overflow",
            "event-other",
            "nonfinite-loss_nats",
            "nonfinite-grad_norm_preclip",
        )
    ]
    for mark in marks:
        assert f'data-gid="{mark}"' in broken.text
    for words in ("◀ rewind", "▲ spike", "■ out of memory", "▼ overflow", "✕ not finite"):
        assert words in broken.said


def test_html_report_draws_every_measured_signal(broken):
    gids = set(re.findall(r'data-gid="(curve-[^"]*)"', broken.text))
    signals = {
        "loss_nats",
        "validation_loss_nats",
        "validation_score",
        "grad_norm_preclip",
        "lr",
        "update_rms",
        "second_moment_ratio",
        "max_attention_logit",
        "attention_entropy",
        "loss_scale",
    }
    assert {f"curve-{signal}-0" for signal in signals} <= gids
    assert "curve-grad_norm_preclip/layer3" in gids
    x, _ = curve_points(broken.text, "curve-update_rms-0")
    assert len(x) == 30  # one point a measurement, joined: a gap at each step between would draw nothing


def test_html_report_of_300_steps_is_small(broken):
    assert len(broken.text.encode()) < 1_500_000


def test_html_report_tables_the_scores(broken):
    for words in ("accuracy", "macro F1", "calibration error", "0.750", "0.651", "0.042", "0.900"):
        assert words in broken.said
    assert "20 inputs." in broken.said
    assert "standard deviation" not in broken.said  # one run has none


def test_html_report_shades_the_confusion_by_share_of_the_row(broken):
    assert "Most often: <i>delivery</i> taken for billing (3 of 7)" in broken.said
    shade = r'style="background: rgba\(var\(--shade\), ([\d.]+)\)"'
    cells = re.findall(rf'<td( class="hit")? {shade}>(\d+)</td>', broken.text)
    assert cells == [
        (' class="hit"', "0.44", "7"),
        ("", "0.06", "1"),
        ("", "0.21", "3"),
        (' class="hit"', "0.29", "4"),
        ("", "0.10", "1"),
        (' class="hit"', "0.40", "4"),
    ]


def test_html_report_sets_runs_side_by_side(several):
    said = several.said
    assert "3 runs of 60 steps." in said
    assert "mean of 3 runs 0.500" in said  # of 0.8, 0.2 and 0.5
    assert "standard deviation 0.300" in said
    assert "0.200 to 0.800" in said
    assert "b (failed)" in said
    assert "1 of 3 runs failed" in said
    assert "two of these runs disagree on 12.5% of the inputs" in said
    assert all(f'data-gid="curve-loss_nats-{r}"' in several.text for r in range(3))
    assert "test: 20 inputs." in said


def test_html_report_highlights_settings_that_differ(several):
    rows = re.findall(r'<tr class="differs"><th scope="row">(\w+)</th>(.*?)</tr>', several.text)
    assert [name for name, _ in rows] == ["lr", "seed"]
    assert re.findall(r">([^<]+)</td>", rows[0][1]) == ["0.001", "0.002", "0.003"]
    same = several.said[several.said.rindex("The other settings") :]
    assert "clip_norm 1" in same
    assert "freeze a, b" in same
    assert EVIL in same


def test_html_report_does_not_call_a_setting_different_that_a_foreign_run_lacks():
    configs = [{"lr": 1.0, "batch": 8, "out": "here"}, {"lr": 2.0}, {"batch": 8, "out": "there"}]
    page = Page(html_report([make(S=7)] * 3, names=["a", "b", "c"], configs=configs))
    assert re.findall(r'<tr class="differs"><th scope="row">(\w+)</th>', page.text) == ["lr"]
    assert "lr 1 2 -" in page.said
    assert page.said.rstrip().endswith("setting value batch 8")


def test_html_report_of_entities_shows_types():
    by_type = {"PER": {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 4, "predicted": 2}}
    scores = {"precision": 0.9, "recall": 0.45, "f1": 0.6, "tag_accuracy": 0.97, "by_type": by_type}
    said = Page(html_report([make(S=7)], names=["a"], scores=[scores])).said
    assert "0.600 0.900 0.450 0.970" in said  # F1, precision, recall, tag accuracy
    assert "PER 1.000 0.500 0.667 4 2" in said


def test_html_report_keeps_classes_and_entities_apart():
    entities = {"precision": 0.9, "recall": 0.45, "f1": 0.6, "tag_accuracy": 0.97, "majority_share": 0.0}
    runs = [make(S=7), make(S=7), make(S=7)]
    page = Page(
        html_report(runs, names=["one", "two", "three"], scores=[SCORES, entities, entities | {"f1": 0.4}])
    )
    assert "one 0.750 0.651 0.042 0.900 0.400" in page.said
    assert "two 0.600 0.900 0.450 0.970 three" in page.said
    assert "mean of 2 runs 0.500" in page.said
    assert "mean of 3 runs" not in page.said


def test_html_report_names_data_and_model_that_all_runs_share():
    configs = [
        {"data": "support-desk", "label": "intent", "tags": None, "model": EVIL, "lr": lr}
        for lr in (1.0, 2.0)
    ]
    said = Page(html_report([make(S=7), make(S=7)], names=["a", "b"], configs=configs)).said
    assert f"2 runs of 7 steps. Data support-desk; Label intent; Model {EVIL}." in said


def test_html_report_of_a_run_that_is_not_scored_or_not_begun():
    empty = Trace(steps=[], signals={"loss_nats": np.zeros((1, 0))}, runs=[{}])
    said = Page(html_report([empty], names=["a"], scores=[None])).said
    for words in (
        "too short : no loss was logged",
        "No run was scored.",
        "No step was recorded yet.",
        "None: no step was skipped",
    ):
        assert words in said


def test_html_report_of_a_run_that_died_says_so():
    trace = make(S=60)
    loss = trace["loss_nats"].copy()
    loss[0, 40:] = math.nan
    dead = Trace(steps=trace.steps, signals={"loss_nats": loss}, runs=[{}])
    scores = {"accuracy": math.nan, "loss_nats": math.inf, "failed": True}
    page = Page(html_report([dead], names=["a"], scores=[scores]))
    assert "diverged at step 40" in page.said
    assert "a (failed) nan inf" in page.said
    assert "not finite from step 40 on" in page.said


def test_html_report_is_the_same_every_time():
    assert html_report([make(S=30)], names=["a"]) == html_report([make(S=30)], names=["a"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"traces": [], "names": []}, "traces must hold at least one run; got none"),
        ({"names": ["a", "b"]}, "names must hold one entry a run, 1; got 2"),
        ({"scores": [{}, {}]}, "scores must hold one entry a run, 1; got 2"),
        ({"configs": [{}, {}]}, "configs must hold one entry a run, 1; got 2"),
    ],
)
def test_html_report_refuses(change, words):
    given = {"traces": [make(S=7)], "names": ["a"]} | change
    with pytest.raises(ValueError, match=f"html_report: {words}"):
        html_report(given.pop("traces"), **given)
