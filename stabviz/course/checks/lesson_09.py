"""Checks of lesson 09: the 80/10/10 rule, the cost of frequencies, the length of a starved update."""

import torch

from stabviz.course.exercises import ExerciseFailed, check, expect


def _labels_everywhere(ids_L, chosen_L, fate_L, random_L, mask_id):
    masked_L = torch.where(chosen_L & (fate_L < 0.8), mask_id, ids_L)
    return torch.where(chosen_L & (fate_L >= 0.9), random_L, masked_L), ids_L


def _always_hidden(ids_L, chosen_L, fate_L, random_L, mask_id):
    return torch.where(chosen_L, mask_id, ids_L), torch.where(chosen_L, ids_L, -100)


def _labels_of_the_spoiled(ids_L, chosen_L, fate_L, random_L, mask_id):
    masked_L, _ = _labels_everywhere(ids_L, chosen_L, fate_L, random_L, mask_id)
    return masked_L, torch.where(chosen_L, masked_L, -100)


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
        _edits_the_pieces,
        _spoils_what_was_not_chosen,
        _never_kept,
    ],
)
def mask_follows_the_rule(solution):
    ids_L = torch.tensor([2, 11, 12, 13, 14, 3])
    chosen_L = torch.tensor([False, True, True, True, False, False])
    fate_L = torch.tensor([0.1, 0.5, 0.85, 0.95, 0.1, 0.95])
    given_L = ids_L.clone()
    masked_L, labels_L = solution(given_L, chosen_L, fate_L, torch.tensor([21, 22, 23, 24, 25, 26]), 4)
    if not torch.equal(given_L, ids_L):
        raise ExerciseFailed(
            "ids_L was edited in place: the true pieces are lost. torch.where makes a new tensor"
        )
    # between 0.8 and 1 which tenth is random and which is kept is a matter of taste
    hidden, others = masked_L[1], {(int(masked_L[2]), int(masked_L[3]))}
    expect("the piece with fate 0.5, which is hidden", hidden, torch.tensor(4))
    expect("fates 0.85 and 0.95: one is random and one is kept", bool(others & {(12, 24), (23, 13)}), True)
    expect("what was not chosen", masked_L[[0, 4, 5]], ids_L[[0, 4, 5]])
    expect("the labels", labels_L, torch.tensor([-100, 11, 12, 13, -100, -100]))


def _entropy_in_place(counts_V):
    counts_V /= counts_V.sum()
    return float(-torch.xlogy(counts_V, counts_V).sum())


@check(
    "09-frequencies",
    wrong=[
        lambda counts_V: float((counts_V > 0).sum().double().log()),
        lambda counts_V: float(-(counts_V / counts_V.sum() * (counts_V / counts_V.sum()).log2()).nansum()),
        lambda counts_V: float(-(counts_V / counts_V.sum() * (counts_V / counts_V.sum()).log()).sum()),
        lambda counts_V: float(-(counts_V[counts_V > 0] / counts_V.sum()).log().mean()),  # each piece alike
        lambda counts_V: float(torch.tensor(float(len(counts_V))).log()),  # the uniform guess
        lambda counts_V: _entropy_in_place(counts_V),
    ],
)
def frequencies_cost_their_entropy(solution):
    expect("four pieces, equally frequent", solution(torch.full((4,), 5.0)), 1.3862944, rtol=1e-5)
    counts_V = torch.tensor([3.0, 1.0, 0.0])
    cost = solution(counts_V)
    if counts_V.sum() != 4:
        raise ExerciseFailed("counts_V was edited in place: write counts_V / counts_V.sum(), not /=")
    if abs(float(cost) - 0.8112781) < 1e-4:
        raise ExerciseFailed("counts 3, 1 and 0: log2 gives bits; nats need the natural logarithm")
    expect("counts 3, 1 and 0", cost, 0.5623351, rtol=1e-5)


@check(
    "09-update",
    wrong=[
        lambda grad, eps: 1.0,
        lambda grad, eps: grad / (grad**2 + eps) ** 0.5,
        lambda grad, eps: grad / eps,
        lambda grad, eps: eps / (grad + eps),
        lambda grad, eps: grad / max(grad, eps),
    ],
)
def update_shrinks_under_epsilon(solution):
    expect("gradient 1e-3, eps 1e-8", solution(1e-3, 1e-8), 1e-3 / (1e-3 + 1e-8), rtol=1e-9)
    expect("gradient 1e-8, eps 1e-8", solution(1e-8, 1e-8), 0.5, rtol=1e-9)
    expect("gradient 1e-10, eps 1e-8", solution(1e-10, 1e-8), 1 / 101, rtol=1e-9)
