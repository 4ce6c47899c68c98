"""What the laboratory learns: real text, Markov chains of known entropy, copying, and surfaces one can draw.

Each task states its chance level, what a guess without looking at the data costs, and its floor, below which
no honest run can stay. Corpora are built once a process.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127) if not "A" <= chr(code) <= "Z")
"""The 70 symbols of the text task: newline and printable ASCII, capitals folded to small letters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A sequence of symbols to predict, one after the other."""

    name: str
    tokens_N: Tensor
    """The whole sequence, (N,) int64."""
    symbols: tuple[str, ...]
    """What each token id stands for; V of them."""
    floor_nats: float
    """Entropy of the next symbol, as far as it is known; see the function that built the corpus."""
    chance_nats: float
    """ln V: the loss of a uniform guess."""

    def decode(self, tokens) -> str:
        """Turn token ids back into text."""
        return "".join(self.symbols[int(token)] for token in tokens)


def _conditional_entropy(text: str, order: int) -> float:
    """Plug-in entropy, in nats, of a character given the `order` before it."""
    pairs = Counter(text[i : i + order + 1] for i in range(len(text) - order))
    contexts: Counter = Counter()
    for gram, count in pairs.items():
        contexts[gram[:-1]] += count
    total = len(text) - order
    return -sum(count / total * math.log(count / contexts[gram[:-1]]) for gram, count in pairs.items())


@cache
def text_corpus() -> Corpus:
    """Return the characters of CPython's language reference in `pydoc_data.topics`: real English.

    The floor is the plug-in entropy of a character given the six before it, counted on this very text. A
    context that occurs once counts as certain, so it is biased low: a level that short runs stay above, not
    the entropy of English. The text differs a little between Python versions, and figures in their last
    digits with it.

    Shapes: -> tokens_N (about 500,000,)
    Units:  floor and chance in nats per character
    Raises: RuntimeError where Python was installed without pydoc_data
    Lesson: 00-start-here
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise RuntimeError(
            "text_corpus: this Python was stripped of pydoc_data, the text that the course trains on; "
            "install a full Python, for example from python.org, or use task='markov'"
        ) from error
    known = set(ALPHABET)
    text = "".join(c for c in "\n\n".join(topics[name] for name in sorted(topics)).lower() if c in known)
    ids = {symbol: token for token, symbol in enumerate(ALPHABET)}
    return Corpus(
        name="text",
        tokens_N=torch.tensor([ids[c] for c in text]),
        symbols=tuple(ALPHABET),
        floor_nats=_conditional_entropy(text, 6),
        chance_nats=math.log(len(ALPHABET)),
    )


@cache
def markov_corpus(
    n_symbols: int = 64, concentration: float = 0.12, length: int = 200_000, seed: int = 0
) -> Corpus:
    """Return a first-order Markov chain; its floor is its entropy rate, known exactly.

    Each row of the transition matrix is one Dirichlet(concentration) draw: small is predictable, large is
    noise.

    Shapes: -> tokens_N (length,), V = n_symbols
    Units:  floor (entropy rate) and chance (ln V) in nats per symbol
    Raises: ValueError if n_symbols < 2, concentration <= 0 or length < 2
    Source: entropy rate of a chain, -sum_i pi_i sum_j P_ij ln P_ij: Cover and Thomas, Elements of Information
            Theory, chapter 4
    """
    for name, value, least in (("n_symbols", n_symbols, 2), ("length", length, 2)):
        if value < least:
            raise ValueError(f"markov_corpus: {name} must be at least {least}; got {value!r}")
    if not concentration > 0:
        raise ValueError(f"markov_corpus: concentration must be > 0; got {concentration!r}")
    import numpy as np

    rng = np.random.default_rng(seed)
    # Gamma draws, normalised, are a Dirichlet draw; the small constant keeps the chain able to go everywhere.
    weights_VV = rng.gamma(concentration, size=(n_symbols, n_symbols)) + 1e-4
    transition_VV = weights_VV / weights_VV.sum(axis=1, keepdims=True)
    stationary_V = np.full(n_symbols, 1 / n_symbols)
    for _ in range(2000):
        stationary_V = stationary_V @ transition_VV
    row_entropy_V = -(transition_VV * np.log(transition_VV)).sum(axis=1)
    cumulative_VV = transition_VV.cumsum(axis=1)
    # Rounding may leave the last sum below 1, and a draw above it would find no symbol.
    cumulative_VV[:, -1] = 1.0
    draws_N, tokens_N = rng.random(length), np.empty(length, dtype=np.int64)
    state = int(rng.integers(n_symbols))
    for position in range(length):
        state = int(np.searchsorted(cumulative_VV[state], draws_N[position], side="right"))
        tokens_N[position] = state
    return Corpus(
        name="markov",
        tokens_N=torch.from_numpy(tokens_N),
        symbols=tuple(f"<{i}>" for i in range(n_symbols)),
        floor_nats=float(stationary_V @ row_entropy_V),
        chance_nats=math.log(n_symbols),
    )


def copy_tokens(
    steps: int, batch: int, context: int, generator: torch.Generator, n_symbols: int = 16
) -> Tensor:
    """Draw sequences whose second half repeats the first: only who looks back half the context can know it.

    Token 0 stands between the halves and is never drawn; ids 1..n_symbols are the symbols.

    Shapes: -> tokens_SBL (steps, batch, context + 1) int64, context even
    Raises: ValueError if context is odd
    Lesson: 01-attention

    >>> copy_tokens(1, 1, 4, torch.Generator().manual_seed(0))[0, 0]
    tensor([13, 16,  0, 13, 16])
    """
    if context % 2:
        raise ValueError(f"copy_tokens: context must be even, two halves; got {context!r}")
    half_SBL = torch.randint(1, n_symbols + 1, (steps, batch, context // 2), generator=generator)
    return torch.cat([half_SBL, torch.zeros_like(half_SBL[..., :1]), half_SBL], dim=-1)


def ravine(position_D: Tensor, condition: float | Tensor) -> Tensor:
    """Return (x^2 + condition y^2) / 2: a valley whose walls are `condition` times steeper than its floor.

    Plain descent diverges at lr > 2 / condition, and crawls along x as 1 - lr a step.

    Shapes: position_D (2,) -> ()
    Lesson: 03-gradient-descent-to-adam

    >>> ravine(torch.tensor([2.0, 1.0]), 10.0)
    tensor(7.)
    """
    x, y = position_D.unbind(-1)
    return 0.5 * (x.square() + condition * y.square())


def quartic(position_D: Tensor) -> Tensor:
    """Return the sum of x^4: flat at the bottom, and steeper than any fixed learning rate allows far from it.

    Shapes: position_D (D,) -> ()
    Source: Zhang et al. 2020, arXiv:1905.11881, whose (L0, L1)-smoothness it illustrates
    Lesson: 04-gradient-clipping

    >>> quartic(torch.tensor([10.0]))
    tensor(10000.)
    """
    return position_D.square().square().sum(-1)


def bowl(position_D: Tensor) -> Tensor:
    """Return x^2 / 2: the simplest landscape; hard is the noise that a run adds to its gradient.

    Shapes: position_D (D,) -> ()
    Lesson: 04-gradient-clipping

    >>> bowl(torch.tensor([3.0]))
    tensor(4.5000)
    """
    return 0.5 * position_D.square().sum(-1)


@cache
def regression_points(n_points: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the points of the full-batch regression: a smooth wave of two inputs, without noise.

    Shapes: -> x_N2 (n_points, 2) in [-1, 1], y_N1 (n_points, 1)
    """
    x_N2 = 2 * torch.rand(n_points, 2, generator=torch.Generator().manual_seed(seed)) - 1
    return x_N2, torch.sin(4 * x_N2[:, :1]) * torch.cos(3 * x_N2[:, 1:])
