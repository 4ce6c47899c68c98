"""What a softmax over random scores is like, before anything was learned: entropy and slope by head width."""

import numpy as np
import torch

from stabviz.ops import attention_weights
from stabviz.seeds import generator
from stabviz.trace import Trace

HEAD_WIDTHS = (1, 4, 16, 64, 256, 1024)


def random_attention(keys: int, power: float, spread: float = 1.0, draws: int = 8) -> Trace:
    """Attend with random normal queries and keys, scores times width**-power, over head widths.

    Steps of the Trace are the head widths. Signals: "attention_entropy", the mean over queries;
    "softmax_slope", the Frobenius norm of the softmax's matrix of derivatives, of the median query; and
    "score_variance".

    Units:  spread is the standard deviation of queries and keys; entropy in nats
    Lesson: 01-attention

    >>> trace = random_attention(32, power=0.5, draws=2)
    >>> trace["attention_entropy"].shape
    (2, 6)
    """
    found: dict[str, list] = {"attention_entropy": [], "softmax_slope": [], "score_variance": []}
    for draw in range(draws):
        noise, queries, widest = generator(draw, "random attention"), 32, HEAD_WIDTHS[-1]
        query = spread * torch.randn(queries, 1, 1, widest, generator=noise)
        key = spread * torch.randn(queries, 1, keys, widest, generator=noise)
        rows = []
        for d in HEAD_WIDTHS:
            scores = query[..., :d] @ key[..., :d].mT * d**-power
            weights = attention_weights(query[..., :d], key[..., :d], scale=d**-power).flatten(0, 2)
            squares = weights.square().sum(-1)
            # sum over m, j of (w_m (delta_mj - w_j))^2, multiplied out; rounding may leave it below 0
            slope = (squares - 2 * weights.pow(3).sum(-1) + squares.square()).clamp_min(0).sqrt()
            entropy = torch.special.entr(weights).sum(-1).mean()
            rows.append((entropy.item(), slope.median().item(), scores.var().item()))
        for name, values in zip(found, zip(*rows, strict=True), strict=True):
            found[name].append(values)
    signals = {name: np.array(values) for name, values in found.items()}
    return Trace(steps=np.array(HEAD_WIDTHS), signals=signals, runs=[{"draw": draw} for draw in range(draws)])
