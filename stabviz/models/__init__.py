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
from stabviz.models.mlp import MlpConfig, init_mlp, mlp_outputs
from stabviz.models.recurrent import RecurrentConfig, init_recurrent, recurrent_logits
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
    "MlpConfig",
    "RecurrentConfig",
    "TransformerConfig",
    "bert_outputs",
    "init_bert",
    "init_mlp",
    "init_recurrent",
    "init_transformer",
    "mlp_outputs",
    "recurrent_logits",
    "transformer_block",
    "transformer_logits",
]
