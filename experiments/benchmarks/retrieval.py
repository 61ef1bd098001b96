"""Benchmark of indexes on synthetic clustered embeddings: recall@10 against exact search, and queries/s.

    python experiments/benchmarks/retrieval.py
    python experiments/benchmarks/retrieval.py passages=10000 indexes=exact,faiss_flat,faiss_ivf,faiss_ivfpq,faiss_hnsw,muvera
    python experiments/benchmarks/retrieval.py plaid=/tmp/plaid/bin/python plot=experiments/benchmarks/retrieval.png

clustered_embeddings.py generates the embeddings. They are written to a store in `folder`, and each index runs in a separate
process, to measure its resident memory. Results are kept in `folder`, and a second call measures only missing ones
(`fresh=true` measures all). `plaid` is the Python of an environment that has fast-plaid.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from clustered_embeddings import CHUNK, Clustered, make_clustered
from measure import peak, reset_peak, resident

from ret_lightning.retrieval import EmbeddingStore, ExactIndex, FaissIndex, Index, MuveraIndex
from ret_lightning.retrieval.indexes.faiss_defaults import automatic_nprobe

OPTIONS = {
    "passages": "100000",
    "queries": "500",
    "k": "32",
    "d": "128",
    "seed": "0",
    "threads": str(os.cpu_count() or 1),
    "indexes": "exact,faiss_ivfpq,faiss_ivf,muvera",
    "plaid": "",
    "folder": "/tmp/ret_lightning_retrieval",
    "fresh": "false",
    "plot": "",
    "only": "",
}
TOP_K = 10
Settings = dict[str, int | None]
# Indexes of the shipped configs, and the settings of each curve; empty: automatic settings.
INDEXES: dict[str, tuple[Index, list[Settings]]] = {
    "exact": (ExactIndex(), [{}]),
    "faiss_flat": (FaissIndex("Flat"), [{}]),
    "faiss_ivfpq": (
        FaissIndex("IVF{nlist},{pq}"),
        [
            {"nprobe": 2, "hits": 64, "candidates": 32},
            {"nprobe": 4, "hits": 128, "candidates": 64},
            {"nprobe": 8, "hits": 256, "candidates": 128},
            {"nprobe": 16, "hits": 256, "candidates": 128},
            {"candidates": 256},
            {},
        ],
    ),
    "faiss_ivf": (
        FaissIndex("IVF{nlist},SQ4"),
        [{"nprobe": 4, "hits": 128, "candidates": 64}, {"candidates": 256}, {}],
    ),
    "faiss_hnsw": (FaissIndex("HNSW{M}_SQ8"), [{"hits": 128, "candidates": 64}, {}]),
    "muvera": (MuveraIndex(), [{"candidates": 64}, {"candidates": 128}, {"candidates": 256}, {}, {"candidates": 1024}]),
}
PLAID_SETTINGS = [
    {"n_ivf_probe": 2, "n_full_scores": 256},
    {"n_ivf_probe": 4, "n_full_scores": 1024},
    {"n_ivf_probe": 8, "n_full_scores": 4096},
    {"n_ivf_probe": 32, "n_full_scores": 8192},
]


def main() -> None:
    options = {**OPTIONS, **dict(argument.split("=", 1) for argument in sys.argv[1:])}
    torch.set_num_threads(int(options["threads"]))
    shape = [options[name] for name in ("passages", "queries", "k", "d", "seed")]
    folder = Path(options["folder"]) / "-".join(shape)
    if options["only"]:
        measure(options["only"], folder)
        return
    made = make_clustered(*map(int, shape))
    write(folder, made)
    names = options["indexes"].split(",") + ["fast-plaid"] * bool(options["plaid"])
    for name in names:
        file = folder / f"{name}.json"
        if options["fresh"] == "true" or not file.exists():
            print(f"{name} ...", file=sys.stderr)
            environment = {**os.environ, "OMP_NUM_THREADS": options["threads"]}
            command = [sys.executable, __file__, *sys.argv[1:], f"only={name}"]
            if name == "fast-plaid":
                command = [
                    options["plaid"],
                    Path(__file__).with_name("plaid_side.py"),
                    folder / "plaid_task.json",
                    file,
                    folder / "plaid_index",
                ]
            subprocess.run(command, check=True, env=environment)
    report(names, folder, made, options)


def write(folder: Path, made: Clustered) -> None:
    """Write the store, the queries, and the task for fast-plaid."""
    k, d = made.queries.shape[1:]
    store = EmbeddingStore.create(
        folder / "store", [f"p{row}" for row in range(made.count)], (k, d), "clustered", None, CHUNK
    )
    writer = store.writer()
    for chunk in sorted({row // CHUNK for row in writer.rows}):
        writer.add(made.chunk(chunk))
    store.finish()
    np.save(folder / "queries.npy", made.queries.numpy())
    task = {"vectors": str(folder / "store/vectors.f16"), "shape": [made.count, k, d]}
    task |= {"queries": str(folder / "queries.npy"), "settings": PLAID_SETTINGS}
    (folder / "plaid_task.json").write_text(json.dumps(task))


def measure(name: str, folder: Path) -> None:
    """Build one index and measure searches with each of its settings; the first two queries are a warmup."""
    index, curve = INDEXES[name]
    cpu = torch.device("cpu")
    passages = EmbeddingStore.open(folder / "store", verify=False).embeddings
    queries = torch.from_numpy(np.load(folder / "queries.npy"))
    before = resident("VmRSS")
    start = time.perf_counter()
    index.build(passages)
    build = time.perf_counter() - start
    results = []
    for settings in curve:
        if index.approximate:
            tune(index, settings)
        index.search(queries[:2], TOP_K)
        reset_peak(cpu)
        start = time.perf_counter()
        rows = index.search(queries, TOP_K).rows.tolist()
        seconds = time.perf_counter() - start
        text = ", ".join(f"{key} {value}" for key, value in settings.items()) or "automatic"
        measured = {"settings": text, "seconds": seconds, "peak": peak(cpu), "before": before}
        results.append({**measured, "rows": rows, "build": build})
    (folder / f"{name}.json").write_text(json.dumps(results))


def tune(index: Index, settings: Settings) -> None:
    """Set the search parameters of an index that is built."""
    for key in ("candidates", "hits"):
        setattr(index, key, settings.get(key))
    if isinstance(index, FaissIndex) and "IVF" in index.factory:
        import faiss

        ivf = faiss.extract_index_ivf(index._faiss)  # nprobe of a built index can only be changed here
        ivf.nprobe = min(settings.get("nprobe") or automatic_nprobe(ivf.nlist), ivf.nlist)


def report(names: list[str], folder: Path, made: Clustered, options: dict[str, str]) -> None:
    n, k, d = made.count, *made.queries.shape[1:]
    store = n * k * d * 2
    exact = json.loads((folder / "exact.json").read_text())[0]
    best = np.array(exact["rows"])
    first = (best[:, 0] == made.gold.numpy()).mean(), (best == made.gold.numpy()[:, None]).any(axis=1).mean()
    print(f"{n} passages x {k} x {d}, a half-precision store of {store / 1e9:.2f} GB; {len(best)} queries; ", end="")
    print(f"{options['threads']} threads; the gold passage is first for {first[0]:.2f}, among ten for {first[1]:.2f}")
    print(
        "| index | settings | ann_recall@10 | queries/s | speed | gold in ten | build, s | resident, GB | of the store |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        for result in json.loads((folder / f"{name}.json").read_text()):
            rows = np.array(result["rows"])
            recall = np.mean([np.isin(b, r).mean() for b, r in zip(best, rows, strict=True)])
            gold = (rows == made.gold.numpy()[:, None]).any(axis=1).mean()
            rate, speed = len(best) / result["seconds"], exact["seconds"] / result["seconds"]
            memory = f"{result['peak'] / 1e9:.2f} | {result['peak'] / store:.2f}"
            print(
                f"| {name} | {result['settings']} | {recall:.4f} | {rate:.1f} | {speed:.1f} | {gold:.3f} | "
                f"{result['build']:.1f} | {memory} |"
            )
            curves.setdefault(name, []).append((rate, recall))
    if options["plot"]:
        draw(curves, f"{n:,} passages x {k} x {d}, {options['threads']} threads", options["plot"])


def draw(curves: dict[str, list[tuple[float, float]]], title: str, file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.axhline(0.98, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="queries/s", ylabel="ann_recall@10", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
