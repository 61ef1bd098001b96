"""Benchmark of data loading: rows/s by number of workers, time to the first batch, and memory growth of a worker.

    python experiments/benchmarks/loader.py rows=500000 pictures=512

Prints three tables over generated files in the layout of ReT-M2KR, for `indexed` and `streaming`: (1) rows with a JPEG on both
sides, with decoding, preprocessing and tokenization, through the loader of the data module; (2) the time from the constructor
of the data module to its first batch, for `rows` rows without images and an empty cache of `datasets`; (3) an epoch over these
rows with one worker and without tokenization: anonymous memory of the worker (RssAnon of /proc/PID/status, without
memory-mapped files) and its resident set, after the first batch and at the maximum.
Options: rows, pictures (rows with images), side (of the JPEGs, pixels), batch.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ret_lightning import M2KRDataModule
from ret_lightning.inputs import ClipTokenizer, ImageTransform

READINGS = ("indexed", "streaming")
WORKERS = (0, 1, 2)
WORDS = (
    "the",
    "of",
    "lake",
    "river",
    "castle",
    "painted",
    "which",
    "year",
    "built",
    "near",
    "mountain",
    "church",
    "bird",
)


def main() -> None:
    options = {"rows": "500000", "pictures": "512", "side": "400", "batch": "64"}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    batch = int(options["batch"])
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HF_DATASETS_CACHE"] = f"{scratch}/cache"  # before `datasets` is imported
        with_images = write_folder(Path(scratch, "images"), int(options["pictures"]), int(options["side"]))
        texts_only = write_folder(Path(scratch, "texts"), int(options["rows"]), side=None)
        size = sum(file.stat().st_size for file in texts_only.rglob("*.jsonl")) / 2**20
        print(f"{options}; the rows without images are {size:.0f} MiB")
        throughput(with_images, int(options["pictures"]), batch)
        first_batches(texts_only, batch)
        memory(texts_only, 4 * batch)


def throughput(root: Path, rows: int, batch: int) -> None:
    print("\n| reading | workers | rows/s | rows/s per core |\n|---|--:|--:|--:|")
    for reading in READINGS:
        for workers in WORKERS:
            loader = data_module(root, reading, batch, workers).train_dataloader()
            batches = iter(loader)
            next(batches)  # starts the workers
            start = time.perf_counter()
            for _ in batches:
                pass
            rate = (rows - batch) / (time.perf_counter() - start)
            print(f"| {reading} | {workers} | {rate:.0f} | {rate / max(1, workers):.0f} |", flush=True)


def first_batches(root: Path, batch: int) -> None:
    print("\n| reading | seconds to the first batch |\n|---|--:|")
    for reading in READINGS[::-1]:
        start = time.perf_counter()
        next(iter(data_module(root, reading, batch, workers=1).train_dataloader()))
        print(f"| {reading} | {time.perf_counter() - start:.1f} |", flush=True)


def memory(root: Path, batch: int) -> None:
    print(
        "\n| reading | RssAnon of the worker, first, MiB | largest | growth | RSS growth | rows/s |\n|---|--:|--:|--:|--:|--:|"
    )
    for reading in READINGS:
        data = data_module(root, reading, batch, workers=1)
        data.tokenizer = no_tokens
        loader = data.train_dataloader()
        batches = iter(loader)
        next(batches)
        worker = batches._workers[0].pid
        first = most = [resident(worker, field) for field in ("RssAnon", "VmRSS")]
        start, rows = time.perf_counter(), 0
        for number, got in enumerate(batches):
            rows += len(got)
            if number % 50 == 0:
                most = [
                    max(pair) for pair in zip(most, (resident(worker, f) for f in ("RssAnon", "VmRSS")), strict=True)
                ]
        rate = rows / (time.perf_counter() - start)
        own, whole = (after - before for after, before in zip(most, first, strict=True))
        print(f"| {reading} | {first[0]:.0f} | {most[0]:.0f} | {own:.0f} | {whole:.0f} | {rate:.0f} |", flush=True)
        del loader, batches
        gc.collect()


def no_tokens(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return one padding token per text, instead of tokenizing."""
    return torch.zeros(len(texts), 1, dtype=torch.int64), torch.ones(len(texts), 1, dtype=torch.bool)


def resident(pid: int, field: str) -> float:
    """Return a field of /proc/PID/status in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/{pid}/status has no {field}; a worker's memory is measured on Linux only")


def data_module(root: Path, reading: str, batch: int, workers: int) -> M2KRDataModule:
    data = M2KRDataModule(
        root, ClipTokenizer(), ImageTransform(), batch_size=batch, num_workers=workers, reading=reading
    )
    data.prepare_data()
    data.setup("fit")
    return data


def write_folder(root: Path, rows: int, side: int | None) -> Path:
    """Write a training file with `rows` rows, one query and one passage; rows have images unless `side` is None."""
    random = np.random.default_rng(0)
    folder, images = root / "jsonl/m2kr", root / "images/m2kr/images"
    for made in (folder / "train", folder / "test", folder / "passages", images):
        made.mkdir(parents=True)
    pictures = 0 if side is None else min(rows, 256)
    for number in range(pictures):
        coarse = random.integers(0, 256, (side // 16, side // 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(images / f"{number}.jpg")
    texts = [" ".join(random.choice(WORDS, 60)) for _ in range(1000)]
    with (folder / "train/m2kr_up_train.jsonl").open("w") as file:
        for number in range(rows):
            path = None if side is None else f"{number % pictures}.jpg"
            row = {
                "data_id": f"wit_{number}", "instruction": "Find the passage:", "question": texts[number % 997][:60],
                "image_path": path, "passage_id": f"p{number}", "passage_text": texts[number % 1000], "answer": None,
                "passage_image_path": path,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    query = {"data_id": "q", "question": "what", "passage_id": "p"}
    (folder / "test/wit_test.jsonl").write_text(json.dumps(query))
    (folder / "passages/wit_passages_test.jsonl").write_text(json.dumps({"passage_id": "p", "passage_text": "that"}))
    return root


if __name__ == "__main__":
    main()
