"""Layer plans: which blocks of the backbones each step of the recurrence reads.

A `Recurrence` is a rule that returns the plan for a backbone. It is one class and one config of the group `recurrence`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ret_lightning.errors import ConfigError


@dataclass(frozen=True)
class LayerPlan:
    """The blocks that each step of the recurrence reads.

    Attributes:
        text: Text block of each step, 0-based; the embedding is not a block.
        vision: Vision block of each step, 0-based; as many as `text`.
    """

    text: tuple[int, ...]
    vision: tuple[int, ...]

    @property
    def steps(self) -> int:
        """The number of steps of the recurrence."""
        return len(self.text)

    def check(self, text_blocks: int, vision_blocks: int) -> LayerPlan:
        """Validate the plan against the depth of the backbones.

        Args:
            text_blocks: Number of blocks of the text backbone.
            vision_blocks: Number of blocks of the vision backbone.

        Returns:
            The plan itself.

        Raises:
            ConfigError: If the sides have different lengths or are empty, or a block does not exist.
        """
        if not self.text or len(self.text) != len(self.vision):
            raise ConfigError(
                f"recurrence: expected equally many text and vision blocks, at least one; got {len(self.text)} text blocks "
                f"{list(self.text)} and {len(self.vision)} vision blocks {list(self.vision)}",
                code="plan-sides-differ",
                text=tuple(self.text),
                vision=tuple(self.vision),
            )
        for name, blocks, count in (("text", self.text, text_blocks), ("vision", self.vision, vision_blocks)):
            if wrong := [b for b in blocks if type(b) is not int]:
                raise ConfigError(
                    f"recurrence: {name} block {wrong[0]!r}: expected an int from 0 to {count - 1}, got "
                    f"{type(wrong[0]).__name__}",
                    code="plan-blocks-not-int",
                    side=name,
                    found=tuple(wrong),
                    most=count - 1,
                )
            outside = [b for b in blocks if not 0 <= b < count]
            if outside:
                raise ConfigError(
                    f"recurrence: {name} blocks {outside} do not exist; the {name} backbone has blocks 0 to {count - 1}",
                    code="plan-blocks-missing",
                    side=name,
                    found=tuple(outside),
                    most=count - 1,
                )
        return self


def _every(first: int, last: int, stride: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1, stride))


# The plans of the published models (`layer_strategy` in their config.json).
PUBLISHED_PLANS = {
    "clip_vit_b": LayerPlan(_every(0, 11, 1), _every(0, 11, 1)),
    "clip_vit_l": LayerPlan(_every(0, 11, 1), _every(0, 22, 2)),
    "openclip_vit_h": LayerPlan(_every(1, 23, 2), (0, *_every(2, 29, 3), 31)),
    "openclip_vit_g": LayerPlan((*_every(0, 28, 2), 31), _every(2, 47, 3)),
}


class Recurrence(ABC):
    """Base class of the rules that return a layer plan for a backbone."""

    @abstractmethod
    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> LayerPlan:
        """Return the layer plan for a backbone.

        Args:
            text_blocks: Number of blocks of the text backbone.
            vision_blocks: Number of blocks of the vision backbone.
            published_plan: Key of `PUBLISHED_PLANS`, if ReT was published with this backbone.

        Returns:
            A plan whose blocks all exist.

        Raises:
            ConfigError: If the rule has no plan for this backbone.
        """


class Published(Recurrence):
    """The layer plan with which ReT was published on this backbone (`layer_strategy` in the published code).

    For a backbone without a published plan, the number of steps is the depth of the shallower modality, and the blocks of
    the deeper one are evenly spaced, as in the published plans.
    """

    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> LayerPlan:
        if published_plan is None:
            return Evenly(min(text_blocks, vision_blocks)).plan(text_blocks, vision_blocks)
        if published_plan not in PUBLISHED_PLANS:
            raise ConfigError(
                f"backbone.published_plan: unknown plan {published_plan!r}; choices: {', '.join(PUBLISHED_PLANS)}",
                code="plan-name-unknown",
                found=published_plan,
                allowed=tuple(PUBLISHED_PLANS),
            )
        return PUBLISHED_PLANS[published_plan].check(text_blocks, vision_blocks)


class Last(Recurrence):
    """One step that reads the last block of each backbone, without recurrence over depth."""

    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> LayerPlan:
        return LayerPlan((text_blocks - 1,), (vision_blocks - 1,))


class Evenly(Recurrence):
    """A given number of steps, evenly spaced over the depth of each backbone.

    Step s of S, counted from 0, reads block floor((s + 1) * D / S) - 1 of a backbone of D blocks, so the last step reads the
    last block.

    Args:
        steps: S, from 1 to the number of blocks of the shallower backbone.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> LayerPlan:
        most = min(text_blocks, vision_blocks)
        if not 1 <= self.steps <= most:
            raise ConfigError(
                f"recurrence.steps={self.steps}: expected 1 to {most} for this backbone",
                code="plan-steps-out-of-range",
                found=self.steps,
                most=most,
            )
        return LayerPlan(_spread(self.steps, text_blocks), _spread(self.steps, vision_blocks))


class FirstMiddleLast(Recurrence):
    """Three steps that read the first, the middle and the last block of each backbone.

    ReT-2 (arXiv 2509.08897) also uses three layers, an early, a middle and a late one; its layer numbers are not known here.
    """

    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> LayerPlan:
        return LayerPlan(*((0, (count - 1) // 2, count - 1) for count in (text_blocks, vision_blocks)))


class Explicit(Recurrence):
    """A layer plan that lists its blocks.

    Args:
        text: Text block of each step, 0-based.
        vision: Vision block of each step, 0-based; as many as `text`.
    """

    def __init__(self, text: Sequence[int], vision: Sequence[int]) -> None:
        self.layers = LayerPlan(tuple(text), tuple(vision))

    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> LayerPlan:
        return self.layers.check(text_blocks, vision_blocks)


def _spread(steps: int, blocks: int) -> tuple[int, ...]:
    """Divide `blocks` indices into `steps` spans of equal length; return the last index of each span."""
    return tuple((step + 1) * blocks // steps - 1 for step in range(steps))
