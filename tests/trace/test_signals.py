"""Signals: each point of measurement of the training step is registered with a unit and a meaning."""

from stabviz.trace import SIGNALS, signal_of


def test_signals_hold_every_point_of_the_step():
    step = {
        "lr",
        "loss_nats",
        "max_attention_logit",
        "log_z",
        "grad_norm_preclip",
        "clipped",
        "update_rms",
        "second_moment_ratio",
        "attention_entropy",
        "param_norm",
    }
    assert step <= set(SIGNALS)
    assert all(name == signal.name and signal.meaning.endswith(".") for name, signal in SIGNALS.items())


def test_signal_of_finds_the_layer_and_answers_the_unknown():
    layer = signal_of("attention_entropy/block1")
    assert (layer.name, layer.unit) == ("attention_entropy/block1", "nats")
    assert layer.axis_label == "attention entropy, block1 (nats)"
    assert signal_of("own_measure").axis_label == "own measure"
