import pytest
import torch
from torch import nn

from stabviz.models import TransformerConfig, init_transformer, transformer_block, transformer_logits
from stabviz.models.transformer import INIT_GROUPS, part
from stabviz.ops import feed_forward, multi_head_attention

B, L, H, K, LAYERS, V = 2, 5, 3, 7, 2, 11
D = H * K


def build(seed=0, **settings):
    config = TransformerConfig(vocab_size=V, width=D, heads=H, layers=LAYERS, context=13, **settings)
    params = init_transformer(config, torch.Generator().manual_seed(seed))
    tokens_BL = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(seed + 1))
    return config, params, tokens_BL


def torch_twin(config, params):
    """torch's own encoder layers carrying our weights."""
    layers = []
    for block in range(config.layers):
        mine = part(params, f"block{block}")
        layer = nn.TransformerEncoderLayer(
            D,
            H,
            dim_feedforward=4 * D,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=config.norm == "pre",
            bias=True,
        )
        for parameter in layer.parameters():
            parameter.data.zero_()
        projections = [mine[f"attention.{name}.weight"] for name in ("query", "key", "value")]
        layer.self_attn.in_proj_weight.data = torch.cat(projections)
        layer.self_attn.out_proj.weight.data = mine["attention.output.weight"]
        layer.linear1.weight.data = mine["feed_forward.up.weight"]
        layer.linear2.weight.data = mine["feed_forward.down.weight"]
        for theirs, ours in ((layer.norm1, "attention_norm"), (layer.norm2, "feed_forward_norm")):
            theirs.weight.data, theirs.bias.data = mine[f"{ours}.weight"], mine[f"{ours}.bias"]
        layers.append(layer)

    def run(tokens_BL):
        stream = params["embedding.token"][tokens_BL] + params["embedding.position"][: tokens_BL.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens_BL.shape[1]) if config.causal else None
        for layer in layers:
            stream = layer.train()(stream, src_mask=mask)
        if config.norm == "pre":
            stream = nn.functional.layer_norm(
                stream, (D,), params["head.norm.weight"], params["head.norm.bias"]
            )
        return stream @ params["head.weight"].T

    return run, layers


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("causal", [True, False])
def test_transformer_logits_equal_torchs_encoder_layers(norm, causal):
    config, params, tokens_BL = build(norm=norm, causal=causal)
    params = {name: tensor.requires_grad_() for name, tensor in params.items()}
    twin, layers = torch_twin(config, params)
    ours, _ = transformer_logits(params, tokens_BL, config)
    # float32 through two blocks: a few units in the last place of numbers near 1
    torch.testing.assert_close(ours, twin(tokens_BL), rtol=2e-4, atol=2e-5)
    ours_grad = torch.autograd.grad(ours.square().sum(), params["block0.feed_forward.up.weight"])[0]
    twin(tokens_BL).square().sum().backward()
    torch.testing.assert_close(ours_grad, layers[0].linear1.weight.grad, rtol=2e-3, atol=2e-3)


def test_transformer_logits_of_a_decoder_do_not_see_the_future():
    config, params, tokens_BL = build(causal=True)
    changed = tokens_BL.clone()
    changed[:, -1] = (changed[:, -1] + 1) % V
    before, after = (transformer_logits(params, tokens, config)[0] for tokens in (tokens_BL, changed))
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_transformer_logits_of_an_encoder_see_everything():
    config, params, tokens_BL = build(causal=False)
    changed = tokens_BL.clone()
    changed[:, -1] = (changed[:, -1] + 1) % V
    before, after = (transformer_logits(params, tokens, config)[0] for tokens in (tokens_BL, changed))
    assert not torch.allclose(before[:, 0], after[:, 0])


def test_transformer_logits_measures_lie_in_their_ranges():
    config, params, tokens_BL = build()
    _, measured = transformer_logits(params, tokens_BL, config)
    assert measured["max_attention_logit"] > 0
    assert 0 < measured["attention_entropy"] < torch.log(torch.tensor(float(L)))
    assert measured["max_logit_by_head"].shape == (config.layers, config.heads)
    assert measured["max_logit_by_head"].amax() == measured["max_attention_logit"]
    assert transformer_logits(params, tokens_BL, config, measure=False)[1] == {}


def test_transformer_logits_softcap_bounds_what_the_softmax_sees():
    config, params, tokens_BL = build()
    loud = {n: t * 30 if "query" in n else t for n, t in params.items()}
    free = transformer_logits(loud, tokens_BL, config)[1]
    capped = transformer_logits(loud, tokens_BL, config, softcap=1e-3)[1]
    assert capped["max_attention_logit"] > 2.5  # measured before the cap
    # Scores within +-0.001 are all but equal: query i spreads over the i keys that it may attend to.
    uniform = torch.arange(1, tokens_BL.shape[1] + 1).log().mean()
    torch.testing.assert_close(capped["attention_entropy"], uniform, rtol=0, atol=1e-5)
    assert free["attention_entropy"] < uniform - 0.1


def test_transformer_logits_qk_norm_makes_the_logits_blind_to_the_scale_of_the_queries():
    config, params, tokens_BL = build(qk_norm=True)
    loud = {n: t * 100 if n.endswith("query.weight") else t for n, t in params.items()}
    quiet_logit, loud_logit = (
        transformer_logits(p, tokens_BL, config)[1]["max_attention_logit"] for p in (params, loud)
    )
    torch.testing.assert_close(quiet_logit, loud_logit, rtol=1e-3, atol=1e-3)


def test_transformer_logits_padding_mask_keeps_padding_out():
    config, params, tokens_BL = build(causal=False)
    mask = torch.ones(B, 1, 1, L, dtype=torch.bool)
    mask[..., -2:] = False
    changed = tokens_BL.clone()
    changed[:, -1] = (changed[:, -1] + 1) % V
    before, after = (
        transformer_logits(params, tokens, config, mask=mask)[0] for tokens in (tokens_BL, changed)
    )
    torch.testing.assert_close(before[:, : L - 2], after[:, : L - 2], rtol=0, atol=1e-6)


def test_transformer_logits_under_vmap_equal_a_loop():
    config, params, tokens_BL = build()
    other = build(seed=3)[1]
    stacked = {name: torch.stack([params[name], other[name]]) for name in params}
    both = torch.vmap(lambda p: transformer_logits(p, tokens_BL, config)[0])(stacked)
    for r, one in enumerate((params, other)):
        torch.testing.assert_close(
            both[r], transformer_logits(one, tokens_BL, config)[0], rtol=1e-4, atol=1e-5
        )


def test_init_transformer_scales_the_residual_writers_down_in_pre_ln():
    pre, post = (build(norm=norm)[1]["block0.attention.output.weight"].std() for norm in ("pre", "post"))
    torch.testing.assert_close(post / pre, torch.tensor((2.0 * LAYERS) ** 0.5))


def test_init_transformer_draws_the_same_from_the_same_seed():
    first, second, other = build()[1], build()[1], build(seed=1)[1]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be a whole number of at least 1; got 0"),
        ({"vocab_size": 5, "width": 10, "heads": 3}, "width must be a multiple of heads = 3; got 10"),
        ({"vocab_size": 5, "norm": "middle"}, "norm must be one of .* got 'middle'"),
        ({"vocab_size": 5, "activation": "swish"}, "activation must be one of .* got 'swish'"),
    ],
)
def test_transformer_config_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**settings)


def test_transformer_logits_refuses_a_sequence_longer_than_its_positions():
    config, params, _ = build()
    with pytest.raises(ValueError, match="must be at most context = 13 long; got 17"):
        transformer_logits(params, torch.zeros(B, 17, dtype=torch.long), config)


def test_init_transformer_refuses_a_scale_of_zero():
    with pytest.raises(ValueError, match="init_scale must be > 0; got 0"):
        init_transformer(TransformerConfig(vocab_size=V), torch.Generator(), 0)


def test_init_transformer_scales_the_group_that_is_named_and_draws_the_same_numbers():
    config = TransformerConfig(vocab_size=V, width=D, heads=H, layers=LAYERS, context=13, norm="post")

    def drawn(*scale):
        return init_transformer(config, torch.Generator().manual_seed(3), *scale)

    plain, weights = drawn(), [name for name in drawn() if "norm" not in name]
    writers = [
        f"block{i}.{name}.weight" for i in (0, 1) for name in ("attention.output", "feed_forward.down")
    ]
    branches = [name for name in weights if name.startswith("block")]
    ends = ["embedding.token", "embedding.position", "head.weight"]
    groups = {"all": weights, "branches": branches, "writers": writers, "ends": ends}
    assert set(groups) == set(INIT_GROUPS)
    assert sorted(branches + ends) == sorted(weights)
    for group, reached in groups.items():
        for name, tensor in drawn(0.25, group).items():
            torch.testing.assert_close(tensor, plain[name] * (0.25 if name in reached else 1))
    with pytest.raises(ValueError, match="init_scale_of must be one of .* got 'middle'"):
        drawn(0.25, "middle")


def test_deepnorm_multiplies_the_stream_by_alpha_and_four_first_weights_by_beta():
    post, params, _ = build(norm="post")
    deep, turned_down, tokens_BL = build(norm="deepnorm")
    alpha, beta = 4**0.25, 16**-0.25  # two blocks, by hand: (2 N)^(1/4) and (8 N)^(-1/4)
    by_beta = ("value.weight", "attention.output.weight", "up.weight", "down.weight")
    for name, tensor in params.items():
        torch.testing.assert_close(turned_down[name], tensor * (beta if name.endswith(by_beta) else 1))

    def block(params, x):
        """LN(x + f/alpha): a layer norm forgets scale, up to its epsilon."""
        for name, branch in (("attention", "attention.output"), ("feed_forward", "feed_forward.down")):
            softer = {f"{branch}.weight": params[f"{branch}.weight"] / alpha}
            mine = part(params | softer, name)
            if name == "attention":
                out = multi_head_attention(mine, x, heads=H, causal=True)[0]
            else:
                out = feed_forward(mine, x)
            x = nn.functional.layer_norm(x + out, (D,))
        return x

    expected = transformer_logits(turned_down, tokens_BL, post, block=block)[0]
    # the two epsilons differ by alpha^2: a few 1e-5 of numbers near 1
    torch.testing.assert_close(
        transformer_logits(turned_down, tokens_BL, deep)[0], expected, rtol=1e-4, atol=1e-4
    )


def test_a_block_of_ones_own_takes_the_place_of_ours_and_measures_nothing():
    config, params, tokens_BL = build(norm="pre")
    seen = []

    def halves(params, stream_BLD):
        seen.append(sorted(params)[0])
        return stream_BLD / 2

    logits_BLV, measured = transformer_logits(params, tokens_BL, config, block=halves)
    stream_BLD = (params["embedding.token"][tokens_BL] + params["embedding.position"][:L]) / 2**LAYERS
    expected = nn.functional.layer_norm(stream_BLD, (D,)) @ params["head.weight"].T
    # the epsilon of the layer norm weighs more on a stream a quarter as large: 1e-5 of 1/16
    torch.testing.assert_close(logits_BLV, expected, rtol=1e-3, atol=1e-3)
    assert measured == {}
    assert seen == ["attention.key.weight"] * LAYERS


def test_transformer_block_is_what_the_transformer_repeats():
    for norm in ("pre", "post", "deepnorm"):
        config, params, tokens_BL = build(norm=norm)

        def block(params, x, norm=norm):
            return transformer_block(params, x, heads=H, norm=norm, layers=LAYERS)[0]

        ours = transformer_logits(params, tokens_BL, config)[0]
        torch.testing.assert_close(transformer_logits(params, tokens_BL, config, block=block)[0], ours)
    with pytest.raises(ValueError, match="norm must be one of .* got 'middle'"):
        transformer_block(part(params, "block0"), torch.zeros(B, L, D), heads=H, norm="middle")
