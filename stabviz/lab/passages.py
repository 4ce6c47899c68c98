"""Passages of text as pairs that belong together, and what an embedding of them knows: the task "pairs"."""

import argparse
import inspect
import tarfile
import typing
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from stabviz.lab.tasks import ALPHABET, text_corpus
from stabviz.seeds import generator

FEATURES = 200
"""How many of the most frequent pairs of neighbouring characters are counted."""

CANDIDATES = 64
"""Candidates of the held-out question: ln 64 = 4.16 nats is the most that it can find."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passages:
    """Two halves of many passages of text, as counts of pairs of characters."""

    pairs_NHD: Tensor
    """The halves x and y of each passage, (N, 2, 200): roots of counts, of mean 0 and deviation 1."""
    is_program_N: Tensor
    """True for a program, False for English; (N,) bool. No encoder is told."""

    def split(self, held_out: float) -> tuple[Tensor, Tensor]:
        """Return the places of passages to train on, and of those held out: a multiple of 128.

        Raises: ValueError if nothing is left to train on
        """
        pair = 2 * CANDIDATES
        count = round(held_out * len(self.is_program_N) / pair) * pair
        if count > len(self.is_program_N) - CANDIDATES:
            raise ValueError(f"split: held_out must leave passages to train on; got {held_out!r}")
        shuffled_N = torch.randperm(len(self.is_program_N), generator=generator(0, "held-out passages"))
        return shuffled_N[count:], shuffled_N[:count]


@cache
def text_passages() -> Passages:
    """Return passages of 256 characters, half of them English, half programs, each cut into two halves.

    The English is that of `text_corpus`, the programs are four modules of Python's library. Both differ a
    little between Python versions.

    Shapes: -> pairs_NHD (about 3,500, 2, 200)
    Lesson: 06-infonce
    """
    ids = {symbol: token for token, symbol in enumerate(ALPHABET)}
    modules = (argparse, inspect, tarfile, typing)
    program = "\n".join(inspect.getsource(module) for module in modules).lower()
    sources = [text_corpus().tokens_N, torch.tensor([ids[c] for c in program if c in ids])]
    each = min(len(tokens_N) for tokens_N in sources) // 256
    halves_NHL = torch.cat([tokens_N[: each * 256].view(each, 2, 128) for tokens_N in sources])

    bigrams_NHL = halves_NHL[..., :-1] * len(ids) + halves_NHL[..., 1:]
    frequent = bigrams_NHL.flatten().bincount(minlength=len(ids) ** 2).topk(FEATURES).indices
    # One place more, for all the rare ones together; it is left out below.
    place = torch.full((len(ids) ** 2,), FEATURES)
    place[frequent] = torch.arange(FEATURES)
    counts_NHD = torch.zeros(2 * each, 2, FEATURES + 1)
    counts_NHD.scatter_add_(2, place[bigrams_NHL], torch.ones(bigrams_NHL.shape))
    roots_NHD = counts_NHD[..., :FEATURES].sqrt()  # the root of a count has about the same noise everywhere
    pairs_NHD = (roots_NHD - roots_NHD.mean((0, 1))) / roots_NHD.std((0, 1))
    return Passages(pairs_NHD=pairs_NHD, is_program_N=torch.arange(2 * each) >= each)


def unit(z_NE: Tensor) -> Tensor:
    """Scale each row to length 1.

    Shapes: (..., E) -> (..., E)
    Lesson: 06-infonce

    >>> unit(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    return z_NE / z_NE.norm(dim=-1, keepdim=True)


def reading_loss(x_NE: Tensor, y_NE: Tensor) -> Tensor:
    """Return InfoNCE among 64 candidates at the best temperature for these embeddings, scaled to length 1.

    One temperature does not fit all: embeddings that lie close together need a small one. It is chosen on
    every second question of 64 passages and read on the others, and the other way round.

    Shapes: x_NE (N, E), y_NE (N, E), N a multiple of 128 -> ()
    Units:  nats; ln 64 less this is the information found
    Raises: ValueError if N is no multiple of 128
    Lesson: 06-infonce
    """
    if x_NE.shape != y_NE.shape or x_NE.shape[0] % (2 * CANDIDATES):
        raise ValueError(f"reading_loss: N must be a multiple of {2 * CANDIDATES}; got {tuple(x_NE.shape)}")
    x_GBE, y_GCE = (unit(z_NE).unflatten(0, (-1, CANDIDATES)) for z_NE in (x_NE, y_NE))
    # cosine = 1 - distance^2 / 2; from differences, because 1 - 1e-8 is 1 in float32.
    scores_GBC = -(x_GBE[:, :, None] - y_GCE[:, None]).square().sum(-1) / 2
    spread = scores_GBC.std(dim=-1).mean().clamp_min(1e-30)
    losses_TG = torch.stack(
        [
            -torch.log_softmax(scores_GBC / (spread * factor), dim=-1).diagonal(dim1=1, dim2=2).mean(dim=-1)
            for factor in 2.0 ** torch.arange(-4.0, 6.0, 0.5)
        ]
    )
    halves_TH = torch.stack([losses_TG[:, ::2].mean(dim=1), losses_TG[:, 1::2].mean(dim=1)], dim=1)
    best_H = halves_TH.argmin(dim=0).flip(0)
    return halves_TH.gather(0, best_H[None]).mean()


def neighbours_score(known_ND: Tensor, known_N: Tensor, new_ND: Tensor, new_N: Tensor, k: int = 5) -> float:
    """Return the share of new rows whose yes or no the majority of their k nearest known rows gives rightly.

    Shapes: known_ND (N, D), known_N (N,) bool, new_ND (M, D), new_N (M,) bool
    Raises: ValueError unless k is odd
    Lesson: 06-infonce

    >>> line = torch.tensor([[0.0], [1.0], [9.0]])
    >>> neighbours_score(line, line[:, 0] > 5, torch.tensor([[8.0], [2.0]]), torch.tensor([True, True]), k=1)
    0.5
    """
    if k % 2 == 0:
        raise ValueError(f"neighbours_score: k must be odd, for a majority; got {k!r}")
    # Not by way of a matrix product, whose rounding is as large as the distances of a collapsed encoder.
    distance_MN = torch.cdist(new_ND.double(), known_ND.double(), compute_mode="donot_use_mm_for_euclid_dist")
    votes_MK = known_N[distance_MN.topk(k, largest=False).indices]
    return ((votes_MK.double().mean(dim=-1) > 0.5) == new_N).double().mean().item()
