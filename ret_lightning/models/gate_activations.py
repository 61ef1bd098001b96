"""What the gates did: mean openings by step and modality over many rows, or those of each row."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from ret_lightning.models.gates import Openings


class OpeningMeans:
    """Collects what the gates did in one or more forward passes, without keeping activations or waiting for a GPU."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], list[Tensor]] = defaultdict(list)

    @torch.no_grad()
    def add(self, step: int, openings: Openings, text_present: Tensor, image_present: Tensor) -> None:
        """One step's openings (N, k, H) with the presence masks (N, 1, 1)."""
        everywhere = torch.ones_like(text_present)
        for name, opening, present in (
            ("forget", openings.forget, everywhere),
            ("text", openings.text, text_present),
            ("image", openings.image, image_present),
        ):
            of_row = opening.float().expand(len(present), *opening.shape[1:]).flatten(1).mean(dim=1)
            weight = present.flatten().float()
            self._sums[step, name].append(torch.stack([(of_row * weight).sum(), weight.sum()]))

    def means(self) -> dict[tuple[int, str], Tensor]:
        """(step, `forget` | `text` | `image`) to a mean in [0, 1]; NaN where no row had the modality."""
        totals = {key: torch.stack(parts).sum(dim=0) for key, parts in self._sums.items()}
        return {key: total[0] / total[1] for key, total in totals.items()}


class RowOpenings:
    """Collects the openings of each row and vector, averaged over the H channels, in one forward pass."""

    def __init__(self) -> None:
        self._steps: dict[str, list[Tensor]] = defaultdict(list)

    @torch.no_grad()
    def add(self, step: int, openings: Openings, text_present: Tensor, image_present: Tensor) -> None:
        """One step's openings, (N, k, H) or 1 in place of any, and the presence masks (N, 1, 1)."""
        for name, opening in (("forget", openings.forget), ("text", openings.text), ("image", openings.image)):
            self._steps[name].append(opening.float().mean(dim=2).expand(len(text_present), -1))

    def stacked(self, tokens: int) -> dict[str, Tensor]:
        """`forget`, `text`, `image` to (N, steps, k) float32 in [0, 1]; text and image are 0 in rows without them."""
        return {
            name: torch.stack([own.expand(len(own), tokens) for own in steps], dim=1)
            for name, steps in self._steps.items()
        }
