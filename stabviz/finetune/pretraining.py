"""`stabviz pretrain`: a small BERT from nothing but text: masked language model and next-sentence prediction."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput

from stabviz.finetune.masking import IGNORED
from stabviz.finetune.objectives import model_inputs
from stabviz.finetune.world import bare
from stabviz.ops import cross_entropy


class MaskedBert(BertForPreTraining):
    """transformers' BertForPreTraining that can compute the vocabulary's logits at the predicted pieces alone.

    Same weights, same names; with 15 % of the pieces predicted the head costs 15 % of its time and memory.

    Shapes: predicted_BL (B, L) bool with N True -> prediction_logits (N, V), in reading order; None: (B, L, V)
    Lesson: 09-pretraining
    """

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, predicted_BL=None):
        output = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids,
                           position_ids=position_ids)
        hidden = output.last_hidden_state if predicted_BL is None else output.last_hidden_state[predicted_BL]
        pieces, follows_BC = self.cls(hidden, output.pooler_output)
        return BertForPreTrainingOutput(prediction_logits=pieces, seq_relationship_logits=follows_BC)


def masked_lm_objective(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the masked language model's loss plus next-sentence prediction's, each a mean over its own targets.

    Rows without a second sentence (next_sentence_label -100) teach the language model alone; a batch without any pair
    adds 0.

    Shapes: batch labels (B, L) and next_sentence_label (B,), -100 where nothing is asked -> loss (), measured
    Units:  nats, the sum of the two; "accuracy" over the predicted pieces
    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.2: the sum of the two mean likelihoods
    Lesson: 09-pretraining
    """
    predicted_BL = batch["labels"] != IGNORED
    at = {"predicted_BL": predicted_BL} if isinstance(bare(model), MaskedBert) else {}
    output = model(**model_inputs(batch), **at)
    logits = output.prediction_logits
    logits_NV = (logits if logits.ndim == 2 else logits[predicted_BL]).float()
    targets_N = batch["labels"][predicted_BL]
    pieces, seen = cross_entropy(logits_NV, targets_N)
    follows, asked = cross_entropy(output.seq_relationship_logits.float(), batch["next_sentence_label"])
    follows = torch.where(asked.kept > 0, follows, 0.0)
    with torch.no_grad():
        right = (logits_NV.argmax(dim=-1) == targets_N).float().mean()
        told = (output.seq_relationship_logits.argmax(dim=-1) == batch["next_sentence_label"]).sum() / asked.kept
    measured = {"log_z": seen.log_z, "accuracy": right, "masked_lm_loss_nats": pieces.detach(),
                "next_sentence_loss_nats": follows.detach(), "next_sentence_accuracy": told}
    return pieces + follows, measured


def small_bert(vocab_size: int, *, width: int, layers: int, heads: int, max_length: int, dropout: float,
               pad_id: int) -> BertConfig:
    """Return the shape of a BERT whose feed-forward layers are four times as wide as the model."""
    return BertConfig(vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                      intermediate_size=4 * width, max_position_embeddings=max_length, pad_token_id=pad_id,
                      hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
