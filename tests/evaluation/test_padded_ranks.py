"""Rows that a padded sampler gives to several ranks count once; a pool may be smaller than the number of ranks."""

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
# Passages, queries: fewer than ranks, numbers that three does not divide, and more passages than an index proposes.
SIZES = ((1, 2), (7, 5), (2, 7), (40, 8))
INDEXES = {"exact": ExactIndex, "faiss": lambda: FaissIndex(candidates=3, hits=3)}


def subset(pool: int, queries: int) -> EvaluationSubset:
    passages = [SimpleNamespace(passage_id=f"p{row}", text=None) for row in range(pool)]
    asked = [SimpleNamespace(data_id=f"q{row}", passage_ids=(f"p{row % pool}",), answers=()) for row in range(queries)]
    return EvaluationSubset("made", "test", asked, passages)


def vectors(rows: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(rows, 4, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=2)


def shares(rows: int, rank: int, world: int) -> torch.Tensor:
    """As torch's DistributedSampler: from the beginning again, until all ranks have as many."""
    padded = -(-rows // world) * world
    return torch.arange(rank, padded, world) % rows


def evaluated(
    index: str, pool: int, queries: int, rank: int = 0, world: int = 1, broken: int | None = None
) -> SubsetResult:
    evaluation = RetrievalEvaluation(INDEXES[index](), recall_at=[1, 2], ranked=10)
    data = SimpleNamespace(evaluation_subsets=lambda split: [subset(pool, queries)])
    trainer = SimpleNamespace(datamodule=data, sanity_checking=False, is_global_zero=False)
    module = SimpleNamespace(device=torch.device("cpu"), log_dict=lambda *_, **__: None)
    evaluation.on_test_epoch_start(trainer, module)
    for side, rows, encoded in (("passage", pool, vectors(pool, 1)), ("query", queries, vectors(queries, 2))):
        own = shares(rows, rank, world)
        if broken is not None and side == "passage":
            encoded[broken, 0, 0] = torch.nan
        evaluation.on_test_batch_end(trainer, module, encoded[own], EvaluationBatch(None, own, "made", side), 0)
    evaluation.on_test_epoch_end(trainer, module)
    return evaluation.results["test"].subsets["made"]


def contents(result: SubsetResult) -> tuple:
    ranking = result.ranking
    return result.query_rows, result.indexed_rows, ranking.rows.tolist(), result.metrics, result.ann_recall


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/barrier", timeout=datetime.timedelta(seconds=60), rank=rank, world_size=WORLD
    )
    found = [contents(evaluated(index, *size, rank, WORLD)) for index in INDEXES for size in SIZES]
    torch.save(found, f"{folder}/{rank}.pt")
    with pytest.raises(DataError) as told:
        evaluated("exact", 7, 5, rank, WORLD, broken=4)  # a row that rank 1 alone has
    Path(f"{folder}/{rank}.txt").write_text(str(told.value))
    dist.destroy_process_group()


@pytest.mark.slow
def test_padded_ranks_find_what_one_rank_finds(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=WORLD)
    alone = [evaluated(index, *size) for index in INDEXES for size in SIZES]
    assert 0.5 < alone[-1].ann_recall["ann_recall@10"] < 1  # the index was asked, and misses something
    for rank in range(WORLD):
        told = (tmp_path / f"{rank}.txt").read_text()
        assert told.startswith(
            "test/made, pool: the model encodes 1 rows to numbers that are not finite, the first is row 4 "
        )
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for one, of_rank in zip(alone, found, strict=True):
            rows, metrics, ann_recall = contents(one)[2:]
            # Whether what one finds lists a passage twice is seen by itself.
            assert all(len({row for row in best if row >= 0}) == sum(row >= 0 for row in best) for best in rows)
            filled = [[row for row in best if row >= 0] for best in rows]
            assert [[row for row in best if row >= 0] for best in of_rank[2]] == filled
            assert of_rank[:2] == contents(one)[:2]
            assert of_rank[3:] == (metrics, ann_recall)
