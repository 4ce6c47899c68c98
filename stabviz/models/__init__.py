"""From scratch on `ops`: models as pure functions of a parameter dict, for ONE model. Imports ops only.

    params = init_transformer(config, generator)                       {name: Tensor}
    logits_BLV, measured = transformer_logits(params, tokens_BL, config)

Names order the parameters by depth: everything before the first "." is the layer ("embedding", "block0",
"head").

`Bert` holds such a dict under transformers' names and reads and writes its checkpoint folders. `pretrained`
finds any checkpoint by name; it needs transformers, and is imported by itself.
"""

from stabviz.models.bert import BertConfig, BertOutput, bert_outputs, init_bert
from stabviz.models.bert_module import Bert
from stabviz.models.lstm import LstmConfig, init_lstm, lstm_logits
from stabviz.models.mlp import MlpConfig, init_mlp, mlp_outputs
from stabviz.models.rnn import RnnConfig, init_rnn, rnn_logits
from stabviz.models.transformer import (
    TransformerConfig,
    init_transformer,
    transformer_block,
    transformer_logits,
)

__all__ = [
    "Bert",
    "BertConfig",
    "BertOutput",
    "LstmConfig",
    "MlpConfig",
    "RnnConfig",
    "TransformerConfig",
    "bert_outputs",
    "init_bert",
    "init_lstm",
    "init_mlp",
    "init_rnn",
    "init_transformer",
    "lstm_logits",
    "mlp_outputs",
    "rnn_logits",
    "transformer_block",
    "transformer_logits",
]
