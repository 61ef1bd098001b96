"""The automatic settings of the FAISS indexes, from the size of the pool, and the factory strings that they go into."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping

from ret_lightning.errors import ConfigError

# Below this many vectors inverted lists and codes gain nothing, and FAISS asks for 39 vectors per centroid of an 8-bit code.
MIN_TRAINED_VECTORS = 39 * 256
TRAINING_VECTORS_PER_LIST = 32


def automatic_nlist(vectors: int) -> int:
    """`nlist`: the power of two at or below 4 sqrt(vectors).

    PLAID has 16 sqrt(vectors), which it trains on a GPU; FAISS's guidelines say 4 to 16. With 4, k-means and the sorting of
    all vectors into lists take about as many operations each, and about one scan's of 500 queries together.
    """
    return 1 << int(math.log2(max(1.0, 4 * math.sqrt(vectors))))


def automatic_nprobe(nlist: int) -> int:
    """Inverted lists to search: 2 sqrt(nlist), at most 32; see `FaissIndex` for what was measured."""
    return min(math.ceil(2 * math.sqrt(nlist)), 32, nlist)


def automatic_m(width: int, nbits: int) -> int:
    """Sub-quantizers of a vector's code: as many as fit a quarter byte per dimension and divide the width."""
    wanted = max(1, 2 * width // nbits)
    return next(m for m in range(min(wanted, width), 0, -1) if width % m == 0)


def automatic_training_points(nlist: int) -> int:
    """Vectors to train on: 32 per inverted list, and at least 65,536, with which codes of 8 bits have 256 a centroid."""
    return max(TRAINING_VECTORS_PER_LIST * nlist, 1 << 16)


def fill_factory(factory: str, values: Mapping[str, object], given: Mapping[str, int | None]) -> str:
    """A factory string with its places, such as {nlist}, filled in.

    Args:
        factory: as in a config, `IVF{nlist},SQ8`.
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
    holds = {"m": {"m", "pq"}, "nbits": {"nbits", "pq"}}
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
