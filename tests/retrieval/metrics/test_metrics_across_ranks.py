"""Metrics of three gloo processes compared with those of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.plain_metrics import METRICS, evaluate_case, make_case, random_hits, updated

WORLD = 3
# The queries of each rank, out of nine; some are repeated, and in the second case two ranks have none.
SHARES = (([0, 1, 2, 3, 4, 8], [4, 5, 6, 7, 8], [2]), ([], [0, 1, 2, 3, 4, 5, 6, 7, 8], []))


def cases():
    return [make_case(), make_case(queries=1)]  # in the second, two ranks have no queries


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/barrier", rank=rank, world_size=WORLD)
    hits, found = random_hits(9, share=0.2), []
    for shares in SHARES:
        for make in METRICS:
            own = torch.tensor(shares[rank], dtype=torch.int64)
            metric = updated(make(queries=9), own, hits[own])
            values = metric.by_query()
            found.append((metric.compute(), values, int(metric.values[:, 0].isnan().sum())))
    torch.save((found, [evaluate_case(case) for case in cases()]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    """The results of each process."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, args=(str(folder),), nprocs=WORLD)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.slow
def test_query_metric_equals_single_rank(ranks: list[tuple]) -> None:
    hits = random_hits(9, share=0.2)
    single = [updated(make(queries=9), torch.arange(9), hits) for make in METRICS] * len(SHARES)
    for rank, (found, _) in enumerate(ranks):
        assert [computed for computed, _, _ in found] == [metric.compute() for metric in single]
        for metric, (_, values, _) in zip(single, found, strict=True):
            assert all(torch.equal(values[name], own) for name, own in metric.by_query().items())
        # Afterwards each rank keeps its own rows.
        expected = [9 - len(shares[rank]) for shares in SHARES for _ in METRICS]
        assert [missing for _, _, missing in found] == expected


@pytest.mark.slow
def test_evaluate_ranking_equals_single_rank(ranks: list[tuple]) -> None:
    for _, found in ranks:
        for case, results in zip(cases(), found, strict=True):
            single = evaluate_case(case)
            assert list(results) == list(single)
            for metric, values in single.items():
                assert torch.equal(results[metric].nan_to_num(-1), values.nan_to_num(-1)), metric
