"""transformers' Trainer on the same model, rows and order as our loop: the reference of tests and
benchmarks."""

import math
from functools import partial

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from stabviz.finetune.data.batches import collate
from stabviz.finetune.data.loader import Loader
from stabviz.finetune.run import build_model, prepare
from stabviz.ops import SCHEDULES

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant"}


class OneRow(torch.utils.data.Dataset):
    """Our rows as a Trainer wants them: by index."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[(0, index)]
        return {name: row[name] for name in row if name != "row"} | {"length": len(row["input_ids"])}


def arguments_of(config, folder, **more) -> TrainingArguments:
    """The settings of a config, in the Trainer's names."""
    micro = config.train.compute.micro_batch or config.train.batch
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.train.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=math.ceil(config.train.batch / micro),
        learning_rate=config.train.lr,
        lr_scheduler_type=_SCHEDULES[config.train.schedule],
        warmup_steps=config.train.warmup,
        weight_decay=config.train.optimizer.weight_decay,
        adam_beta1=config.train.optimizer.beta1,
        adam_beta2=config.train.optimizer.beta2,
        adam_epsilon=config.train.optimizer.eps,
        max_grad_norm=config.train.clip_norm,
        optim="adamw_torch_fused",
        seed=config.run.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=config.train.compute.precision == "bf16",
        fp16=config.train.compute.precision == "fp16",
        use_cpu=config.train.compute.device == "cpu",
        remove_unused_columns=False,
        label_smoothing_factor=config.model.label_smoothing,
        **more,
    )


class SameRate(Trainer):
    """A Trainer with our schedule: its own warm-up begins with a step at rate 0, ours at 1/warmup_steps of
    the peak."""

    def __init__(self, config, **options):
        super().__init__(**options)
        self.config = config

    def create_scheduler(self, num_training_steps, optimizer=None):
        c, optimizer = self.config, optimizer or self.optimizer
        multiplier = partial(
            SCHEDULES[c.train.schedule], total_steps=c.train.steps, warmup_steps=c.train.warmup
        )
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(multiplier(step)))
        return self.lr_scheduler


class SameOrder(SameRate):
    """A Trainer that is fed the batches of our loop."""

    def __init__(self, loader, **options):
        super().__init__(**options)
        self.loader = loader

    def get_train_dataloader(self):
        epochs = math.ceil(self.args.max_steps / self.loader.per_epoch)
        order = [self.loader.indices(position) for position in range(epochs * self.loader.per_epoch)]
        return DataLoader(self.train_dataset, batch_sampler=order, collate_fn=self.data_collator)


def trainer_of(config, splits, processes, folder, *, same_order: bool, **more) -> Trainer:
    """Make a Trainer with the model and the rows that our loop would have for this config."""
    setup, tokenizer = prepare(config, splits, processes)
    config = setup.config  # with the rate that was chosen where none was given
    model = build_model(config, splits.kind, splits.labels, tokenizer)
    fixed = config.data.max_length if config.train.compute.fixed_length else None

    def merge(rows):
        batch = collate(
            [{**row, "row": 0} for row in rows], pad_id=tokenizer.pad_token_id, fixed_length=fixed
        )
        return {name: x for name, x in batch.items() if name != "rows"}

    options = {
        "model": model,
        "args": arguments_of(config, folder, **more),
        "train_dataset": OneRow(setup.rows),
        "data_collator": merge,
    }
    if same_order:
        return SameOrder(
            Loader(setup.rows, partial(collate, pad_id=0), config, processes), config=config, **options
        )
    return SameRate(config=config, **options)


def losses_of(trainer: Trainer) -> list[float]:
    """Train, and return the loss that was logged at each step."""
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def gradient_norms_of(trainer: Trainer) -> list[float]:
    """The gradient norms that a finished Trainer has logged."""
    return [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
