"""The Hugging Face hub: asked once whether it answers, where its library would retry each file five times."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session

TIMEOUT = 5
"""Seconds that the hub has to answer."""


def why_unreachable() -> str | None:
    """Say why the hub cannot be asked now, or return None."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # which one depends on the network, a proxy, and the library below
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


@contextmanager
def hub() -> Iterator[str | None]:
    """Let what is loaded inside come from the hub, or where that does not answer from its cache alone.

    Yields why the hub cannot be reached, or None.
    """
    problem = why_unreachable()
    # Each library reads the environment once, when it is imported, and then looks at its own name.
    places: list[Any] = [constants] + [
        sys.modules[name] for name in ("datasets.config",) if name in sys.modules
    ]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places if problem else []:
            place.HF_HUB_OFFLINE = True
        yield problem
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
