"""Names of floating point types."""

from __future__ import annotations

import torch

from ret_lightning.errors import ConfigError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}


def dtype_named(dtype: torch.dtype | str) -> torch.dtype:
    """A torch dtype from itself or its name, with or without `torch.`; raises ConfigError with the choices."""
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ConfigError(f"dtype={dtype} is unknown; choices: {', '.join(DTYPES)}")
    return found
