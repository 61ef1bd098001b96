"""Apply Lightning's batch limits to a number of batches."""

from __future__ import annotations

import math

from ret_lightning.errors import ConfigError


def limit_batches(batches: int, limit: int | float | None, option: str, what: str) -> int:
    """Return the number of batches within a limit, as Lightning computes it: a fraction is rounded down.

    Args:
        batches: number of batches; 0 returns 0.
        limit: a number of batches, or a fraction of them; None means all.
        option: the option that sets the limit, for messages.
        what: what the batches contain, for messages.

    Raises:
        ConfigError: if the limit is a fraction of less than one batch.
    """
    if limit is None:
        return batches
    if isinstance(limit, int):
        return min(batches, limit)
    limited = int(batches * limit)
    if batches and not limited and limit:
        least = math.ceil(1000 / batches) / 1000
        raise ConfigError(
            f"{option}={limit:g}: less than one of the {batches} batches of {what}; expected a fraction of at least {least}, "
            "or a number of batches such as 1",
            code="limit-leaves-no-batch",
            key=option,
            found=limit,
            least=least,
            batches=batches,
        )
    return limited
