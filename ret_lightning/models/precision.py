"""Parsing of dtype and device names."""

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
    """Return the torch dtype of a name, with or without `torch.`; a dtype is returned unchanged.

    Raises:
        ConfigError: If the dtype is unknown.
    """
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ConfigError(
            f"dtype={dtype}: expected one of {', '.join(DTYPES)}",
            code="dtype-unknown",
            found=str(dtype),
            allowed=tuple(DTYPES),
        )
    return found


def device_named(device: torch.device | str | int) -> torch.device:
    """Return a device on which this process can allocate tensors.

    Raises:
        ConfigError: If the device is unknown or unavailable.
    """
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise ConfigError(
                f"device={device}: expected a device that stores values, such as cpu, cuda or cuda:0",
                code="device-without-numbers",
                found=str(device),
            )
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: PyTorch without CUDA
        raise ConfigError(
            f"device={device} is not available: {str(error).strip().splitlines()[0]}",
            code="device-unusable",
            found=str(device),
        ) from error
    return found
