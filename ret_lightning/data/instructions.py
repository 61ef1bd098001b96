"""Instruction templates, which replace the instructions of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ret_lightning.errors import ConfigError


class Instructions:
    """The instruction templates of each subset.

    Args:
        templates: a list for all subsets, or a mapping from subset to list. Rows of subsets without a list keep their own
            instruction.

    Raises:
        ConfigError: if a list is empty, or one of its items is not a non-blank text.
    """

    def __init__(self, templates: Sequence[str] | Mapping[str, Sequence[str]] | None = None) -> None:
        self._by_subset: dict[str, tuple[str, ...]] = {}
        self._for_all: tuple[str, ...] = ()
        if isinstance(templates, Mapping):
            self._by_subset = {
                name: _validate(f"data.instructions.{name}", values) for name, values in templates.items()
            }
        elif templates is not None:
            self._for_all = _validate("data.instructions", templates)

    @property
    def subsets(self) -> list[str]:
        """The subsets with a list of their own."""
        return list(self._by_subset)

    def first(self, subset: str) -> str | None:
        """Return the first template of a subset, which evaluation uses; None if the rows keep their own instruction."""
        return next(iter(self._by_subset.get(subset, self._for_all)), None)

    def sample(self, subset: str, random: np.random.Generator) -> str | None:
        """Sample a template of a subset, as training does; None if the rows keep their own instruction.

        Args:
            subset: name of the subset.
            random: source of randomness.
        """
        templates = self._by_subset.get(subset, self._for_all)
        return templates[random.integers(len(templates))] if templates else None


def _validate(key: str, templates: Sequence[str]) -> tuple[str, ...]:
    if isinstance(templates, str) or not isinstance(templates, Sequence) or not templates:
        raise ConfigError(
            f"{key}: expected a list of at least one text, got {templates!r}",
            code="instructions-not-a-list",
            key=key,
            found=repr(templates),
        )
    for template in templates:
        if not isinstance(template, str) or not template.strip():
            raise ConfigError(
                f"{key}: expected an instruction such as 'Find the passage:', got {template!r}",
                code="instruction-not-text",
                key=key,
                found=template,
            )
    return tuple(template.strip() for template in templates)
