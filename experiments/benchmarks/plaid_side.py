"""Measure fast-plaid on the embeddings of retrieval.py, which runs this script in an environment that has fast-plaid.

    python plaid_side.py STORE.json RESULT.json INDEX

STORE.json: paths of vectors and queries, shape, and settings. INDEX: folder of the index, which is built if it does not exist,
and kept, because building it takes most of the time. Does not import ret_lightning.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fast_plaid import search


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    vectors = np.memmap(task["vectors"], dtype=np.float16, mode="r", shape=tuple(task["shape"]))
    queries = torch.from_numpy(np.load(task["queries"]))
    results = []
    folder = Path(sys.argv[3])
    built = folder.with_suffix(".seconds")  # exists if the index is complete
    index = search.FastPlaid(index=str(folder), device="cpu")
    if not built.exists():
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        index.create(documents_embeddings=[torch.from_numpy(np.array(rows)) for rows in vectors], seed=0)
        built.write_text(str(time.perf_counter() - start))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    index.search(queries_embeddings=queries[:2], top_k=10)
    for settings in task["settings"]:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM
        start = time.perf_counter()
        found = index.search(queries_embeddings=queries, top_k=10, show_progress=False, **settings)
        seconds = time.perf_counter() - start
        rows = [[row for row, _ in ranked] + [-1] * (10 - len(ranked)) for ranked in found]
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        name = ", ".join(f"{key} {value}" for key, value in settings.items())
        measured = {"settings": name, "seconds": seconds, "peak": int(peak.split()[1]) * 1024, "rows": rows}
        results.append({**measured, "build": float(built.read_text()), "index_bytes": size})
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
