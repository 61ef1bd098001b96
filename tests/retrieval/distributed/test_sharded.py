"""Sharded exact search: the ranking equals that of one index, including ties."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ret_lightning.retrieval import Embeddings, ExactIndex, search_sharded

POOL, QUERIES, TOP_K = 41, 6, 9


def make_vectors() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    pool = torch.nn.functional.normalize(torch.randn(POOL, 4, 8, generator=random), dim=2)
    pool[20:30] = pool[3]  # ties within a rank and between ranks
    return pool, torch.nn.functional.normalize(torch.randn(QUERIES, 4, 8, generator=random), dim=2)


def rank(number: int, world: int, port: int, folder: Path, top: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=number, world_size=world)
    pool, queries = make_vectors()
    own = (
        torch.arange(number, POOL, world - 1) if number < world - 1 else torch.arange(0)
    )  # the last rank has no passages
    index = ExactIndex()
    shard = Embeddings([str(i) for i in own.tolist()], pool[own])
    found = search_sharded(index, shard, own, queries, top, torch.device("cpu"))
    torch.save((found.rows, found.scores), folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("top", [TOP_K, POOL + 5])
def test_sharded_ranking_equals_single_index(tmp_path: Path, top: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank, args=(3, port, tmp_path, top), nprocs=3)
    pool, queries = make_vectors()
    single = ExactIndex()
    single.build(Embeddings([str(i) for i in range(POOL)], pool))
    expected = single.search(queries, top)
    for number in range(3):
        rows, scores = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert torch.equal(rows, expected.rows)
        assert torch.equal(scores, expected.scores)
    assert (expected.rows >= 0).all() == (top == TOP_K)
