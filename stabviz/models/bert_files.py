"""BERT checkpoint folders, read and written as transformers does: no code of a file is run."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from stabviz.models.bert import ARCHITECTURES, BertConfig, check_kind, init_bert

LOGGER = logging.getLogger("stabviz.models")
BODY = ("embeddings.", "encoder.", "pooler.")
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Names in the checkpoints of 2018, which stayed in the published files."""


def bert_config_from_dict(plain: Mapping[str, Any]) -> BertConfig:
    """Read the settings of a config.json; what it leaves out has transformers' default.

    Raises: ValueError if it describes another model, or a variant of BERT that is not an encoder with learned
            positions
    """
    allowed_settings = {
        "model_type": ("bert",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
        "position_embedding_type": ("absolute", None),
    }
    for name, allowed in allowed_settings.items():
        if plain.get(name, allowed[0]) not in allowed:
            raise ValueError(
                f"bert_config_from_dict: {name} must be {allowed[0]!r}; got {plain[name]!r}. "
                "Use the implementation of transformers for other models."
            )
    known = {field.name for field in fields(BertConfig)} - {"labels"}
    settings = {name: value for name, value in plain.items() if name in known}
    if plain.get("id2label"):
        names = {int(position): str(name) for position, name in plain["id2label"].items()}
        settings["labels"] = tuple(names[i] for i in sorted(names))
    elif plain.get("num_labels"):
        settings["labels"] = tuple(f"LABEL_{i}" for i in range(plain["num_labels"]))
    return BertConfig(**settings)


def read_bert_folder(
    folder: str | Path,
    kind: str,
    labels: tuple[str, ...],
    generator: Generator | None,
    layers: int | None = None,
) -> tuple[BertConfig, dict[str, Tensor], str]:
    """Return the config, the parameters as float32, and one line about names that were missing or not used.

    A classifier is kept if it has as many outputs as there are labels and its labels are unnamed or the same.
    `layers` keeps that many layers, the first ones; what stands above them does not count as not used.

    Raises: ValueError if a part of the body is missing or a shape does not fit; FileNotFoundError
    """
    check_kind("Bert.from_folder", kind)
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"Bert.from_folder: folder must hold config.json; got {str(folder)!r}")
    stored = bert_config_from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    config = replace(
        stored, labels=labels or stored.labels, num_hidden_layers=layers or stored.num_hidden_layers
    )
    found = _renamed(_read_tensors(folder), kind)
    above = [f"encoder.layer.{i}." for i in range(config.num_hidden_layers, stored.num_hidden_layers)]
    found = {name: tensor for name, tensor in found.items() if not any(cut in name for cut in above)}
    # A head of other classes with as many outputs would load, and mean something else.
    if config.labels != stored.labels and not all(name.startswith("LABEL_") for name in stored.labels):
        found = {name: tensor for name, tensor in found.items() if not name.startswith("classifier.")}
    params = init_bert(config, kind, generator)
    missing = []
    for name, fresh in params.items():
        resized_head = name.startswith("classifier.") and name in found and found[name].shape != fresh.shape
        if name not in found or resized_head:
            missing.append(name)
        elif found[name].shape != fresh.shape:
            raise ValueError(
                f"Bert.from_folder: {name} of {folder} must have shape {tuple(fresh.shape)} by its "
                f"config.json; got {tuple(found[name].shape)!r}"
            )
        else:
            # Half-precision weights would lose the small updates of training.
            params[name] = found[name].float()
    body_missing = [name for name in missing if ".embeddings." in f".{name}" or ".encoder." in f".{name}"]
    if body_missing:
        raise ValueError(
            f"Bert.from_folder: {folder} must hold every parameter of the body; {len(body_missing)} are "
            f"missing: {_some(body_missing)}"
        )
    return config, params, _report(folder, missing, [name for name in found if name not in params])


def _report(folder, missing, unused):
    parts = [
        f"{len(names)} {what}: {_some(names)}"
        for names, what in ((missing, "drawn anew"), (unused, "of the file not used"))
        if names
    ]
    line = f"{folder.name}: {'; '.join(parts)}" if parts else ""
    if line:
        LOGGER.warning(line)
    return line


def _some(names):
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if (folder / "model.safetensors").is_file():
        return load_file(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return {
            # The file's name alone: an index must not lead out of the folder.
            name: tensor
            for file in files
            for name, tensor in load_file(folder / Path(file).name).items()
        }
    if (folder / "pytorch_model.bin").is_file():
        # A pickle can hold code; weights_only refuses to run any.
        return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    raise FileNotFoundError(
        f"Bert.from_folder: {folder} must hold model.safetensors; it has "
        f"{sorted(path.name for path in folder.iterdir())}"
    )


def _renamed(found: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Give today's names, with the prefix "bert." where the kind asks; drop buffers and tied copies."""
    renamed = {}
    for name, tensor in found.items():
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new)
        name = name.removeprefix("bert.") if kind == "base" else name
        if kind != "base" and name.startswith(BODY):
            name = f"bert.{name}"
        renamed[name] = tensor
    decoder = renamed.pop("cls.predictions.decoder.weight", None)
    words = renamed.get("bert.embeddings.word_embeddings.weight")
    if decoder is not None and words is not None and not torch.equal(decoder, words):
        raise ValueError(
            "Bert.from_folder: cls.predictions.decoder.weight must be the word embedding (tied); "
            "this checkpoint has a matrix of its own"
        )
    bias = renamed.pop("cls.predictions.decoder.bias", None)
    if bias is not None:
        renamed.setdefault("cls.predictions.bias", bias)
    return {name: tensor for name, tensor in renamed.items() if not name.endswith("embeddings.position_ids")}


def write_bert_folder(
    folder: str | Path,
    config: BertConfig,
    kind: str,
    tensors: Mapping[str, Tensor],
    problem_type: str | None = None,
) -> None:
    """Write config.json and model.safetensors with transformers' names and metadata."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plain = asdict(config)
    del plain["labels"]  # transformers' id2label, and only for a kind with a classifier
    dtype = next(iter(tensors.values())).dtype
    plain |= {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": "bert",
        "dtype": str(dtype).removeprefix("torch."),
    }
    if kind in ("classes", "tags"):
        plain |= {
            "id2label": {str(i): name for i, name in enumerate(config.labels)},
            "label2id": {name: i for i, name in enumerate(config.labels)},
            "problem_type": problem_type,
        }
    (folder / "config.json").write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # Copies: safetensors refuses tensors that share memory.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
