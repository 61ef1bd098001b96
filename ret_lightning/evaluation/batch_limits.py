"""How many batches Lightning's limits leave."""

from __future__ import annotations

import math

from ret_lightning.errors import ConfigError


def limited_batches(batches: int, limit: int | float | None, option: str, what: str) -> int:
    """How many of so many batches a limit leaves, counted as Lightning counts them: a share is rounded down.

    Args:
        batches: that there are; of none, none are left.
        limit: a number of batches, or a share of them; None: all.
        option: that sets the limit, for messages.
        what: the batches are of, for messages.

    Raises:
        ConfigError: if a share leaves none.
    """
    if limit is None:
        return batches
    if isinstance(limit, int):
        return min(batches, limit)
    left = int(batches * limit)
    if batches and not left and limit:
        least = math.ceil(1000 / batches) / 1000
        raise ConfigError(
            f"{option}={limit:g} leaves no batch of {what} (batches: {batches}); set a share of at least {least}, or a whole "
            "number of batches such as 1",
            code="limit-leaves-no-batch",
            key=option,
            found=limit,
            least=least,
            batches=batches,
        )
    return left
