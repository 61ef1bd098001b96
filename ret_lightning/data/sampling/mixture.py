"""The mixture of an epoch: how often the rows of each subset are sampled."""

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
    """How often a row of each subset is sampled per epoch.

    Args:
        factors: factor of each subset, 0 or more. 2: twice per epoch; 0: never; 0.5: a new random half of the rows per epoch;
            2.5: all rows twice, and a new random half a third time.
        others: factor of the other subsets.
    """

    def __init__(self, factors: Mapping[str, float] | None = None, others: float = 1.0) -> None:
        self.factors = {name: float(factor) for name, factor in (factors or {}).items()}
        self.others = float(others)

    @property
    def is_plain(self) -> bool:
        """Whether each row of every subset is sampled exactly once."""
        return all(factor == 1 for factor in (*self.factors.values(), self.others))

    def factor(self, subset: str) -> float:
        """Return how often a row of a subset is sampled per epoch on average."""
        return self.factors.get(subset, self.others)

    def copies(self, subset: str, chance: float) -> int:
        """Return how often one row is sampled in one epoch.

        Args:
            subset: subset of the row.
            chance: random number, uniform in [0, 1), compared with the fractional part of the factor.
        """
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
        """Create the mixture of a config.

        With weights, an epoch has as many samples as the subsets with a weight have rows, N in total, and each subset's share
        is proportional to its weight. A row of subset s, with weight w_s and n_s rows, is sampled w_s / sum(w) * N / n_s
        times per epoch. Subsets without a weight are left out.

        Args:
            repeat: `data.repeat`, factor of each subset.
            weights: `data.weights`, weight of each subset; exclusive with `repeat`.
            chosen: `data.subsets`; other subsets are left out, except rows of unknown subset. None: all.
            rows: number of rows of each subset; required with `weights`.

        Raises:
            DataError: if a subset with a weight has no rows.
        """
        if weights is not None:
            assert rows is not None
            present = {name: weight for name, weight in weights.items() if weight > 0}
            for name in present:
                if not rows.get(name):
                    found = ", ".join(f"{name} ({count})" for name, count in rows.items() if count)
                    raise DataError(
                        f"data.weights.{name}={weights[name]}: subset {name} has no training rows; "
                        f"subsets with rows: {found or 'none'}",
                        code="weight-without-rows",
                        subset=name,
                        allowed=[name for name, count in rows.items() if count],
                    )
            left_out = [name for name, count in rows.items() if count and name not in weights]
            if left_out:
                log.warning("data.weights has no weight for %s; their rows are not used", ", ".join(left_out))
            total, length = sum(present.values()), sum(rows[name] for name in present)
            return cls({name: weight / total * length / rows[name] for name, weight in present.items()}, others=0)
        factors = dict(repeat or {})
        if chosen is None:
            return cls(factors)
        named = {name: factors.get(name, 1.0) for name in (*chosen, UNKNOWN)}
        return cls(named, others=0)


class RowMixture:
    """A mixture applied to a known set of rows.

    The fractional part f of a factor, if it is not 0, is exact: max(1, round(f * n)) of the n rows of a subset are sampled
    once more.

    Args:
        subsets: subset of each row.
        mixture: factor of each subset.
        limit: maximum number of rows, the first ones whose factor is not 0; None: all.
        removed: numbers of rows that are not used; None: none.
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
        """Number of samples per epoch of each subset, in the order of `RowSubsets.names`."""
        return [
            len(rows) * math.floor(factor) + _extra_rows(len(rows), factor)
            for rows, factor in zip(self._rows, self.factors, strict=True)
        ]

    def copies(self, seed: int, epoch: int) -> np.ndarray:
        """Return how often each row is sampled in an epoch: (rows,) int64.

        Args:
            seed: seed of the fractional parts.
            epoch: number of the epoch, from 0.
        """
        copies = np.zeros(len(self.codes), np.int64)
        for code, (rows, factor) in enumerate(zip(self._rows, self.factors, strict=True)):
            copies[rows] = math.floor(factor)
            extra = _extra_rows(len(rows), factor)
            if extra:
                random = np.random.default_rng((seed, epoch, code, 1))
                copies[random.choice(rows, extra, replace=False)] += 1
        return copies


def _extra_rows(rows: int, factor: float) -> int:
    """Return how many of the rows are sampled once more for the fractional part of the factor."""
    fraction = factor % 1
    return max(1, round(rows * fraction)) if fraction and rows else 0


def check_factors(setting: str, factors: Mapping[str, float]) -> None:
    """Check the factors or weights of subsets.

    Args:
        setting: `data.repeat` or `data.weights`, for the error message.
        factors: value of each subset.

    Raises:
        ConfigError: if a value is not a finite number of at least 0, or all weights are 0.
    """
    for name, factor in factors.items():
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise ConfigError(
                f"{setting}.{name}: expected a finite number of at least 0, got {factor!r}",
                code="mixture-factor-out-of-range",
                key=f"{setting}.{name}",
                found=factor,
            )
    if setting == "data.weights" and not any(factors.values()):
        raise ConfigError(
            f"data.weights: expected at least one weight greater than 0, got {dict(factors)}",
            code="all-weights-zero",
            found=dict(factors),
        )


def check_names(setting: str, names: Collection[str], known: Collection[str]) -> None:
    """Check the names of subsets in a setting.

    Args:
        setting: key of the setting, for the error message.
        names: names to check.
        known: names of all subsets.

    Raises:
        ConfigError: if a name is unknown; the message suggests the closest known name.
    """
    for name in names:
        if name not in known:
            close = get_close_matches(name.lower(), known, n=1)
            raise ConfigError(
                f"{setting}: unknown subset {name!r}"
                f"{f'; did you mean {close[0]}?' if close else ';'} choices: {', '.join(known)}",
                code="unknown-subset",
                key=setting,
                found=name,
                allowed=tuple(known),
            )
