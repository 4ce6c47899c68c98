"""The picture of a number's bits: sign, exponent and fraction in three formats, over one another."""

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from stabviz.views.style import INK

FORMATS = (
    ("float32", torch.float32, torch.int32, 8),
    ("float16", torch.float16, torch.int16, 5),
    ("bfloat16", torch.bfloat16, torch.int16, 8),
)
"""Name, type, whole numbers of its size, bits of the exponent."""
FILLS = {"sign": "#dddddd", "exponent": "#cfe3f7", "fraction": "#ffe3c7"}


def bits_of(value: float, format_name: str) -> tuple[str, str, str]:
    """Return the bits of the number nearest to `value`: sign, exponent, fraction, each as a text of 0 and 1.

    Raises: ValueError for another format than float32, float16 or bfloat16

    >>> bits_of(1.0, "bfloat16")
    ('0', '01111111', '0000000')
    """
    for name, dtype, whole, exponent in FORMATS:
        if name == format_name:
            size = torch.finfo(dtype).bits
            pattern = torch.tensor(value, dtype=dtype).view(whole).item() & (2**size - 1)
            bits = f"{pattern:0{size}b}"
            return bits[0], bits[1 : 1 + exponent], bits[1 + exponent :]
    names = [name for name, *_ in FORMATS]
    raise ValueError(f"bits_of: format_name must be one of {names}; got {format_name!r}")


def plot_number_bits(axes: Axes, value: float) -> Axes:
    """Draw the bits of `value` in float32, float16 and bfloat16, and what each of them really stores.

    Lesson: 10-precision-and-memory
    """
    for row, (name, dtype, _, _) in enumerate(FORMATS):
        left = 0
        for part, bits in zip(FILLS, bits_of(value, name), strict=True):
            for bit in bits:
                axes.add_patch(Rectangle((left, row), 0.9, 0.7, facecolor=FILLS[part], edgecolor=INK, lw=0.5))
                axes.text(left + 0.45, row + 0.36, bit, ha="center", va="center", fontsize=8, color=INK)
                left += 1
        stored = torch.tensor(value, dtype=dtype).double().item()
        axes.text(-0.5, row + 0.35, name, ha="right", va="center", fontsize=10, color=INK)
        axes.text(left + 0.4, row + 0.35, f"= {stored:.9g}", ha="left", va="center", fontsize=9, color=INK)
    # below the last row: what the colours mean, so that they need no legend
    at = 0.0
    for part, width in (("sign", 4.0), ("exponent", 6.0), ("fraction", 6.0)):
        axes.add_patch(Rectangle((at, 3.25), 0.9, 0.5, facecolor=FILLS[part], edgecolor=INK, lw=0.5))
        axes.text(at + 1.1, 3.5, part, ha="left", va="center", fontsize=9, color=INK)
        at += width
    axes.set(xlim=(-5, 40), ylim=(4.0, -0.3))
    axes.set_axis_off()
    return axes
