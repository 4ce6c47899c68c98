"""From scratch, for ONE model: pure functions of tensors. Imports nothing of ours.

Arrays end in their logical shape, one letter an axis, one key for the whole package:

    R runs · S steps · B batch · L query position · M key position · D width · H heads · K head width
    F feed-forward width · V vocabulary · E embedding · C candidates/classes · N positions (B and L flattened)
    P parameters (flat)

Scalars and parameter dicts have no suffix. Axes with different roles have different letters even when
they are equally long.
"""
