"""Gate activations: means by step and modality over many rows, or those of each row."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from ret_lightning.models.gates import GateActivations


class ActivationMeans:
    """Collects mean gate activations over one or more forward passes, without keeping their tensors or waiting for a GPU."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], list[Tensor]] = defaultdict(list)

    @torch.no_grad()
    def add(self, step: int, activations: GateActivations, text_present: Tensor, image_present: Tensor) -> None:
        """One step's activations (N, k, H) with the presence masks (N, 1, 1)."""
        everywhere = torch.ones_like(text_present)
        for name, activation, present in (
            ("forget", activations.forget, everywhere),
            ("text", activations.text, text_present),
            ("image", activations.image, image_present),
        ):
            of_row = activation.float().expand(len(present), *activation.shape[1:]).flatten(1).mean(dim=1)
            weight = present.flatten().float()
            self._sums[step, name].append(torch.stack([(of_row * weight).sum(), weight.sum()]))

    def means(self) -> dict[tuple[int, str], Tensor]:
        """(step, `forget` | `text` | `image`) to a mean in [0, 1]; NaN where no row had the modality."""
        totals = {key: torch.stack(parts).sum(dim=0) for key, parts in self._sums.items()}
        return {key: total[0] / total[1] for key, total in totals.items()}


class RowActivations:
    """Collects the activations of each row and vector, averaged over the H channels, in one forward pass."""

    def __init__(self) -> None:
        self._steps: dict[str, list[Tensor]] = defaultdict(list)

    @torch.no_grad()
    def add(self, step: int, activations: GateActivations, text_present: Tensor, image_present: Tensor) -> None:
        """One step's activations, (N, k, H) or 1 in place of any, and the presence masks (N, 1, 1)."""
        for name, activation in (
            ("forget", activations.forget),
            ("text", activations.text),
            ("image", activations.image),
        ):
            self._steps[name].append(activation.float().mean(dim=2).expand(len(text_present), -1))

    def stacked(self, tokens: int) -> dict[str, Tensor]:
        """`forget`, `text`, `image` to (N, steps, k) float32 in [0, 1]; text and image are 0 in rows without them."""
        return {
            name: torch.stack([own.expand(len(own), tokens) for own in steps], dim=1)
            for name, steps in self._steps.items()
        }
