"""What makes a tagger find new names: parts of MiniLM's knowledge taken away, contexts and names swapped.

Usage: python -m tests.bench.entities [--rows minilm ...] [--seeds 0]
Stores data/measured/entities.json after every run, and takes up what is already there. Every row is trained
on the first 3,000 training messages of data/support-desk with the default settings of `finetune`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer

from stabviz.finetune.config import DATA, FinetuneConfig
from stabviz.finetune.data.encode import TokenRows
from stabviz.finetune.data.names import names_of, renamed
from stabviz.finetune.data.splits import read_splits
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.evaluation import evaluate
from stabviz.finetune.run import build_model, finetune, predict
from stabviz.finetune.train.micro_batches import autocast
from stabviz.models.pretrained import load_tokenizer, minilm_folder
from stabviz.seeds import generator
from tests.bench.table import device

ROOT = Path(__file__).resolve().parents[2]
TRAINED, SCORED = 3000, 200
ROWS = (
    "minilm",
    "minilm, layers drawn anew",
    "minilm, word vectors shuffled",
    "minilm, all drawn anew",
    "minilm, half of the training names hidden",
    "stabviz-mini",
)
SENTENCES = [
    "Where is my parcel from Amazon, asks Angela Merkel of Berlin.",
    "Ms Quillfeather of Tarnwick Ltd would like her money back.",
    "Please send the Blorbo 3000 to Zimmelgard, attention of Mr Ztxqv.",
    "Where is my refund? Thanks, Will",
]
"""Free texts that a trained row tags, to be read in the lesson."""


def read_rows(split: str) -> list[dict]:
    """The messages of a split, as words and tags."""
    lines = (DATA / "support-desk" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: row[name] for name in ("words", "tags")} for row in map(json.loads, lines)]


def pick(options: Sequence, dice: torch.Generator):
    """One of the options."""
    return options[int(torch.randint(len(options), (), generator=dice))]


def test_sets(train: list[dict], test: list[dict]) -> dict[str, list[dict]]:
    """Contexts of training and of the test split, each with names of either, and others."""
    dice = generator(0, "names for entities")
    known, new = names_of(train[:TRAINED]), names_of(test)
    pairs = (pair for row in train[:TRAINED] for pair in zip(row["words"], row["tags"], strict=True))
    common = sorted({word.lower() for word, tag in pairs if tag == "O" and word.isalpha() and len(word) > 3})
    letters = "bcdfghklmnprstvz", "aeiou"

    def nonsense(kind, name):
        return ["".join(pick(letters[i % 2], dice) for i in range(7)).capitalize() for _ in name]

    def ordinary(kind, name):
        return [pick(common, dice) for _ in name]

    contexts = {"known": train[TRAINED:][:SCORED], "new": test[:SCORED]}
    names = {
        "own": None,
        "known": lambda kind, name: pick(known[kind], dice),
        "new": lambda kind, name: pick(new[kind], dice),
        "nonsense": nonsense,
        "ordinary words": ordinary,
    }
    return {
        f"{context} contexts, {name} names": rows if draw is None else renamed(rows, draw)
        for context, rows in contexts.items()
        for name, draw in names.items()
    }


def without(row: str, folder: Path, seed: int) -> str:
    """The checkpoint of a row: MiniLM with a part of its knowledge taken away."""
    if row in (
        "minilm",
        "stabviz-mini",
        "minilm, all drawn anew",
        "minilm, half of the training names hidden",
    ):
        return row.split(",")[0]
    model = AutoModel.from_pretrained(minilm_folder())
    dice = generator(seed, "checkpoint without", row)
    with torch.no_grad():
        if row == "minilm, layers drawn anew":
            for name, p in model.encoder.named_parameters():
                if name.endswith("bias"):
                    p.zero_()
                elif p.ndim == 1:
                    p.fill_(1.0)
                else:
                    p.copy_(0.02 * torch.randn(p.shape, generator=dice))
        else:  # the special pieces at the front keep their own vectors
            words = model.embeddings.word_embeddings.weight
            words[1000:] = words[1000:][torch.randperm(len(words) - 1000, generator=dice)]
    model.save_pretrained(folder / "checkpoint")
    AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder / "checkpoint")
    return str(folder / "checkpoint")


def run_of(row: str, seed: int, folder: Path) -> dict:
    """Train one row, and score it on every set."""
    train, validation, test = (read_rows(split) for split in ("train", "validation", "test"))
    learnt = train[:TRAINED]
    if row.endswith("hidden"):
        dice = generator(seed, "names hidden")

        def hide(kind, name):
            return ["[MASK]" if torch.rand((), generator=dice) < 0.5 else word for word in name]

        learnt = renamed(learnt, hide)
    for name, rows in (("train", learnt), ("validation", validation), ("test", test)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    config = FinetuneConfig.of(
        model=without(row, folder, seed),
        from_scratch=row.endswith("all drawn anew"),
        lr=1e-3 if row == "stabviz-mini" else None,
        data=str(folder),
        text="words",
        tags="tags",
        seed=seed,
        save_every=0,
        progress=False,
        baseline=False,
        out=folder / "run",
    )
    scores = finetune(config).scores
    splits = read_splits(config.data, seed)
    best = config.replace(model=str(folder / "run" / "best"), from_scratch=False)
    tokenizer, processes = load_tokenizer(best.model.name), ProcessGroup.join("cpu")
    model = build_model(best, splits.kind, splits.labels, tokenizer)
    found = {"test": scores["f1"], "test tags right": scores["tag_accuracy"], "test types": scores["by_type"]}
    scored = partial(
        evaluate, model, labels=splits.labels, pad_id=tokenizer.pad_token_id, processes=processes,
        autocast=partial(autocast, "fp32", processes.device),
    )  # fmt: skip
    numbers = {tag: i for i, tag in enumerate(splits.labels)}
    for name, rows in test_sets(train, test).items():
        rows = Dataset.from_list([row | {"tags": [numbers[tag] for tag in row["tags"]]} for row in rows])
        found[name] = scored(rows=TokenRows(rows, tokenizer, kind="tags", max_length=128)).scores["f1"]
    found["said"] = [answer["entities"] for answer in predict(folder / "run", SENTENCES, device="cpu")]
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what makes a tagger find new names.")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "measured" / "entities.json")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    for seed in chosen.seeds:
        for row in chosen.rows:
            found = (
                json.loads(chosen.out.read_text())
                if chosen.out.exists()
                else {"runs": {}, "sentences": SENTENCES}
            )
            runs = found["runs"].setdefault(row, {})
            if str(seed) in runs:
                continue
            with tempfile.TemporaryDirectory() as folder:
                cpu = time.process_time()
                runs[str(seed)] = run_of(row, seed, Path(folder)) | {"cpu_s": time.process_time() - cpu}
            found["machine"] = {name: value for name, value in device().items() if name != "load before"}
            print(row, seed, runs[str(seed)], flush=True)
            chosen.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
