"""The BERT that pretraining draws: its shape, and how its positions start."""

import torch
from transformers import BertConfig, BertForPreTraining

from stabviz.finetune.pretrain.config import PretrainConfig


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
def start_with_sinusoids(model: BertForPreTraining) -> None:
    """Start the learned position embeddings as sines and cosines of the size that random ones would have.

    One projection then finds a neighbour at every position, where random embeddings need to learn it for
    each.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5; deviation: scaled, and trained from there on
    """
    table_LD = model.bert.embeddings.position_embeddings.weight
    L, D = table_LD.shape
    angle_LD = torch.arange(L)[:, None] / 10_000 ** (torch.arange(0, D, 2) / D)
    waves_LD = torch.stack([angle_LD.sin(), angle_LD.cos()], dim=-1).flatten(1)[:, :D]
    # the root mean square of a wave is 1/sqrt(2)
    table_LD.copy_(waves_LD * 2**0.5 * model.config.initializer_range)
