"""Checks of lesson 09: the 80/10/10 rule, two runs that decide, a log."""

import numpy as np
import torch

from stabviz.course.exercises import ExerciseFailed, check, expect, expect_decision, things


def _labels_everywhere(ids_L, chosen_L, fate_L, random_L, mask_id):
    masked_L = torch.where(chosen_L & (fate_L < 0.8), mask_id, ids_L)
    return torch.where(chosen_L & (fate_L >= 0.9), random_L, masked_L), ids_L


def _always_hidden(ids_L, chosen_L, fate_L, random_L, mask_id):
    return torch.where(chosen_L, mask_id, ids_L), torch.where(chosen_L, ids_L, -100)


def _labels_of_the_spoiled(ids_L, chosen_L, fate_L, random_L, mask_id):
    masked_L, _ = _labels_everywhere(ids_L, chosen_L, fate_L, random_L, mask_id)
    return masked_L, torch.where(chosen_L, masked_L, -100)


def _labels_only_where_hidden(ids_L, chosen_L, fate_L, random_L, mask_id):
    masked_L, _ = _labels_everywhere(ids_L, chosen_L, fate_L, random_L, mask_id)
    return masked_L, torch.where(masked_L == mask_id, ids_L, -100)


def _edits_the_pieces(ids_L, chosen_L, fate_L, random_L, mask_id):
    labels_L = torch.where(chosen_L, ids_L, -100)
    ids_L[chosen_L & (fate_L < 0.8)] = mask_id
    ids_L[chosen_L & (fate_L >= 0.9)] = random_L[chosen_L & (fate_L >= 0.9)]
    return ids_L, labels_L


def _spoils_what_was_not_chosen(ids_L, chosen_L, fate_L, random_L, mask_id):
    masked_L = torch.where(fate_L < 0.8, mask_id, ids_L)
    return torch.where(fate_L >= 0.9, random_L, masked_L), torch.where(chosen_L, ids_L, -100)


def _never_kept(ids_L, chosen_L, fate_L, random_L, mask_id):
    masked_L = torch.where(chosen_L & (fate_L < 0.8), mask_id, ids_L)
    return torch.where(chosen_L & (fate_L >= 0.8), random_L, masked_L), torch.where(chosen_L, ids_L, -100)


@check(
    "09-mask",
    wrong=[
        _labels_everywhere,
        _always_hidden,
        _labels_of_the_spoiled,
        _labels_only_where_hidden,
        _edits_the_pieces,
        _spoils_what_was_not_chosen,
        _never_kept,
    ],
)
def mask_follows_the_rule(solution):
    ids_L = torch.tensor([2, 11, 12, 13, 14, 3])
    chosen_L = torch.tensor([False, True, True, True, False, False])
    fate_L = torch.tensor([0.1, 0.5, 0.85, 0.95, 0.1, 0.95])
    random_L = torch.tensor([21, 22, 23, 24, 25, 26])
    given = [x.clone() for x in (ids_L, chosen_L, fate_L, random_L)]
    masked_L, labels_L = things(solution(*given, 4), "the spoiled pieces", "the labels")
    if not all(map(torch.equal, given, (ids_L, chosen_L, fate_L, random_L))):
        raise ExerciseFailed(
            "an argument was edited in place: the true pieces are lost. torch.where makes a new tensor"
        )
    # between 0.8 and 1 which tenth is random and which is kept is a matter of taste
    hidden, others = masked_L[1], {(int(masked_L[2]), int(masked_L[3]))}
    expect("the piece with fate 0.5, which is hidden", hidden, torch.tensor(4))
    expect("fates 0.85 and 0.95: one is random and one is kept", bool(others & {(12, 24), (23, 13)}), True)
    expect("what was not chosen", masked_L[[0, 4, 5]], ids_L[[0, 4, 5]])
    expect(
        "the labels: the true piece wherever one was chosen, -100 elsewhere",
        labels_L,
        torch.tensor([-100, 11, 12, 13, -100, -100]),
    )


RUNS = {
    "three times the rate": ("leaves", "stands"),
    "four times as many steps": ("leaves", "leaves"),
    "other seeds": ("stands", "stands"),
    "queries and keys as drawn": ("stands", "stands"),
    "told where to look, a third of the rate": ("stands", "leaves"),
}
"""What A, who blames the speed of learning, and B, who blames the looking, predict of each run."""
DECIDING = {name: said for name, said in RUNS.items() if said[0] != said[1]}
ABOUT = dict.fromkeys(DECIDING, "A asks how fast the weights move, B whether the model knows where to look")


@check(
    "09-decide",
    wrong=[
        lambda: {"four times as many steps": ("leaves", "leaves"), "other seeds": ("stands", "stands")},
        lambda: {name: ends[::-1] for name, ends in DECIDING.items()},
        lambda: {
            "three times the rate": ("leaves", "stands"),
            "queries and keys as drawn": ("stands", "stands"),
        },
        lambda: dict.fromkeys(RUNS, ("leaves", "stands")),
        lambda: dict.fromkeys(DECIDING, "leaves"),
        lambda: tuple(DECIDING),
    ],
)
def runs_decide_where_speed_and_looking_predict_different_ends(solution):
    expect_decision(solution(), stories=("A", "B"), runs=RUNS, because=ABOUT)


def _verdict(shown_S, hidden_S, baseline, *, margin=0.3, tail=20, start=10):
    if max(shown_S[1:start]) > shown_S[0] + 0.5:
        return "jumped"
    shown, hidden = np.median(shown_S[-tail:]), np.median(hidden_S[-tail:])
    if hidden >= baseline - margin:
        return "answers in the question" if shown < baseline - margin else "frequencies"
    return "context"


def _looks_at_the_shown_loss_alone(shown_S, hidden_S, baseline):
    return _verdict(shown_S, shown_S, baseline)


def _looks_at_the_hidden_loss_alone(shown_S, hidden_S, baseline):
    return _verdict(hidden_S, hidden_S, baseline)


def _takes_the_last_step(shown_S, hidden_S, baseline):
    return _verdict(shown_S, hidden_S, baseline, tail=1)


def _takes_the_lowest(shown_S, hidden_S, baseline):
    if max(shown_S[1:10]) > shown_S[0] + 0.5:
        return "jumped"
    if min(hidden_S) >= baseline - 0.3:
        return "answers in the question" if min(shown_S) < baseline - 0.3 else "frequencies"
    return "context"


def _any_later_jump(shown_S, hidden_S, baseline):
    return _verdict(shown_S, hidden_S, baseline, start=len(shown_S))


def _without_a_margin(shown_S, hidden_S, baseline):
    return _verdict(shown_S, hidden_S, baseline, margin=0.0)


def _sorts_the_curve(shown_S, hidden_S, baseline):
    found = _verdict(shown_S, hidden_S, baseline)
    hidden_S.sort()
    return found


@check(
    "09-diagnose",
    wrong=[
        _looks_at_the_shown_loss_alone,
        _looks_at_the_hidden_loss_alone,
        _takes_the_last_step,
        _takes_the_lowest,
        _any_later_jump,
        _without_a_margin,
        _sorts_the_curve,
    ],
)
def log_is_read_beside_its_baseline(solution):
    steps, baseline = 60, 5.4
    # from ln 400 to a level, with one step in six far off: a batch of few pieces
    ripple_S = np.where(np.arange(steps) % 6 == 5, 0.4, -0.05)
    falling_S = np.maximum(6.0 - 0.1 * np.arange(steps), 0)

    def curve(level):
        return np.maximum(falling_S, level) + ripple_S * (np.arange(steps) > 12)

    flat_S, low_S, copied_S = curve(5.4), curve(4.6), curve(1.0)
    one_low_S = flat_S.copy()
    one_low_S[[30, steps - 1]] = 4.0
    late_S = flat_S.copy()
    late_S[25] = 9.0
    jumping_S = np.concatenate([[3.0, 3.9, 5.2, 5.0], np.linspace(4.8, 3.0, steps - 4)])
    cases = {
        "flat at the baseline": (flat_S, flat_S, "frequencies"),
        "0.1 nats below the baseline": (curve(5.3), curve(5.3), "frequencies"),
        "flat, with two lucky batches, one of them the last": (one_low_S, one_low_S, "frequencies"),
        "flat, with one bad batch at step 25": (late_S, late_S, "frequencies"),
        "0.8 nats below the baseline": (low_S, low_S, "context"),
        "1 nat shown, flat at the hidden pieces": (copied_S, flat_S, "answers in the question"),
        "1 nat shown, 4.6 at the hidden pieces": (copied_S, low_S, "context"),
        "from 3 nats up to 5.2 and back": (jumping_S, jumping_S, "jumped"),
    }
    for what, (shown_S, hidden_S, wanted) in cases.items():
        shown, hidden = shown_S.copy(), hidden_S.copy()
        got = solution(shown, hidden, baseline)
        if got != wanted:
            raise ExerciseFailed(f"{what}, baseline 5.4: expected {wanted!r}; got {got!r:.80}")
        if not (np.array_equal(shown, shown_S) and np.array_equal(hidden, hidden_S)):
            raise ExerciseFailed("a curve that was handed in has changed: leave them as they are")
