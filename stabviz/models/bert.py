"""BERT on `ops`: pure functions of a parameter dict. `bert_module.Bert` is the module that holds one.

    config = BertConfig(vocab_size=1000, hidden_size=64, num_attention_heads=4, intermediate_size=256)
    params = init_bert(config, "base")                                          {name: Tensor}
    output = bert_outputs(params, input_ids_BL, config=config, kind="base")

Parameters and settings have the names that transformers gives them, so that a checkpoint folder of either is
one of the other. Post-LN, as in 2018: each layer norm stands on the sum of the stream and a branch.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from stabviz.models.sizes import check_sizes
from stabviz.models.transformer import part
from stabviz.ops import embedding, feed_forward, gelu, layer_norm, linear, multi_head_attention, relu

ARCHITECTURES = {
    "base": "BertModel",
    "classes": "BertForSequenceClassification",
    "tags": "BertForTokenClassification",
    "pretraining": "BertForPreTraining",
    "masked_lm": "BertForMaskedLM",
}
"""Our kinds of BERT, each with transformers' name for it."""
POOLED = ("base", "classes", "pretraining")
ACTIVATIONS = {"gelu": gelu, "gelu_python": gelu, "relu": relu}


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """The structure of a BERT; names and defaults are those of transformers' config.json."""

    vocab_size: int = 30522
    """Number of token ids, V."""
    hidden_size: int = 768
    """Width of the residual stream, D."""
    num_hidden_layers: int = 12
    """Number of layers."""
    num_attention_heads: int = 12
    """Attention heads, H."""
    intermediate_size: int = 3072
    """Feed-forward width, F."""
    max_position_embeddings: int = 512
    """Longest sequence."""
    type_vocab_size: int = 2
    """Number of token types: first and second sentence."""
    hidden_act: str = "gelu"
    """"gelu" (the exact one) or "relu"."""
    hidden_dropout_prob: float = 0.1
    """Share of the hidden states dropped in training, after the embeddings and at the end of each branch."""
    attention_probs_dropout_prob: float = 0.1
    """Share of the attention weights dropped in training."""
    classifier_dropout: float | None = None
    """Share dropped before the classifier; None: as hidden_dropout_prob."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    layer_norm_eps: float = 1e-12
    """Epsilon inside the root of the layer norms."""
    pad_token_id: int | None = 0
    """The token whose embedding is 0 at first and takes no gradient where it is looked up; None: no such
    token."""
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    """Names of the classes or tags, for the kinds that have them; id = position."""

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        check_sizes(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"BertConfig: hidden_size must be a multiple of num_attention_heads = "
                f"{self.num_attention_heads}; got {self.hidden_size!r}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"BertConfig: hidden_act must be one of {tuple(ACTIVATIONS)}; got {self.hidden_act!r}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if not (name == "classifier_dropout" and value is None) and not 0 <= value < 1:
                raise ValueError(f"BertConfig: {name} must be in [0, 1); got {value!r}")

    def with_dropout(self, share: float | None) -> "BertConfig":
        """Return a copy with this share in all three places; None: as it is."""
        if share is None:
            return self
        return dataclasses.replace(
            self, hidden_dropout_prob=share, attention_probs_dropout_prob=share, classifier_dropout=share
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BertOutput:
    """What a BERT says, and what was measured on the way."""

    logits: Tensor | None
    """(B, C) for classes, (B, L, C) for tags, over the vocabulary (B, L, V) or (N, V) for the pretraining
    kinds."""
    hidden: Tensor
    """The last hidden states. (B, L, D)"""
    pooled: Tensor | None
    """tanh of a linear map of the first position; None for kinds without a pooler. (B, D)"""
    next_sentence_logits: Tensor | None = None
    """[follows, does not follow]; for kind "pretraining" only. (B, 2)"""
    measured: dict[str, Tensor] = field(default_factory=dict)
    """"max_attention_logit" and "attention_entropy" (nats), where it was asked; padding's queries count."""


def check_kind(function: str, kind: str) -> None:
    """Raise a ValueError in the name of `function` if there is no such kind of BERT."""
    if kind not in ARCHITECTURES:
        raise ValueError(f"{function}: kind must be one of {tuple(ARCHITECTURES)}; got {kind!r}")


def init_bert(
    config: BertConfig, kind: str = "base", generator: Generator | None = None
) -> dict[str, Tensor]:
    """Draw one BERT's parameters: weights normal, biases 0, layer norms at identity, padding's embedding 0.

    A kind with a vocabulary head has no matrix for it: it is the word embedding ("tied").

    Shapes: -> {transformers' name: float32 tensor}; linear weights (out, in)
    Raises: ValueError if there is no such kind
    Source: Devlin et al. 2019, arXiv:1810.04805; standard deviation initializer_range everywhere, as in its
            code
    """
    check_kind("init_bert", kind)
    D, V, prefix = config.hidden_size, config.vocab_size, "" if kind == "base" else "bert."
    params: dict[str, Tensor] = {}

    def draw(name, *shape):
        params[f"{name}.weight"] = torch.randn(*shape, generator=generator) * config.initializer_range

    def add_linear(name, out, inputs):
        draw(name, out, inputs)
        params[f"{name}.bias"] = torch.zeros(out)

    def add_norm(name):
        params[f"{name}.weight"], params[f"{name}.bias"] = torch.ones(D), torch.zeros(D)

    draw(f"{prefix}embeddings.word_embeddings", V, D)
    if config.pad_token_id is not None:
        # After the draw: the other weights of a seed do not depend on which token pads.
        params[f"{prefix}embeddings.word_embeddings.weight"][config.pad_token_id] = 0.0
    draw(f"{prefix}embeddings.position_embeddings", config.max_position_embeddings, D)
    draw(f"{prefix}embeddings.token_type_embeddings", config.type_vocab_size, D)
    add_norm(f"{prefix}embeddings.LayerNorm")
    for layer in range(config.num_hidden_layers):
        at = f"{prefix}encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            add_linear(f"{at}.attention.{name}", D, D)
        add_norm(f"{at}.attention.output.LayerNorm")
        add_linear(f"{at}.intermediate.dense", config.intermediate_size, D)
        add_linear(f"{at}.output.dense", D, config.intermediate_size)
        add_norm(f"{at}.output.LayerNorm")
    if kind in POOLED:
        add_linear(f"{prefix}pooler.dense", D, D)
    if kind in ("classes", "tags"):
        add_linear("classifier", len(config.labels), D)
    if kind in ("pretraining", "masked_lm"):
        params["cls.predictions.bias"] = torch.zeros(V)
        add_linear("cls.predictions.transform.dense", D, D)
        add_norm("cls.predictions.transform.LayerNorm")
    if kind == "pretraining":
        add_linear("cls.seq_relationship", 2, D)
    return params


def _norm(params, name, x, config):
    weight = params[f"{name}.weight"]  # float32 under autocast too, and so is the stream
    return layer_norm(x.to(weight.dtype), weight, params[f"{name}.bias"], eps=config.layer_norm_eps)


def bert_embeddings(
    params: Mapping[str, Tensor],
    input_ids_BL: Tensor,
    config: BertConfig,
    *,
    token_type_ids_BL: Tensor | None = None,
    position_ids_BL: Tensor | None = None,
    training: bool = False,
) -> Tensor:
    """Sum the embeddings of word, type and position, normalise, drop out.

    Shapes: params "word_embeddings.weight" (V, D), ...; input_ids_BL (B, L) -> (B, L, D)
    Raises: ValueError if L > max_position_embeddings; torch's own IndexError for an id that is not there
    Source: Devlin et al. 2019, arXiv:1810.04805, Figure 2
    """
    L = input_ids_BL.shape[1]
    if L > config.max_position_embeddings:
        raise ValueError(
            f"bert_embeddings: input_ids_BL must be at most max_position_embeddings = "
            f"{config.max_position_embeddings} long; got {L!r}. Truncate the texts."
        )
    words_BLD = embedding(params["word_embeddings.weight"], input_ids_BL)
    if config.pad_token_id is not None:  # padding's row takes no gradient here, as nn.Embedding's padding_idx
        words_BLD = torch.where(
            (input_ids_BL == config.pad_token_id)[..., None], words_BLD.detach(), words_BLD
        )
    types, places = params["token_type_embeddings.weight"], params["position_embeddings.weight"]
    stream_BLD = words_BLD + (types[0] if token_type_ids_BL is None else embedding(types, token_type_ids_BL))
    stream_BLD = stream_BLD + (places[:L] if position_ids_BL is None else embedding(places, position_ids_BL))
    return F.dropout(_norm(params, "LayerNorm", stream_BLD, config), config.hidden_dropout_prob, training)


def bert_layer(
    params: Mapping[str, Tensor],
    stream_BLD: Tensor,
    mask: Tensor | None,
    config: BertConfig,
    *,
    training: bool = False,
    measure: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run one layer: attention and feed-forward, each added to the stream and normalised after (post-LN).

    Shapes: params "attention.self.query.weight" (D, D), ...; stream_BLD (B, L, D), mask bool broadcastable to
            (B, H, L, L), True = may attend -> stream_BLD, largest |logit| by head (H,), mean entropy by head
            (H,)
    Units:  entropy in nats
    Source: Devlin et al. 2019, arXiv:1810.04805; Vaswani et al. 2017, arXiv:1706.03762, sections 3.1 to 3.3
    """
    attention = part(params, "attention.self")
    attention |= {f"output.{kind}": params[f"attention.output.dense.{kind}"] for kind in ("weight", "bias")}
    wide = {f"up.{kind}": params[f"intermediate.dense.{kind}"] for kind in ("weight", "bias")}
    wide |= {f"down.{kind}": params[f"output.dense.{kind}"] for kind in ("weight", "bias")}

    kept_BHLM = None
    if training and config.attention_probs_dropout_prob > 0:
        B, L, _ = stream_BLD.shape
        # Drawn here and handed over as factors: ops hold no randomness of their own.
        ones = stream_BLD.new_ones(B, config.num_attention_heads, L, L)
        kept_BHLM = F.dropout(ones, config.attention_probs_dropout_prob)
    attended, seen = multi_head_attention(
        attention,
        stream_BLD,
        heads=config.num_attention_heads,
        mask=mask,
        weight_scale=kept_BHLM,
        measure=measure,
    )
    attended = F.dropout(attended, config.hidden_dropout_prob, training)
    stream_BLD = _norm(params, "attention.output.LayerNorm", stream_BLD + attended, config)
    fed = feed_forward(wide, stream_BLD, ACTIVATIONS[config.hidden_act])
    fed = F.dropout(fed, config.hidden_dropout_prob, training)
    return _norm(params, "output.LayerNorm", stream_BLD + fed, config), seen.max_logit_H, seen.entropy_H


def bert_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Turn transformers' attention mask into ours: bool, True = may attend.

    Shapes: (B, M) with 1 at real tokens, or (B, 1 or H, L, M) bool, 1 and 0, or float with 0 and -inf (or
            nearly) -> bool broadcastable to (B, H, L, M), or None
    Raises: ValueError for another number of axes, or a float mask with values between
    """
    if attention_mask is None:
        return None
    if attention_mask.ndim == 2:
        return (attention_mask != 0)[:, None, None, :]
    if attention_mask.ndim != 4:
        raise ValueError(
            "bert_mask: attention_mask must be (B, M), or (B, 1, L, M) for each pair; "
            f"got shape {tuple(attention_mask.shape)!r}"
        )
    if not attention_mask.is_floating_point():
        return attention_mask != 0
    # "Nearly" -inf: the code of 2018 added -1e4, transformers adds the least number of the dtype.
    if bool(((attention_mask != 0) & (attention_mask > -1e4)).any()):
        raise ValueError(
            "bert_mask: a float attention_mask of 4 axes must hold 0 (may attend) and -inf (may not); "
            "got values between. Pass bool."
        )
    return attention_mask == 0


def bert_outputs(
    params: Mapping[str, Tensor],
    input_ids_BL: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    config: BertConfig,
    kind: str,
    training: bool = False,
    measure: bool = False,
    predict_at: Tensor | None = None,
    layers: Sequence[Callable] | None = None,
) -> BertOutput:
    """Run a BERT with its head; dropout, if `training`, comes from torch's default generator.

    `predict_at` names the positions whose word a vocabulary head is asked for: logits (N, V) of these alone,
    which saves most of the work of a masked language model. `layers` replaces the functions (stream, mask) ->
    (stream, largest logits, entropies) that are made from params by default.

    Shapes: input_ids_BL (B, L), attention_mask as in bert_mask, the other ids (B, L), predict_at (B, L) bool
    Raises: ValueError as bert_embeddings and bert_mask, or if there is no such kind
    Source: Devlin et al. 2019, arXiv:1810.04805
    Lesson: 07-transformer
    """
    check_kind("bert_outputs", kind)
    body = params if kind == "base" else part(params, "bert")
    if layers is None:
        one = partial(bert_layer, config=config, training=training, measure=measure)
        layers = [partial(one, part(body, f"encoder.layer.{i}")) for i in range(config.num_hidden_layers)]
    hidden_BLD = bert_embeddings(
        part(body, "embeddings"),
        input_ids_BL,
        config,
        token_type_ids_BL=token_type_ids,
        position_ids_BL=position_ids,
        training=training,
    )
    mask, largest, entropies = bert_mask(attention_mask), [], []
    for layer in layers:
        hidden_BLD, max_logit_H, entropy_H = layer(hidden_BLD, mask)
        largest.append(max_logit_H)
        entropies.append(entropy_H)
    pooled_BD = None
    if kind in POOLED:
        pooled_BD = torch.tanh(
            linear(hidden_BLD[:, 0], body["pooler.dense.weight"], body["pooler.dense.bias"])
        )
    logits, next_sentence = _head(params, body, hidden_BLD, pooled_BD, config, kind, training, predict_at)
    measured = {}
    if measure:
        measured["max_attention_logit"] = torch.stack(largest).amax()
        measured["attention_entropy"] = torch.stack(entropies).mean()
    return BertOutput(
        logits=logits,
        hidden=hidden_BLD,
        pooled=pooled_BD,
        next_sentence_logits=next_sentence,
        measured=measured,
    )


def _head(params, body, hidden_BLD, pooled_BD, config, kind, training, predict_at):
    if kind == "base":
        return None, None
    if kind in ("classes", "tags"):
        share = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        features = F.dropout(pooled_BD if kind == "classes" else hidden_BLD, share, training)
        return linear(features, params["classifier.weight"], params["classifier.bias"]), None
    # Before the head: its product with the vocabulary costs more than all else of a small model.
    features = hidden_BLD if predict_at is None else hidden_BLD[predict_at]
    at = "cls.predictions.transform"
    features = linear(features, params[f"{at}.dense.weight"], params[f"{at}.dense.bias"])
    features = _norm(params, f"{at}.LayerNorm", ACTIVATIONS[config.hidden_act](features), config)
    # Tied: the word embedding gets a gradient from both ends of the model.
    logits = linear(features, body["embeddings.word_embeddings.weight"], params["cls.predictions.bias"])
    if kind == "masked_lm":
        return logits, None
    at = "cls.seq_relationship"
    return logits, linear(pooled_BD, params[f"{at}.weight"], params[f"{at}.bias"])
