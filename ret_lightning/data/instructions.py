"""Instruction templates: other words for what is asked, in place of those that stand in the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ret_lightning.errors import ConfigError


class Instructions:
    """The templates of each subset.

    Args:
        templates: a list for all subsets, or a list by subset; rows of subsets that are not named keep their own instruction.

    Raises:
        ConfigError: if a list is empty or holds something else than texts.
    """

    def __init__(self, templates: Sequence[str] | Mapping[str, Sequence[str]] | None = None) -> None:
        self._by_subset: dict[str, tuple[str, ...]] = {}
        self._of_all: tuple[str, ...] = ()
        if isinstance(templates, Mapping):
            self._by_subset = {name: _checked(f"data.instructions.{name}", given) for name, given in templates.items()}
        elif templates is not None:
            self._of_all = _checked("data.instructions", templates)

    @property
    def subsets(self) -> list[str]:
        """The subsets that are named."""
        return list(self._by_subset)

    def first(self, subset: str) -> str | None:
        """What evaluation uses; None where the rows keep their own."""
        return next(iter(self._by_subset.get(subset, self._of_all)), None)

    def any(self, subset: str, random: np.random.Generator) -> str | None:
        """What training uses: any of them; None where the rows keep their own."""
        templates = self._by_subset.get(subset, self._of_all)
        return templates[random.integers(len(templates))] if templates else None


def _checked(key: str, templates: Sequence[str]) -> tuple[str, ...]:
    if isinstance(templates, str) or not isinstance(templates, Sequence) or not templates:
        raise ConfigError(
            f"{key}={templates!r} must be a list of at least one text",
            code="instructions-not-a-list",
            key=key,
            found=repr(templates),
        )
    for template in templates:
        if not isinstance(template, str) or not template.strip():
            raise ConfigError(
                f"{key}: {template!r} is no text; a template is an instruction such as 'Find the passage:'",
                code="instruction-not-text",
                key=key,
                found=template,
            )
    return tuple(template.strip() for template in templates)
