import math
import sys

import numpy as np
import pytest
import torch

from stabviz.lab import copy_tokens, markov_corpus, quartic, ravine, text_corpus
from stabviz.lab.tasks import ALPHABET, _conditional_entropy


def test_text_corpus_is_english_in_small_letters():
    corpus = text_corpus()
    text = corpus.decode(corpus.tokens_N[:20_000])
    assert len(corpus.tokens_N) > 300_000
    assert "the assignment" in corpus.decode(corpus.tokens_N) or "statement" in text
    assert text == text.lower()
    assert set(text) <= set(ALPHABET)
    assert corpus.chance_nats == pytest.approx(math.log(70))
    assert 0.3 < corpus.floor_nats < 1.0


def test_text_corpus_says_what_to_do_where_python_was_stripped(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(RuntimeError, match="stripped of pydoc_data.*install a full Python"):
        text_corpus.__wrapped__()


def test_conditional_entropy_of_a_cycle_is_zero_and_of_a_coin_is_ln_2():
    assert _conditional_entropy("abc" * 50, 1) == 0
    coin = "".join(np.random.default_rng(0).choice(list("ab"), 20_000))
    assert _conditional_entropy(coin, 1) == pytest.approx(math.log(2), abs=1e-3)


def test_markov_corpus_floor_is_what_the_chain_really_costs():
    corpus = markov_corpus(n_symbols=7, concentration=0.5, length=60_000, seed=3)
    text = "".join(chr(97 + token) for token in corpus.tokens_N.tolist())
    assert _conditional_entropy(text, 1) == pytest.approx(corpus.floor_nats, abs=0.02)
    assert corpus.floor_nats < corpus.chance_nats == math.log(7)


def test_markov_corpus_is_more_predictable_when_concentrated():
    floors = [markov_corpus(n_symbols=13, concentration=c, length=10).floor_nats for c in (0.05, 0.5, 5.0)]
    assert floors == sorted(floors)


def test_copy_tokens_repeats_the_first_half():
    tokens_SBL = copy_tokens(2, 3, 10, torch.Generator().manual_seed(0))
    assert tokens_SBL.shape == (2, 3, 11)
    assert torch.equal(tokens_SBL[..., :5], tokens_SBL[..., 6:])
    assert tokens_SBL[..., 5].eq(0).all()
    assert tokens_SBL[..., :5].min() >= 1


def test_ravine_and_quartic_have_the_gradients_that_their_formulas_say():
    position = torch.tensor([3.0, 2.0], requires_grad=True)
    assert torch.autograd.grad(ravine(position, 10.0), position)[0].tolist() == [3.0, 20.0]
    assert torch.autograd.grad(quartic(position), position)[0].tolist() == [108.0, 32.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: markov_corpus(n_symbols=1), "n_symbols must be at least 2; got 1"),
        (lambda: markov_corpus(concentration=0.0), "concentration must be > 0; got 0.0"),
        (lambda: markov_corpus(length=1), "length must be at least 2; got 1"),
        (lambda: copy_tokens(1, 1, 5, torch.Generator()), "context must be even, two halves; got 5"),
    ],
)
def test_tasks_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
