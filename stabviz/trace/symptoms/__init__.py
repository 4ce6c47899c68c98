"""The signs by which `diagnose` tells one fault from another: each rule looks at measured signals alone.

A rule takes what was seen of a run and returns where it decided and why, or None. Its docstring says what the
sign is and why that fault and no other leaves it. One file a family; thresholds stand beside their rule, each
with its reason; the planted runs of tests/trace measure what they are worth.
"""
