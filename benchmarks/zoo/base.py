"""What every architecture of the zoo is built from: a name, a maker, a batch of random inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

VOCABULARY = 64
TOKENS = 24  # sequences in a batch
IMAGES = 8


@dataclass(frozen=True)
class Architecture:
    """One architecture, small.

    Attributes:
        name: as its library calls it.
        kind: ``"encoder"``, ``"mixture of experts"``, …
        library: the package it is built with.
        make: returns a fresh module.
        inputs: returns one batch.
        forward: see `pytest_fp16.Evaluation`.
    """

    name: str
    kind: str
    library: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    forward: Callable[[Any, Any], Any] | None = None

    def build(self) -> tuple[nn.Module, Any]:
        """The module in eval mode, every part of it alive, and one batch."""
        torch.manual_seed(0)
        model, inputs = self.make(), self.inputs()
        _enliven(model)
        with torch.no_grad():
            self._calibrate(model, inputs)
        return model.eval(), inputs

    def outputs(self, model: nn.Module, inputs: Any) -> Any:
        """One pass of the model."""
        if self.forward is not None:
            return self.forward(model, inputs)
        return model(**inputs) if isinstance(inputs, dict) else model(inputs)

    def _calibrate(self, model: nn.Module, inputs: Any) -> None:
        """Running statistics from the batch: a random network's values would vanish or grow."""
        model.eval()
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        if norms:
            self.outputs(model, inputs)


def _enliven(model: nn.Module) -> None:
    """Draw what starts at a constant: a layer scale of 1e-6, a head of zeros switch a part off."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            constant = parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
            if not constant or name.endswith("bias") or float(parameter.flatten()[0]) > 0.5:
                continue
            if parameter.dim() > 1 and min(parameter.shape[:2]) > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.uniform_(0.2, 0.6)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own for each input."""
    return torch.Generator().manual_seed(seed)


def tokens(length: int = 12, count: int = TOKENS) -> dict[str, Tensor]:
    """Random tokens, and the mask of their padding."""
    ids = torch.randint(3, VOCABULARY, (count, length), generator=seeded())
    mask = (torch.arange(length) < length - torch.arange(count).unsqueeze(1) % 4).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def pairs() -> dict[str, Tensor]:
    """Tokens for an encoder, and others for its decoder."""
    decoded = torch.randint(3, VOCABULARY, (TOKENS, 8), generator=seeded(1))
    return {**tokens(), "decoder_input_ids": decoded}


def image(size: int = 32, count: int = IMAGES) -> Tensor:
    """Random images."""
    return torch.randn(count, 3, size, size, generator=seeded())


def pixels(size: int = 32, count: int = IMAGES) -> dict[str, Tensor]:
    """The same under the name transformers gives them."""
    return {"pixel_values": image(size, count)}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers."""
    return torch.randn(*shape, generator=seeded(seed))


def configured(model_type: str, auto: str, **config: Any) -> Callable[[], nn.Module]:
    """A maker from a configuration of transformers."""

    def make() -> nn.Module:
        import transformers

        made = transformers.CONFIG_MAPPING[model_type](**config)
        kind = getattr(transformers, auto)
        model: nn.Module = kind.from_config(made) if auto.startswith("Auto") else kind(made)
        return model

    return make
