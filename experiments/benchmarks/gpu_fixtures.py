"""Helpers of gpu.py and gpu_step.py: device, report lines, timing, and a model with input rows.

The model is built without Hydra, and the rows without open_clip, which contains the vocabulary of CLIP's tokenizer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial

os.environ.setdefault("LIK_SUPPRESS_NORM_WARN", "1")  # late_interaction_kernels reads it when it is imported

import torch
from measure import synchronize
from torch import Tensor

from ret_lightning.inputs import EncoderInput, ImageTransform
from ret_lightning.losses import ContrastiveLoss, EncodedBatch
from ret_lightning.models import LSTMGate, RetRetriever, build_retriever
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from ret_lightning.models.gradient_cache import encode_in_micro_batches
from ret_lightning.ops.maxsim_fused import fused_refusal

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if GPU else "cpu")
HALF = torch.bfloat16 if GPU else torch.float32
_PROBE = torch.empty(1, 1, 128, device=DEVICE, dtype=HALF)
NO_FUSED = fused_refusal(_PROBE, _PROBE)  # why fused MaxSim is not available; None if it is
TINY_VOCABULARY = 100

autocast = partial(torch.autocast, DEVICE.type, torch.bfloat16, cache_enabled=False)  # as Lightning's bf16-mixed
unit_vectors = partial(torch.nn.functional.normalize, dim=-1)

failed: list[str] = []  # names of the checks that failed


def report(kind: str, name: str, text: str) -> None:
    """Print a line; `kind` is PASS, FAIL, FIGURE, SKIP or DONE."""
    print(f"{kind:6s} {name}: {text}", flush=True)
    if kind == "FAIL":
        failed.append(name)


def check(name: str, passed: bool, text: str) -> None:
    """Report the outcome of a check, with its measured values.

    Args:
        name: of the check.
        passed: its outcome.
        text: the measured values.
    """
    report("PASS" if passed else "FAIL", name, text)


def relative_distance(x: Tensor, y: Tensor) -> float:
    """Return |x - y| / |y|, computed in float64."""
    x, y = x.detach().cpu().double(), y.detach().cpu().double()
    return float((x - y).norm() / y.norm().clamp_min(1e-30))


def peak_gib(reset: bool = False) -> float:
    """Return the peak GPU memory allocated since the last reset, in GiB; 0 on a CPU."""
    if not GPU:
        return 0.0
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**30


def seconds(run: Callable[[], object], repeats: int = 5, warmup: int = 2) -> float:
    """Return the median time of a call in seconds; on a CPU, the time of a single call."""
    if not GPU:
        repeats, warmup = 1, 0
    times = []
    for _ in range(warmup + repeats):
        synchronize(DEVICE)
        start = time.perf_counter()
        run()
        synchronize(DEVICE)
        times.append(time.perf_counter() - start)
    return sorted(times[warmup:])[repeats // 2]


def byte_tokenizer(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return ids (B, L) and mask (B, L), one token per word, below `TINY_VOCABULARY`."""
    end = TINY_VOCABULARY - 1
    ids = [[1, *(2 + sum(word.encode()) % 90 for word in text.split()), end] for text in texts]
    longest = max(map(len, ids))
    padded = [row + [end] * (longest - len(row)) for row in ids]
    return torch.tensor(padded), torch.tensor([[i < len(row) for i in range(longest)] for row in ids])


def random_model(large: bool = False, device: torch.device | str = "cpu", **options: object) -> RetRetriever:
    """Return a retriever with random weights in training mode, the same on each call.

    Args:
        large: CLIP ViT-L/14 and the published sizes; otherwise a tiny model.
        device: of the weights.
        options: of `build_retriever`; dropout is 0 by default.
    """
    if large:
        text = _stack(768, 12, 12, vocab_size=49408)
        vision = _stack(1024, 24, 16, image_size=224, patch_size=14)
    else:
        text = _stack(64, 3, 4, vocab_size=TINY_VOCABULARY, bos_token_id=1, eos_token_id=TINY_VOCABULARY - 1)
        vision = _stack(96, 4, 3, image_size=40, patch_size=10)
        options = {"hidden_size": 128, "num_tokens": 8, "output_size": 32} | options
    torch.manual_seed(0)
    with torch.device(device):
        transform, plan = ImageTransform(vision["image_size"]), "clip_vit_l" if large else None
        backbone = clip_backbone(text, vision, None, byte_tokenizer, transform, plan)
        options = {"dropout": 0.0, "attention_dropout": 0.0} | options
        return build_retriever(backbone, LSTMGate, **options).train()


def _stack(width: int, blocks: int, heads: int, **more: int) -> dict[str, object]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "hidden_act": "quick_gelu",
        **more,
    }


def random_rows(
    count: int,
    seed: int,
    images: float = 1.0,
    texts: float = 1.0,
    length: int = 16,
    size: int = 40,
    vocabulary: int = TINY_VOCABULARY,
) -> EncoderInput:
    """Return random rows; the first fraction `texts` has a text, the last fraction `images` an image."""
    random = torch.Generator().manual_seed(seed)
    with_text, with_image = torch.arange(int(count * texts)), torch.arange(count - int(count * images), count)
    lengths = torch.randint(length // 2, length + 1, (count, 1), generator=random)
    ids = torch.randint(2, vocabulary, (count, length), generator=random)
    pixels = torch.randn(len(with_image), 3, size, size, generator=random)
    return EncoderInput(ids, torch.arange(length)[None] < lengths, pixels, with_text, with_image)


def gradients(
    retriever: RetRetriever,
    queries: EncoderInput,
    passages: EncoderInput,
    mixed: bool = False,
    micro_batch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss of a step and its gradients, concatenated to one vector.

    Args:
        retriever: in training mode.
        queries: B rows.
        passages: B rows, the positives.
        mixed: whether the forward pass runs in bfloat16 autocast.
        micro_batch: pairs per micro-batch; None: the whole batch.
    """
    retriever.zero_grad()
    with autocast(enabled=mixed):
        vectors = encode_in_micro_batches(retriever, queries, passages, micro_batch)
        loss = ContrastiveLoss()(
            EncodedBatch(*vectors, torch.arange(len(queries), device=queries.input_ids.device))
        ).loss
    loss.backward()
    return loss.detach(), torch.cat([x.grad.flatten() for x in retriever.parameters() if x.requires_grad])
