"""A whole run from its config: data, model, training, best weights, test scores; for several seeds too."""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stabviz.files import dumps, loads, write_atomically
from stabviz.finetune.about import describe, start_summary
from stabviz.finetune.baseline import baseline_scores
from stabviz.finetune.card import fine_tuned_card
from stabviz.finetune.config import FinetuneConfig, KindName
from stabviz.finetune.data.batches import collate, pack
from stabviz.finetune.data.class_weights import class_weights, weigh_targets
from stabviz.finetune.data.encode import TokenRows
from stabviz.finetune.data.splits import Splits, read_splits
from stabviz.finetune.data.words import split_words, splitter_of
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.evaluation import Evaluation, evaluate, predict_logits
from stabviz.finetune.mistakes import confident_mistakes
from stabviz.finetune.tasks import KINDS
from stabviz.finetune.train.interrupt import Interrupt
from stabviz.finetune.train.loop import train
from stabviz.finetune.train.micro_batches import autocast
from stabviz.finetune.train.optimizer import trained_parameters, usual_rate
from stabviz.finetune.train.progress import Progress
from stabviz.finetune.train.setup import Setup
from stabviz.finetune.upload import check_upload, upload
from stabviz.models.bert_files import write_bert_folder
from stabviz.models.bert_module import Bert
from stabviz.models.pretrained import PROBLEM_TYPES, checkpoint_activations, load_model, load_tokenizer
from stabviz.scores import churn, spread
from stabviz.trace import Trace
from stabviz.trace.log import read_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one run."""

    config: FinetuneConfig
    progress: Progress
    trace: Trace
    scores: dict | None
    """Of the best weights on the test split; None while the run is not finished."""

    @property
    def finished(self) -> bool:
        """Whether the run came to its end; else it was stopped and can be resumed."""
        return bool(self.progress.finished)

    @property
    def best(self) -> tuple[float, int]:
        """Best score on the validation split, and the updates made by then: the weights in best/."""
        score_S = self.trace["validation_score"][0]
        if np.isnan(score_S).all():
            return math.nan, 0
        at = int(np.nanargmax(score_S))
        return float(score_S[at]), int(self.trace["updates"][0, at]) + 1


def finetune(
    config: FinetuneConfig, *, resume: bool = False, force: bool = False, interrupt: Interrupt | None = None
) -> Outcome:
    """Train one model on one seed, keep its best weights, and score them on the test split.

    The folder OUT then holds config.json, metrics.jsonl, timings.jsonl, checkpoints/, best/,
    scores.json and wall_time.json.

    Raises: ValueError (DataError for bad rows) for what is wrong before training; TrainingFailed when
            training cannot go on; OSError for a folder that cannot be written
    Lesson: 11-classification
    """
    began = time.perf_counter()
    processes = ProcessGroup.join(config.train.compute.device)
    try:
        if config.model.push_to_hub:
            processes.first(partial(check_upload, config.model.push_to_hub))
        splits = read_splits(config.data, config.run.seed)
        setup, tokenizer = prepare(config, splits, processes)
        chosen = setup.config.train  # the steps may come from the epochs, the rate from the model
        config = config.replace(steps=chosen.steps, lr=chosen.lr)
        if config.run.progress and processes.leads:
            print(start_summary(setup.about))
        progress = train(setup, resume=resume, force=force, interrupt=interrupt)
        scores = None
        if progress.finished:
            scores = score_best(config, splits, tokenizer, processes)
            if config.model.baseline:
                scores["baselines"] = processes.first(partial(baseline_scores, splits, config.run.seed))
            scores["ended"] = progress.finished
            processes.first(partial(_write_scores, config, splits.kind, setup.about, scores))
            # apart from the scores, which are the same bytes each time
            wall = dumps({"wall_s": time.perf_counter() - began}) + "\n"
            processes.first(partial(write_atomically, config.run.out / "wall_time.json", wall))
            if config.model.push_to_hub:
                processes.first(partial(upload, config.run.out / "best", config.model.push_to_hub))
        processes.wait()
        trace = read_metrics(config.run.out / "metrics.jsonl")
        return Outcome(config=config, progress=progress, trace=trace, scores=scores)
    finally:
        processes.leave()


def _write_scores(config: FinetuneConfig, kind: KindName, about: dict, scores: dict) -> None:
    write_atomically(config.run.out / "scores.json", dumps(scores, indent=2) + "\n")
    write_atomically(config.run.out / "best" / "README.md", fine_tuned_card(config, kind, about, scores))


def build_model(config: FinetuneConfig, kind: KindName, labels, tokenizer) -> nn.Module:
    """Load the model that the config names, with a head for these labels that is drawn by the run's seed.

    Raises: ValueError as `load_model`, or if max_length is more than the model's positions
    Lesson: 11-classification
    """
    model = load_model(
        config.model.name,
        kind,
        labels,
        pad_id=tokenizer.pad_token_id,
        seed=config.run.seed,
        implementation=config.model.implementation,
        from_scratch=config.model.from_scratch,
        dropout=config.model.dropout,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and config.data.max_length > longest:
        raise ValueError(
            f"finetune: max_length must be at most {longest}, the positions that {config.model.name} has; "
            f"got {config.data.max_length}"
        )
    if config.train.compute.activation_checkpointing:
        checkpoint_activations(model)
    return model


def prepare(config: FinetuneConfig, splits: Splits, processes: ProcessGroup) -> tuple[Setup, object]:
    """Load tokenizer and model and encode the rows; return what the loop needs, and the tokenizer."""
    kind = KINDS[splits.kind]
    metric = kind.metric(config.train.metric, splits.labels)
    weights = class_weights(config.model.class_weights, splits)
    if config.train.epochs is not None:
        # a last batch that would not be full is left out of an epoch, with other rows each time
        per_epoch = max(1, len(splits.train) // config.train.batch)
        config = config.replace(steps=math.ceil(config.train.epochs * per_epoch))
    tokenizer = load_tokenizer(
        config.model.name,
        splits.kind,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )
    model = build_model(config, splits.kind, splits.labels, tokenizer)
    if config.train.lr is None:
        config = config.replace(lr=usual_rate(model))
    compute, max_length, pad_id = config.train.compute, config.data.max_length, tokenizer.pad_token_id
    encode = partial(
        TokenRows,
        tokenizer=tokenizer,
        kind=splits.kind,
        max_length=max_length,
        scale=splits.scale,
        seed=config.run.seed,
    )
    rows = encode(splits.train, word_dropout=config.data.word_dropout)
    validation = encode(splits.validation)
    trained = trained_parameters(model, config.train.optimizer)
    about = describe(
        config,
        splits,
        rows,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(one.tensor.numel() for one in trained),
        device=processes.device,
    )
    splitter = splitter_of(splits.train["words"][:]) if splits.kind == "tags" else None

    def score(model, check):
        return evaluate(
            model,
            validation,
            splits.labels,
            metric=metric,
            pad_id=pad_id,
            processes=processes,
            autocast=partial(autocast, compute.precision, processes.device),
            check=check,
        )

    def save_model(model, folder, tensors):
        if isinstance(model, Bert):
            write_bert_folder(folder, model.config, model.kind, tensors, PROBLEM_TYPES.get(splits.kind))
        else:
            model.save_pretrained(folder, state_dict=tensors)
        tokenizer.save_pretrained(folder)
        described = {
            "kind": splits.kind,
            "pair": "text_pair" in splits.train.column_names,
            "labels": list(splits.labels),
            "scale": list(splits.scale),
            "max_length": max_length,
            **({"splitter": splitter} if splitter else {}),
        }
        (folder / "stabviz.json").write_text(dumps(described, indent=2) + "\n", encoding="utf-8")

    if compute.packing:
        merge = partial(pack, max_length=max_length, pad_id=pad_id)
    else:
        fixed = max_length if compute.fixed_length else None
        merge = partial(collate, pad_id=pad_id, fixed_length=fixed)
    setup = Setup(
        config=config,
        processes=processes,
        model=model,
        rows=rows,
        evaluate=score,
        save_model=save_model,
        objective=kind.objective(config.model.label_smoothing, weights),
        loss_unit=kind.loss_unit,
        weigh=partial(weigh_targets, class_weights_C=weights),
        collate=merge,
        # a file of class weights may change between a run and its resume, as the data may
        fingerprint=splits.fingerprint + ("" if weights is None else f" {weights.tolist()}"),
        about=about,
        row_numbers=splits.train["row"][:],
    )
    return setup, tokenizer


def score_best(config: FinetuneConfig, splits: Splits, tokenizer, processes: ProcessGroup) -> dict:
    """Score the run's best weights on the test split; with the predictions, and whether the run failed."""
    best = config.replace(model=str(config.run.out / "best"), from_scratch=False, revision=None)
    found = evaluate_model(best, splits, tokenizer, processes)
    name, value = found.named
    return {
        **found.scores,
        "score": value,
        "score_name": name,
        "seed": config.run.seed,
        "predictions": found.predictions,
        "mistakes": confident_mistakes(found.by_row, splits, found.rows),
        "labels": list(splits.labels),
        "skipped_rows": splits.skipped,
    }


def evaluate_model(
    config: FinetuneConfig, splits: Splits, tokenizer, processes: ProcessGroup, split: str = "test"
) -> Evaluation:
    """Score the model that the config names on a split of the data."""
    model = build_model(config, splits.kind, splits.labels, tokenizer).to(processes.device)
    rows = TokenRows(
        getattr(splits, split),
        tokenizer,
        kind=splits.kind,
        max_length=config.data.max_length,
        scale=splits.scale,
    )
    return evaluate(
        model,
        rows,
        splits.labels,
        metric=KINDS[splits.kind].metric(config.train.metric, splits.labels),
        pad_id=tokenizer.pad_token_id,
        processes=processes,
        autocast=partial(autocast, config.train.compute.precision, processes.device),
    )


def finetune_seeds(
    config: FinetuneConfig, *, resume: bool = False, force: bool = False, interrupt: Interrupt | None = None
) -> tuple[list[Outcome], dict | None]:
    """Run `seeds` runs into OUT/seed-N, and summarise: mean, spread, failed runs, churn between seeds.

    A run that was stopped ends the series; with `resume` the finished runs are taken from their folders.
    """
    if config.run.seeds == 1:
        outcome = finetune(config, resume=resume, force=force, interrupt=interrupt)
        return [outcome], summary([outcome]) if outcome.finished else None
    processes = ProcessGroup.join(config.train.compute.device)  # one group of processes for the whole series
    try:
        if not resume:
            processes.first(lambda: start_series(config))
        return _series(config, processes, resume=resume, force=force, interrupt=interrupt)
    finally:
        processes.leave()


def _series(
    config: FinetuneConfig, processes: ProcessGroup, *, resume: bool, force: bool, interrupt: Interrupt | None
):
    if repo := config.model.push_to_hub:
        processes.first(partial(check_upload, repo))
    outcomes: list[Outcome] = []
    interrupt = interrupt or Interrupt()  # one for all: a request in the last save of a run ends the series
    for seed in range(config.run.seed, config.run.seed + config.run.seeds):
        if interrupt.requested:
            return outcomes, None
        one = config.replace(seed=seed, seeds=1, out=config.run.out / f"seed-{seed}", push_to_hub=None)
        done = one.run.out / "scores.json"
        again = resume and (one.run.out / "config.json").exists()
        if again and done.exists() and not force:
            outcomes.append(load_outcome(one.run.out))
            continue
        outcomes.append(finetune(one, resume=again, force=force, interrupt=interrupt))
        if not outcomes[-1].finished:
            return outcomes, None
    found = summary(outcomes)
    processes.first(lambda: write_atomically(config.run.out / "summary.json", dumps(found, indent=2) + "\n"))
    if repo:
        processes.first(partial(upload, best_outcome(outcomes).config.run.out / "best", repo))
    return outcomes, found


def start_series(config: FinetuneConfig) -> None:
    """Make the folder of several runs, and note in series.json what they are, for a resume."""
    path = config.run.out / "series.json"
    if path.exists() and not config.run.overwrite:
        raise ValueError(
            f"finetune: out must not hold runs already; {config.run.out} does. Resume them "
            f"(python -m stabviz resume {config.run.out}), choose another folder, or --overwrite"
        )
    config.run.out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dumps({"config": config.as_dict()}, indent=2) + "\n")


def best_outcome(outcomes: list[Outcome]) -> Outcome:
    """Return the run with the best validation score: chosen by the test score, that one would flatter."""
    return max(outcomes, key=lambda outcome: -math.inf if math.isnan(outcome.best[0]) else outcome.best[0])


def summary(outcomes: list[Outcome]) -> dict:
    """Mean, spread and failed runs of the test score, the best run by validation, and the churn."""
    scores = [outcome.scores for outcome in outcomes if outcome.scores is not None]
    name = scores[0]["score_name"]
    found = {
        "score_name": name,
        **spread(scores, name),
        "failed": sum(s["failed"] for s in scores),
        "seeds": [s["seed"] for s in scores],
        "best_seed": best_outcome(outcomes).config.run.seed,
    }
    if len(scores) > 1:
        found["churn"] = churn([s["predictions"] for s in scores])
    return found


def load_config(folder: str | Path) -> FinetuneConfig:
    """Read the config of a run, or of a series of them, from its folder, with the folder as it is called now.

    Raises: ValueError if there is no run
    """
    paths = [Path(folder) / name for name in ("series.json", "config.json")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise ValueError(f"finetune: {folder} must be the folder of a run; it holds no config.json")
    plain = loads(path.read_text(encoding="utf-8"))
    return FinetuneConfig.from_dict(plain["config"]).replace(out=Path(folder), overwrite=False)


def load_outcome(folder: str | Path) -> Outcome:
    """Read a run back from its folder."""
    folder = Path(folder)
    config = load_config(folder)
    scores = folder / "scores.json"
    trace = read_metrics(folder / "metrics.jsonl")
    found = loads(scores.read_text(encoding="utf-8")) if scores.exists() else None
    progress = Progress(
        updates=int(trace["updates"][0, -1]) + 1 if "updates" in trace else 0,
        finished=found.get("ended", "all steps") if found else "",
    )
    return Outcome(config=config, progress=progress, trace=trace, scores=found)


def best_folder(folder: str | Path) -> Path:
    """Return where the best weights are: of a run, or of a series that of the best validation score."""
    folder = Path(folder)
    if (folder / "series.json").exists():
        if not (folder / "summary.json").exists():
            raise ValueError(
                f"predict: {folder} must be a series of runs that has come to its end; "
                f"name one of its runs, or: python -m stabviz resume {folder}"
            )
        found = loads((folder / "summary.json").read_text(encoding="utf-8"))
        folder = folder / f"seed-{found.get('best_seed', found['seeds'][0])}"
    return folder / "best" if (folder / "best").is_dir() else folder


def predict(
    folder: str | Path,
    texts: list[str],
    *,
    pairs: Sequence[str] = (),
    device: str = "auto",
    trust_remote_code: bool = False,
) -> list[dict]:
    """Say what the best weights of a run (or any folder that holds such a model) make of some texts.

    `pairs` are the second texts of a model of pairs. Returns for classes {"label", "probability",
    "probabilities"}, for several {"labels", "probabilities"}, for a number {its column: number}, for tags
    {"words", "tags", "entities"}.

    Raises: ValueError for a folder without a model, an empty text, or second texts that are missing or too
            many
    Lesson: 11-classification
    """
    from datasets import Dataset

    folder = best_folder(folder)
    if not (folder / "stabviz.json").exists():
        raise ValueError(
            f"predict: {folder} must hold a model that `stabviz finetune` saved; stabviz.json is missing"
        )
    known = loads((folder / "stabviz.json").read_text(encoding="utf-8"))
    if len(pairs) != (wanted := len(texts) if known.get("pair") else 0):
        raise ValueError(
            f"predict: pairs must be {wanted} second texts for {len(texts)} texts; got {len(pairs)}"
        )
    for name, given in (("texts", texts), ("pairs", pairs)):
        for i, text in enumerate(given):
            if not text.strip():
                raise ValueError(f"predict: {name} must not be empty; got text {i + 1} = {text!r}")
    processes = ProcessGroup.join(device)
    tokenizer = load_tokenizer(str(folder), known["kind"], trust_remote_code=trust_remote_code)
    labels, kind = tuple(known["labels"]), known["kind"]
    scale = tuple(known.get("scale", (0.0, 1.0)))
    model = load_model(
        str(folder), kind, labels, pad_id=tokenizer.pad_token_id, trust_remote_code=trust_remote_code
    ).to(processes.device)
    if kind == "tags":
        contents: list = [split_words(text, known.get("splitter", "spaces")) for text in texts]
    else:
        contents = list(texts)
    table: dict[str, Any] = {"row": range(len(texts))}
    if kind == "tags":
        table |= {"words": contents, "tags": [[0] * len(words) for words in contents]}
    else:
        nothing = [0] * len(labels) if KINDS[kind].several else 0
        table |= {"text": contents, "label": [nothing] * len(texts)} | ({"text_pair": pairs} if pairs else {})
    rows = TokenRows(Dataset.from_dict(table), tokenizer, kind=kind, max_length=known["max_length"])
    found = predict_logits(
        model, rows, pad_id=tokenizer.pad_token_id, processes=processes, autocast=nullcontext
    )
    return [
        KINDS[kind].answer(torch.from_numpy(logits), content, labels, scale)
        for (logits, _), content in zip(found, contents, strict=True)
    ]
