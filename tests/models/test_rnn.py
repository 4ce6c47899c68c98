import pytest
import torch
from torch import nn

from stabviz.models import RnnConfig, init_rnn, rnn_logits

B, L, D, LAYERS, V = 3, 5, 7, 2, 11


def build(**options):
    config = RnnConfig(vocab_size=V, width=D, layers=LAYERS, **options)
    tokens_BL = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(1))
    return config, init_rnn(config, torch.Generator().manual_seed(0)), tokens_BL


def test_rnn_logits_equal_torchs_rnn_on_values_and_gradients():
    config, params, tokens_BL = build()
    twin = nn.RNN(D, D, num_layers=LAYERS, batch_first=True)
    for layer in range(LAYERS):
        getattr(twin, f"weight_ih_l{layer}").data = params[f"layer{layer}.input.weight"].clone()
        getattr(twin, f"weight_hh_l{layer}").data = params[f"layer{layer}.recurrent.weight"].clone()
        getattr(twin, f"bias_ih_l{layer}").data = params[f"layer{layer}.input.bias"].clone()
        getattr(twin, f"bias_hh_l{layer}").data.zero_()
    params = {name: tensor.requires_grad_() for name, tensor in params.items()}
    ours, measured = rnn_logits(params, tokens_BL, config)
    theirs = twin(params["embedding.token"].detach()[tokens_BL])[0] @ params["head.weight"].detach().T
    # float32, five steps of recurrence
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert measured == {}
    grad = torch.autograd.grad(ours.square().sum(), params["layer0.recurrent.weight"])[0]
    theirs.square().sum().backward()
    torch.testing.assert_close(grad, twin.weight_hh_l0.grad, rtol=1e-3, atol=1e-4)


def test_detach_state_keeps_the_logits_and_lets_no_gradient_reach_an_earlier_place():
    (config, params, tokens_BL), (cut, _, _) = build(), build(detach_state=True)
    params["embedding.token"].requires_grad_()
    for which, reaches in ((config, True), (cut, False)):
        logits_BLV, _ = rnn_logits(params, tokens_BL, which)
        torch.testing.assert_close(logits_BLV, rnn_logits(params, tokens_BL, config)[0], rtol=0, atol=0)
        # of one sequence, the last place alone: its own token is the only one that a cut gradient meets
        grad_VD = torch.autograd.grad(logits_BLV[0, -1].sum(), params["embedding.token"])[0]
        met = set(grad_VD.abs().sum(1).nonzero().flatten().tolist())
        assert met == (set(tokens_BL[0].tolist()) if reaches else {tokens_BL[0, -1].item()})


@pytest.mark.parametrize("name", ["init_scale", "recurrent_scale"])
def test_init_rnn_refuses_a_scale_of_zero(name):
    with pytest.raises(ValueError, match=f"init_rnn: {name} must be > 0; got 0"):
        init_rnn(RnnConfig(vocab_size=V), torch.Generator(), **{name: 0})
