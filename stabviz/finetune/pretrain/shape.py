"""The BERT that pretraining draws: its shape, and how its positions start."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from stabviz.finetune.pretrain.config import PretrainConfig
from stabviz.models.transformer import sinusoids


def small_bert(vocab_size: int, config: PretrainConfig, *, dropout: float) -> BertConfig:
    """Return the model's shape in transformers' terms; feed-forward layers are four times the width."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=config.shape.width,
        num_hidden_layers=config.shape.layers,
        num_attention_heads=config.shape.heads,
        intermediate_size=4 * config.shape.width,
        max_position_embeddings=config.text.max_length,
        pad_token_id=0,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


@torch.no_grad()
def start_with_sinusoids(model: BertForPreTraining | BertForMaskedLM) -> None:
    """Start the learned position embeddings as sines and cosines of the size that random ones would have.

    One projection then finds a neighbour at every position, where random embeddings need to learn it for
    each.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5; deviation: scaled, and trained from there on
    """
    table_LD = model.bert.embeddings.position_embeddings.weight
    table_LD.copy_(sinusoids(*table_LD.shape) * model.config.initializer_range)


def with_small_embeddings(weights: Mapping[str, Tensor], std: float) -> dict[str, Tensor]:
    """Return weights that compute the same with word embeddings of standard deviation `std`, as at the start.

    Pretraining makes the embeddings several times larger. A layer norm follows them, so that their size means
    nothing, but Adam's steps have a fixed length: large embeddings hardly move in fine-tuning. The vocabulary
    head shares them, and its layer norm takes up the factor.
    """
    factor = std / float(weights["bert.embeddings.word_embeddings.weight"].std())
    up, down = "cls.predictions.transform.LayerNorm.", "bert.embeddings."
    tables = {f"{down}{kind}_embeddings.weight" for kind in ("word", "position", "token_type")}
    tables.add("cls.predictions.decoder.weight")  # present where the tied weight is listed twice
    scale = dict.fromkeys(tables, factor) | {f"{up}weight": 1 / factor, f"{up}bias": 1 / factor}
    return {name: tensor * scale[name] if name in scale else tensor for name, tensor in weights.items()}
