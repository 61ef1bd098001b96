"""Checks that require a GPU: correctness against the CPU, and the speed of a step at the published size.

    PYTHONPATH=. python experiments/benchmarks/gpu.py
    PYTHONPATH=. python experiments/benchmarks/gpu.py only=maxsims,published_step limit=300

Prints PASS and FAIL lines with the measured values, and FIGURE lines with times and memory. The
exit code is 1 if a check failed. Takes at most eight minutes on an H200. Requires torch, lightning, transformers, torchmetrics
and lazy-loader, and late-interaction-kernels for fused MaxSim, but not Hydra, OmegaConf, open_clip, FAISS, W&B or datasets, so
that it runs where the package is not installed. Without a GPU, every check runs with small sizes.

Options: only (names of checks, see CHECKS), limit (seconds after which no check starts).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from gpu_fixtures import (
    DEVICE,
    GPU,
    HALF,
    NO_FUSED,
    autocast,
    byte_tokenizer,
    check,
    failed,
    gradients,
    peak_gib,
    random_model,
    random_rows,
    relative_distance,
    report,
    seconds,
    unit_vectors,
)
from gpu_step import compiled_step, published_step
from measure import synchronize
from torch import Tensor

from ret_lightning.data.batch import TrainingBatch
from ret_lightning.distributed.barrier import Barrier
from ret_lightning.inputs import ClipTokenizer
from ret_lightning.losses import ContrastiveLoss, EncodedBatch, maxsim
from ret_lightning.models import RetRetriever
from ret_lightning.models.compile_blocks import compile_blocks
from ret_lightning.retrieval import Embeddings, ExactIndex, evaluate_ranking, search_sharded

OPTIONS = {"only": "", "limit": "400"}


def main() -> None:
    options = {**OPTIONS, **dict(argument.split("=", 1) for argument in sys.argv[1:])}
    start, limit = time.monotonic(), float(options["limit"])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}
    torch.backends.cudnn.allow_tf32 = False  # float32 convolutions are compared with the CPU's
    for name in ("transformers", "lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    report("FIGURE", "options", f"{options} torch {torch.__version__} threads {torch.get_num_threads()}")
    for name, run in CHECKS.items():
        begun = time.monotonic()
        if name not in (options["only"] or name).split(","):
            report("SKIP", name, "not in only=")
        elif begun - start > limit:
            report("SKIP", name, f"past the limit of {limit:.0f} s")
        else:
            try:
                run()
            except Exception as error:
                traceback.print_exc(limit=-4)
                report("FAIL", name, f"{type(error).__name__}: {str(error)[:200]}")
            report("DONE", name, f"{time.monotonic() - begun:.1f} s")
        if GPU:
            torch.cuda.empty_cache()
    sys.exit(1 if failed else 0)


def device() -> None:
    """Report the versions and the rates of the device."""
    name, n = (torch.cuda.get_device_name(0), 8192) if GPU else ("cpu", 256)
    report("FIGURE", "device", f"{name}, fused MaxSim: {NO_FUSED or 'available'}")
    a, b = (torch.randn(n, n, device=DEVICE).bfloat16() for _ in range(2))
    rate, c = 2 * n**3 / seconds(lambda: a @ b), torch.empty(8 * n * n, device=DEVICE)
    copy = 2 * c.nbytes / seconds(lambda: c.clone())
    report("FIGURE", "rates", f"bfloat16 matmul {rate / 1e12:.0f} TFLOP/s; copy {copy / 1e12:.2f} TB/s")


def maxsims() -> None:
    """Compare the scores and gradients of the backends with float64, and time them."""
    backends = ["chunked"] + ["fused"] * (NO_FUSED is None)
    for masked in (False, True):
        q, p = (unit_vectors(torch.randn(n, 32, 128, device=DEVICE)).to(HALF) for n in (96, 80))
        weights, masks = torch.randn(96, 80, device=DEVICE), [None, None]
        if masked:  # vector 5 always counts, since every row needs one
            masks = [
                (torch.rand(x.shape[:2], device=DEVICE) > 0.3) | (torch.arange(32, device=DEVICE) == 5) for x in (q, p)
            ]
        exact = _scores_and_gradients(q.double(), p.double(), masks, weights, "plain")
        for name in backends:
            first, second = (_scores_and_gradients(q, p, masks, weights, name) for _ in range(2))
            off = [relative_distance(x, y) for x, y in zip(first, exact, strict=True)]
            same = all(map(torch.equal, first, second))
            passed = off[0] < 1e-5 and max(off) < 1e-2 and same
            text = "from float64: scores {:.1e}, gradients {:.1e} {:.1e}".format(*off) + f"; repeatable: {same}"
            check(f"maxsim {name}{', masked' * masked}", passed, text)
    for nq, np in ((128, 512), (2048, 2048)) if GPU else ((8, 16),):
        for name in backends:
            q, p = (unit_vectors(torch.randn(n, 32, 128, device=DEVICE)).to(HALF).requires_grad_() for n in (nq, np))
            before, score = peak_gib(reset=True), partial(maxsim, q, p, backend=name)
            forward = seconds(score, 3, 1)
            both = seconds(lambda score=score: score().sum().backward(), 3, 1)
            rate = 2 * nq * np * 32**2 * 128 / forward / 1e12
            text = f"forward {1e3 * forward:.2f} ms ({rate:.0f} TFLOP/s), both passes {1e3 * both:.2f} ms"
            report("FIGURE", f"maxsim {name}, {nq} x {np}", f"{text}, peak {peak_gib() - before:.2f} GiB")


def _scores_and_gradients(q: Tensor, p: Tensor, masks: list, weights: Tensor, backend: str) -> list[Tensor]:
    q, p = (x.clone().requires_grad_() for x in (q, p))
    scores = maxsim(q, p, *masks, backend=backend)
    return [scores.detach(), *torch.autograd.grad((scores * weights.to(scores.dtype)).sum(), (q, p))]


def steps() -> None:
    """Compare loss and gradients with the CPU, in bfloat16 and by gradient caching."""
    queries, passages = random_rows(12, 1, images=0.75), random_rows(12, 2, images=0.5, texts=0.75, length=24)
    for name, options in (("frozen", {}), ("trained", {"train_text": True, "train_vision": True})):
        on_cpu = gradients(random_model(**options), queries, passages)
        retriever = random_model(**options).to(DEVICE)
        ours, mixed, cached = (
            gradients(retriever, queries.to(DEVICE), passages.to(DEVICE), **more)
            for more in ({}, {"mixed": True}, {"micro_batch": 5})
        )
        off = [relative_distance(x, y) for x, y in zip(ours, on_cpu, strict=True)]
        check(f"step, {name}, float32 and CPU", max(off) < 1e-3, "loss {:.1e}, gradients {:.1e}".format(*off))
        cosine = float(torch.cosine_similarity(mixed[1], ours[1], dim=0))
        loss = relative_distance(mixed[0], ours[0])
        check(f"step, {name}, bf16-mixed", cosine > 0.98, f"loss {loss:.1e}, cosine of the gradients {cosine:.4f}")
        off = relative_distance(cached[1], ours[1])
        check(f"step, {name}, micro_batch", off < 1e-3, f"gradients {off:.1e}")
    with autocast():  # flash attention accepts no rows
        query, passage = retriever(random_rows(0, 1).to(DEVICE), random_rows(0, 2).to(DEVICE))
    (query.sum() + passage.sum()).backward()
    check("step without rows", len(query) == 0, "as on a rank whose rows were all skipped")


class _Many(int):
    """A number of ranks that compares unequal to and greater than every number."""

    def __eq__(self, other: object) -> bool:
        return False

    def __gt__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


def collectives() -> None:
    """Run the collectives (NCCL on a GPU) in a group of one rank, without the shortcuts for one rank."""
    random = torch.Generator().manual_seed(0)
    q, p, queries = (unit_vectors(torch.randn(9, 8, 32, generator=random)) for _ in range(3))
    pool = Embeddings([str(i) for i in range(700)], unit_vectors(torch.randn(700, 8, 32, generator=random)).half())

    def everything() -> list[Tensor]:
        a, b = (x.to(DEVICE).requires_grad_() for x in (q, p))
        loss = ContrastiveLoss()(EncodedBatch(a, b, torch.arange(9, device=DEVICE))).loss
        ranking = search_sharded(ExactIndex(DEVICE), pool, torch.arange(700), queries, 20, DEVICE)
        recall = evaluate_ranking(ranking, pool.ids, [[str(i)] for i in range(9)], [1, 5], device=DEVICE)["recall@5"]
        return [*torch.autograd.grad(loss, (a, b)), loss.detach(), ranking.rows, ranking.scores, recall]

    alone = everything()
    dist.init_process_group("nccl" if GPU else "gloo", rank=0, world_size=1, device_id=DEVICE if GPU else None)
    with contextlib.ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        for module in ("distributed.collectives", "distributed.barrier", "losses.contrastive"):
            stack.enter_context(mock.patch(f"ret_lightning.{module}.world_size", return_value=_Many(1)))
        found, ranks = everything(), Barrier()
        ranks.wait()
        same = all(relative_distance(x, y) < 1e-5 for x, y in zip(found, alone, strict=True))
        met = ranks.all_reduce_sum([3]) == [3] and ranks.broadcast("a") == "a"
        check("collectives", same and met, f"{dist.get_backend()}: loss, gradients, search, metrics and barrier")


def training() -> None:
    """Resume a run of two epochs after the first, and train with the fused optimizer and gradient clipping."""
    with tempfile.TemporaryDirectory() as parent:
        whole, waits = _trained(Path(parent, "whole"), epochs=2)
        _trained(Path(parent, "resumed"), epochs=1)
        resumed, _ = _trained(Path(parent, "resumed"), epochs=2, resume=True)
        off = relative_distance(resumed, whole)
        check("training, resumed", off < 2e-3, f"{off:.1e} from the whole run; {waits:.0f} GPU waits per step")
        off = relative_distance(_trained(Path(parent, "fused"), epochs=2, fused=True)[0], whole)
        check("training, optimizer.fused=true", off < 1e-2, f"{off:.1e} from the run without it")


def _trained(folder: Path, epochs: int, resume: bool = False, fused: bool = False) -> tuple[Tensor, float]:
    """Return the weights of a run, and how often a step waits for the GPU."""
    import lightning

    from ret_lightning.distributed.ddp import SameConfigDDP
    from ret_lightning.training.callbacks.rng_states import RandomStates
    from ret_lightning.training.checkpointing.checkpoint_io import RunCheckpointIO
    from ret_lightning.training.checkpointing.last_checkpoint import LastCheckpoint
    from ret_lightning.training.module import RetModule
    from ret_lightning.training.schedule import WarmupCosine

    lightning.seed_everything(1, verbose=False)
    optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=fused)
    model = random_model(dropout=0.2, attention_dropout=0.1)
    module = RetModule(model, ContrastiveLoss(), optimizer, WarmupCosine(horizon_steps=100))
    trainer = lightning.Trainer(
        accelerator=DEVICE.type, devices=1, strategy=SameConfigDDP(config_file=""), precision="bf16-mixed",
        max_epochs=epochs, gradient_clip_val=1.0, use_distributed_sampler=False, logger=False,
        enable_progress_bar=False, enable_model_summary=False, plugins=[RunCheckpointIO()],
        callbacks=[RandomStates(), LastCheckpoint(str(folder))],
    )  # fmt: skip
    labels = torch.arange(8)
    batches = [
        TrainingBatch(random_rows(8, i), random_rows(8, i + 9, 0.5), labels, labels, labels, ("x",) * 8)
        for i in range(3)
    ]
    loader = torch.utils.data.DataLoader(batches, batch_size=None, pin_memory=GPU, generator=torch.Generator())
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as stack:
        stack.callback(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
        warnings.simplefilter("always")
        if GPU:
            torch.cuda.set_sync_debug_mode("warn")
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
        trainer.fit(module, loader, ckpt_path=str(folder / "last.ckpt") if resume else None, weights_only=True)
    weights = torch.cat([x.detach().cpu().flatten() for x in module.parameters()])
    return weights, sum("synchroniz" in str(warning.message) for warning in caught) / len(batches) / epochs


def search() -> None:
    """Compare exact search with the CPU, and time its scans."""
    count, queries_count, top_k = (20000, 256, 500) if GPU else (3000, 8, 50)
    topics = torch.randn(200, 32, 128)
    vectors, queries = (
        unit_vectors(topics[torch.arange(n) % 200] + torch.randn(n, 32, 128)) for n in (count, queries_count)
    )
    pool, index, on_cpu = (
        Embeddings([str(i) for i in range(count)], vectors.half()),
        ExactIndex(DEVICE),
        ExactIndex("cpu"),
    )
    for each in (index, on_cpu):
        each.build(pool)
    ours, theirs = (each.search(queries, top_k) for each in (index, on_cpu))
    same = torch.equal(ours.rows, theirs.rows) and relative_distance(ours.scores, theirs.scores) < 1e-6
    check("exact search and CPU", same, f"{count} passages, {queries_count} queries")
    own_scan, scans = ExactIndex._scan, []

    def timed_scan(self: ExactIndex, queries: Tensor, top_k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        synchronize(DEVICE)
        start = time.perf_counter()
        found = own_scan(self, queries, top_k, dtype)
        synchronize(DEVICE)
        scans.append(f"{len(queries)} in {str(dtype)[6:]} {time.perf_counter() - start:.2f} s")
        return found

    with mock.patch.object(ExactIndex, "_scan", timed_scan):
        took = seconds(lambda: index.search(queries.repeat(4, 1, 1), top_k), 1, 0)
    name = f"exact search, {count} passages, {4 * queries_count} queries"
    report("FIGURE", name, f"{took:.2f} s; scans: {', '.join(scans)}; the rest is float64")


def encoding() -> None:
    """Compare encoded queries with the CPU, in three precisions."""
    from PIL import Image

    pairs = [(f"text number {i}", Image.new("RGB", (50, 40), (i, 90, 255 - i)) if i % 3 else None) for i in range(40)]
    retriever = random_model()
    on_cpu = retriever.encode_queries(pairs)
    found = {dtype: retriever.encode_queries(pairs, device=DEVICE, dtype=dtype) for dtype in ("float32", "bfloat16")}
    with tempfile.TemporaryDirectory() as folder:
        for tower in (retriever.query_tower, retriever.passage_tower):
            tower.tokenizer = ClipTokenizer()  # only this one can be stored; its vocabulary is read when it is called
        retriever.save_pretrained(folder)
        stored = RetRetriever.from_pretrained(folder, device=DEVICE, dtype="bfloat16")
    stored.query_tower.tokenizer = byte_tokenizer
    found["weights in bfloat16"] = stored.encode_queries(pairs)
    for name, vectors in found.items():
        cosine = float((vectors * on_cpu).sum(-1).min())
        passed = vectors.device.type == "cpu" and cosine > (0.9999 if name == "float32" else 0.98)
        check(f"encode, {name}", passed, f"least cosine {cosine:.5f}")


def recompiles() -> None:
    """Trace compiled blocks with batches of all kinds: torch stops compiling a module after 8 recompilations."""
    retriever, frames = (
        random_model(device=DEVICE, dropout=0.1, attention_dropout=0.1),
        torch._dynamo.utils.counters["frames"],
    )
    compile_blocks(retriever, backend="eager")
    shares, sizes = ((1, 1), (0.9, 1), (0, 1), (1, 0.7), (0.6, 0.7)), (12, 9) if GPU else (12,)
    for name in ("training", "training and evaluation"):
        for count, (images, texts) in ((count, share) for share in shares for count in sizes):
            queries = random_rows(count, 1, images, texts).to(DEVICE)
            passages = random_rows(count, 2, images, texts, length=24).to(DEVICE)
            if name == "training":
                gradients(retriever.train(), queries, passages, mixed=True)
            else:
                with autocast(), torch.inference_mode():
                    retriever.eval().encode("query", queries)
                    retriever.encode("passage", passages)
        text = f"{frames['ok']} of {frames['total']} compiled"
        check(f"compile=true, {name}", frames["ok"] == frames["total"], text)


CHECKS = {
    run.__name__: run
    for run in (
        device, maxsims, steps, collectives, training, search, encoding, recompiles, published_step, compiled_step,
    )
}  # fmt: skip

if __name__ == "__main__":
    main()
