"""`Bert`: the functions of `stabviz.models.bert` as a torch module, under transformers' names.

Optimizers, DDP, FSDP2, hooks and `state_dict` find their parameters where transformers keeps them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from stabviz.models.bert import BertConfig, BertOutput, bert_layer, bert_outputs, check_kind, init_bert
from stabviz.models.bert_files import bert_config_from_dict, read_bert_folder, write_bert_folder
from stabviz.models.transformer import part


class _Held(nn.Module):
    """A tree of modules whose dotted names are those of a parameter dict."""

    def __init__(self, params: Mapping[str, Tensor]):
        super().__init__()
        self._places: list[tuple[str, nn.Module, str]] = []
        self.hold(params)

    def hold(self, params: Mapping[str, Tensor]) -> None:
        for name, tensor in params.items():
            *path, leaf = name.split(".")
            module: nn.Module = self
            for step in path:
                if step not in module._modules:
                    module.add_module(step, nn.Module())
                module = module.get_submodule(step)
            module.register_parameter(leaf, nn.Parameter(tensor))
            self._places.append((name, module, leaf))

    def held(self) -> dict[str, Tensor]:
        """Return the parameter dict as it is now: sharding and functional_call put other tensors in place."""
        return {name: getattr(module, leaf) for name, module, leaf in self._places}


class BertLayer(_Held):
    """One layer as a module, so that what wraps layers (sharding, checkpointing, hooks) finds them."""

    def __init__(self, params: Mapping[str, Tensor], config: BertConfig):
        super().__init__(params)
        self.config = config

    def forward(self, stream_BLD: Tensor, mask: Tensor | None, measure: bool = False):
        """Run `bert_layer` on the parameters held."""
        return bert_layer(self.held(), stream_BLD, mask, self.config, training=self.training, measure=measure)


class Bert(_Held):
    """A BERT as a module: `bert_outputs` on the parameters that it holds, under transformers' names.

    Lesson: 07-transformer
    """

    def __init__(self, params: Mapping[str, Tensor], config: BertConfig, kind: str = "base"):
        check_kind("Bert", kind)
        super().__init__({})
        self.config, self.kind = config, kind
        self.measure = False
        """Whether forward measures attention; it costs about four passes over the weights."""
        self.checkpointing = False
        """Whether training keeps only the input of each layer and computes the rest again on the way back."""
        self.loading = ""
        """What a checkpoint folder lacked or had too much of, in one line; empty if nothing."""
        prefix = "" if kind == "base" else "bert."
        inside = f"{prefix}encoder.layer."
        # Embeddings, layers, the rest, as transformers registers them: the saved state of an optimizer
        # numbers parameters by their order.
        first = [name for name in params if name.startswith(f"{prefix}embeddings.")]
        last = [name for name in params if name not in first and not name.startswith(inside)]
        self.hold({name: params[name] for name in first})
        layers = [BertLayer(part(params, f"{inside}{i}"), config) for i in range(config.num_hidden_layers)]
        body = self if kind == "base" else self.get_submodule("bert")
        body.encoder = nn.Module()
        body.encoder.layer = nn.ModuleList(layers)
        self.hold({name: params[name] for name in last})

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, from the embeddings up."""
        return cast(
            nn.ModuleList, self.get_submodule(f"{'' if self.kind == 'base' else 'bert.'}encoder.layer")
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes or tags; empty for kinds without a classifier."""
        return self.config.labels if self.kind in ("classes", "tags") else ()

    @classmethod
    def from_config(
        cls,
        config: Any,
        *,
        kind: str = "base",
        labels: Sequence[str] = (),
        dropout: float | None = None,
        generator: Generator | None = None,
    ) -> "Bert":
        """Draw a fresh BERT from a config, ours or transformers'; labels and dropout may replace its own."""
        if not isinstance(config, BertConfig):
            config = bert_config_from_dict(config.to_dict())
        config = dataclasses.replace(config, labels=tuple(labels) or config.labels).with_dropout(dropout)
        return cls(init_bert(config, kind, generator), config, kind)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        kind: str = "base",
        labels: Sequence[str] = (),
        dropout: float | None = None,
        generator: Generator | None = None,
        layers: int | None = None,
    ) -> "Bert":
        """Load any BERT's checkpoint folder as float32; what it lacks (head, pooler) is drawn and reported.

        `layers` keeps that many, the first ones.

        Raises: ValueError if the folder holds no BERT, lacks a part of its body, or a shape does not fit;
                FileNotFoundError if config.json or the weights are missing
        """
        config, params, loading = read_bert_folder(folder, kind, tuple(labels), generator, layers)
        model = cls(params, config.with_dropout(dropout), kind)
        model.loading = loading
        return model

    def save_pretrained(self, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write config.json and model.safetensors as transformers reads them; `state_dict`: other ones."""
        write_bert_folder(
            folder, self.config, self.kind, self.state_dict() if state_dict is None else state_dict
        )

    def gradient_checkpointing_enable(self) -> None:
        """Turn activation checkpointing on, under transformers' name."""
        self.checkpointing = True

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        predict_at: Tensor | None = None,
    ) -> BertOutput:
        """Run `bert_outputs`; dropout in train mode, measures if `self.measure`."""
        return bert_outputs(
            self.held(),
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            config=self.config,
            kind=self.kind,
            training=self.training,
            measure=self.measure,
            predict_at=predict_at,
            layers=[self._runner(layer) for layer in self.layers],
        )

    def _runner(self, layer: nn.Module) -> Callable:
        if self.checkpointing and self.training:
            return lambda stream, mask: checkpoint(layer, stream, mask, self.measure, use_reentrant=False)
        return lambda stream, mask: layer(stream, mask, self.measure)
