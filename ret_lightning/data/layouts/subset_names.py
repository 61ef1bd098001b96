"""The subset of a training row, from the fields of the row."""

from __future__ import annotations

from collections.abc import Iterable

# The subset of a training row that does not state one.
UNKNOWN = "unknown"


class SubsetNames:
    """Maps the fields of a training row to its subset.

    Args:
        known: names of the known subsets; they are compared case-insensitively.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self.known = tuple(dict.fromkeys(known))
        self._by_lower = {name.lower(): name for name in self.known}
        self._longest_first = sorted(self._by_lower, key=len, reverse=True)

    def __call__(self, subset: str | None, data_id: str) -> str:
        """Return the subset of a row.

        Args:
            subset: field `subset` of the row; it has priority, and may be a name that is not known. None: no such field.
            data_id: field `data_id` of the row; it may begin with a known name.

        Returns:
            The name of the subset; `unknown` if neither field states one.
        """
        if subset is not None:
            return self._by_lower.get(subset.lower(), subset)
        lower_id = data_id.lower()
        for lower in self._longest_first:
            if lower_id.startswith(lower) and not lower_id[len(lower) : len(lower) + 1].isalnum():
                return self._by_lower[lower]
        return UNKNOWN
