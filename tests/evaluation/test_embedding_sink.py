"""Vectors in memory: rows sorted and distinct, on one rank and on several."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.types import SIDES, EvaluationSubset
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.evaluation.embedding_sink import EncodedSubset, MemorySink
from ret_lightning.retrieval import ExactIndex
from tests.support.ranks import on_ranks

CPU = torch.device("cpu")
POOL = [SimpleNamespace(passage_id=f"p{row}") for row in range(9)]
SUBSET, OTHER = (EvaluationSubset(name, "test", [], POOL) for name in ("wit", "okvqa"))
FILES = [(subset.name, side) for subset in (SUBSET, OTHER) for side in SIDES]


def vectors_of(rows: list[int], loader: int = 0) -> torch.Tensor:
    """Return (n, 2, 4) float32 random vectors, distinct for each row."""
    return torch.stack([torch.randn(2, 4, generator=torch.Generator().manual_seed(100 * loader + row)) for row in rows])


def collect(*batches: tuple[int, list[int]]) -> MemorySink:
    sink = MemorySink()
    sink.start()
    for loader, rows in batches:
        sink.add(batch_of(loader, rows), vectors_of(rows, loader))
    sink.complete([SUBSET, OTHER], CPU, max_bad_fraction=0)
    return sink


def batch_of(loader: int, rows: list[int], **more: object) -> EvaluationBatch:
    return EvaluationBatch(None, torch.tensor(rows), *FILES[loader], **more)


def test_rows_are_sorted_and_counted_once() -> None:
    found = collect((0, [4, 2]), (1, [3]), (0, [7, 2, 0]), (1, [1, 3])).get_encoded(SUBSET, CPU)
    assert found.pool_rows.tolist() == [0, 2, 4, 7]
    assert found.share.ids == ("p0", "p2", "p4", "p7")
    assert found.positions.tolist() == [0, 1, 2, 3]
    assert torch.equal(found.share.vectors, vectors_of([0, 2, 4, 7]).half())
    assert found.query_rows.tolist() == [1, 3]
    assert torch.equal(found.queries, vectors_of([1, 3], 1))  # queries stay in float32


def test_subsets_do_not_mix() -> None:
    sink = collect((0, [1]), (2, [5]), (3, [0]), (1, [2]))
    other = sink.get_encoded(OTHER, CPU)
    assert (other.pool_rows.tolist(), other.query_rows.tolist()) == ([5], [0])
    assert torch.equal(other.queries, vectors_of([0], 3))
    assert sink.get_encoded(SUBSET, CPU).pool_rows.tolist() == [1]


def test_start_discards_the_last_evaluation() -> None:
    sink = collect((0, [1, 2]), (1, [0]))
    sink.add(batch_of(0, [3]), torch.full((1, 2, 4), torch.nan))
    sink.start()
    sink.add(batch_of(0, [5]), vectors_of([5]))
    assert sink.get_encoded(SUBSET, CPU).pool_rows.tolist() == [5]


@pytest.mark.parametrize(("loader", "side"), [(0, "candidate pool"), (1, "queries")])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nonfinite_vectors_report_their_row(loader: int, side: str, value: float) -> None:
    sink = collect((0, [1]), (1, [1]))
    broken = vectors_of([6, 4, 2], loader)
    broken[:2, 1, 2] = value
    sink.add(batch_of(loader, [6, 4, 2]), broken)
    with pytest.raises(DataError) as error:
        sink.get_encoded(SUBSET, CPU)
    assert (error.value.code, error.value.rows, error.value.row) == ("vectors-not-finite", 2, 4)
    assert error.value.message.startswith(f"test/wit, {side}: ")


def test_half_precision_overflow_is_refused_for_passages_only() -> None:
    sink = MemorySink()
    sink.add(batch_of(1, [0]), torch.full((1, 2, 4), 1e6))
    sink.add(batch_of(0, [0]), torch.ones(1, 2, 4))
    assert sink.get_encoded(SUBSET, CPU).queries.max() == 1e6
    sink.add(batch_of(0, [0]), torch.full((1, 2, 4), 1e6))
    with pytest.raises(DataError):
        sink.get_encoded(SUBSET, CPU)


def test_empty_candidate_pool_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        collect((1, [0])).get_encoded(SUBSET, CPU)
    assert (error.value.code, error.value.subset) == ("no-passage-encoded", "wit")


def list_contents(found: EncodedSubset) -> dict:
    index = found.build_full_index(ExactIndex())
    ranking = index.search(found.queries, top_k=3)
    return {
        "pool": found.pool_rows.tolist(),
        "queries": (found.query_rows.tolist(), found.queries),
        "ranking": ranking.rows.tolist(),
        "share": (found.positions.tolist(), found.share.ids, found.share.vectors),
    }


def evaluate_padded(number: int) -> dict:
    """Evaluate every other row per rank; a padded sampler passes row 0 to both ranks."""
    batches = [[(0, [0, 2, 4]), (0, [6]), (1, [0])], [(0, [3, 1]), (0, [0]), (1, [1, 0])]][number]
    return list_contents(collect(*batches).get_encoded(SUBSET, CPU))


def test_each_row_is_on_one_rank(tmp_path: Path) -> None:
    single = list_contents(collect((0, [0, 1, 2, 3, 4, 6]), (1, [0, 1])).get_encoded(SUBSET, CPU))
    ranks = on_ranks(evaluate_padded, 2, tmp_path)
    for of_rank in ranks:
        assert of_rank["pool"] == single["pool"] == [0, 1, 2, 3, 4, 6]
        assert of_rank["queries"][0] == single["queries"][0] == [0, 1]
        assert torch.equal(of_rank["queries"][1], single["queries"][1])
        assert of_rank["ranking"] == single["ranking"]
    shares = [of_rank["share"] for of_rank in ranks]
    assert sorted(shares[0][0] + shares[1][0]) == list(range(6))
    for positions, ids, vectors in shares:
        rows = [single["pool"][position] for position in positions]
        assert ids == tuple(f"p{row}" for row in rows)
        assert torch.equal(vectors, vectors_of(rows).half())
