"""The text that `stabviz pretrain` learns: documents of sentences, and a tokenizer trained on them.

Three sources, none of which needs a network: the language reference in `pydoc_data.topics`, the docstrings of
the standard library (its sources are parsed, nothing is imported), and the training messages of the support
desk.
"""

import json
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from stabviz.finetune.config import DATA
from stabviz.finetune.data.docstrings import file_docstrings
from stabviz.seeds import integer

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SUPPORT_DESK_TRAINING = DATA / "support-desk" / "train.jsonl"
_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "__phello__",
}
"""Folders of the standard library that hold no text about it."""
_CODE = re.compile(
    r"""^\s*(?:>>>|\.\.\.|\$\s|\#|@\w|\.\.\s\w+::        # doctests, shells, comments, decorators, markup
        |(?:def|class|import|from|return|raise|assert|with|while|for|if|elif|else|try|except|lambda|print)\b.*[:(=)]\s*$
        |[\w.\[\]'", ]+\s=\s\S.*$                        # an assignment
        |[\w.]+\([^)]*\)\s*(?:->.*)?$                    # a signature or a call, alone on its line
        |[-=*~^+|\s]+$)""",
    re.VERBOSE,
)
_SENTENCE_END = re.compile(r"""(?<=[.!?])["')\]]*\s+(?=["'(*`\[]*[A-Z])""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Sentences that follow one another: a page of the reference, a docstring, a message."""

    name: str
    """Where it comes from: "topics/assert", "docstring/json.decoder:12" (the line), "support-desk/17" (the
    row)."""
    sentences: tuple[str, ...]

    @property
    def source(self) -> str:
        """topics, docstring, support-desk or swapped."""
        return self.name.split("/")[0]


def looks_like_code(line: str) -> bool:
    """Tell a line that holds nothing but code, an underline or a table from a line of prose.

    >>> looks_like_code(">>> total = 3"), looks_like_code("The total is 3.")
    (True, False)
    """
    letters = sum(c.isalpha() or c == " " for c in line)
    return bool(_CODE.match(line)) or letters < 0.75 * len(line)


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text without its lines of code; a blank line ends a sentence.

    >>> split_sentences("Open a file.  Close it\\nlater.\\n\\n    >>> open(name)\\n\\nThat is all.")
    ['Open a file.', 'Close it later.', 'That is all.']
    """
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        if not line.strip():
            paragraphs.append([])
        elif not looks_like_code(line.strip()):
            paragraphs[-1].append(line.strip().lstrip("*-• ").rstrip())
    sentences = (s for lines in paragraphs for s in _SENTENCE_END.split(" ".join(lines)))
    return [clean for s in sentences if len((clean := " ".join(s.split())).split()) >= 2]


def topic_documents() -> Iterator[Document]:
    """Yield the pages of the language reference that CPython carries in `pydoc_data.topics`."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(name=f"topics/{name}", sentences=tuple(split_sentences(topics[name])))


def docstring_documents(root: Path | None = None) -> Iterator[Document]:
    """Yield the standard library's docstrings by path and line; sources are parsed, never imported."""
    root = Path(sysconfig.get_path("stdlib")) if root is None else Path(root)
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _LEFT_OUT & set(parts) or parts[0].startswith("config-"):
            continue
        try:
            found = sorted(file_docstrings(path), key=lambda docstring: docstring[0])
        except (SyntaxError, ValueError):  # a template, or source of another Python version
            continue
        for line, name, text in found:
            if not name.startswith("test"):
                sentences = tuple(split_sentences(text))
                yield Document(name=f"docstring/{'.'.join(parts)}:{line}", sentences=sentences)


def message_documents(path: str | Path = SUPPORT_DESK_TRAINING) -> Iterator[Document]:
    """Yield the texts of a JSON-lines file with a "text" column: the training messages, labels left unread.

    Raises: FileNotFoundError without the file; ValueError for a line that is no JSON object with a "text"
    """
    for row, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines()):
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'message_documents: {path} line {row + 1} must be an object with "text" ({error!r})'
            ) from error
        yield Document(name=f"support-desk/{row}", sentences=tuple(split_sentences(text) or [text]))


def _shingles(document: Document) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"[a-z]+", " ".join(document.sentences).lower())
    return frozenset(zip(words, words[1:], words[2:], strict=False)) or frozenset([tuple(words)])


def without_near_duplicates(documents: Iterable[Document], *, similarity: float = 0.8) -> list[Document]:
    """Keep the first of documents whose runs of three words agree: shared over all (Jaccard) >= similarity.

    Numbers, capitals and punctuation do not count. Documents without a sentence are dropped as well.
    """
    kept: list[Document] = []
    sizes: list[int] = []
    places: dict[tuple[str, ...], list[int]] = {}
    for document in documents:
        if not document.sentences:
            continue
        own = _shingles(document)
        shared = Counter(i for shingle in own for i in places.get(shingle, ()))
        if any(n >= similarity * (len(own) + sizes[i] - n) for i, n in shared.items()):
            continue
        for shingle in own:
            places.setdefault(shingle, []).append(len(kept))
        sizes.append(len(own))
        kept.append(document)
    return kept


def pretraining_documents(messages: str | Path | None = SUPPORT_DESK_TRAINING) -> list[Document]:
    """Return all documents, near duplicates removed. `messages` None: the standard library's alone.

    The text differs a little between Python versions, and so does what is trained on it.
    """
    found = [*topic_documents(), *docstring_documents()]
    return without_near_duplicates([*found, *(message_documents(messages) if messages else ())])


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int = 4096, max_length: int = 128
) -> PreTrainedTokenizerFast:
    """Learn word pieces from texts, lower case, and return them as a tokenizer in BERT's format.

    Source: WordPiece as BERT uses it, Devlin et al. 2019, arXiv:1810.04805, section 3; training by
            `tokenizers`
    Lesson: 09-pretraining
    """
    texts = list(texts)
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    plain = (normalizer.normalize_str(text) for text in texts)
    words = {word for text in plain for word, _ in pre_tokenizer.pre_tokenize_str(text)}
    insides = {c for word in words for c in word[1:]}
    # The trainer numbers "##a" ... in the order of a hash map and breaks ties by number, so that two runs may
    # disagree (huggingface/tokenizers issue 1794). Named beforehand, as if special, these pieces have fixed
    # numbers.
    first = [*SPECIAL.values(), *("##" + c for c in sorted(insides))]
    learner = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizer
    learner.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size, min_frequency=2, special_tokens=first, show_progress=False
        ),
    )
    return _with_bert_format(learner.get_vocab(), max_length)


def subset_tokenizer(
    teachers: Any, texts: Iterable[str], *, vocab_size: int = 4096, max_length: int = 128
) -> PreTrainedTokenizerFast:
    """Return a tokenizer with some of a BERT's own lower-case pieces.

    Special tokens and the characters of `texts` first, then what the texts hold three times or more, by
    count, then the lowest numbers: BERT numbers its words by how frequent they are.
    """
    known, counts = teachers.get_vocab(), Counter[str]()
    for encoding in teachers.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False):
        counts.update(encoding.tokens)
    characters = {c for piece in counts for c in piece.removeprefix("##")}
    wanted = dict.fromkeys(SPECIAL.values())
    wanted |= dict.fromkeys(p for c in sorted(characters) for p in (c, f"##{c}") if p in known)
    wanted |= dict.fromkeys(piece for piece, count in counts.most_common() if count >= 3 and piece in known)
    words = (piece for piece in sorted(known, key=known.__getitem__) if piece.strip("#").isalpha())
    wanted |= dict.fromkeys(piece for piece in words if piece.isascii())
    return _with_bert_format({piece: i for i, piece in enumerate(list(wanted)[:vocab_size])}, max_length)


def swapped_documents(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, count: int, seed: int
) -> list[Document]:
    """Copy `count` documents with three words in ten replaced: by words of a tokenizer's, or by made-up ones.

    A made-up word is two or three pieces put together, as an unknown name is cut into pieces. What a word may
    be in its place a teacher says of any word.

    Source: after Krishna et al. 2020, arXiv:1910.12366: models can be copied with texts of random words;
            deviation: seven words in ten stay
    """
    rng, vocabulary = np.random.default_rng(integer(seed, "swapped words")), sorted(tokenizer.get_vocab())
    words = np.array([piece for piece in vocabulary if len(piece) > 1 and piece.isalpha()])
    inside = np.array([piece[2:] for piece in vocabulary if piece.startswith("##") and piece[2:].isalpha()])
    rounds = max(1, -(-count // len(documents)))  # one for no copy at all: nothing cannot be joined
    order = np.concatenate([rng.permutation(len(documents)) for _ in range(rounds)])

    def swapped(sentence: str) -> str:
        here = np.array(sentence.split(), dtype=object)
        chosen = rng.random(len(here)) < 0.3
        made_up = [
            "".join([word, *rng.choice(inside, rng.integers(1, 3))]) if rng.random() < 0.5 else word
            for word in rng.choice(words, int(chosen.sum()))
        ]
        here[chosen] = made_up
        return " ".join(here)

    return [
        Document(
            name=f"swapped/{number}",
            sentences=tuple(swapped(sentence) for sentence in documents[i].sentences),
        )
        for number, i in enumerate(order[:count].tolist())
    ]


def _with_bert_format(vocab: dict[str, int], max_length: int) -> PreTrainedTokenizerFast:
    """Put [CLS] and [SEP] around a text or a pair; only the five special tokens are special."""
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocab[name]) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        do_lower_case=True,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **SPECIAL,
    )
