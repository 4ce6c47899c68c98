"""Models and tokenizers by name: the shipped checkpoint, a local folder, or a Hugging Face model id."""

from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from stabviz.finetune.config import SHIPPED_MODEL, FinetuneConfig
from stabviz.finetune.published import minilm_folder
from stabviz.models.bert import Bert

_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
)
_CLASSES = {"classes": AutoModelForSequenceClassification, "tags": AutoModelForTokenClassification}


def resolve(model: str) -> str:
    """Return the folder of a model that is here, or the id under which the hub has it.

    Raises: ValueError if it looks like a folder and is none
    """
    if model == "stabviz-mini":
        if not SHIPPED_MODEL.is_dir():
            raise ValueError(
                f"finetune: model must be there; got 'stabviz-mini', and {SHIPPED_MODEL} is missing. "
                "It comes with a clone of the project, not with the package alone"
            )
        return str(SHIPPED_MODEL)
    if model == "minilm":
        return str(minilm_folder())
    if Path(model).is_dir():
        return str(Path(model))
    if model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1:
        raise ValueError(
            "finetune: model must be a folder that exists, or a model id like bert-base-uncased; "
            f"got {model!r}"
        )
    return model


def load_tokenizer(model: str, kind: str = "classes"):
    """Load the tokenizer of a model; one without a padding token pads with its end token.

    For "tags" a tokenizer of bytes (RoBERTa, GPT-2) is told that each word stands after a space.
    """
    name = resolve(model)
    tokenizer = _from(AutoTokenizer, name, model)
    if kind == "tags" and "ByteLevel" in str(getattr(tokenizer.backend_tokenizer, "pre_tokenizer", "")):
        tokenizer = _from(AutoTokenizer, name, model, add_prefix_space=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_model(config: FinetuneConfig, kind: str, labels: tuple[str, ...], tokenizer) -> nn.Module:
    """Load a model with a fresh head for these labels, weights in float32; the head is drawn by the run's
    seed.

    Raises: ValueError in one line if there is no such model, or implementation="stabviz" and it is no BERT
    Lesson: 11-classification
    """
    transformers.utils.logging.set_verbosity_error()  # its report on a fresh head, which is what is asked for
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(config.seed)
    name = resolve(config.model)
    if config.implementation == "stabviz":
        return _ours(config, kind, labels, name)
    structure = _from(AutoConfig, name, config.model)
    structure.num_labels = len(labels)
    structure.id2label = dict(enumerate(labels))
    structure.label2id = {label: i for i, label in enumerate(labels)}
    structure.pad_token_id = (
        tokenizer.pad_token_id if structure.pad_token_id is None else structure.pad_token_id
    )
    if config.dropout is not None:
        for field in _DROPOUTS:
            if isinstance(getattr(structure, field, None), float) or field == "classifier_dropout":
                setattr(structure, field, config.dropout)
    family = _CLASSES[kind]
    if config.from_scratch:
        model = family.from_config(structure, dtype=torch.float32)
    else:
        model = _from(
            family, name, config.model, config=structure, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    if config.max_length > (
        longest := getattr(structure, "max_position_embeddings", None) or config.max_length
    ):
        raise ValueError(
            f"finetune: max_length must be at most {longest}, the positions that {config.model} has; "
            f"got {config.max_length}"
        )
    if config.activation_checkpointing:  # renamed in transformers 5
        enable = (
            getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
    return model


def _ours(config: FinetuneConfig, kind: str, labels: tuple[str, ...], name: str) -> nn.Module:
    if not Path(name).is_dir():
        raise ValueError(
            f"finetune: model must be a folder on this machine for implementation 'stabviz'; got {name!r}"
        )
    options = {
        "kind": kind,
        "labels": labels,
        "dropout": config.dropout,
        "generator": torch.Generator().manual_seed(config.seed),
    }
    if config.from_scratch:
        model = Bert.from_config(_from(AutoConfig, name, config.model), **options)
    else:
        model = Bert.from_folder(name, **options)
    model.checkpointing = config.activation_checkpointing
    return model


def _from(family, name: str, asked: str, **options):
    try:
        return family.from_pretrained(name, **options)
    except (OSError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"finetune: model must be one that {family.__name__} can load; got {asked!r} ({first})"
        ) from error
    except ValueError as error:
        raise ValueError(f"finetune: model {asked!r}: {str(error).strip().splitlines()[0]}") from error
