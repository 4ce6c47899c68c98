import pytest
import torch
from torch import nn

from stabviz.models import RecurrentConfig, init_recurrent, recurrent_logits

B, L, D, LAYERS, V = 3, 5, 7, 2, 11
REFERENCES = {"lstm": nn.LSTM, "rnn": nn.RNN}
both_cells = pytest.mark.parametrize("cell", REFERENCES)


def build(cell="lstm", **options):
    config = RecurrentConfig(vocab_size=V, width=D, layers=LAYERS, cell=cell, **options)
    tokens_BL = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(1))
    return config, init_recurrent(config, torch.Generator().manual_seed(0)), tokens_BL


@both_cells
def test_logits_equal_torchs_on_values_and_gradients(cell):
    config, params, tokens_BL = build(cell)
    twin = REFERENCES[cell](D, D, num_layers=LAYERS, batch_first=True)
    for layer in range(LAYERS):
        getattr(twin, f"weight_ih_l{layer}").data = params[f"layer{layer}.input.weight"].clone()
        getattr(twin, f"weight_hh_l{layer}").data = params[f"layer{layer}.recurrent.weight"].clone()
        getattr(twin, f"bias_ih_l{layer}").data = params[f"layer{layer}.input.bias"].clone()
        getattr(twin, f"bias_hh_l{layer}").data.zero_()
    params = {name: tensor.requires_grad_() for name, tensor in params.items()}
    ours, measured = recurrent_logits(params, tokens_BL, config)
    theirs = twin(params["embedding.token"].detach()[tokens_BL])[0] @ params["head.weight"].detach().T
    # float32, five steps of recurrence
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert measured == {}
    grad = torch.autograd.grad(ours.square().sum(), params["layer0.recurrent.weight"])[0]
    theirs.square().sum().backward()
    torch.testing.assert_close(grad, twin.weight_hh_l0.grad, rtol=1e-3, atol=1e-4)


def test_an_lstm_begins_with_the_forget_bias_and_no_other():
    bias = build("lstm")[1]["layer1.input.bias"]
    assert bias[D : 2 * D].eq(1).all()
    assert bias.sum() == D
    assert build("rnn")[1]["layer1.input.bias"].eq(0).all()


@both_cells
def test_logits_under_vmap_equal_a_loop(cell):
    config, params, tokens_BL = build(cell)
    stacked = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in params.items()}
    both = torch.vmap(lambda p: recurrent_logits(p, tokens_BL, config)[0])(stacked)
    torch.testing.assert_close(both[0], recurrent_logits(params, tokens_BL, config)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[0], both[1])


@both_cells
def test_detach_state_keeps_the_logits_and_lets_no_gradient_reach_an_earlier_place(cell):
    (config, params, tokens_BL), (cut, _, _) = build(cell), build(cell, detach_state=True)
    params["embedding.token"].requires_grad_()
    for which, reaches in ((config, True), (cut, False)):
        logits_BLV, _ = recurrent_logits(params, tokens_BL, which)
        torch.testing.assert_close(logits_BLV, recurrent_logits(params, tokens_BL, config)[0], rtol=0, atol=0)
        # of one sequence, the last place alone: its own token is the only one that a cut gradient meets
        grad_VD = torch.autograd.grad(logits_BLV[0, -1].sum(), params["embedding.token"])[0]
        met = set(grad_VD.abs().sum(1).nonzero().flatten().tolist())
        assert met == (set(tokens_BL[0].tolist()) if reaches else {tokens_BL[0, -1].item()})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"layers": 0}, "RecurrentConfig: layers must be a whole number of at least 1; got 0"),
        ({"cell": "gru"}, "RecurrentConfig: cell must be 'lstm' or 'rnn'; got 'gru'"),
    ],
)
def test_config_refuses_in_one_line(bad, message):
    with pytest.raises(ValueError, match=message):
        RecurrentConfig(vocab_size=3, **bad)


@pytest.mark.parametrize("name", ["init_scale", "recurrent_scale"])
def test_init_recurrent_refuses_a_scale_that_is_not_positive(name):
    with pytest.raises(ValueError, match=f"init_recurrent: {name} must be > 0; got -1"):
        init_recurrent(RecurrentConfig(vocab_size=V), torch.Generator(), **{name: -1})
