"""Rules on hand-made signals, one by one; then the confusion table over real runs with planted faults."""

import math
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from stabviz.trace import Trace, verdict
from stabviz.trace.diagnosis import _ITSELF, _REMEDIES, RULES, Kind, diagnose

TEST_SEEDS = range(200, 208)  # the rules were written on seeds 0 to 15, and 100 to 107
RIGHT = 0.9
S = 120
KINDS = [kind for kind in get_args(Kind) if kind not in ("not_known", "too_short")]


def run(loss=None, events=(), config=None, steps=None, **signals):
    """A Trace of one run; its loss falls from 2 to 0.6 with a little noise where none is given."""
    if loss is None:
        loss = 0.6 + 1.4 * np.exp(-np.arange(S) / 30) + np.random.default_rng(5).normal(0, 0.03, S)
    loss = np.asarray(loss, dtype=float)
    signals = {name: [np.broadcast_to(values, loss.shape)] for name, values in signals.items()}
    return Trace(
        steps=range(len(loss)) if steps is None else steps,
        runs=[{}],
        config=config or {},
        signals={"loss_nats": [loss], **signals},
        events=[{"run": 0, **event} for event in events],
    )


def every(n, values, length=S):
    """Values at every n-th of `length` steps, NaN between them."""
    row = np.full(length, np.nan)
    row[n - 1 :: n] = values
    return row


def rate(warmup=10):
    return 1e-3 * np.minimum(1, (np.arange(S) + 1) / warmup) if warmup else np.full(S, 1e-3)


NOISE = np.random.default_rng(6).normal(0, 0.03, S)
FALLING = run()["loss_nats"][0]


def test_diagnose_healthy_says_what_was_looked_at_and_what_is_not_known():
    got = diagnose(run(lr=rate(), grad_norm_preclip=0.5))
    assert (got.kind, got.step, got.lesson) == ("healthy", None, "")
    assert "looked at loss_nats, lr, grad_norm_preclip" in got.evidence
    assert any(
        line.startswith("update_rms was not measured: not known whether bias") for line in got.evidence
    )


def test_diagnose_every_kind_has_a_remedy_and_a_lesson_that_exists_and_every_rule_a_docstring():
    assert set(_REMEDIES) == set(get_args(Kind))
    lessons = {path.stem for path in (Path(__file__).parents[2] / "lessons").glob("*.md")}
    for kind, (_, lesson) in _REMEDIES.items():
        assert lesson in lessons if kind not in ("healthy", "too_short") else lesson == "", kind
    assert {kind for kind, *_ in RULES} | set(_ITSELF.values()) == set(get_args(Kind))
    assert all(rule.__doc__ for _, rule, _ in RULES)


def test_diagnose_judges_the_run_it_is_asked_for_and_refuses_others():
    two = Trace(
        steps=range(S), runs=[{}, {}], signals={"loss_nats": [FALLING, np.r_[FALLING[:60], np.zeros(60)]]}
    )
    assert [diagnose(two, r).kind for r in (0, 1)] == ["healthy", "hidden_nan"]
    for wrong in (2, -1, True, "0"):
        with pytest.raises(ValueError, match=r"run must be an index in 0\.\.1"):
            diagnose(two, wrong)


def test_diagnose_too_little_is_too_short_to_say():
    got = diagnose(run(loss=[2.0, 1.0]))
    assert (got.kind, got.verdict.kind, got.headline) == ("too_short", "too_short", "too short")
    assert got.evidence[0] == "the loss was logged 2 times; 8 rows or more show a course"
    without = Trace(steps=range(S), runs=[{}], signals={"grad_norm_preclip": [np.ones(S)]})
    empty = Trace(steps=[], runs=[{}], signals={"loss_nats": [[]]})
    for trace in (without, empty):
        assert diagnose(trace).evidence[0] == "no loss was logged; 8 rows or more show a course"


@pytest.mark.parametrize(("late", "kind"), [(2, "healthy"), (6, "fp16_overflow")])
def test_diagnose_fp16_overflow_is_one_step_in_twenty_after_the_scale_had_time(late, kind):
    norm = np.full(S, 0.5)
    norm[:8] = np.inf  # the search for a first scale is no fault
    norm[70 : 70 + 5 * late : 5] = np.inf
    got = diagnose(run(grad_norm_preclip=norm, loss_scale=1024.0))
    assert got.kind == kind
    if kind != "healthy":
        assert got.step == 0
        assert "14 of 120 steps overflowed, 10% of the second half" in got.evidence[0]


def test_diagnose_fp16_overflow_from_events_alone_and_from_a_scale_below_one():
    events = [{"step": step, "kind": "overflow"} for step in range(60, 120, 7)]
    assert diagnose(run(events=events)).kind == "fp16_overflow"
    assert diagnose(run(loss_scale=np.geomspace(1024, 0.5, S))).kind == "fp16_overflow"
    assert diagnose(run(loss_scale=np.geomspace(65536, 2, S))).kind == "healthy"


def test_diagnose_hidden_nan_behind_finite_losses():
    norm = np.where(np.arange(S) < 41, 0.5, np.nan)
    got = diagnose(run(grad_norm_preclip=norm))
    assert (got.kind, got.step) == ("hidden_nan", 41)
    assert "the log still shows finite losses at 79 lines" in got.evidence[0]


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (np.r_[FALLING[:60], np.zeros(60)], "hidden_nan"),
        (np.r_[FALLING[:60], np.full(60, np.nan)], "hidden_nan"),
        (
            np.r_[np.maximum(np.linspace(2, -0.5, 100), 0), np.zeros(20)],
            "healthy",
        ),  # a loss may come down to 0
        (np.r_[FALLING[:60], 0.0, FALLING[61:]], "healthy"),
        (np.r_[FALLING[:60], np.nan, FALLING[61:]], "healthy"),
        (np.r_[np.full(9, np.nan), FALLING[9:]], "healthy"),  # a search for a loss scale that was not logged
    ],
)
def test_diagnose_hidden_nan_is_sudden_and_lasts(loss, kind):
    got = diagnose(run(loss=loss))
    assert got.kind == kind
    assert got.step == (60 if kind == "hidden_nan" else None)


def test_diagnose_a_loss_that_grew_before_it_became_infinite_is_no_hidden_nan():
    loss = np.r_[FALLING[:100], 10.0 ** np.arange(0, 10, 2), np.full(15, np.inf)]
    norm = np.r_[np.full(100, 0.5), 10.0 ** np.arange(0, 20, 4), np.full(15, np.inf)]
    assert diagnose(run(loss=loss, grad_norm_preclip=norm, update_rms=norm, clipped=0.0)).kind == "explosion"


def test_diagnose_a_nan_after_growth_is_no_hidden_nan():
    loss = np.r_[FALLING[:100], 3.0 ** np.arange(1, 6), np.full(15, np.nan)]
    norm = np.r_[np.full(100, 0.5), 3.0 ** np.arange(1, 6), np.full(15, np.nan)]
    assert diagnose(run(loss=loss, grad_norm_preclip=norm, update_rms=norm, clipped=0.0)).kind == "explosion"
    assert diagnose(run(loss=loss)).kind == "not_known"


@pytest.mark.parametrize(
    ("update", "kind"), [([3.16, 6.5], "missing_bias_correction"), ([1.0, 1.2], "healthy")]
)
def test_diagnose_missing_bias_correction_by_the_first_updates(update, kind):
    row = np.full(S, 0.3)
    row[0], row[10] = update
    got = diagnose(run(update_rms=row, second_moment_ratio=0.9))
    assert got.kind == kind
    if kind != "healthy":
        assert got.evidence[0].startswith("update RMS of 3.16 lr at step 0, 6.5 lr at step 10")
        assert (got.step, got.lesson) == (0, "03-gradient-descent-to-adam")


def test_diagnose_missing_bias_correction_in_the_layer_that_has_gradients():
    """Unused rows of an embedding have no update and dilute the total."""
    got = diagnose(
        run(
            **{
                "update_rms": 0.9,
                "update_rms/layer0": np.r_[np.full(30, 3.2), np.full(90, 0.5)],
                "second_moment_ratio": 0.9,
            }
        )
    )
    assert got.kind == "missing_bias_correction"


def test_diagnose_long_updates_of_sgd_are_no_missing_bias_correction():
    assert diagnose(run(update_rms=40.0)).kind == "healthy"
    assert diagnose(run(update_rms=40.0, config={"optimizer": "sgd"})).kind == "healthy"
    assert (
        diagnose(run(update_rms=40.0, config={"optimizer": "adamw_fused"})).kind == "missing_bias_correction"
    )


@pytest.mark.parametrize(
    ("first", "rest", "kind"),
    [(0.02, 0.01, "epsilon_too_large"), (1.0, 0.01, "healthy"), (0.02, 0.2, "healthy")],
)
def test_diagnose_epsilon_too_large_by_small_updates_from_the_start(first, rest, kind):
    got = diagnose(
        run(update_rms=np.r_[first, np.full(S - 1, rest)], second_moment_ratio=0.05, grad_norm_preclip=0.5)
    )
    assert got.kind == kind


def test_diagnose_epsilon_in_the_middle_of_a_run_needs_the_ratio_too():
    def later(ratio):
        return diagnose(
            run(steps=range(500, 500 + S), update_rms=0.01, second_moment_ratio=ratio, grad_norm_preclip=0.5)
        ).kind

    assert (later(0.05), later(0.9)) == ("epsilon_too_large", "healthy")


def exploded(**more):
    loss = np.r_[FALLING[:70], np.full(50, 30.0) + 10 * NOISE[:50]]
    norm = np.full(S, 0.5)
    norm[70:73] = [200.0, 40.0, 5.0]
    return run(loss=loss, grad_norm_preclip=norm, lr=rate(), **more)


def test_diagnose_explosion_needs_a_step_that_followed():
    long = np.r_[np.full(70, 0.01), 4.0, np.full(49, 0.01)]
    got = diagnose(exploded(update_rms=long, clipped=0.0))
    assert (got.kind, got.step) == ("explosion", 70)
    assert "gradient norm 200 at step 70, 0.5 before, and the step was as long" in got.evidence[0]
    clipped = (np.arange(S) == 70).astype(float)
    assert diagnose(exploded(update_rms=long, clipped=clipped)).kind == "rate_too_high"
    assert diagnose(exploded(update_rms=0.2, second_moment_ratio=0.9)).kind == "rate_too_high"


def test_diagnose_a_lost_loss_without_enough_signals_is_not_known():
    """A sudden jump of the gradient still tells; a slow one, or none measured, does not."""
    assert diagnose(exploded()).kind == "explosion"
    loss = exploded()["loss_nats"][0]
    slow = run(loss=loss, grad_norm_preclip=0.5 * np.exp(3.7 * (np.arange(S) / S) ** 2 + 9 * NOISE))
    assert diagnose(slow).kind == "not_known"
    assert "whether the step followed (update_rms, clipped) was not measured" in diagnose(slow).evidence[0]
    assert diagnose(run(loss=loss, lr=rate())).kind == "not_known"
    assert (
        "without a gradient norm a rate too high looks like an explosion"
        in diagnose(run(loss=loss)).evidence[0]
    )


def test_diagnose_equal_growth_every_step_is_a_rate_too_high():
    growth = 1.2 ** np.arange(60)
    got = diagnose(run(loss=growth**2, grad_norm_preclip=growth, update_rms=growth, clipped=0.0))
    assert got.kind == "rate_too_high"
    assert got.evidence[0].startswith("the gradient norm grew by an equal factor")


@pytest.mark.parametrize(
    ("early", "warmup", "kind"), [(80.0, 0, "no_warmup"), (80.0, 10, "healthy"), (35.0, 0, "healthy")]
)
def test_diagnose_no_warmup_by_attention_logits_in_the_first_steps(early, warmup, kind):
    logit = np.r_[np.linspace(4, early, 11), np.full(S - 11, early)]
    got = diagnose(run(lr=rate(warmup), max_attention_logit=logit, grad_norm_preclip=0.5))
    assert got.kind == kind
    if kind == "no_warmup":
        assert got.step == 0
        assert "the largest attention logit went from 4 to 80" in got.evidence[0]


@pytest.mark.parametrize(("warmup", "kind"), [(0, "no_warmup"), (10, "healthy")])
def test_diagnose_no_warmup_by_a_loss_that_rises_at_once(warmup, kind):
    loss = np.r_[2.0, np.full(6, 2.5), FALLING[7:]]
    assert (
        diagnose(run(loss=loss, lr=rate(warmup), second_moment_ratio=0.9, grad_norm_preclip=0.5)).kind == kind
    )


@pytest.mark.parametrize(("top", "kind"), [(3000.0, "attention_logit_growth"), (90.0, "healthy")])
def test_diagnose_attention_logit_growth(top, kind):
    entropy = np.geomspace(2, 0.1, S)
    got = diagnose(run(lr=rate(), max_attention_logit=np.geomspace(4, top, S), attention_entropy=entropy))
    assert got.kind == kind
    if kind != "healthy":
        assert got.step == int(np.argmax(np.geomspace(4, top, S) >= 500))
        assert got.evidence[0].endswith("attention entropy went from 2 to 0.1 nats")


def test_diagnose_ruined_loss_with_large_logits_is_the_rate():
    loss = np.r_[FALLING[:40], np.full(80, 2.0) + np.repeat([9.0, 1.0], 40) + NOISE[:80]]
    got = diagnose(
        run(loss=loss, lr=rate(), max_attention_logit=np.geomspace(4, 3000, S), grad_norm_preclip=0.5)
    )
    assert got.kind == "rate_too_high"
    assert "at a rate of 0.001" in got.evidence[0]


@pytest.mark.parametrize(("accuracy", "kind"), [(0.65, "label_noise"), (0.85, "healthy")])
def test_diagnose_label_noise_by_training_behind_validation(accuracy, kind):
    held = every(10, np.linspace(1.2, 0.4, 12))
    right = accuracy + NOISE / 3
    got = diagnose(
        run(loss=FALLING + 0.4, accuracy=right, validation_loss_nats=held, validation_score=every(10, 0.88))
    )
    assert got.kind == kind


def test_diagnose_label_noise_by_the_losses_alone_where_their_ratio_grows_unless_labels_are_smoothed():
    held = every(10, np.linspace(1.2, 0.4, 12))
    noisy = {"loss": FALLING + 0.4, "validation_loss_nats": held}
    assert (diagnose(run(**noisy)).kind, diagnose(run(**noisy)).confidence) == ("label_noise", "likely")
    summed = {"loss": 4 * FALLING, "validation_loss_nats": every(10, FALLING[9::10])}
    assert diagnose(run(**summed)).kind == "healthy"  # over four batches: larger from the first step on
    assert diagnose(run(**noisy, config={"label_smoothing": 0.1})).kind == "healthy"
    assert diagnose(run(**noisy, config={"teacher": "minilm"})).kind == "healthy"  # a student has no labels


def overfitted(end, score_end=0.7, training=0.05):
    held = every(10, np.r_[np.linspace(1.5, 0.9, 6), np.linspace(0.95, end, 6)])
    return run(
        loss=np.geomspace(2, training, S),
        validation_loss_nats=held,
        accuracy=0.9,
        validation_score=every(10, np.r_[np.full(6, 0.7), np.full(6, score_end)]),
    )


def test_diagnose_overfit_by_a_validation_loss_that_turned():
    assert diagnose(overfitted(1.3)).kind == diagnose(overfitted(1.6, score_end=0.75)).kind == "overfit"
    got = diagnose(overfitted(1.6))
    assert (got.kind, got.step) == ("overfit", 59)
    assert "validation loss was best, 0.9, at step 59 and is 1.6 at the end" in got.evidence[0]


@pytest.mark.parametrize(
    "other",
    [overfitted(1.0), overfitted(1.3, score_end=0.75), overfitted(1.6, training=1.2)],
    ids=["hardly risen", "the score still rose", "training loss did not fall"],
)
def test_diagnose_overfit_is_not_said_of(other):
    assert diagnose(other).kind == "healthy"


@pytest.mark.parametrize(
    ("signals", "kind"),
    [
        ({"param_norm": np.linspace(10, 14, S)}, "rate_too_high"),
        ({"second_moment_ratio": np.geomspace(1, 0.05, S)}, "rate_too_high"),
        ({"param_norm": np.linspace(10, 11, S), "second_moment_ratio": 0.6}, "stall"),
    ],
    ids=["far", "shrunk", "neither"],
)
def test_diagnose_nothing_learned_although_the_weights_moved_is_a_rate_too_high(signals, kind):
    got = diagnose(run(loss=2 + NOISE, lr=rate(), grad_norm_preclip=0.5, **signals))
    assert got.kind == kind
    if "param_norm" in signals and kind != "stall":
        assert got.step == int(np.argmax(np.linspace(10, 14, S) >= 12.5))


@pytest.mark.parametrize("level", [0.0, 0.02])
def test_diagnose_stall_is_a_loss_that_stays_and_its_cause_is_open(level):
    got = diagnose(run(loss=2 + NOISE - level * np.arange(S) / S, lr=rate()))
    assert (got.kind, got.headline, got.confidence) == ("stall", "stalled", "open")
    assert "not shown" in got.remedy


def test_diagnose_offers_no_remedy_for_thirty_steps_that_show_nothing():
    """At 1e-3 "ten times the rate" and at 1e-2 "a third of it" was said of runs of thirty steps."""
    got = diagnose(run(loss=1.4 + NOISE[:30], lr=rate()[:30], config={"chance_nats": 1.4}))
    assert (got.kind, got.remedy) == ("too_short", "Train or log for longer, then look again.")
    assert "30 steps are too few to call it a stall" in got.evidence[0]


def test_diagnose_what_one_signal_proves_needs_no_long_run():
    signals = {"update_rms": 3.2, "second_moment_ratio": 0.9, "config": {"chance_nats": 1.4}}
    got = diagnose(run(loss=1.4 + NOISE[:30], **signals))
    assert got.headline == "too short, with a fault: missing_bias_correction at step 0 (shown)"


def test_diagnose_one_row_that_leaps_is_a_spike_where_the_floor_is_known_and_else_mentioned():
    loss = FALLING.copy()
    loss[70] = 30.0
    signals = {"loss": loss, "grad_norm_preclip": np.where(np.arange(S) == 70, 90.0, 0.5)}
    got = diagnose(run(**signals))
    assert (got.kind, got.headline, got.remedy) == ("healthy", "healthy", "")
    assert any("at step 70" in line and line.endswith("no lasting mark") for line in got.evidence)
    known = diagnose(run(**signals, config={"floor_nats": 0.0}))
    assert (known.kind, known.headline, known.confidence) == ("spike", "spiked at step 70", "open")


def test_diagnose_keeps_the_weights_of_the_best_score_and_of_the_lowest_error():
    best = every(10, [0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.72, 0.71, 0.71])
    held = every(10, np.r_[np.linspace(1.5, 0.9, 6), np.linspace(0.95, 1.6, 6)])
    losses = {"loss": np.geomspace(2, 0.05, S), "validation_loss_nats": held}
    assert (
        "Keep the weights of step 99, which scored best (0.72)"
        in diagnose(run(**losses, validation_score=best)).remedy
    )
    errors = run(**losses, validation_score=1 - best, config={"score_is_error": True})
    assert "step 99, which scored best (0.28)" in diagnose(errors).remedy
    assert "by the task's score (not logged)" in diagnose(run(**losses)).remedy


def log(loss, **signals):
    """A log as another program writes it: a line every ten steps, no floor, AdamW assumed."""
    return run(
        loss, steps=range(9, 10 * len(loss), 10), config={"optimizer": "adamw", "loss_unit": ""}, **signals
    )


def test_diagnose_a_level_that_rises_for_good_is_lost_to_the_rate_if_the_rate_was_high():
    """As real logs do it: at a constant rate, and creeping up while the rate decays."""
    risen = np.r_[np.geomspace(8600, 2100, 60), np.full(60, 8500.0)] * (1 + NOISE)
    got = diagnose(log(risen, lr=np.full(S, 3e-4)))
    assert got.headline == "diverged at step 579, cause: rate_too_high at step 639 (likely)"
    creeping = np.r_[np.geomspace(0.03, 0.002, 20), np.geomspace(0.002, 0.03, 100)] * (1 + NOISE)
    got = diagnose(log(creeping, lr=np.linspace(5e-5, 0, S)))
    assert (got.kind, got.verdict.kind, got.confidence) == ("not_known", "diverged", "open")
    assert got.headline.endswith("cause not known")


@pytest.mark.parametrize(("held_end", "kind"), [(0.22, "spiked"), (0.40, "diverged")])
def test_diagnose_a_loss_that_came_back_is_spiked_unless_held_out_data_stayed(held_end, kind):
    loss = np.r_[np.geomspace(0.8, 0.14, 30), np.full(50, 0.3), np.linspace(0.3, 0.17, 40)] * (1 + NOISE)
    got = diagnose(log(loss, validation_loss_nats=every(20, [0.219, 0.416, 0.41, 0.42, held_end, held_end])))
    assert got.verdict.kind == kind
    assert got.kind != "healthy"


def test_diagnose_reward_logs_are_judged_by_their_reward():
    """The loss of reinforcement learning wanders about 0 and changes its sign."""
    nothing = NOISE
    better = log(nothing, reward=np.linspace(0.2, 0.6, S) + NOISE)
    assert diagnose(better).headline == "healthy"
    assert "reward went from" in diagnose(better).evidence[0]
    lost = log(nothing, reward=np.r_[np.linspace(0.2, 0.9, 60), np.full(60, 0.1)] + NOISE)
    assert diagnose(lost).verdict.kind == "diverged"
    assert "then fell to" in " ".join(diagnose(lost).evidence)
    few = Trace(steps=range(5), runs=[{}], signals={"loss_nats": [np.zeros(5)], "reward": [np.ones(5)]})
    assert diagnose(few).kind == "too_short"


def test_diagnose_slow_learning_and_noise_are_no_stall():
    slow = log(2 * (1 - 0.03 * np.arange(S) / S) + 0.1 * NOISE)
    assert diagnose(slow).kind == "healthy"
    noisy = log(np.linspace(1.7, 1.3, S) + 5 * NOISE)
    assert diagnose(noisy).kind == "healthy"


def test_diagnose_names_a_flat_stretch():
    loss = np.r_[np.linspace(4, 2, 30), np.full(60, 2.0), np.linspace(2, 1, 30)] + 0.2 * NOISE
    got = diagnose(log(loss))
    assert got.kind == "healthy"
    assert [line for line in got.evidence if "flat" in line] == [
        "the loss is flat at 2 from step 309 to 899, 50% of the run"
    ]


@pytest.fixture(scope="session")
def planted_runs(planted):
    return planted(TEST_SEEDS)


def told(planted_runs, *, only=None):
    """(fault, kind) of every planted run; `only` leaves that much of its signals, as a poorer log would."""
    for fault, trace in planted_runs:
        if only is not None:
            kept = {name: trace[name] for name in only if name in trace}
            trace = Trace(steps=trace.steps, signals=kept, runs=[{}])
        yield fault, diagnose(trace).kind


def table(pairs):
    """The confusion table as text: a row for each fault, with the kinds that it was told to be."""
    count = Counter(pairs)
    lines = [
        f"{fault:24}" + ", ".join(f"{kind} {n}" for (f, kind), n in count.most_common() if f == fault)
        for fault in KINDS
    ]
    return "\n".join(lines)


def test_diagnose_names_planted_faults_and_accuses_no_healthy_run(planted_runs):
    pairs = list(told(planted_runs))
    right = np.mean([fault == kind for fault, kind in pairs])
    print(
        f"\n{len(pairs)} runs, seeds {TEST_SEEDS[0]} to {TEST_SEEDS[-1]}, {right:.1%} right\n{table(pairs)}"
    )
    assert len(pairs) >= 100
    assert {fault for fault, _ in pairs} == set(KINDS)
    assert [kind for fault, kind in pairs if fault == "healthy" and kind != "healthy"] == []
    assert right >= RIGHT
    for fault in KINDS:
        assert np.mean([kind == fault for f, kind in pairs if f == fault]) >= 0.75, fault


@pytest.mark.parametrize(
    "only",
    [
        ["loss_nats"],
        ["loss_nats", "lr", "grad_norm_preclip"],
        ["loss_nats", "lr", "grad_norm_preclip", "validation_loss_nats"],
    ],
    ids=len,
)
def test_diagnose_with_fewer_signals_accuses_no_healthy_run_and_rarely_another_fault(planted_runs, only):
    """What signals cannot tell is "healthy" with its list of unknowns, "not_known", or a name for what it led
    to."""
    led_to = {
        ("spike", "healthy"),
        ("epsilon_too_large", "stall"),
        ("fp16_overflow", "hidden_nan"),
        ("label_noise", "overfit"),
    }
    pairs = list(told(planted_runs, only=only))
    print(f"\n{only}\n{table(pairs)}")
    assert [kind for fault, kind in pairs if fault == "healthy" and kind != "healthy"] == []
    wrong = [
        (fault, kind)
        for fault, kind in pairs
        if kind not in (fault, "healthy", "not_known") and (fault, kind) not in led_to
    ]
    assert len(wrong) <= 0.05 * len(pairs), wrong
    assert sum(fault == kind == "hidden_nan" for fault, kind in pairs) > 0


def test_verdict_and_diagnosis_never_contradict_one_another(planted_runs):
    """A cause is one that its outcome allows, and only a healthy run is told to be healthy."""
    allowed = {kind: set(outcomes) for kind, _, outcomes in RULES if kind != "not_known"}
    only = ["loss_nats", "lr", "grad_norm_preclip", "validation_loss_nats"]
    for fault, trace in planted_runs:
        poorer = Trace(
            steps=trace.steps, signals={name: trace[name] for name in only if name in trace}, runs=[{}]
        )
        for one in (trace, poorer):
            got = diagnose(one)
            assert got.verdict == verdict(one, 0)
            assert (
                got.verdict.kind in allowed.get(got.kind, set()) or got.kind == _ITSELF[got.verdict.kind]
            ), fault
            assert (got.remedy == "") == (got.kind == "healthy")


def test_planted_runs_hold_the_fault_that_they_are_named_for():
    """A warm-up and clipping make the very same runs come out 0.3 nats lower, QK-norm 0.1 in the median."""
    from stabviz.lab import grid, train

    def gain(bad, good):
        return train(bad, device="cpu").final() - train(good, device="cpu").final()

    small = {"batch": 8, "context": 16, "layers": 2, "clip_norm": 1.0, "seed": range(100, 108)}
    wide = small | {"width": 64, "steps": 70, "lr": 0.06}
    assert (gain(grid("markov", warmup_steps=0, **wide), grid("markov", warmup_steps=12, **wide)) > 0.3).all()
    attention = small | {"width": 32, "steps": 100, "lr": 0.3, "warmup_steps": 15}
    gain_R = gain(grid("markov", **attention), grid("markov", qk_norm=True, **attention))
    assert (gain_R > 0).all()
    assert np.median(gain_R) > 0.1
    lstm = small | {
        "model": "lstm",
        "layers": 1,
        "width": 32,
        "steps": 80,
        "lr": 60.0,
        "optimizer": "sgd",
        "schedule": "constant",
        "warmup_steps": 0,
    }
    clipped, unclipped = (grid("text", **lstm | {"clip_norm": c}) for c in (0.15, math.inf))
    assert (gain(unclipped, clipped) > 0.3).all()
