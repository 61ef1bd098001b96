"""Fake CUDA tensors: device, dtype, shape and strides, but no memory and no GPU. Autograd does not support them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Enter a mode in which tensors can be created on `cuda`, with bfloat16 autocast."""
    torch._C._ensureCUDADeviceGuardSet()
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    mode.allow_meta = True
    with (
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True),
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=mock.Mock(major=9, minor=0)),
        mode,
    ):
        yield


def move_to_cuda(module: torch.nn.Module) -> None:
    """Replace the parameters and buffers of a module, which `Module.to` cannot do, within `fake_cuda`."""
    for each in module.modules():
        for name, parameter in list(each._parameters.items()):
            if parameter is not None:
                moved = parameter.detach().to("cuda")
                each._parameters[name] = torch.nn.Parameter(moved, requires_grad=parameter.requires_grad)
        for name, buffer in list(each._buffers.items()):
            if buffer is not None:
                each._buffers[name] = buffer.to("cuda")
