"""Floating point types and devices by their names."""

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
        raise ConfigError(
            f"dtype={dtype} is unknown; choices: {', '.join(DTYPES)}",
            code="dtype-unknown",
            found=str(dtype),
            allowed=tuple(DTYPES),
        )
    return found


def device_named(device: torch.device | str | int) -> torch.device:
    """A device that tensors can be put on here; raises ConfigError with the reason where it is none."""
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise ConfigError(
                f"device={device} holds no numbers; choose cpu, cuda, cuda:0 and so on",
                code="device-without-numbers",
                found=str(device),
            )
        torch.empty(0, device=found)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # AssertionError: PyTorch was built without CUDA
        raise ConfigError(
            f"device={device} cannot be used: {str(error).strip().splitlines()[0]}",
            code="device-unusable",
            found=str(device),
        ) from error
    return found
