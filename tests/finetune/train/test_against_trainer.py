"""The loop and transformers' Trainer, fed the same batches, follow the same losses."""

from functools import partial

import numpy as np
import pytest
from torch.utils.data import DataLoader

from stabviz.finetune.config import FinetuneConfig
from stabviz.finetune.data.batches import collate
from stabviz.finetune.data.loader import Loader
from stabviz.finetune.data.splits import read_splits
from stabviz.finetune.distributed import ProcessGroup
from stabviz.finetune.run import prepare
from stabviz.finetune.train.loop import train
from stabviz.trace.log import read_metrics
from tests.finetune.reference import gradient_norms_of, losses_of, trainer_of


@pytest.mark.parametrize(
    "settings",
    [
        {"label": "intent"},
        {"label": "intent", "schedule": "cosine", "label_smoothing": 0.1},
        {"tags": "tags", "text": "words"},
        {"label": "intent", "batch": 12, "micro_batch": 4},
    ],
    ids=["classes", "cosine, smoothing", "tags", "accumulated"],
)
def test_losses_equal_the_trainers(tiny_bert_folder, tmp_path, settings):
    config = FinetuneConfig.of(
        **(
            {
                "model": str(tiny_bert_folder),
                "dropout": 0.0,
                "steps": 50,
                "batch": 8,
                "lr": 1e-3,
                "warmup_steps": 5,
                "max_train_rows": 160,
                "out": tmp_path / "ours",
                "save_every": 0,
                "evaluate_every": 50,
                "progress": False,
                "device": "cpu",
                "rewind": False,
            }
            | settings
        )
    )
    splits, processes = read_splits(config.data, config.run.seed), ProcessGroup.join("cpu")
    setup, _ = prepare(config, splits, processes)
    train(setup)
    ours = read_metrics(config.run.out / "metrics.jsonl")
    trainer = trainer_of(
        config, splits, processes, tmp_path / "theirs", same_order=config.train.compute.micro_batch is None
    )
    if config.train.compute.micro_batch is not None:
        trainer = _fed(trainer, list(_in_micro_batches(setup, config)))
    theirs = losses_of(trainer)
    assert len(theirs) == 50
    # float32, sums in another order, over 50 steps of Adam; losses near 2
    np.testing.assert_allclose(ours["loss_nats"][0], theirs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours["grad_norm_preclip"][0], gradient_norms_of(trainer), rtol=2e-3)
    assert (
        ours["loss_nats"][0, -5:].mean() < ours["loss_nats"][0, :5].mean() - 0.01
    )  # there was something to follow


def _in_micro_batches(setup, config):
    loader = Loader(setup.rows, partial(collate, pad_id=0), config, setup.processes)
    for position in range(config.train.steps):
        rows = loader.indices(position)
        yield from (
            rows[i : i + config.train.compute.micro_batch]
            for i in range(0, len(rows), config.train.compute.micro_batch)
        )


def _fed(trainer, order):
    # this version takes BERT's mean loss for one that was normalised over all micro-batches, and does not
    # divide
    trainer.model_accepts_loss_kwargs = False
    trainer.get_train_dataloader = lambda: DataLoader(
        trainer.train_dataset, batch_sampler=order, collate_fn=trainer.data_collator
    )
    return trainer
