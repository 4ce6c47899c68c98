"""From a seed to anything random, in one way: `generator(seed, *purpose)`. Imports nothing of ours.

Each purpose has a stream of its own, so a choice more or less in one place changes nothing in another, and
neighbouring seeds have nothing in common. STABVIZ_SEED_OFFSET in the environment is added to every seed:
claims are tried on fresh seeds with it.
"""

import os
from hashlib import blake2b

import torch

OFFSET = "STABVIZ_SEED_OFFSET"


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return torch's generator for one purpose, such as `generator(seed, "row", epoch, index)`, on the CPU.

    >>> one, two = generator(0, "initial weights"), generator(0, "label noise")
    >>> bool(torch.rand((), generator=one) == torch.rand((), generator=two))
    False
    """
    return torch.Generator().manual_seed(integer(seed, *purpose))


def integer(seed: int, *purpose: str | int) -> int:
    """Return the same as a number below 2**63, for torch.manual_seed and numpy's default_rng.

    Raises: ValueError if STABVIZ_SEED_OFFSET is no integer
    """
    # Not hash(): Python salts that of a text anew in each process. repr keeps 1 and "1" apart.
    words = repr((int(seed) + offset(), *(word if isinstance(word, str) else int(word) for word in purpose)))
    return int.from_bytes(blake2b(words.encode(), digest_size=8).digest(), "little") >> 1


def offset() -> int:
    """Return what STABVIZ_SEED_OFFSET adds to every seed; 0 where it is not set."""
    text = os.environ.get(OFFSET) or "0"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{OFFSET} must be an integer; got {text!r}. Unset it for the usual seeds") from None
