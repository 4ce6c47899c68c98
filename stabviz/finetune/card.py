"""The model card of a fine-tuned model, README.md in best/: from what, how, how well, and its limits."""

import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from stabviz.finetune.about import facts
from stabviz.finetune.config import FinetuneConfig

_PIPELINES = {"tags": "token-classification"}
_NOT_A_SCORE = ("score", "seed", "rows", "words", "non_finite_rows", "failed")


def fine_tuned_card(config: FinetuneConfig, kind: str, about: dict[str, Any], scores: dict[str, Any]) -> str:
    """Return the card as Markdown with the hub's metadata; every number in it was measured in the run."""
    name, value = scores["score_name"], scores["score"]
    told = facts(about | {name: _without_folders(about[name]) for name in ("data", "model")})
    data = _without_folders(config.data.source)
    meta = ModelCardData(
        library_name="transformers",
        pipeline_tag=_PIPELINES.get(kind, "text-classification"),
        tags=["stabviz"],
        model_name=config.run.out.name,
        eval_results=[
            EvalResult(
                task_type=_PIPELINES.get(kind, "text-classification"),
                dataset_type=data,
                dataset_name=data,
                dataset_split="test",
                metric_type=name,
                metric_value=value,
            )
        ],
    )
    measured = {
        key: number for key, number in scores.items() if isinstance(number, float) and key not in _NOT_A_SCORE
    }
    rows = "\n".join(f"| {key} | {number:.4f} |" for key, number in measured.items())
    sections = {
        f"# {config.run.out.name}": f"Fine-tuned from {_base(config.model.name)} for {_WHAT[kind]}. "
        "The licence of the base model and that of the data apply; this card does not know them.",
        "## Use": "    from transformers import pipeline\n\n"
        f'    classify = pipeline("{_PIPELINES.get(kind, "text-classification")}", "PATH OR ID")\n\n'
        'or `python -m stabviz predict PATH "a text"`.',
        "## Data": "\n".join(f"- {key}: {told[key]}" for key in ("data", "classes", "lengths") if key in told)
        + (f"\n- left out as bad: {len(scores['skipped_rows'])} rows" if scores["skipped_rows"] else "")
        + "".join(f"\n- warning: {warning}" for warning in about["warnings"]),
        "## Training": f"{told['training']}; {told['model']}; {told['device']}; "
        f"seed {config.run.seed}; {told['versions']}.\n\n    {command(config)}",
        "## Measured": f"On the {about['rows']['test']:,} rows of the test split, with the weights of the "
        f"best validation score:\n\n| score | |\n|---|---|\n{rows}",
        "## Limits": _limits(kind, about, scores),
    }
    body = "\n\n".join(f"{head}\n\n{text}" for head, text in sections.items())
    return f"---\n{meta.to_yaml()}\n---\n\n{body}\n"


_WHAT = {
    "classes": "one class a text",
    "multi_label": "any number of classes a text",
    "regression": "a number a text",
    "tags": "named entities",
}


def _base(model: str) -> str:
    if model.startswith("minilm"):
        return f"`{model}`: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)"
    if model == "stabviz-mini":
        return f"`{model}`, the small BERT of the stabviz course"
    return f"`{_without_folders(model)}`"


def _without_folders(name: str) -> str:
    """Where something lay on the machine of the run says nothing elsewhere; a hub's id stays whole."""
    return Path(name).name if Path(name).exists() else name


def command(config: FinetuneConfig) -> str:
    """Return the command that begins this run again: what differs from the defaults."""
    default = FinetuneConfig().as_dict()
    leave = ("out", "overwrite", "progress", "stop_after", "save_every", "keep", "push_to_hub", "log")
    words = []
    for name, value in config.as_dict().items():
        if name in leave or value == default[name]:
            continue
        flag = name.replace("_", "-")
        value = _without_folders(value) if name in ("data", "model") else value
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return shlex.join(["python", "-m", "stabviz", "finetune", *words])


def _limits(kind: str, about: dict[str, Any], scores: dict[str, Any]) -> str:
    lines = [
        "One seed: how far another would differ is not known from this run (`--seeds 5` tells).",
        "Nothing is known of texts that differ from the data above, of other languages, or of how its errors "
        "fall on groups of people: do not let it decide about people.",
    ]
    if kind == "classes":
        lines.insert(0, f"Always saying the most frequent class scores {scores['majority_share']:.4f} here.")
    if kind == "regression":
        lines.insert(
            0,
            "transformers gets (number - mean) / deviation from it; both are `scale` in stabviz.json, and "
            "`stabviz predict` puts them back.",
        )
    if scores["failed"]:
        lines.insert(0, "**This run failed: it is no better than the most frequent answer.**")
    if about["lengths"]["cut"]:
        lines.append(f"Of longer texts it reads the first {about['lengths']['max_length']} word pieces.")
    return "\n".join(f"- {line}" for line in lines)
