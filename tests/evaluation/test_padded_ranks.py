"""A row that a padded sampler passes to several ranks is counted once, and candidate pools can be small."""

from __future__ import annotations

import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ret_lightning import RetrievalEvaluation
from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.types import EvaluationSubset
from ret_lightning.errors import DataError
from ret_lightning.evaluation import SubsetResult
from ret_lightning.retrieval import ExactIndex, FaissIndex

WORLD = 3
# Passages, queries: fewer than ranks, not divisible by three, and more passages than the index returns.
SIZES = ((1, 2), (7, 5), (2, 7), (40, 8))
INDEXES = {"exact": ExactIndex, "faiss": lambda: FaissIndex(candidates=3, hits=3)}


def subset(pool: int, queries: int) -> EvaluationSubset:
    passages = [SimpleNamespace(passage_id=f"p{row}", text=None) for row in range(pool)]
    made_queries = [
        SimpleNamespace(data_id=f"q{row}", passage_ids=(f"p{row % pool}",), answers=()) for row in range(queries)
    ]
    return EvaluationSubset("made", "test", made_queries, passages)


def vectors(rows: int, seed: int) -> torch.Tensor:
    values = torch.randn(rows, 4, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=2)


def sample_padded(rows: int, rank: int, world: int) -> torch.Tensor:
    """Return the rows of a rank as torch's DistributedSampler does: the first rows repeat until all ranks have as many."""
    padded = -(-rows // world) * world
    return torch.arange(rank, padded, world) % rows


def evaluate(
    index: str, pool: int, queries: int, rank: int = 0, world: int = 1, broken: int | None = None
) -> SubsetResult:
    evaluation = RetrievalEvaluation(INDEXES[index](), recall_at=[1, 2], ranked=10)
    data = SimpleNamespace(evaluation_subsets=lambda split: [subset(pool, queries)])
    trainer = SimpleNamespace(datamodule=data, sanity_checking=False, is_global_zero=False)
    module = SimpleNamespace(device=torch.device("cpu"), log_dict=lambda *_, **__: None)
    evaluation.on_test_epoch_start(trainer, module)
    for side, rows, encoded in (("passage", pool, vectors(pool, 1)), ("query", queries, vectors(queries, 2))):
        own = sample_padded(rows, rank, world)
        if broken is not None and side == "passage":
            encoded[broken, 0, 0] = torch.nan
        evaluation.on_test_batch_end(trainer, module, encoded[own], EvaluationBatch(None, own, "made", side), 0)
    evaluation.on_test_epoch_end(trainer, module)
    return evaluation.results["test"].subsets["made"]


def list_contents(result: SubsetResult) -> tuple:
    ranking = result.ranking
    return result.query_rows, result.indexed_rows, ranking.rows.tolist(), result.metrics, result.ann_recall


def _run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/barrier", timeout=datetime.timedelta(seconds=60), rank=rank, world_size=WORLD
    )
    found = [list_contents(evaluate(index, *size, rank, WORLD)) for index in INDEXES for size in SIZES]
    torch.save(found, f"{folder}/{rank}.pt")
    with pytest.raises(DataError) as error:
        evaluate("exact", 7, 5, rank, WORLD, broken=4)  # a row of rank 1 only
    Path(f"{folder}/{rank}.txt").write_text(str(error.value))
    dist.destroy_process_group()


@pytest.mark.slow
def test_padded_ranks_match_one_rank(tmp_path: Path) -> None:
    mp.spawn(_run_rank, args=(str(tmp_path),), nprocs=WORLD)
    single = [evaluate(index, *size) for index in INDEXES for size in SIZES]
    assert 0.5 < single[-1].ann_recall["ann_recall@10"] < 1  # the index was used, and is not exact
    for rank in range(WORLD):
        message = (tmp_path / f"{rank}.txt").read_text()
        assert message.startswith("test/made, candidate pool: non-finite vectors of 1 rows, the first is row 4 ")
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for one, of_rank in zip(single, found, strict=True):
            rows, metrics, ann_recall = list_contents(one)[2:]
            # No ranking lists a passage twice.
            assert all(len({row for row in best if row >= 0}) == sum(row >= 0 for row in best) for best in rows)
            filled = [[row for row in best if row >= 0] for best in rows]
            assert [[row for row in best if row >= 0] for best in of_rank[2]] == filled
            assert of_rank[:2] == list_contents(one)[:2]
            assert of_rank[3:] == (metrics, ann_recall)
