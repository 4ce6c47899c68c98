import pytest
import torch
from torch import nn

from stabviz.models import LstmConfig, init_lstm, lstm_logits

B, L, D, LAYERS, V = 3, 5, 7, 2, 11


def build():
    config = LstmConfig(vocab_size=V, width=D, layers=LAYERS)
    return config, init_lstm(config, torch.Generator().manual_seed(0)), torch.randint(V, (B, L))


def test_lstm_logits_equal_torchs_lstm_on_values_and_gradients():
    config, params, tokens_BL = build()
    twin = nn.LSTM(D, D, num_layers=LAYERS, batch_first=True)
    for layer in range(LAYERS):
        getattr(twin, f"weight_ih_l{layer}").data = params[f"layer{layer}.input.weight"].clone()
        getattr(twin, f"weight_hh_l{layer}").data = params[f"layer{layer}.recurrent.weight"].clone()
        getattr(twin, f"bias_ih_l{layer}").data = params[f"layer{layer}.input.bias"].clone()
        getattr(twin, f"bias_hh_l{layer}").data.zero_()
    params = {name: tensor.requires_grad_() for name, tensor in params.items()}
    ours, measured = lstm_logits(params, tokens_BL, config)
    theirs = twin(params["embedding.token"].detach()[tokens_BL])[0] @ params["head.weight"].detach().T
    # float32, five steps of recurrence
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert measured == {}
    grad = torch.autograd.grad(ours.square().sum(), params["layer0.recurrent.weight"])[0]
    theirs.square().sum().backward()
    torch.testing.assert_close(grad, twin.weight_hh_l0.grad, rtol=1e-3, atol=1e-4)


def test_init_lstm_sets_the_forget_bias_and_no_other():
    bias = build()[1]["layer1.input.bias"]
    assert bias[D : 2 * D].eq(1).all()
    assert bias.sum() == D


def test_lstm_logits_under_vmap_equal_a_loop():
    config, params, tokens_BL = build()
    stacked = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in params.items()}
    both = torch.vmap(lambda p: lstm_logits(p, tokens_BL, config)[0])(stacked)
    torch.testing.assert_close(both[0], lstm_logits(params, tokens_BL, config)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[0], both[1])


def test_lstm_config_refuses_no_layers():
    with pytest.raises(ValueError, match="LstmConfig: layers must be a whole number of at least 1; got 0"):
        LstmConfig(vocab_size=3, layers=0)


def test_init_lstm_refuses_a_negative_scale():
    with pytest.raises(ValueError, match="init_lstm: init_scale must be > 0; got -1"):
        init_lstm(LstmConfig(vocab_size=V), torch.Generator(), -1)


def test_detach_state_keeps_the_logits_and_lets_no_gradient_reach_an_earlier_place():
    config, params, _ = build()
    cut = LstmConfig(vocab_size=V, width=D, layers=LAYERS, detach_state=True)
    tokens_BL = torch.arange(B * L).view(B, L) % V
    params["embedding.token"].requires_grad_()
    for which, reaches in ((config, True), (cut, False)):
        logits_BLV, _ = lstm_logits(params, tokens_BL, which)
        torch.testing.assert_close(logits_BLV, lstm_logits(params, tokens_BL, config)[0], rtol=0, atol=0)
        # of one sequence, the last place alone: its own token is the only one that a cut gradient meets
        grad_VD = torch.autograd.grad(logits_BLV[0, -1].sum(), params["embedding.token"])[0]
        met = set(grad_VD.abs().sum(1).nonzero().flatten().tolist())
        assert met == (set(tokens_BL[0].tolist()) if reaches else {tokens_BL[0, -1].item()})
