"""Checks of lesson 07: the two sub-layers, DeepNorm's constants, the padding mask of torch's encoder."""

import torch
from torch import nn

from stabviz.course.exercises import ExerciseFailed, check, expect


@check(
    "07-sublayer",
    wrong=[
        lambda x, branch, norm, placement: (
            norm(x) + branch(norm(x)) if placement == "pre" else norm(x + branch(x))
        ),
        lambda x, branch, norm, placement: x + branch(norm(x)),
        lambda x, branch, norm, placement: x + branch(norm(x)) if placement == "pre" else x + norm(branch(x)),
    ],
)
def sublayer_puts_the_norm_in_its_place(solution):
    x = torch.tensor([[1.0, -2.0, 4.0], [0.5, 0.0, -3.0]], dtype=torch.float64)

    def branch(x):
        return 2 * x.flip(-1) + 1

    def norm(x):
        return nn.functional.layer_norm(x, x.shape[-1:])

    expect("pre-LN", solution(x, branch, norm, "pre"), x + 2 * norm(x).flip(-1) + 1)
    expect("post-LN", solution(x, branch, norm, "post"), norm(x + 2 * x.flip(-1) + 1))


_WRITTEN = ("attention.value.weight", "attention.output.weight", "up.weight", "down.weight")


def _turned_down(params, layers, names):
    return {name: w * (8 * layers) ** -0.25 if name.endswith(names) else w for name, w in params.items()}


def _alpha_inverted(params, layers):
    return (2 * layers) ** -0.25, _turned_down(params, layers, _WRITTEN)


def _everything_turned_down(params, layers):
    return (2 * layers) ** 0.25, _turned_down(params, layers, "")


def _value_forgotten(params, layers):
    return (2 * layers) ** 0.25, _turned_down(params, layers, _WRITTEN[1:])


@check("07-deepnorm", wrong=[_alpha_inverted, _everything_turned_down, _value_forgotten])
def deepnorm_turns_down_what_writes(solution):
    kept = (
        "attention.query.weight",
        "attention.key.weight",
        "attention_norm.weight",
        "feed_forward_norm.bias",
    )
    names = [name if name.startswith("attention") else f"feed_forward.{name}" for name in _WRITTEN]
    params = {f"block{i}.{name}": torch.ones(2) for i in range(8) for name in (*names, *kept)}
    params |= {"embedding.token": torch.ones(2), "head.weight": torch.ones(2)}
    alpha, scaled = solution(params, 8)
    expect("alpha of 8 blocks: the fourth root of 16", alpha, 2.0)
    missing, added = sorted(set(params) - set(scaled)), sorted(set(scaled) - set(params))
    if missing or added:
        words = "the parameters returned must have the names of those given"
        raise ExerciseFailed(f"{words}; missing {missing[:3]}, added {added[:3]}")
    for name, value in scaled.items():
        factor = 64**-0.25 if name.endswith(_WRITTEN) else 1.0
        expect(f"factor on {name}, of 8 blocks", value, torch.full((2,), factor))


@check(
    "07-encode",
    wrong=[
        lambda encoder, x, attention_mask: encoder(x, attention_mask.float()),
        lambda encoder, x, attention_mask: encoder(x, src_key_padding_mask=attention_mask.bool()),
        lambda encoder, x, attention_mask: encoder(x),
    ],
)
def encode_gives_each_text_what_it_gets_alone(solution):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, dropout=0.0, batch_first=True)
        encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        for texts, words in ((4, 4), (3, 5)):
            lengths = torch.tensor([words, 2, 3, 1][:texts])
            x = torch.randn(texts, words, 8)
            found = solution(encoder, x, (torch.arange(words) < lengths[:, None]).long())
            for i, n in enumerate(lengths.tolist()):
                what = f"real words of text {i}, in a batch of {texts} texts of {words} words"
                # other lengths are other sums: they differ in the last digits of float32
                expect(what, found[i, :n], encoder(x[i : i + 1, :n])[0], atol=1e-5)
