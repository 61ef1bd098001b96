"""Statistics of gate activations: means per step and modality over many rows, or means per row.

Shape legend: N rows, k vectors per row, H hidden size, S steps of the recurrence.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from ret_lightning.models.gates import GateActivations


class ActivationMeans:
    """Accumulates mean gate activations over one or more forward passes, without storing activations or synchronising a GPU.

    A mean is taken over the rows that have the modality (all rows for `forget`), the k vectors and the H channels.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], list[Tensor]] = defaultdict(list)

    @torch.no_grad()
    def add(self, step: int, activations: GateActivations, text_present: Tensor, image_present: Tensor) -> None:
        """Add the activations of one step.

        Args:
            step: 0-based index of the step.
            activations: (N, k, H) activations, where any size may be 1.
            text_present: (N, 1, 1), 1 in rows with a text, 0 in the others.
            image_present: (N, 1, 1), 1 in rows with an image, 0 in the others.
        """
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
        """Return the means.

        Returns:
            Mapping of (step, `forget`, `text` or `image`) to a 0-d tensor in [0, 1]; NaN if no row had the modality.
        """
        totals = {key: torch.stack(parts).sum(dim=0) for key, parts in self._sums.items()}
        return {key: total[0] / total[1] for key, total in totals.items()}


class RowActivations:
    """Collects the gate activations of each row and vector, averaged over the H channels, in one forward pass."""

    def __init__(self) -> None:
        self._steps: dict[str, list[Tensor]] = defaultdict(list)

    @torch.no_grad()
    def add(self, step: int, activations: GateActivations, text_present: Tensor, image_present: Tensor) -> None:
        """Add the activations of one step.

        Args:
            step: 0-based index of the step; steps must be added in order.
            activations: (N, k, H) activations, where any size may be 1.
            text_present: (N, 1, 1), 1 in rows with a text, 0 in the others.
            image_present: (N, 1, 1), 1 in rows with an image, 0 in the others.
        """
        for name, activation in (
            ("forget", activations.forget),
            ("text", activations.text),
            ("image", activations.image),
        ):
            self._steps[name].append(activation.float().mean(dim=2).expand(len(text_present), -1))

    def stacked(self, tokens: int) -> dict[str, Tensor]:
        """Return the activations of all steps.

        Args:
            tokens: k.

        Returns:
            Mapping of `forget`, `text` and `image` to (N, S, k) float32 in [0, 1]; `text` and `image` are 0 in rows without
            the modality.
        """
        return {
            name: torch.stack([own.expand(len(own), tokens) for own in steps], dim=1)
            for name, steps in self._steps.items()
        }
