"""The mistakes that a model makes with the most confidence: where to look first, for wrong labels too."""

from typing import Any

import numpy as np
import torch

from stabviz.finetune.data.encode import TokenRows
from stabviz.finetune.data.splits import Splits
from stabviz.finetune.tasks import Found

MOST = 20


def confident_mistakes(found: Found, splits: Splits, rows: TokenRows | None) -> list[dict[str, Any]]:
    """Return rows of the test split with a wrong class, or a wrong tag, the most confident first.

    Each is {"row", "text", "true", "predicted", "confidence"}, with "word" where a tag is wrong; a sentence
    counts once. [] for several classes a row and for numbers, which have no one confidence.

    Units:  confidence is the probability of what was predicted
    """
    if splits.kind not in ("classes", "tags"):
        return []
    tops = []
    for i, (logits, labels) in enumerate(found):
        p = torch.from_numpy(logits).softmax(dim=-1).numpy()
        wrong = (p.argmax(axis=-1) != labels) & np.isfinite(p).all(axis=-1)
        if wrong.any():
            at = int(np.where(wrong, p.max(axis=-1), -1).argmax())
            tops.append((float(p[at].max()), i, at, int(labels[at]), int(p[at].argmax())))
    tops.sort(key=lambda top: -top[0])
    told: list[dict[str, Any]] = []
    for confidence, i, at, true, predicted in tops[:MOST]:
        row = splits.test[i]
        if splits.kind == "tags" and rows is not None:
            content = {"text": " ".join(row["words"]), "word": row["words"][rows.labelled_words[i][at]]}
        else:
            content = {"text": " / ".join(row[name] for name in ("text", "text_pair") if name in row)}
        answers = {"true": splits.labels[true], "predicted": splits.labels[predicted]}
        told.append({"row": row["row"], **content, **answers, "confidence": confidence})
    return told
