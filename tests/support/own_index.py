"""A user-defined index: one module and one config."""

from __future__ import annotations

from pathlib import Path

MODULE = "tests_own_index"

SOURCE = '''
import torch
from safetensors.torch import load_file, save_file

from ret_lightning.retrieval import Index


class MeanIndex(Index):
    """Ranks by the inner product of mean vectors."""

    def __init__(self, scale=1.0, device=None):
        super().__init__(device)
        self.scale = scale

    def _build(self, passages):
        self.means = passages.vectors.float().mean(dim=1) * self.scale

    def _search(self, queries, top_k):
        scores, rows = (queries.mean(dim=1) @ self.means.T).sort(dim=1, descending=True, stable=True)
        return rows[:, :top_k], scores[:, :top_k]

    def _save(self, folder):
        (folder / "parts").mkdir()
        save_file({"means": self.means}, folder / "parts" / "means.bin")
        return {"passages": len(self.means)}

    def _restore(self, folder, passages, state):
        self.means = load_file(folder / "parts" / "means.bin")["means"]
        assert len(self.means) == state["passages"]
'''


def write_own_index(folder: Path) -> None:
    """Write the module into `folder` and its config into `folder/conf`."""
    (folder / f"{MODULE}.py").write_text(SOURCE)
    config = folder / "conf" / "retrieval" / "own.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"_target_: {MODULE}.MeanIndex\nscale: 2.0\ndevice: null\n")
