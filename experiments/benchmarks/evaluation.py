"""What an evaluation costs a rank in memory: vectors there, as after an epoch of training, or in stores, as by ret-evaluate.

    python experiments/benchmarks/evaluation.py
    python experiments/benchmarks/evaluation.py passages=300000 ranks=4 indexes=exact

The model is left out: random vectors take the way that encoded ones take, through the callback, the stores and the search, by
gloo ranks of one thread each. Peaks are of the resident set, above what it was before the first vector; mapped pages count.
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
    print(f"the pool in half precision: {2 * numbers / 2**20:.0f} MiB\n")
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
    """One rank: encodes its share, searches, and leaves its peak in bytes and its seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)  # ranks have to have the same model, or the stores refuse one of them
    k, width, batch, ranks = (int(options[name]) for name in ("k", "d", "batch", "ranks"))
    dist.init_process_group(
        "gloo", f"file://{folder}/barrier", timeout=datetime.timedelta(hours=1), rank=number, world_size=ranks
    )
    sizes = int(options["passages"]), int(options["queries"])
    subset = made_up(*sizes)
    evaluator = Evaluator(INDEXES[index](), recall_at=[1], ranked=100, ann_recall_sample=8)
    sink = MemorySink()
    if where == "stores":
        # A small one of k vectors of width d: only the fingerprint and the shape of its vectors are asked for.
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


def made_up(passages: int, queries: int) -> EvaluationSubset:
    """Rows without texts and images, as far as an evaluation asks."""
    pool = [SimpleNamespace(passage_id=f"p{row}", text=None, image=None) for row in range(passages)]
    asked = [
        SimpleNamespace(data_id=f"q{row}", passage_ids=(f"p{row}",), answers=(), text=None, image=None)
        for row in range(queries)
    ]
    return EvaluationSubset("made_up", "test", asked, pool)


if __name__ == "__main__":
    main()
