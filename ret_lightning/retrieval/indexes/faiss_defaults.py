"""The automatic settings of the FAISS indexes, from the size of the pool, and the factory strings that they go into."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping

from ret_lightning.errors import ConfigError

# Below this many vectors nothing is gained by cells or codes, and FAISS asks for 39 vectors a centroid of a code of 8 bits.
SMALLEST_TRAINED = 39 * 256
TRAINING_VECTORS_A_CELL = 32


def automatic_cells(vectors: int) -> int:
    """Cells of an inverted file: the power of two at or below 4 sqrt(vectors).

    PLAID has 16 sqrt(vectors), which it trains on a GPU; FAISS's guidelines say 4 to 16. With 4, k-means and the sorting of
    all vectors into cells take about as many operations each, and about one scan's of 500 queries together.
    """
    return 1 << int(math.log2(max(1.0, 4 * math.sqrt(vectors))))


def automatic_probes(cells: int) -> int:
    """Cells to search: 2 sqrt(cells), at most 32; see `FaissIndex` for what was measured."""
    return min(math.ceil(2 * math.sqrt(cells)), 32, cells)


def automatic_codes(width: int, bits: int) -> int:
    """Numbers a vector's code has: as many as fit a quarter byte a dimension, less if that does not divide the width."""
    wanted = max(1, 2 * width // bits)
    return next(codes for codes in range(min(wanted, width), 0, -1) if width % codes == 0)


def automatic_sample(cells: int) -> int:
    """Vectors to train on: 32 a cell, and at least 65,536, with which codes of 8 bits have 256 a centroid."""
    return max(TRAINING_VECTORS_A_CELL * cells, 1 << 16)


def filled_in(factory: str, values: Mapping[str, object], given: Mapping[str, int | None]) -> str:
    """A factory string with its places, such as {cells}, filled in.

    Args:
        factory: as in a config, `IVF{cells},SQ8`.
        values: what each place stands for.
        given: the settings that somebody chose; each needs its place.

    Raises:
        ConfigError: for a place that nothing goes into, or a chosen setting without a place.
    """
    try:
        parts = [part for part in string.Formatter().parse(factory) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(
            f"index: factory {factory!r} cannot be read ({error})", code="factory-unreadable", found=factory
        ) from None
    for _, name, layout, conversion in parts:
        if layout or conversion:
            raise ConfigError(
                f"index: factory {factory!r}: write the place as {{{name}}} and no more",
                code="factory-place-formatted",
                found=factory,
                place=name,
            )
    places = {name for _, name, _, _ in parts}
    for name in sorted(places - values.keys()):
        raise ConfigError(
            f"index: factory {factory!r} has a place {{{name}}}, and there is only "
            + ", ".join(f"{{{known}}}" for known in values),
            code="factory-place-unknown",
            found=name,
            allowed=tuple(values),
        )
    holds = {"codes": {"codes", "pq"}, "bits": {"bits", "pq"}}
    for name, value in given.items():
        if value is not None and not holds.get(name, {name}) & places:
            raise ConfigError(
                f"index: {name}={value} has no place in factory {factory!r}; leave it out, or write {{{name}}} there",
                code="factory-without-place",
                key=name,
                found=value,
                factory=factory,
            )
    return factory.format(**values)
