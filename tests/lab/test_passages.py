"""The task "pairs": passages as counts, what an embedding of them finds, and a loss of one's own."""

import math

import pytest
import torch

from stabviz import ops
from stabviz.lab import grid, neighbours_score, reading_loss, text_passages, train, unit
from stabviz.models import mlp_outputs
from stabviz.seeds import generator

PAIRS = {
    "task": "pairs",
    "batch": 7,
    "width": 5,
    "steps": 6,
    "optimizer": "sgd",
    "schedule": "constant",
    "warmup_steps": 0,
    "lr": 0.1,
}


def drawn(*shape):
    return torch.randn(*shape, generator=generator(0, "test passages"), dtype=torch.float64)


def test_text_passages_are_standardised_counts_half_of_them_of_programs():
    passages = text_passages()
    assert passages.pairs_NHD.shape[1:] == (2, 200)
    assert passages.is_program_N.double().mean() == 0.5
    torch.testing.assert_close(passages.pairs_NHD.mean((0, 1)), torch.zeros(200), atol=1e-4, rtol=0)
    torch.testing.assert_close(passages.pairs_NHD.std((0, 1)), torch.ones(200))


def test_split_shares_no_passage_and_holds_out_whole_questions():
    passages = text_passages()
    train_N, held_N = passages.split(0.2)
    assert len(held_N) % 128 == 0
    assert abs(len(held_N) / len(passages.is_program_N) - 0.2) < 0.02
    assert sorted(torch.cat([train_N, held_N]).tolist()) == list(range(len(passages.is_program_N)))
    assert len(passages.split(0)[1]) == 0
    with pytest.raises(ValueError, match="split: held_out must leave passages to train on; got 0.999"):
        passages.split(0.999)


def test_reading_loss_is_zero_for_perfect_pairs_and_chance_for_strangers():
    x_NE = drawn(256, 17)
    assert reading_loss(x_NE, x_NE) < 1e-6
    assert reading_loss(x_NE, drawn(512, 17)[256:]) == pytest.approx(math.log(64), abs=0.02)
    assert reading_loss(torch.ones(128, 3), torch.ones(128, 3)) == pytest.approx(math.log(64), rel=1e-6)


def test_reading_loss_is_near_the_best_of_single_temperatures():
    x_NE, noise_NE = drawn(2, 640, 17)
    x_NE, y_NE = unit(x_NE), unit(x_NE + noise_NE)
    single = min(
        torch.stack(
            [ops.info_nce_in_batch(x, y, t) for x, y in zip(x_NE.split(64), y_NE.split(64), strict=True)]
        )
        .mean()
        .item()
        for t in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
    )
    assert reading_loss(x_NE, y_NE).item() == pytest.approx(single, abs=0.03)


def test_reading_loss_does_not_mind_how_close_together_the_embeddings_lie():
    x_NE, noise_NE = drawn(2, 128, 3)
    wide = [
        torch.cat([torch.ones(128, 1).double(), size * z], 1)
        for size in (1e-2, 1e-5)
        for z in (x_NE, x_NE + noise_NE)
    ]
    assert reading_loss(*wide[:2]).item() == pytest.approx(reading_loss(*wide[2:]).item(), abs=1e-3)


def test_reading_loss_refuses_what_makes_no_two_whole_questions():
    with pytest.raises(ValueError, match="reading_loss: N must be a multiple of 128; got "):
        reading_loss(torch.ones(64, 3), torch.ones(64, 3))


def test_neighbours_score_refuses_an_even_number():
    with pytest.raises(ValueError, match="neighbours_score: k must be odd"):
        neighbours_score(torch.ones(5, 2), torch.ones(5).bool(), torch.ones(1, 2), torch.ones(1).bool(), k=4)


def nce(query, key, temperature):
    query, key = unit(query), unit(key)
    scores = query @ key.mT / temperature
    return (scores.logsumexp(-1) - scores.diagonal()).mean()


def test_a_loss_of_yours_on_pairs_gives_the_curves_of_ours_with_a_temperature_a_run():
    knobs = PAIRS | {"temperature": [0.1, 0.5], "seed": range(2)}
    ours, mine = train(grid(**knobs)), train(grid(**knobs, loss=nce))
    for name in ("loss_nats", "uniformity", "alignment", "embedding_std"):
        torch.testing.assert_close(torch.tensor(mine[name]), torch.tensor(ours[name]), rtol=1e-4, atol=1e-6)
    assert ours.config["chance_nats"] == pytest.approx(math.log(7))
    assert (mine.config["chance_nats"], mine.config["loss_unit"]) == (None, "")


def test_the_loss_of_pairs_is_info_nce_of_the_perceptron_on_the_first_batch():
    trace, params, configs = train(grid(**PAIRS | {"steps": 1, "lr": 0.0}, seed=[3]), keep_params=True)

    passages = text_passages()
    rows = torch.randint(len(passages.is_program_N), (1, 7), generator=generator(3, "passages"))[0]
    halves = passages.pairs_NHD[passages.split(0)[0][rows]]
    x_BE, y_BE = (unit(mlp_outputs(params[0], halves[:, side], configs[0])) for side in (0, 1))
    assert trace["loss_nats"][0, 0] == pytest.approx(ops.info_nce_in_batch(x_BE, y_BE, 0.1).item(), rel=1e-5)


def test_held_out_loss_of_pairs_is_the_reading_loss_of_the_trained_encoder():

    trace, params, configs = train(grid(**PAIRS, held_out=0.1, seed=range(2)), keep_params=True)
    passages = text_passages()
    held_NHD = passages.pairs_NHD[passages.split(0.1)[1]]
    read = [
        reading_loss(*mlp_outputs(one, held_NHD, config).unbind(1)).item()
        for one, config in zip(params, configs, strict=True)
    ]
    assert trace["held_out_loss_nats"][:, -1].tolist() == pytest.approx(read, rel=1e-4)


def test_a_loss_that_asks_for_predictions_trains_the_predictor_as_well():
    def stop_gradient(x, y, x_predicted, y_predicted):
        return (unit(x_predicted) - unit(y).detach()).square().sum(-1).mean()

    knobs = PAIRS | {"loss": stop_gradient}
    _, after, _ = train(grid(**knobs, seed=[0]), keep_params=True)
    before = train(grid(**knobs | {"lr": 0.0}, seed=[0]), keep_params=True).params
    assert after[0]["predictor.weight"].shape == (16, 16)
    assert (after[0]["predictor.weight"] - before[0]["predictor.weight"]).abs().max() > 1e-3
    plain = train(grid(**PAIRS | {"lr": 0.0}, seed=[0]), keep_params=True).params
    assert "predictor.weight" not in plain[0]
    torch.testing.assert_close(plain[0]["layer0.weight"], before[0]["layer0.weight"])


def test_pairs_refuses_a_loss_that_returns_a_vector():
    with pytest.raises(ValueError, match=r"train: loss <lambda> must return float32 of shape \(\)"):
        train(grid(**PAIRS, loss=lambda x, y: (x - y).square().sum(-1)))
