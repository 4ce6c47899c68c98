import pytest
import torch
from torch import nn

from stabviz.models import MlpConfig, init_mlp, mlp_outputs

N, INPUTS, WIDTH, OUTPUTS = 5, 2, 7, 3


def test_mlp_outputs_equal_torchs_sequential():
    config = MlpConfig(inputs=INPUTS, outputs=OUTPUTS, width=WIDTH, layers=3)
    params = init_mlp(config, torch.Generator().manual_seed(0))
    first, middle, last = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, OUTPUTS)
    twin = nn.Sequential(first, nn.Tanh(), middle, nn.Tanh(), last)
    for layer, linear in enumerate((first, middle, last)):
        linear.load_state_dict({kind: params[f"layer{layer}.{kind}"] for kind in ("weight", "bias")})
    x = torch.randn(N, INPUTS)
    torch.testing.assert_close(mlp_outputs(params, x, config), twin(x), rtol=1e-5, atol=1e-6)


def test_mlp_outputs_of_one_layer_are_linear():
    config = MlpConfig(inputs=INPUTS, outputs=1, layers=1)
    params = {"layer0.weight": torch.tensor([[2.0, -1.0]]), "layer0.bias": torch.tensor([0.5])}
    assert mlp_outputs(params, torch.tensor([[3.0, 4.0]]), config).item() == 2.5


def test_mlp_config_refuses_half_a_layer():
    with pytest.raises(ValueError, match="layers must be a whole number of at least 1; got 0.5"):
        MlpConfig(inputs=2, layers=0.5)


def test_init_mlp_refuses_a_scale_of_zero():
    with pytest.raises(ValueError, match="init_scale must be > 0; got 0"):
        init_mlp(MlpConfig(inputs=2), torch.Generator(), 0)
