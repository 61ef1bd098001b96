"""Parsing of dtype and device names."""

from __future__ import annotations

import pytest
import torch

from ret_lightning import RetRetriever
from ret_lightning.errors import ConfigError
from ret_lightning.models.precision import device_named, dtype_named
from tests.support.tiny_models import BY_NAME


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "bf16", torch.float64])
def test_checkpoint_is_loaded_in_given_dtype(dtype) -> None:
    retriever = RetRetriever.from_pretrained(BY_NAME["clip_vit_l"], dtype=dtype, device="cpu")
    expected = torch.float64 if dtype is torch.float64 else torch.bfloat16
    assert {t.dtype for t in retriever.state_dict().values()} == {expected}


@pytest.mark.parametrize(
    ("device", "code"),
    [("banana", "device-unusable"), ("meta", "device-without-numbers"), ("cuda:99", "device-unusable")],
)
def test_unavailable_device_is_refused_before_loading(device: str, code: str) -> None:
    with pytest.raises(ConfigError) as error:
        RetRetriever.from_pretrained("nowhere", device=device)
    assert (error.value.code, error.value.found) == (code, device)


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        RetRetriever.from_pretrained(BY_NAME["clip_vit_l"], dtype="int3")
    assert (error.value.code, error.value.found) == ("dtype-unknown", "int3")
    assert {"float32", "bfloat16"} <= set(error.value.allowed)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("torch.bfloat16", torch.bfloat16), (torch.float16, torch.float16)],
)
def test_dtype_names(name: str | torch.dtype, dtype: torch.dtype) -> None:
    assert dtype_named(name) is dtype


def test_unknown_dtypes_and_devices_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        dtype_named("int8")
    assert (caught.value.code, caught.value.found, "float64" in caught.value.allowed) == ("dtype-unknown", "int8", True)
    for device, code in (("meta", "device-without-numbers"), ("cuda:99", "device-unusable"), ("x", "device-unusable")):
        with pytest.raises(ConfigError) as caught:
            device_named(device)
        assert (caught.value.code, caught.value.found) == (code, device)
    assert device_named("cpu") == torch.device("cpu")
