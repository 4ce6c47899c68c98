"""What the sizes of a model must be."""


def check_sizes(config, *names: str) -> None:
    """Check that each named field of a config is a whole number of at least 1.

    Raises: ValueError that names config, field and value
    """
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            kind = type(config).__name__
            raise ValueError(f"{kind}: {name} must be a whole number of at least 1; got {value!r}")
