"""The mixture of an epoch: how often the rows of each subset come."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches

import numpy as np

from ret_lightning.data.layouts.subset_names import UNKNOWN
from ret_lightning.data.sampling.subset_index import RowSubsets
from ret_lightning.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class Mixture:
    """How often a row of each subset comes in an epoch.

    Args:
        factors: by subset, 0 or more: 2 is twice an epoch, 0 never, 0.5 means that each epoch takes another random half
            of the rows, 2.5 two of each and another half.
        others: the factor of subsets that are not named.
    """

    def __init__(self, factors: Mapping[str, float] | None = None, others: float = 1.0) -> None:
        self.factors = {name: float(factor) for name, factor in (factors or {}).items()}
        self.others = float(others)

    @property
    def is_plain(self) -> bool:
        """Whether each row comes once, whatever its subset."""
        return all(factor == 1 for factor in (*self.factors.values(), self.others))

    def factor(self, subset: str) -> float:
        """How often a row of a subset comes, on average."""
        return self.factors.get(subset, self.others)

    def copies(self, subset: str, chance: float) -> int:
        """How often one row comes in one epoch; `chance` is uniform in [0, 1) and decides of the fraction."""
        whole, fraction = divmod(self.factor(subset), 1)
        return int(whole) + (chance < fraction)

    @classmethod
    def from_settings(
        cls,
        repeat: Mapping[str, float] | None,
        weights: Mapping[str, float] | None,
        chosen: Collection[str] | None,
        rows: Mapping[str, int] | None = None,
    ) -> Mixture:
        """The mixture that a config asks for.

        With weights, the subsets named share the epoch in proportion, those not named are left out, and the epoch is as long
        as the named subsets have rows: in an epoch a row of subset s comes w_s / sum(w) * N / n_s times, n_s being the
        rows of s and N the sum over the named subsets.

        Args:
            repeat: `data.repeat`.
            weights: `data.weights`; not both.
            chosen: `data.subsets`: others are left out, but for rows that do not tell their subset.
            rows: how many rows there are of each subset; for weights.

        Raises:
            DataError: if a subset that has a weight has no rows.
        """
        if weights is not None:
            present = {name: weight for name, weight in weights.items() if weight > 0}
            for name in present:
                if not rows.get(name):
                    there_are = ", ".join(f"{name} ({count})" for name, count in rows.items() if count)
                    raise DataError(
                        f"data.weights: no training row is of {name}; there are: {there_are or 'none'}",
                        code="weight-without-rows",
                        subset=name,
                        allowed=[name for name, count in rows.items() if count],
                    )
            left_out = [name for name, count in rows.items() if count and name not in weights]
            if left_out:
                log.warning("data.weights does not name %s: left out", ", ".join(left_out))
            total, length = sum(present.values()), sum(rows[name] for name in present)
            return cls({name: weight / total * length / rows[name] for name, weight in present.items()}, others=0)
        factors = dict(repeat or {})
        if chosen is None:
            return cls(factors)
        named = {name: factors.get(name, 1.0) for name in (*chosen, UNKNOWN)}
        return cls(named, others=0)


class RowMixture:
    """A mixture of rows that are known by their numbers.

    The fractions are exact: of n rows with factor 0.5, round(n / 2) come in every epoch, at least one.

    Args:
        subsets: of the rows.
        mixture: the factors.
        limit: only so many rows are used, the first ones whose factor is not 0; None: all.
        removed: numbers of rows that are not used at all; None: none.
    """

    def __init__(
        self, subsets: RowSubsets, mixture: Mixture, limit: int | None = None, removed: np.ndarray | None = None
    ) -> None:
        self.codes = subsets.codes
        self.factors = [mixture.factor(name) for name in subsets.names]
        is_used = np.array(self.factors)[self.codes] > 0
        if removed is not None:
            is_used[removed] = False
        used = np.flatnonzero(is_used)[:limit]
        self._rows = [used[self.codes[used] == code] for code in range(len(subsets.names))]

    @property
    def sizes(self) -> list[int]:
        """How many samples an epoch has of each subset, in the order of their codes."""
        return [
            len(rows) * math.floor(factor) + _part(len(rows), factor)
            for rows, factor in zip(self._rows, self.factors, strict=True)
        ]

    def copies(self, seed: int, epoch: int) -> np.ndarray:
        """(rows,) int64: how often each row comes in an epoch."""
        copies = np.zeros(len(self.codes), np.int64)
        for code, (rows, factor) in enumerate(zip(self._rows, self.factors, strict=True)):
            copies[rows] = math.floor(factor)
            part = _part(len(rows), factor)
            if part:
                random = np.random.default_rng((seed, epoch, code, 1))
                copies[random.choice(rows, part, replace=False)] += 1
        return copies


def _part(rows: int, factor: float) -> int:
    fraction = factor % 1
    return max(1, round(rows * fraction)) if fraction and rows else 0


def check_factors(setting: str, factors: Mapping[str, float]) -> None:
    """Raises ConfigError where a factor or weight is no number of 0 or more, or all of them are 0."""
    for name, factor in factors.items():
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise ConfigError(
                f"{setting}.{name}={factor} must be a number, 0 or more",
                code="mixture-factor-out-of-range",
                key=f"{setting}.{name}",
                found=factor,
            )
    if setting == "data.weights" and not any(factors.values()):
        raise ConfigError("data.weights: at least one weight must be more than 0", code="all-weights-zero")


def check_names(setting: str, names: Collection[str], known: Collection[str]) -> None:
    """Raises ConfigError where a name is no subset, with the nearest one that is."""
    for name in names:
        if name not in known:
            meant = get_close_matches(name.lower(), known, n=1)
            raise ConfigError(
                f"{setting}: there is no subset {name!r}"
                f"{f'; did you mean {meant[0]}?' if meant else ';'} choices: {', '.join(known)}",
                code="unknown-subset",
                key=setting,
                found=name,
                allowed=tuple(known),
            )
