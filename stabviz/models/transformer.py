"""A transformer, decoder (causal) or encoder: token ids in, logits over the vocabulary out."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stabviz.models.sizes import check_sizes
from stabviz.ops import (
    AttentionMeasures,
    embedding,
    feed_forward,
    gelu,
    layer_norm,
    linear,
    multi_head_attention,
    relu,
    scaled_dot_product_attention,
)

PLACEMENTS = ("pre", "post", "deepnorm")
INIT_GROUPS = ("all", "branches", "writers", "ends")
"""Which first weights init_scale multiplies: all; those inside blocks; the two of each block that write to
the stream; or the embeddings and the head."""
_WRITERS = ("attention.output.weight", "feed_forward.down.weight")
ACTIVATIONS = {"gelu": gelu, "relu": relu}


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """The structure of a transformer. Two transformers of one structure have parameters of equal shapes."""

    vocab_size: int
    """Number of token ids, V."""
    width: int = 32
    """Width of the residual stream, D."""
    layers: int = 2
    """Number of blocks."""
    heads: int = 4
    """Attention heads, H; the head width is width / heads."""
    context: int = 32
    """Longest sequence, L: there is one learned position vector for each place."""
    feed_forward_multiple: int = 4
    """Feed-forward width over width, F / D."""
    norm: str = "pre"
    """Layer norm "pre": inside the branch, before it; "post": on the sum, after it, as in 2017; "deepnorm":
    the same on alpha stream + branch."""
    activation: str = "gelu"
    """"gelu" or "relu"."""
    qk_norm: bool = False
    """Normalise queries and keys per head (RMS norm with a learned gain)."""
    causal: bool = True
    """True: a decoder, a position sees itself and what stands before it. False: an encoder."""
    bias: bool = False
    """Bias vectors in the linear maps; layer norms have theirs always."""

    def __post_init__(self):
        check_sizes(self)
        if self.width % self.heads:
            raise ValueError(
                f"TransformerConfig: width must be a multiple of heads = {self.heads}; got {self.width!r}"
            )
        if self.norm not in PLACEMENTS:
            raise ValueError(f"TransformerConfig: norm must be one of {PLACEMENTS}; got {self.norm!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"TransformerConfig: activation must be one of {tuple(ACTIVATIONS)}; got {self.activation!r}"
            )


def sinusoids(length: int, width: int) -> Tensor:
    """Return sines and cosines of the positions, with a mean square of 1 as random embeddings have.

    Shapes: -> (length, width)
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5; deviation: sine and cosine of a frequency
            stand side by side, times sqrt(2)

    >>> sinusoids(2, 2)[0]
    tensor([0.0000, 1.4142])
    """
    angle_LD = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return 2**0.5 * torch.stack([angle_LD.sin(), angle_LD.cos()], dim=-1).flatten(1)[:, :width]


def init_transformer(
    config: TransformerConfig, generator: Generator, init_scale: float = 1.0, init_scale_of: str = "all"
) -> dict[str, Tensor]:
    """Draw the parameters of one transformer: weights normal, layer norms at identity, biases at zero.

    Linear weights have standard deviation init_scale / sqrt(inputs); the two that write to the residual
    stream are divided by sqrt(2 layers) more in a pre-LN transformer, whose stream is a sum of that many
    branches. With DeepNorm value, output, up and down are multiplied by (8 layers)^(-1/4). `init_scale_of`
    says which weights init_scale reaches, one of INIT_GROUPS; the numbers drawn stay the same.

    Shapes: -> {name: float32 tensor}; linear weights (out, in)
    Raises: ValueError if init_scale <= 0, or for an unknown init_scale_of
    Source: the division by sqrt(2 layers): Radford et al. 2019 (GPT-2), section 2.3, as 1/sqrt(N) for N
            residual layers; DeepNorm: Wang et al. 2022, arXiv:2203.00555, for a decoder or encoder alone
    Lesson: 07-transformer
    """
    if not init_scale > 0:
        raise ValueError(f"init_transformer: init_scale must be > 0; got {init_scale!r}")
    if init_scale_of not in INIT_GROUPS:
        raise ValueError(
            f"init_transformer: init_scale_of must be one of {INIT_GROUPS}; got {init_scale_of!r}"
        )
    D, F, V = config.width, config.width * config.feed_forward_multiple, config.vocab_size
    beta = (8 * config.layers) ** -0.25 if config.norm == "deepnorm" else 1.0
    written = 1 / math.sqrt(2 * config.layers) if config.norm == "pre" else beta
    params: dict[str, Tensor] = {}

    def reached(name):
        inside = name.startswith("block")
        return {
            "all": True,
            "branches": inside,
            "writers": inside and name.endswith(_WRITERS),
            "ends": not inside,
        }[init_scale_of]

    def draw(name, *shape, scale=1.0):
        params[name] = torch.randn(*shape, generator=generator) * scale * (init_scale if reached(name) else 1)

    def draw_linear(name, out, inputs, scale=1.0):
        draw(f"{name}.weight", out, inputs, scale=scale / math.sqrt(inputs))
        if config.bias:
            params[f"{name}.bias"] = torch.zeros(out)

    def add_norm(name, width):
        params[f"{name}.weight"], params[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    draw("embedding.token", V, D)
    draw("embedding.position", config.context, D, scale=0.1)
    for block in range(config.layers):
        at = f"block{block}"
        add_norm(f"{at}.attention_norm", D)
        for name in ("query", "key", "value"):
            draw_linear(f"{at}.attention.{name}", D, D, beta if name == "value" else 1.0)
        if config.qk_norm:
            for name in ("query_norm", "key_norm"):
                params[f"{at}.attention.{name}.weight"] = torch.ones(D // config.heads)
        draw_linear(f"{at}.attention.output", D, D, written)
        add_norm(f"{at}.feed_forward_norm", D)
        draw_linear(f"{at}.feed_forward.up", F, D, beta)
        draw_linear(f"{at}.feed_forward.down", D, F, written)
    if config.norm == "pre":
        add_norm("head.norm", D)
    draw_linear("head", V, D)
    return params


def part(params: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the parameters under `prefix.`, their names without it.

    >>> list(part({"block0.up.weight": torch.ones(1), "head.weight": torch.ones(1)}, "block0"))
    ['up.weight']
    """
    return {
        name[len(prefix) + 1 :]: tensor for name, tensor in params.items() if name.startswith(prefix + ".")
    }


def transformer_logits(
    params: Mapping[str, Tensor],
    tokens_BL: Tensor,
    config: TransformerConfig,
    *,
    mask: Tensor | None = None,
    softcap: float | Tensor | None = None,
    measure: bool = True,
    attend: Callable = scaled_dot_product_attention,
    block: Callable | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the transformer on token ids; measure the largest attention logit and the mean attention entropy.

    Another `attend` is called as `scaled_dot_product_attention` is; it may return None for the measures.
    Another `block`, called as block(params of one block, stream_BLD) -> stream_BLD, takes the place of ours,
    mask, soft-cap and measures with it.

    Shapes: tokens_BL (B, L) integer, L <= context; mask bool broadcastable to (B, H, L, L), True = may attend
            -> logits_BLV (B, L, V), {"max_attention_logit": (), "attention_entropy": (),
            "max_logit_by_head": (layers, H)}, or {} if not measure
    Units:  attention_entropy in nats
    Raises: ValueError if L > context
    Source: Vaswani et al. 2017, arXiv:1706.03762, with learned positions; pre-LN: Xiong et al. 2020,
            arXiv:2002.04745
    Lesson: 07-transformer
    """
    L = tokens_BL.shape[-1]
    if L > config.context:
        raise ValueError(
            f"transformer_logits: tokens_BL must be at most context = {config.context} long; got {L!r}"
        )
    stream_BLD = embedding(params["embedding.token"], tokens_BL) + params["embedding.position"][:L]
    seen_by_block: list = []
    for index in range(config.layers):
        mine = part(params, f"block{index}")
        if block is not None:
            stream_BLD, seen = block(mine, stream_BLD), None
        else:
            stream_BLD, seen = transformer_block(
                mine,
                stream_BLD,
                heads=config.heads,
                norm=config.norm,
                layers=config.layers,
                mask=mask,
                causal=config.causal,
                softcap=softcap,
                activation=ACTIVATIONS[config.activation],
                measure=measure,
                attend=attend,
            )
        seen_by_block.append(seen)
    if config.norm == "pre":
        # A pre-LN stream is a sum of branches that nothing has normalised yet.
        stream_BLD = layer_norm(stream_BLD, params["head.norm.weight"], params["head.norm.bias"])
    logits_BLV = linear(stream_BLD, params["head.weight"], params.get("head.bias"))
    if not measure or seen_by_block[0] is None:
        return logits_BLV, {}
    max_logit_by_head = torch.stack([seen.max_logit_H for seen in seen_by_block])
    return logits_BLV, {
        "max_attention_logit": max_logit_by_head.amax(),
        "attention_entropy": torch.stack([seen.entropy_H for seen in seen_by_block]).mean(),
        "max_logit_by_head": max_logit_by_head,
    }


def transformer_block(
    params: Mapping[str, Tensor],
    stream_BLD: Tensor,
    *,
    heads: int,
    norm: str = "pre",
    layers: int = 1,
    mask: Tensor | None = None,
    causal: bool = True,
    softcap: float | Tensor | None = None,
    activation: Callable[[Tensor], Tensor] = gelu,
    measure: bool = False,
    attend: Callable = scaled_dot_product_attention,
) -> tuple[Tensor, AttentionMeasures]:
    """Run one block: attention, then feed-forward, each on a branch of the stream; parameters of ONE block.

    `layers`, the number of blocks, is read by DeepNorm alone, for alpha = (2 layers)^(1/4).

    Shapes: stream_BLD (B, L, D) -> stream_BLD (B, L, D), what attention measured
    Raises: ValueError if norm is not one of PLACEMENTS
    Source: post-LN: Vaswani et al. 2017, arXiv:1706.03762; pre-LN: Xiong et al. 2020, arXiv:2002.04745;
            DeepNorm: Wang et al. 2022, arXiv:2203.00555
    Lesson: 07-transformer
    """
    if norm not in PLACEMENTS:
        raise ValueError(f"transformer_block: norm must be one of {PLACEMENTS}; got {norm!r}")

    def normed(name, x):
        return layer_norm(x, params[f"{name}.weight"], params[f"{name}.bias"])

    def mix(x):
        return multi_head_attention(
            part(params, "attention"),
            x,
            heads=heads,
            mask=mask,
            causal=causal,
            softcap=softcap,
            measure=measure,
            attend=attend,
        )

    def feed(x):
        return feed_forward(part(params, "feed_forward"), x, activation)

    if norm == "pre":
        attended, seen = mix(normed("attention_norm", stream_BLD))
        stream_BLD = stream_BLD + attended
        return stream_BLD + feed(normed("feed_forward_norm", stream_BLD)), seen
    alpha = (2 * layers) ** 0.25 if norm == "deepnorm" else 1.0
    attended, seen = mix(stream_BLD)
    stream_BLD = normed("attention_norm", alpha * stream_BLD + attended)
    return normed("feed_forward_norm", alpha * stream_BLD + feed(stream_BLD)), seen
