"""Floating point types and devices by name."""

from __future__ import annotations

import pytest
import torch

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError
from ret_lightning.models.precision import device_named, dtype_named
from tests.support.tiny_models import BY_NAME


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "bf16", torch.float64])
def test_loading_in_another_precision(dtype) -> None:
    retriever = RetRetriever.from_pretrained(BY_NAME["clip_vit_l"], dtype=dtype, device="cpu")
    wanted = torch.float64 if dtype is torch.float64 else torch.bfloat16
    assert {t.dtype for t in retriever.state_dict().values()} == {wanted}


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:99"])
def test_a_device_that_cannot_be_used_is_told_before_anything_is_read(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"device={device} (cannot be used|holds no numbers)"):
        RetRetriever.from_pretrained("nowhere", device=device)


def test_an_unknown_precision_is_told() -> None:
    with pytest.raises(ConfigError, match=r"dtype=int3 is unknown; choices: float32, .*bfloat16"):
        RetRetriever.from_pretrained(BY_NAME["clip_vit_l"], dtype="int3")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("torch.bfloat16", torch.bfloat16), (torch.float16, torch.float16)],
)
def test_names_of_types(name: str | torch.dtype, dtype: torch.dtype) -> None:
    assert dtype_named(name) is dtype


def test_types_and_devices_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        dtype_named("int8")
    assert (caught.value.code, caught.value.found, "float64" in caught.value.allowed) == ("dtype-unknown", "int8", True)
    for device, code in (("meta", "device-without-numbers"), ("cuda:99", "device-unusable"), ("x", "device-unusable")):
        with pytest.raises(ConfigError) as caught:
            device_named(device)
        assert (caught.value.code, caught.value.found) == (code, device)
    assert device_named("cpu") == torch.device("cpu")
