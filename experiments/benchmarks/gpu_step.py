"""Training step at the published size on a GPU, unchanged and with single changes; part of gpu.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
import torch.utils.flop_counter
from gpu_fixtures import DEVICE, GPU, autocast, check, peak_gib, random_model, random_rows, report, seconds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ret_lightning.losses import ContrastiveLoss, EncodedBatch
from ret_lightning.models.compile_blocks import compile_blocks
from ret_lightning.models.gradient_cache import encode_in_micro_batches

KERNELS = {"attention": ("flash", "fmha"), "matmul": ("gemm", "cutlass", "nvjet", "xmma")}


def published_step() -> None:
    """Measure the step on pairs with text and image on both sides; on a CPU, with the tiny model."""
    PublishedStep().measure()


def compiled_step() -> None:
    """Measure the step with compile=true; on a CPU, the blocks are only traced."""
    step = PublishedStep()
    torch._dynamo.reset()
    compile_blocks(step.retriever, **({} if GPU else {"backend": "eager"}))
    report("FIGURE", "step, compile=true, first", f"{seconds(step.step, 1, 0):.0f} s")
    step.time("compile=true")


class PublishedStep:
    """A model, its optimizer and one batch on the device."""

    def __init__(self) -> None:
        self.pairs = 128 if GPU else 4
        make = partial(random_rows, length=77, size=224, vocabulary=49000) if GPU else random_rows
        self.retriever = random_model(GPU, DEVICE, dropout=0.05, attention_dropout=0.05)
        self.tower = self.retriever.query_tower
        self.text, self.vision = self.tower.text_backbone, self.tower.vision_backbone
        self.trained = [x for x in self.retriever.parameters() if x.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5)
        self.loss = ContrastiveLoss()
        self.batch = [make(self.pairs, seed).to(DEVICE) for seed in (1, 2)]
        self.labels = torch.arange(self.pairs, device=DEVICE)
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            self.step()
        self.flops = counter.get_total_flops()

    def measure(self) -> None:
        """Report the unchanged step, then the step with each change."""
        if GPU:
            pinned = [side.to("cpu").pin_memory() for side in self.batch]
            transfer = seconds(lambda: [side.to(DEVICE) for side in pinned])
            report("FIGURE", "pinned batch to the GPU", f"{1e3 * transfer:.1f} ms")
        self.time(f"{self.pairs} pairs")
        if GPU:
            self.check_flash_attention()
            self.report_kernels()
        self.loss = ContrastiveLoss(backend="chunked")
        self.time("chunked loss")
        self.loss = ContrastiveLoss()
        self.time("micro_batch a quarter", partial(self.step, self.pairs // 4))
        tower_class = type(self.tower)
        recur = tower_class.recur
        with mock.patch.object(tower_class, "recur", lambda *a: checkpoint(recur, *a, use_reentrant=False)):
            self.time("recurrence recomputed")
        self.measure_half_backbones()

    def step(self, micro_batch: int | None = None) -> None:
        """Take one optimizer step."""
        with autocast():
            loss = self.loss(
                EncodedBatch(*encode_in_micro_batches(self.retriever, *self.batch, micro_batch), self.labels)
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def backbones(self) -> None:
        """Run both backbones alone on both sides."""
        with autocast(), torch.no_grad():
            self.text(torch.cat([side.input_ids for side in self.batch]), self.tower.plan.text)
            self.vision(torch.cat([side.pixel_values for side in self.batch]), self.tower.plan.vision)

    def encode(self) -> None:
        """Encode the passages as evaluation does."""
        with autocast(), torch.inference_mode():
            self.retriever.eval().encode("passage", self.batch[1])
        self.retriever.train()

    def time(self, name: str, run: Callable[[], None] | None = None) -> None:
        """Report time, rate and memory of a step."""
        peak_gib(reset=True)
        took = seconds(run or self.step, 4, 2)
        peak = peak_gib()
        backbones, encode = seconds(self.backbones, 3, 1), seconds(self.encode, 3, 1)
        text = (
            f"{1e3 * took:.0f} ms, {self.pairs / took:.0f} pairs/s, {self.flops / took / 1e12:.1f} TFLOP/s, "
            f"peak {peak:.1f} GiB; backbones {1e3 * backbones:.0f} ms; encoding {self.pairs / encode:.0f} rows/s"
        )
        report("FIGURE", f"step, {name}", text)

    def check_flash_attention(self) -> None:
        """Check that the backbones can run by flash attention alone."""
        name = "flash attention in the backbones"
        try:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                self.backbones()
        except RuntimeError as error:
            check(name, False, str(error)[:150])
        else:
            check(name, True, "text (causal) and vision")

    def report_kernels(self) -> None:
        """Report the GPU time of a step by kind of kernel."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self.step()
        total: dict[str, float] = {}
        for event in profile.key_averages():
            key = event.key.lower()
            kind = next((kind for kind, marks in KERNELS.items() if any(mark in key for mark in marks)), "other")
            total[kind] = total.get(kind, 0) + event.self_device_time_total / 1e3
        report("FIGURE", "kernels of a step", ", ".join(f"{kind} {ms:.0f} ms" for kind, ms in total.items()))

    def measure_half_backbones(self) -> None:
        """Report the step with frozen weights in bfloat16, with and without autocast in the backbones."""
        stacks = (self.text, self.vision)
        forward = type(self.vision).forward

        def without_autocast(stack: torch.nn.Module, inputs: Tensor, *rest: object) -> object:
            with torch.autocast(DEVICE.type, enabled=False):
                return forward(stack, inputs.bfloat16() if inputs.is_floating_point() else inputs, *rest)

        for stack in stacks:
            stack.to(torch.bfloat16)
        self.time("frozen weights in bfloat16")
        with (
            mock.patch.object(type(self.text), "forward", without_autocast),
            mock.patch.object(type(self.vision), "forward", without_autocast),
        ):
            self.time("frozen weights in bfloat16, no autocast")
        for stack in stacks:
            stack.to(torch.float32)
