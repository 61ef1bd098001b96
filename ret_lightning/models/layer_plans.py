"""Layer plans: which blocks of the backbones feed which step of the recurrence.

A recurrence is a rule that makes a plan for a backbone: one small class, one config of the group `recurrence`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ret_lightning.errors import ConfigError


@dataclass(frozen=True)
class LayerPlan:
    """Step s reads text block text[s] and vision block vision[s] (0-based; the embedding is not a block)."""

    text: tuple[int, ...]
    vision: tuple[int, ...]

    @property
    def steps(self) -> int:
        """How often the cell is applied."""
        return len(self.text)

    def check(self, text_blocks: int, vision_blocks: int) -> LayerPlan:
        """Returns the plan itself, or raises ConfigError where it does not fit backbones of so many blocks."""
        if not self.text or len(self.text) != len(self.vision):
            raise ConfigError(
                f"recurrence: a plan needs as many text blocks as vision blocks, at least one; got {len(self.text)} "
                f"({list(self.text)}) and {len(self.vision)} ({list(self.vision)})",
                code="plan-sides-differ",
                text=tuple(self.text),
                vision=tuple(self.vision),
            )
        for name, blocks, count in (("text", self.text, text_blocks), ("vision", self.vision, vision_blocks)):
            if wrong := [b for b in blocks if type(b) is not int]:
                raise ConfigError(
                    f"recurrence: {name} block {wrong[0]!r} is a {type(wrong[0]).__name__}; blocks of a plan are whole numbers "
                    f"(int) from 0 to {count - 1}",
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
    """A rule that makes a layer plan for a backbone."""

    @abstractmethod
    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> LayerPlan:
        """A plan that fits.

        Args:
            text_blocks: how many blocks the text backbone has.
            vision_blocks: likewise.
            published_plan: name of the plan published for the backbone, if there is one.

        Raises:
            ConfigError: if no such plan fits.
        """


class Published(Recurrence):
    """The plan that ReT was published with on this backbone.

    A backbone without a published plan gets every block of the shallower modality, the deeper one spread evenly over
    them, which is what the published plans do.
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
    """One step on the last block of each backbone: no recurrence over depth."""

    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> LayerPlan:
        return LayerPlan((text_blocks - 1,), (vision_blocks - 1,))


class Evenly(Recurrence):
    """So many steps, spread evenly over the depth of each backbone; the last step reads the last block.

    Args:
        steps: how many, at least 1 and at most the blocks of the shallower backbone.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> LayerPlan:
        most = min(text_blocks, vision_blocks)
        if not 1 <= self.steps <= most:
            raise ConfigError(
                f"recurrence.steps={self.steps} does not fit this backbone: choose 1 to {most}",
                code="plan-steps-out-of-range",
                found=self.steps,
                most=most,
            )
        return LayerPlan(_spread(self.steps, text_blocks), _spread(self.steps, vision_blocks))


class FirstMiddleLast(Recurrence):
    """Three steps: the first, the middle and the last block of each backbone."""

    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> LayerPlan:
        return LayerPlan(*((0, (count - 1) // 2, count - 1) for count in (text_blocks, vision_blocks)))


class Explicit(Recurrence):
    """The blocks as listed.

    Args:
        text: one text block a step, 0-based.
        vision: one vision block a step, 0-based, as many.
    """

    def __init__(self, text: Sequence[int], vision: Sequence[int]) -> None:
        self.layers = LayerPlan(tuple(text), tuple(vision))

    def plan(self, text_blocks: int, vision_blocks: int, published_plan: str | None = None) -> LayerPlan:
        return self.layers.check(text_blocks, vision_blocks)


def _spread(steps: int, blocks: int) -> tuple[int, ...]:
    """`steps` of `blocks` indices, the ends of equal stretches: the last one is blocks - 1."""
    return tuple((step + 1) * blocks // steps - 1 for step in range(steps))
