"""The signs by which `diagnose` tells one fault from another: each rule looks at measured signals alone.

A rule takes what was seen of a run and returns where it decided and why, or None. Its docstring says what the
sign is and why that fault and no other leaves it. One file a family; thresholds stand beside their rule, each
with its reason; the planted runs of tests/trace measure what they are worth.
"""

from stabviz.trace.symptoms.arithmetic import fp16_overflow, hidden_nan
from stabviz.trace.symptoms.attention import attention_logit_growth
from stabviz.trace.symptoms.gradient import explosion
from stabviz.trace.symptoms.loss import no_warmup, rate_too_high, stall, unclear_loss
from stabviz.trace.symptoms.seen import Finding, Seen
from stabviz.trace.symptoms.update import epsilon_too_large, missing_bias_correction
from stabviz.trace.symptoms.validation import label_noise, overfit

__all__ = [
    "Finding",
    "Seen",
    "attention_logit_growth",
    "epsilon_too_large",
    "explosion",
    "fp16_overflow",
    "hidden_nan",
    "label_noise",
    "missing_bias_correction",
    "no_warmup",
    "overfit",
    "rate_too_high",
    "stall",
    "unclear_loss",
]
