"""The model card of a pretrained checkpoint: trained on what, how, how well, and what it is not for."""

import platform
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import transformers

from stabviz.finetune.about import device_name
from stabviz.finetune.pretrain.config import PretrainConfig
from stabviz.finetune.pretrain.corpus import Document
from stabviz.finetune.train.progress import Progress
from stabviz.trace import Trace

_SOURCES = {
    "topics": "pages of the language reference (`pydoc_data.topics`)",
    "docstring": "docstrings of the standard library",
    "support-desk": "training messages of the support desk (their texts alone; no label, no test message)",
}


def model_card(
    config: PretrainConfig,
    documents: Sequence[Document],
    lengths: np.ndarray,
    parameters: int,
    trace: Trace,
    scores: dict,
    progress: Progress,
) -> str:
    """Return the card as Markdown; every number in it was measured in the run."""
    if config.distil.teacher:
        return _student_card(config, documents, lengths, parameters, trace, scores, progress)
    sections = {
        "# A small BERT, pretrained for a course": (
            f"{parameters:,} parameters: {config.shape.layers} layers of width {config.shape.width}, "
            f"{config.shape.heads} heads, "
            f"{config.text.vocab_size:,} lower-case word pieces, {config.text.max_length} positions. In "
            "transformers' format: `AutoModel.from_pretrained` loads it, and so does "
            "`stabviz.models.Bert.from_folder`."
        ),
        "## Data": _data(config, documents, lengths),
        "## Training": _training(config, trace, progress),
        "## Measured": (
            f"On the documents held out, after {progress.best_at:,} updates: masked pieces "
            f"{scores['masked_lm_loss_nats']:.3f} nats and {scores['accuracy']:.1%} right "
            f"({scores['pieces']:,} pieces); next sentence {scores['next_sentence_loss_nats']:.3f} nats and "
            f"{scores['next_sentence_accuracy']:.1%} right ({scores['pairs']:,} pairs). A uniform guess "
            f"costs {np.log(config.text.vocab_size):.3f} and 0.693 nats."
        ),
        "## Limits": (
            "It has read about half a million word pieces on Python, and made-up support messages: it knows "
            "little English and no facts. It is there to make fine-tuning quick in a course. The held-out "
            "messages share phrases with the training ones, and the losses above flatter it on that part. It "
            "will repeat whatever slant its sources have: do not let it decide about people."
        ),
    }
    return _joined(sections)


def _student_card(
    config: PretrainConfig,
    documents: Sequence[Document],
    lengths: np.ndarray,
    parameters: int,
    trace: Trace,
    scores: dict,
    progress: Progress,
) -> str:
    c, shape, distil = config.train, config.shape, config.distil
    beside = round(distil.swapped_texts * len(documents))
    drawn = (
        f"random weights, {shape.layers} layers of width {shape.width}, {shape.heads} heads, "
        f"{config.text.max_length} positions; {config.text.vocab_size:,} of the teacher's lower-case word "
        "pieces, embeddings begun as the teacher's by principal components"
    )
    masked = (
        f"; and masked words ({config.text.mask_share:.0%} of the pieces, 80/10/10, weight "
        f"{distil.masked_weight:g}), for which the checkpoint keeps its head"
    )
    sections = {
        "# A small BERT, distilled for a course": (
            f"{parameters:,} parameters, in transformers' format, stored in half precision, float32 when "
            f"loaded. Teacher: {distil.teacher} (`minilm` is all-MiniLM-L6-v2, Apache-2.0; mind the licence "
            f"of another one). Start: {distil.student or drawn}."
        ),
        "## Data": _data(config, documents, lengths[: len(lengths) - beside])
        + f" Beside them stood {beside:,} copies with three words in "
        "ten replaced, by other words and by made-up ones.",
        "## Training": (
            "The teacher's last hidden states by word, the cosine of [CLS] and the teacher's mean vector, "
            f"relations between texts{'' if distil.student or not distil.masked_weight else masked}: "
            f"{progress.updates:,} updates of {c.batch} texts, AdamW, peak rate {c.lr:g}, {c.warmup} warm-up "
            f"steps, {c.schedule} schedule; {_where(config)}:\n\n{_command(config)}\n\n"
            f"{_curve(config, trace, 'error')}"
        ),
        "## Measured": (
            f"On the documents held out, after {progress.best_at:,} updates: mean cosine "
            f"{scores['text_cosine']:.3f} between its texts and the teacher's."
        ),
        "## Limits": (
            "It knows what its teacher knows of texts like those above, and less of others. It will repeat "
            "whatever slant teacher and texts have: do not let it decide about people."
        ),
    }
    return _joined(sections)


def _joined(sections: dict[str, str]) -> str:
    return "\n\n".join(f"{head}\n\n{body}" for head, body in sections.items()) + "\n"


def _data(config: PretrainConfig, documents: Sequence[Document], lengths: np.ndarray) -> str:
    counts = Counter(document.source for document in documents)
    sources = "\n".join(f"- {counts[name]:,} {words}" for name, words in _SOURCES.items() if counts[name])
    return (
        f"{sources}\n\nNear duplicates and lines of code were left out: {len(lengths):,} passages, "
        f"{int(lengths.sum()):,} word pieces. {config.text.held_out:.0%} of the documents, by seed, were "
        f"held out. The text of the standard library is that of Python {platform.python_version()}, under "
        "its own licence (PSF)."
    )


def _training(config: PretrainConfig, trace: Trace, progress: Progress) -> str:
    c = config.train
    return (
        f"Masked language model ({config.text.mask_share:.0%} of the pieces, 80/10/10) and next-sentence "
        f"prediction: {progress.updates:,} updates of {c.batch} rows, AdamW, peak rate {c.lr:g}, "
        f"{c.warmup} warm-up steps, {c.schedule} schedule; {_where(config)}:\n\n{_command(config)}\n\n"
        f"{_curve(config, trace, 'loss in nats')}\n\n"
        "The embeddings are stored at the size that they began with, the vocabulary head's layer "
        "norm takes up the factor: the same function, and fine-tuning moves them faster. The pooler is left "
        "out: next-sentence prediction had saturated it, and fine-tuning draws a new one."
    )


def _where(config: PretrainConfig) -> str:
    compute = config.train.compute
    return (
        f"seed {config.run.seed}, {compute.precision}, on {device_name(compute.device)} with "
        f"{config.threads} thread of torch {torch.__version__} (transformers {transformers.__version__})"
    )


def _command(config: PretrainConfig) -> str:
    flags = "".join(f" --{name.replace('_', '-')} {value}" for name, value in _changed(config).items())
    return f"    python -m stabviz pretrain{flags} --out {config.run.out}"


def _curve(config: PretrainConfig, trace: Trace, measure: str) -> str:
    means = [
        (step + 1, trace["loss_nats"][0, max(0, i - 49) : i + 1].mean())
        for i, step in enumerate(trace.steps)
        if (step + 1) % max(1, config.train.steps // 8) == 0
    ]
    rows = "\n".join(f"| {updates:,} | {loss:.3f} |" for updates, loss in means)
    return f"| updates | training {measure}, mean of 50 steps |\n|---|---|\n{rows}"


def _changed(config: PretrainConfig) -> dict:
    default = PretrainConfig()
    leave = ("out", "overwrite", "progress", "stop_after", "save_every", "messages")
    return {
        name: value
        for name, value in config.as_dict().items()
        if name not in leave and value != default.as_dict()[name]
    }
