"""A tiny WordPiece tokenizer and a tiny random BERT, made here: no test needs a download."""

import json
import os
import string

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
torch.set_num_threads(1)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "the",
    "my",
    "is",
    "not",
    "order",
    "invoice",
    "late",
    "router",
    "please",
    "cancel",
    "help",
    "print",
    "was",
    "and",
    "to",
    "it",
    "account",
    "lock",
    "refund",
    "where",
    "day",
    "from",
    "in",
    "good",
    "bad",
    "slow",
]
PIECES = ["##ed", "##er", "##ing", "##s", "##ly", "##ton", "##ville"]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A lower-casing WordPiece tokenizer: some 30 whole words, a few endings, single letters for all the
    rest."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [*string.ascii_lowercase, *string.digits]
    pieces = [
        *SPECIAL,
        *letters,
        *("##" + letter for letter in letters),
        *string.punctuation,
        *WORDS,
        *PIECES,
    ]
    tokenizer = Tokenizer(
        models.WordPiece(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", pieces.index("[CLS]")), ("[SEP]", pieces.index("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
    )


@pytest.fixture(scope="session")
def tiny_bert_folder(tiny_tokenizer, tmp_path_factory):
    """A folder with a random BERT (2 layers, width 32, 4 heads) in transformers' format, and its
    tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A folder with a few messages of the support desk: 7 batches of 8 rows in an epoch, and two rows to
    spare."""
    from stabviz.finetune.config import DATA

    folder = tmp_path_factory.mktemp("desk")
    for split, n_rows in (("train", 58), ("validation", 24), ("test", 16)):
        with open(DATA / "support-desk" / f"{split}.jsonl", encoding="utf-8") as file:
            lines = [json.loads(next(file)) for _ in range(n_rows)]
        kept = [json.dumps({"text": line["text"], "label": line["sentiment"]}) + "\n" for line in lines]
        (folder / f"{split}.jsonl").write_text("".join(kept), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def config_of(desk, tiny_bert_folder):
    """Make a config in which everything random is on: dropout, shuffling, uneven accumulation, word dropout,
    EMA."""
    from stabviz.finetune.config import FinetuneConfig

    def make(out, **settings):
        defaults = {
            "data": str(desk),
            "label": "label",
            "model": str(tiny_bert_folder),
            "steps": 32,
            "batch": 8,
            "micro_batch": 3,
            "dropout": 0.1,
            "word_dropout": 0.2,
            "ema_decay": 0.9,
            "lr": 3e-3,
            "warmup_steps": 4,
            "max_length": 24,
            "evaluate_every": 6,
            "save_every": 5,
            "flush_every": 4,
            "signals_every": 3,
            "device": "cpu",
            "progress": False,
            "deterministic": True,
            "out": out,
        }
        return FinetuneConfig.of(**(defaults | settings))

    return make


def _everything(out):
    """Return all that a run leaves: weights, moments, averages, progress, the log's bytes, the best weights'
    bytes."""
    from stabviz.finetune.train.checkpoint import newest_checkpoint, read_checkpoint

    tensors, state = read_checkpoint(newest_checkpoint(out / "checkpoints")[0])
    assert sorted(tensors) == ["average", "model", "optimizer"]
    flat = {f"{group}/{name}": value for group, named in tensors.items() for name, value in named.items()}
    return (
        flat,
        state,
        (out / "metrics.jsonl").read_bytes(),
        (out / "best" / "model.safetensors").read_bytes(),
    )


@pytest.fixture(scope="session")
def everything():
    """The function that collects what a run leaves in its folder."""
    return _everything


@pytest.fixture(scope="session")
def assert_equal_to_the_bit():
    """The function that compares a run's folder with what another run has left."""

    def compare(out, reference):
        flat, state, log, best = out if isinstance(out, tuple) else _everything(out)
        expected, expected_state, expected_log, expected_best = reference
        assert flat.keys() == expected.keys()
        different = [name for name, value in flat.items() if not torch.equal(value, expected[name])]
        assert different == []
        assert state["progress"] == expected_state["progress"]
        assert log == expected_log
        assert best == expected_best

    return compare


@pytest.fixture(scope="session")
def go():
    """The function that trains as `finetune` does, without the test scores at the end."""
    from stabviz.finetune.data.splits import read_splits
    from stabviz.finetune.distributed import ProcessGroup
    from stabviz.finetune.run import prepare
    from stabviz.finetune.train.loop import train

    def train_run(config, **options):
        processes = ProcessGroup.join(config.train.compute.device)
        torch.manual_seed(
            torch.seed() % 1000
        )  # what earlier code left in the global generator must not matter
        try:
            return train(prepare(config, read_splits(config.data, config.run.seed), processes)[0], **options)
        finally:
            torch.use_deterministic_algorithms(False)

    return train_run
