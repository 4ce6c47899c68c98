"""A tiny WordPiece tokenizer and a tiny random BERT, made here: no test needs a download."""

import os
import string

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
torch.set_num_threads(1)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "my", "is", "not", "order", "invoice", "late", "router", "please", "cancel", "help", "print", "was",
         "and", "to", "it", "account", "lock", "refund", "where", "day", "from", "in", "good", "bad", "slow"]
PIECES = ["##ed", "##er", "##ing", "##s", "##ly", "##ton", "##ville"]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A lower-casing WordPiece tokenizer: some 30 whole words, a few endings, single letters for all the rest."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [*string.ascii_lowercase, *string.digits]
    pieces = [*SPECIAL, *letters, *("##" + letter for letter in letters), *string.punctuation, *WORDS, *PIECES]
    tokenizer = Tokenizer(models.WordPiece(vocab={piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", pieces.index("[CLS]")), ("[SEP]", pieces.index("[SEP]"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=128)


@pytest.fixture(scope="session")
def tiny_bert_folder(tiny_tokenizer, tmp_path_factory):
    """A folder with a random BERT (2 layers, width 32, 4 heads) in transformers' format, and its tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    config = BertConfig(vocab_size=len(tiny_tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=64, max_position_embeddings=128)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
