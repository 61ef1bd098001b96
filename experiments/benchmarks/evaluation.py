"""Benchmark of the memory of an evaluation per rank, with vectors in memory or in stores.

    python experiments/benchmarks/evaluation.py
    python experiments/benchmarks/evaluation.py passages=300000 ranks=4 indexes=exact

Vectors are kept in memory in the evaluation after an epoch, and in stores in ret-evaluate. No model is run: random vectors pass
through sinks and search, on gloo ranks with one thread each. The peak is the increase of the resident set since the first
vector; memory-mapped pages are included.
"""

from __future__ import annotations

import datetime
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import peak, reset_peak
from random_model import random_retriever

from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.torch_datasets import EvaluationRows
from ret_lightning.data.types import SIDES, EvaluationSubset
from ret_lightning.evaluation import Evaluator, MemorySink, StoredSink
from ret_lightning.retrieval import ExactIndex, FaissIndex

OPTIONS = {
    "passages": "40000", "queries": "64", "k": "32", "d": "128", "batch": "256", "ranks": "2", "indexes": "exact,faiss_flat",
}  # fmt: skip
INDEXES = {"exact": ExactIndex, "faiss_flat": FaissIndex}
CPU = torch.device("cpu")


def main() -> None:
    options = {**OPTIONS, **dict(argument.split("=", 1) for argument in sys.argv[1:])}
    numbers = int(options["passages"]) * int(options["k"]) * int(options["d"])
    print(f"candidate pool in half precision: {2 * numbers / 2**20:.0f} MiB\n")
    print("| index | vectors | peak of a rank, MiB | encoding, s | index and search, s |")
    print("|---|---|--:|--:|--:|")
    for index in options["indexes"].split(","):
        for where in ("memory", "stores"):
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(rank, args=(options, index, where, folder), nprocs=int(options["ranks"]))
                found = [torch.load(f"{folder}/{number}.pt") for number in range(int(options["ranks"]))]
            most, encoding, searching = (max(values) for values in zip(*found, strict=True))
            print(f"| {index} | {where} | {most / 2**20:.0f} | {encoding:.1f} | {searching:.1f} |", flush=True)


def rank(number: int, options: dict[str, str], index: str, where: str, folder: str) -> None:
    """Run one rank: encode its rows, search, and save the peak in bytes and the times in seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the stores require the same model on all ranks
    k, width, batch, ranks = (int(options[name]) for name in ("k", "d", "batch", "ranks"))
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timeout=datetime.timedelta(hours=1), rank=number, world_size=ranks
    )
    sizes = int(options["passages"]), int(options["queries"])
    subset = make_subset(*sizes)
    evaluator = Evaluator(INDEXES[index](), recall_at=[1], ranked=100, ann_recall_sample=8)
    sink = MemorySink()
    if where == "stores":
        # Only the fingerprint of the model and the shape of its vectors are used.
        sides = [f"model.num_tokens={k}", f"model.output_size={width}"]
        sink = StoredSink(Path(folder) / "embeddings", random_retriever("tiny", *sides, model="small"))
    files = [EvaluationRows(subset.rows(side), None, subset.name, side) for side in SIDES]
    before, start = reset_peak(CPU), time.perf_counter()
    for number_of_file, (file, batches) in enumerate(zip(files, sink.begin(files, batch), strict=True)):
        for rows in batches:
            random = torch.Generator().manual_seed(2 * rows[0] + number_of_file)
            vectors = torch.nn.functional.normalize(torch.randn(len(rows), k, width, generator=random), dim=2)
            sink.add(EvaluationBatch(None, torch.tensor(rows), file.subset, file.side), vectors)
    encoded = time.perf_counter()
    sink.complete([subset], CPU, max_bad_fraction=0)
    evaluator.score([subset], sink, CPU)
    torch.save((peak(CPU) - before, encoded - start, time.perf_counter() - encoded), f"{folder}/{number}.pt")
    dist.destroy_process_group()


def make_subset(passages: int, queries: int) -> EvaluationSubset:
    """Return a subset of rows without texts and images, with the attributes that an evaluation reads."""
    pool = [SimpleNamespace(passage_id=f"p{row}", text=None, image=None) for row in range(passages)]
    queries_ = [
        SimpleNamespace(data_id=f"q{row}", passage_ids=(f"p{row}",), answers=(), text=None, image=None)
        for row in range(queries)
    ]
    return EvaluationSubset("synthetic", "test", queries_, pool)


if __name__ == "__main__":
    main()
