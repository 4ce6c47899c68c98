"""The bits that the picture shows are those that torch stores."""

import pytest
import torch
from matplotlib.figure import Figure

from stabviz.views import plot_number_bits
from stabviz.views.number_bits import bits_of


@pytest.mark.parametrize(
    ("value", "name", "bits"),
    [
        (1.0, "float32", ("0", "01111111", "0" * 23)),
        (-1.5, "float16", ("1", "01111", "1" + "0" * 9)),
        (0.1, "bfloat16", ("0", "01111011", "1001101")),
        (65520.0, "float16", ("0", "11111", "0" * 10)),  # infinity: all ones in the exponent
    ],
)
def test_bits_of_a_number(value, name, bits):
    assert bits_of(value, name) == bits


@pytest.mark.parametrize(
    ("name", "dtype", "bias"), [("float32", torch.float32, 127), ("float16", torch.float16, 15)]
)
def test_bits_of_add_up_to_what_is_stored(name, dtype, bias):
    sign, exponent, fraction = bits_of(-0.3, name)
    value = (1 + int(fraction, 2) / 2 ** len(fraction)) * 2.0 ** (int(exponent, 2) - bias)
    assert -value == torch.tensor(-0.3, dtype=dtype).double().item()
    assert sign == "1"


def test_bfloat16_is_the_upper_half_of_float32_where_nothing_is_rounded_up():
    assert "".join(bits_of(1.5, "float32"))[:16] == "".join(bits_of(1.5, "bfloat16"))


def test_bits_of_refuses_another_format():
    with pytest.raises(ValueError, match="format_name must be one of .* got 'float8'"):
        bits_of(1.0, "float8")


def test_plot_number_bits_draws_every_bit_of_the_three_formats():
    axes = plot_number_bits(Figure().subplots(), 0.1)
    texts = [text.get_text() for text in axes.texts]
    assert sum(text in "01" for text in texts) == 32 + 16 + 16
    assert {"= 0.100000001", "= 0.0999755859", "= 0.100097656"} <= set(texts)
