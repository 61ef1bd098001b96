"""Which subset a training row belongs to, from its fields."""

from __future__ import annotations

from collections.abc import Iterable

# The subset of a training row that does not tell.
UNKNOWN = "unknown"


class SubsetNames:
    """Which subset a training row belongs to: by its `subset` field, else by the beginning of its data_id.

    Args:
        known: the names to look for, in any case.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self.known = tuple(dict.fromkeys(known))
        self._by_lower = {name.lower(): name for name in self.known}
        self._longest_first = sorted(self._by_lower, key=len, reverse=True)

    def __call__(self, subset: str | None, data_id: str) -> str:
        """The name, from the row's two fields; one that is not known counts if the field says it.

        Returns:
            `unknown` where the row does not tell.
        """
        if subset is not None:
            return self._by_lower.get(subset.lower(), subset)
        lower_id = data_id.lower()
        for lower in self._longest_first:
            if lower_id.startswith(lower) and not lower_id[len(lower) : len(lower) + 1].isalnum():
                return self._by_lower[lower]
        return UNKNOWN
