"""A hub that does not answer: one question, no retries, one line."""

import datasets
import pytest
from huggingface_hub import constants

from stabviz.finetune.config import DataConfig
from stabviz.finetune.data.splits import DataError, read_splits
from stabviz.models import hub
from stabviz.models.pretrained import load_tokenizer


@pytest.fixture
def unplugged(monkeypatch):
    """A machine without a network, on which nothing says so; what was asked for is counted."""
    asked = []

    class Session:
        def head(self, url, **options):
            asked.append(url)
            raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(hub, "get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return asked


def test_a_model_that_is_nowhere_costs_one_question_and_one_line(unplugged, caplog):
    with pytest.raises(
        ValueError, match="hub cannot be reached, Name or service not known, and its cache"
    ) as e:
        load_tokenizer("nobody/no-such-model")
    assert "\n" not in str(e.value)
    assert unplugged == [constants.ENDPOINT]
    assert "Retry" not in caplog.text


def test_data_that_are_nowhere_cost_one_question_and_one_line(unplugged, caplog):
    with pytest.raises(DataError, match="the hub cannot be reached, Name or service not known"):
        read_splits(DataConfig(source="nobody/no-such-data"))
    assert unplugged == [constants.ENDPOINT]
    assert "Retry" not in caplog.text


def test_the_libraries_are_online_again_afterwards(unplugged):
    with hub.hub() as problem:
        assert problem == "Name or service not known"
        assert constants.is_offline_mode()
        assert datasets.config.HF_HUB_OFFLINE
    assert not constants.is_offline_mode()
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_folder_asks_no_hub(unplugged, tmp_path):
    with pytest.raises(ValueError, match="load_model: model"):
        load_tokenizer(str(tmp_path))
    assert unplugged == []
