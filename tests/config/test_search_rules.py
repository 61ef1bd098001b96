"""Contradictions between the keys of ret-index and ret-search: key and code of each error."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from ret_lightning.config.search_rules import check_index_target, check_query

URL = "http://localhost:6333"


def target_errors(**keys: object) -> list[tuple[str, str]]:
    config = OmegaConf.create({"index": None, "qdrant": None, "collection": None, **keys})
    return [(key, error.code) for key, error in check_index_target(config)]


def query_errors(**keys: object) -> list[tuple[str, str]]:
    config = OmegaConf.create({"query": None, "image": None, "queries": None, "output": None, **keys})
    return [(key, error.code) for key, error in check_query(config)]


@pytest.mark.parametrize(
    "keys",
    [{"index": "runs/index"}, {"qdrant": URL, "collection": "passages"}, {"qdrant": URL, "collection": "é" * 255}],
)
def test_folder_or_collection_is_accepted(keys: dict) -> None:
    assert target_errors(**keys) == []


@pytest.mark.parametrize(
    ("keys", "errors"),
    [
        ({}, [("index", "index-not-named")]),
        ({"index": "a", "qdrant": URL, "collection": "b"}, [("index", "exclusive-settings")]),
        ({"qdrant": URL}, [("collection", "qdrant-needs-collection")]),
        ({"index": "a", "collection": "b"}, [("collection", "collection-without-qdrant")]),
        ({"qdrant": URL, "collection": "a/b"}, [("collection", "collection-bad-name")]),
        ({"qdrant": URL, "collection": "a\tb"}, [("collection", "collection-bad-name")]),
        ({"qdrant": URL, "collection": "é" * 256}, [("collection", "collection-bad-name")]),
        ({"qdrant": URL, "collection": ""}, [("collection", "index-setting-empty")]),
        ({"index": ""}, [("index", "index-setting-empty")]),
    ],
)
def test_error_of_an_index_target(keys: dict, errors: list[tuple[str, str]]) -> None:
    assert target_errors(**keys) == errors


@pytest.mark.parametrize(
    "keys",
    [{"query": "q"}, {"image": "a.jpg"}, {"query": " ", "image": "a.jpg"}, {"queries": "q.jsonl", "output": "a"}],
)
def test_query_or_file_is_accepted(keys: dict) -> None:
    assert query_errors(**keys) == []


@pytest.mark.parametrize(
    ("keys", "errors"),
    [
        ({}, [("query", "query-missing")]),
        ({"query": " "}, [("query", "query-empty")]),
        ({"query": "q", "queries": "q.jsonl"}, [("query", "exclusive-settings")]),
        ({"image": "a.jpg", "queries": "q.jsonl"}, [("image", "exclusive-settings")]),
        ({"query": "q", "output": ""}, [("output", "empty-file-name")]),
    ],
)
def test_error_of_a_query(keys: dict, errors: list[tuple[str, str]]) -> None:
    assert query_errors(**keys) == errors
