"""`stabviz pretrain`: a small BERT from text alone, by masked words and next-sentence prediction."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import BertForPreTraining, PreTrainedTokenizerFast
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput

from stabviz.files import dumps, replace_folder, write_atomically
from stabviz.finetune.data.batches import collate
from stabviz.finetune.data.encode import IGNORED
from stabviz.finetune.distributed import ProcessGroup, bare
from stabviz.finetune.evaluation import Evaluation
from stabviz.finetune.pretrain.card import model_card
from stabviz.finetune.pretrain.config import PretrainConfig
from stabviz.finetune.pretrain.corpus import Document, pretraining_documents, train_tokenizer
from stabviz.finetune.pretrain.distil import Student, prepare_student, publish_student
from stabviz.finetune.pretrain.masking import PretrainingRows
from stabviz.finetune.pretrain.shape import small_bert, start_with_sinusoids, with_small_embeddings
from stabviz.finetune.train.interrupt import Interrupt
from stabviz.finetune.train.loop import train
from stabviz.finetune.train.micro_batches import autocast
from stabviz.finetune.train.progress import Progress
from stabviz.finetune.train.setup import Setup
from stabviz.methods.objective import model_inputs
from stabviz.models.pretrained import checkpoint_activations
from stabviz.ops import cross_entropy
from stabviz.seeds import integer
from stabviz.trace import Trace
from stabviz.trace.log import read_metrics


class MaskedBert(BertForPreTraining):
    """transformers' BertForPreTraining that can compute logits at the predicted pieces alone.

    Same weights, same names; with 15 % of the pieces predicted the head costs 15 % of its time and memory.

    Shapes: predicted_BL (B, L) bool with N True -> prediction_logits (N, V), in reading order; None: (B, L,
            V)
    """

    def forward(self, input_ids=None, predicted_BL=None, **inputs):
        output = self.bert(input_ids=input_ids, **inputs)
        hidden = output.last_hidden_state if predicted_BL is None else output.last_hidden_state[predicted_BL]
        pieces, follows_BC = self.cls(hidden, output.pooler_output)
        return BertForPreTrainingOutput(prediction_logits=pieces, seq_relationship_logits=follows_BC)


def masked_lm_objective(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of masked words plus that of next sentences, each a mean over its own targets.

    Rows without a second sentence (next_sentence_label -100) teach the language model alone; a batch without
    any pair adds 0.

    Shapes: batch labels (B, L) and next_sentence_label (B,), -100 = not predicted -> loss (), measured
    Units:  nats, the sum of the two; "accuracy" over the predicted pieces
    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.2: the sum of the two mean
            likelihoods
    Lesson: 09-pretraining
    """
    predicted_BL = batch["labels"] != IGNORED
    at = {"predicted_BL": predicted_BL} if isinstance(bare(model), MaskedBert) else {}
    output = model(**model_inputs(batch), **at)
    logits = output.prediction_logits
    logits_NV = (logits if logits.ndim == 2 else logits[predicted_BL]).float()
    targets_N = batch["labels"][predicted_BL]
    pieces, seen = cross_entropy(logits_NV, targets_N)
    follows, seen_pairs = cross_entropy(output.seq_relationship_logits.float(), batch["next_sentence_label"])
    follows = torch.where(seen_pairs.kept > 0, follows, 0.0)  # no pair: 0/0, a NaN for all
    with torch.no_grad():
        right = (logits_NV.argmax(dim=-1) == targets_N).float().mean()
        right_pairs = output.seq_relationship_logits.argmax(dim=-1) == batch["next_sentence_label"]
    measured = {
        "log_z": seen.log_z,
        "accuracy": right,
        "masked_lm_loss_nats": pieces.detach(),
        "next_sentence_loss_nats": follows.detach(),
        "next_sentence_accuracy": right_pairs.sum() / seen_pairs.kept,
    }
    return pieces + follows, measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """What came of a pretraining run."""

    config: PretrainConfig
    progress: Progress
    trace: Trace
    scores: dict | None
    """Of the best weights on the documents held out; None while the run is not finished."""

    @property
    def folder(self) -> Path:
        """The checkpoint to fine-tune, in transformers' format; best/ has all weights as trained."""
        return self.config.run.out / "pretrained"


def pretrain(
    config: PretrainConfig,
    *,
    documents: Sequence[Document] | None = None,
    resume: bool = False,
    force: bool = False,
    interrupt: Interrupt | None = None,
) -> Pretrained:
    """Train a tokenizer and a BERT on text alone, by the loop that fine-tunes; writes OUT/pretrained.

    With a teacher (`config.distil`) it learns the teacher's hidden states, no masked words. `documents`
    None: the standard library's prose and the messages that the config names. The run folder is that of
    `finetune`, and pretrain.json in it holds the config; a stopped run is resumed with the same config.

    Raises: ValueError for what is wrong before training, and as `stabviz.finetune.train.loop.train`
    Lesson: 09-pretraining
    """
    out = config.run.out
    torch.set_num_threads(config.threads)
    processes = ProcessGroup.join(config.train.compute.device)
    try:
        documents = pretraining_documents(config.text.messages) if documents is None else list(documents)
        training, held_out = hold_out(documents, share=config.text.held_out, seed=config.run.seed)
        if config.distil.teacher:
            setup = prepare_student(config, training, held_out, processes)
        else:
            tokenizer = train_tokenizer(
                (s for document in training for s in document.sentences),
                vocab_size=config.text.vocab_size,
                max_length=config.text.max_length,
            )
            setup = prepare(config, tokenizer, training, held_out, processes)
        if processes.leads and (resume or config.run.overwrite or not (out / "config.json").exists()):
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / "pretrain.json", dumps(config.as_dict(), indent=2) + "\n")
        progress = train(setup, resume=resume, force=force, interrupt=interrupt)
        trace, scores = read_metrics(out / "metrics.jsonl"), None
        if progress.finished:
            scores, parameters = _scores_of_best(setup, progress)
            if processes.leads:
                write_atomically(out / "scores.json", dumps(scores, indent=2) + "\n")
                card = model_card(config, training, setup.rows.lengths, parameters, trace, scores, progress)
                publish = publish_student if config.distil.teacher else _write_checkpoint
                replace_folder(out / "pretrained", partial(publish, out / "best", card))
        processes.wait()
        return Pretrained(config=config, progress=progress, trace=trace, scores=scores)
    finally:
        processes.leave()


def _scores_of_best(setup: Setup, progress: Progress) -> tuple[dict, int]:
    """Return the scores of the best weights on what was held out, and how many parameters they are."""
    best = setup.config.run.out / "best"
    if isinstance(setup.model, Student):
        # best/ has no map to the teacher's width: what was measured then is taken
        return {"text_cosine": progress.best_score}, setup.model.model.num_parameters()
    model = MaskedBert.from_pretrained(best, dtype=torch.float32)
    model.to(setup.processes.device)  # type: ignore[arg-type]  # transformers hides the type of its wrapper
    return setup.evaluate(model, lambda: None).scores, model.num_parameters()


def _write_checkpoint(best: Path, card: str, folder: Path) -> None:
    """Write what fine-tuning starts from: small embeddings, and no pooler.

    Next-sentence prediction drives the pooler's tanh to its ends, where gradients vanish: fine-tuning draws a
    new one.
    """
    model = BertForPreTraining.from_pretrained(best, dtype=torch.float32)
    weights = {name: tensor.detach() for name, tensor in model.named_parameters() if "pooler" not in name}
    model.save_pretrained(folder, state_dict=with_small_embeddings(weights, model.config.initializer_range))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(best / name, folder / name)
    (folder / "README.md").write_text(card, encoding="utf-8")


def hold_out(
    documents: Sequence[Document], *, share: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Split documents by seed into those that are trained on and those that measure the loss, order kept.

    Raises: ValueError if fewer than four documents are there
    """
    if len(documents) < 4:
        raise ValueError(f"hold_out: documents must be at least 4, two for each part; got {len(documents)}")
    n_held = min(max(2, round(share * len(documents))), len(documents) - 2)
    held = set(np.random.default_rng(integer(seed, "held out")).permutation(len(documents))[:n_held].tolist())
    return (
        [document for i, document in enumerate(documents) if i not in held],
        [document for i, document in enumerate(documents) if i in held],
    )


def prepare(
    config: PretrainConfig,
    tokenizer: PreTrainedTokenizerFast,
    training: Sequence[Document],
    held_out: Sequence[Document],
    processes: ProcessGroup | None = None,
) -> Setup:
    """Draw a model, encode the documents and return what the loop needs."""
    transformers.utils.logging.disable_progress_bar()
    processes = ProcessGroup.join(config.train.compute.device) if processes is None else processes
    rows, measuring = (
        PretrainingRows(
            part,
            tokenizer,
            max_length=config.text.max_length,
            seed=config.run.seed,
            share=config.text.mask_share,
            random_next=config.text.random_next,
        )
        for part in (training, held_out)
    )
    torch.manual_seed(integer(config.run.seed, "initial weights"))
    model = MaskedBert(small_bert(len(tokenizer), config, dropout=config.shape.dropout))
    start_with_sinusoids(model)
    if config.train.compute.activation_checkpointing:
        checkpoint_activations(model)

    def save_model(model: nn.Module, folder: Path, weights: dict[str, Tensor]) -> None:
        shape = small_bert(len(tokenizer), config, dropout=config.shape.checkpoint_dropout)
        with torch.random.fork_rng():  # the weights drawn here are overwritten: they must use up no draws
            plain = BertForPreTraining(shape)  # under the name by which transformers knows it
        plain.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)

    text = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for part in (rows, measuring):
        for document, sentences in part.passages:
            text.update(repr((document, sentences)).encode())
    fixed = config.text.max_length if config.train.compute.fixed_length else None
    padded = partial(collate, pad_id=tokenizer.pad_token_id, fixed_length=fixed)
    return Setup(
        config=config,
        processes=processes,
        model=model,
        objective=masked_lm_objective,
        rows=rows,
        collate=padded,
        save_model=save_model,
        fingerprint=text.hexdigest(),
        evaluate=partial(
            _held_out_scores,
            rows=measuring,
            collate=padded,
            device=processes.device,
            autocast=partial(autocast, config.train.compute.precision, processes.device),
        ),
    )


def _held_out_scores(
    model: nn.Module,
    check: Callable[[], None],
    *,
    rows: PretrainingRows,
    collate: Callable,
    device: torch.device,
    autocast: Callable,
    batch: int = 64,
) -> Evaluation:
    """Measure on held-out documents with the masks and pairs of epoch 0: the same ones every time."""
    order, was_training = np.argsort(rows.lengths, kind="stable").tolist(), model.training
    sums = dict.fromkeys(
        ("masked_lm_loss_nats", "accuracy", "next_sentence_loss_nats", "next_sentence_accuracy"), 0.0
    )
    pieces = pairs = 0
    model.eval()
    try:
        for first in range(0, len(order), batch):
            check()
            tensors = collate([rows[0, i] for i in order[first : first + batch]])
            with torch.no_grad(), autocast():
                _, measured = masked_lm_objective(model, {name: x.to(device) for name, x in tensors.items()})
            n_pieces, n_pairs = (
                int((tensors[name] != IGNORED).sum()) for name in ("labels", "next_sentence_label")
            )
            pieces, pairs = pieces + n_pieces, pairs + n_pairs
            for name in sums:
                count = n_pairs if name.startswith("next") else n_pieces
                sums[name] += count * float(measured[name]) if count else 0.0
    finally:
        model.train(was_training)
    scores = {
        name: total / max(pairs if name.startswith("next") else pieces, 1) for name, total in sums.items()
    }
    loss = scores["masked_lm_loss_nats"] + scores["next_sentence_loss_nats"]
    return Evaluation(scores={**scores, "loss_nats": loss, "pieces": pieces, "pairs": pairs}, predictions=[])
