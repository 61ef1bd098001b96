"""Automatic settings of the FAISS indexes and the placeholders of factory strings."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping

from ret_lightning.errors import ConfigError

# FAISS recommends 39 training vectors per centroid; an 8-bit code has 256 centroids.
MIN_TRAINED_VECTORS = 39 * 256
TRAINING_VECTORS_PER_LIST = 32


def automatic_nlist(vectors: int) -> int:
    """Return the automatic number of inverted lists: the largest power of two up to 4 * sqrt(vectors).

    The guidelines of FAISS recommend 4 to 16 times sqrt(vectors); PLAID (Santhanam et al., 2022) uses 16. With a factor of
    4, k-means and assigning all vectors to lists have about the same cost.

    Args:
        vectors: number of indexed vectors.
    """
    return 1 << int(math.log2(max(1.0, 4 * math.sqrt(vectors))))


def automatic_nprobe(nlist: int) -> int:
    """Return the automatic number of inverted lists to search: 2 * sqrt(nlist), at most 32."""
    return min(math.ceil(2 * math.sqrt(nlist)), 32, nlist)


def automatic_m(width: int, nbits: int) -> int:
    """Return the automatic number of sub-quantizers: the largest divisor of `width` that yields at most width / 4 bytes.

    Args:
        width: width of the vectors.
        nbits: bits per sub-quantizer.
    """
    limit = max(1, 2 * width // nbits)
    return next(m for m in range(min(limit, width), 0, -1) if width % m == 0)


def automatic_training_points(nlist: int) -> int:
    """Return the automatic number of training vectors: 32 per inverted list, at least 65,536 (256 per 8-bit centroid)."""
    return max(TRAINING_VECTORS_PER_LIST * nlist, 1 << 16)


def fill_factory(factory: str, values: Mapping[str, object], given: Mapping[str, int | None]) -> str:
    """Replace the placeholders of a factory string, such as {nlist}, by values.

    Args:
        factory: factory string as in a config, for example `IVF{nlist},SQ8`.
        values: value of each placeholder.
        given: settings and their values; a setting that is not None requires its placeholder.

    Returns:
        The factory string for FAISS.

    Raises:
        ConfigError: if the string is malformed, a placeholder is unknown, or a setting has no placeholder.
    """
    try:
        parts = [part for part in string.Formatter().parse(factory) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(
            f"index: factory {factory!r} is malformed ({error})", code="factory-unreadable", found=factory
        ) from None
    for _, name, layout, conversion in parts:
        if layout or conversion:
            raise ConfigError(
                f"index: factory {factory!r}: expected the placeholder {{{name}}} without a format or conversion",
                code="factory-place-formatted",
                found=factory,
                place=name,
            )
    placeholders = {str(name) for _, name, _, _ in parts}
    for name in sorted(placeholders - values.keys()):
        raise ConfigError(
            f"index: factory {factory!r}: unknown placeholder {{{name}}}, expected one of "
            + ", ".join(f"{{{known}}}" for known in values),
            code="factory-place-unknown",
            found=name,
            allowed=tuple(values),
        )
    placeholders_of = {"m": {"m", "pq"}, "nbits": {"nbits", "pq"}}
    for name, value in given.items():
        if value is not None and not placeholders_of.get(name, {name}) & placeholders:
            raise ConfigError(
                f"index: {name}={value} requires the placeholder {{{name}}} in factory {factory!r}; add it, or remove {name}",
                code="factory-without-place",
                key=name,
                found=value,
                factory=factory,
            )
    return factory.format(**values)
