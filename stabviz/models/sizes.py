"""What the sizes of a model must be."""

from dataclasses import fields


def check_sizes(config) -> None:
    """Check that each field of a config that is declared `int` is a whole number of at least 1.

    Raises: ValueError that names config, field and value
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is int and (not isinstance(value, int) or value < 1):
            place = f"{type(config).__name__}: {field.name}"
            raise ValueError(f"{place} must be a whole number of at least 1; got {value!r}")
