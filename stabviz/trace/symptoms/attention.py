"""Signs of attention: logits so large that softmax has no gradient left."""

import numpy as np

from stabviz.trace.symptoms.loss import PEAK_FACTOR, smooth_peak
from stabviz.trace.symptoms.seen import Finding, Seen

LOGIT_LARGE, LOGIT_GROWTH = 500.0, 10.0
"""Softmax of logits hundreds apart is 0 and 1 to float32's last digit: no gradient reaches queries and keys.
The healthy planted runs stay below 100; published models work with tens."""


def attention_logit_growth(seen: Seen) -> Finding | None:
    """Attention logits grew into the hundreds while the loss stayed in bounds: softmax is saturated."""
    logit_S = seen["max_attention_logit"]
    known = np.flatnonzero(np.isfinite(logit_S))
    if not known.size or smooth_peak(seen)[1] >= PEAK_FACTOR * seen.loss.start:
        return None
    peak = int(known[np.argmax(logit_S[known])])
    if logit_S[peak] < max(LOGIT_LARGE, LOGIT_GROWTH * logit_S[known[0]]):
        return None
    first = int(known[np.argmax(logit_S[known] >= LOGIT_LARGE)])
    entropy_S = seen["attention_entropy"][known]
    fell = f"; attention entropy went from {entropy_S[0]:.2g} to {entropy_S[-1]:.2g} nats"
    fell = fell if np.isfinite(entropy_S[[0, -1]]).all() else ""
    return Finding(
        seen.step(first),
        f"the largest attention logit went from {logit_S[known[0]]:.3g} to {logit_S[peak]:.3g}, "
        f"past {LOGIT_LARGE:.0f} at step {seen.step(first)}{fell}",
    )
