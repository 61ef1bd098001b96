from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ret_lightning.errors import DataError
from ret_lightning.retrieval import Ranking, read_qrels, read_ranking, read_run, write_qrels, write_run

IDS = st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)


def ranking(rows, scores) -> Ranking:
    return Ranking(torch.tensor(rows, dtype=torch.int64), torch.tensor(scores, dtype=torch.float32))


def test_write_run_lines(tmp_path):
    path = tmp_path / "new" / "okvqa.trec"
    write_run(path, ["q 1", "q2"], ranking([[1, 0], [0, -1]], [[2.5, 0.1], [31.9999981, -np.inf]]), ["a%", "b"], "ret")
    assert path.read_text() == (
        "q%201 Q0 b 1 2.5 ret\n"
        "q%201 Q0 a%25 2 0.100000001 ret\n"
        "q2 Q0 a%25 1 31.9999981 ret\n"
    )  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == ["okvqa.trec"]


@settings(max_examples=100)
@given(
    st.lists(IDS, min_size=1, max_size=3, unique=True),
    st.lists(IDS, min_size=1, max_size=6, unique=True),
    st.data(),
)
def test_run_round_trip(tmp_path_factory, query_ids, pool_ids, data):
    path = tmp_path_factory.mktemp("runs") / "run.trec"
    score = st.floats(width=32, allow_nan=False, allow_infinity=False)
    rows, scores = [], []
    for _ in query_ids:
        rows.append(data.draw(st.permutations(range(len(pool_ids)))))
        # Unique scores; 0.0 and -0.0 count as equal.
        sampled = data.draw(
            st.lists(score, min_size=len(pool_ids), max_size=len(pool_ids), unique_by=lambda s: s + 0.0)
        )
        scores.append(sorted(sampled, reverse=True))
    write_run(path, query_ids, ranking(rows, scores), pool_ids, "a tag")
    run = read_run(path)
    assert list(run) == query_ids
    for query, ranked, own in zip(query_ids, rows, scores, strict=True):
        assert [passage for passage, _ in run[query]] == [pool_ids[row] for row in ranked]
        assert np.array_equal(np.float32([read for _, read in run[query]]), np.float32(own))


def test_ids_with_white_space_stay_one_column(tmp_path):
    path = tmp_path / "run.trec"
    spaces = ["a b", "a\tb", "a\nb", "a\u00a0b", "a\u2028b", "a\x1cb", "a\x85b", "a%20b", "%", " "]
    write_run(path, spaces, ranking([[0]] * len(spaces), [[1.0]] * len(spaces)), ["p"])
    assert [len(line.split()) for line in path.read_text().splitlines()] == [6] * len(spaces)
    assert list(read_run(path)) == spaces


def test_tied_scores_keep_order_when_sorted_by_score(tmp_path):
    path = tmp_path / "run.trec"
    write_run(path, ["q"], ranking([[2, 0, 1, 3]], [[1.0, 1.0, 1.0, 0.5]]), ["a", "b", "c", "d"])
    scores = [float(line.split()[4]) for line in path.read_text().splitlines()]
    one = np.float32(1)
    below = np.nextafter(one, np.float32(0))
    assert np.float32(scores).tolist() == [1, below, np.nextafter(below, np.float32(0)), 0.5]
    assert [passage for passage, _ in read_run(path)["q"]] == ["c", "a", "b", "d"]


def test_read_run_orders_by_score_not_rank(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 1 1.0 t\n\nr Q0 a 1 5 t\nq Q0 b 9 2e0 t\n")
    assert read_run(path) == {"q": [("b", 2.0), ("a", 1.0)], "r": [("a", 5.0)]}


def test_read_run_orders_equal_scores_by_descending_id(tmp_path):
    """Scores are compared in single precision, as in trec_eval; test_per_query.py compares with trec_eval itself."""
    path = tmp_path / "run.trec"
    path.write_text(
        "".join(f"q Q0 {name} 1 {score} t\n" for name, score in zip("aBé", [1.00000000001, 1, 1], strict=True))
    )
    assert [passage for passage, _ in read_run(path)["q"]] == ["é", "a", "B"]


def test_read_ranking(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q%201 Q0 b 1 2 t\nr Q0 a 1 -1 t\nq%201 Q0 a 2 1 t\n")
    read = read_ranking(path, ["r", "s", "q 1"], ["a", "b", "c"])
    assert read.rows.tolist() == [[0, -1], [-1, -1], [1, 0]]
    assert read.scores.tolist() == [[-1, -np.inf], [-np.inf, -np.inf], [2, 1]]


@pytest.mark.parametrize(
    ("query_ids", "pool_ids", "code", "values"),
    [
        (["r"], ["a", "b"], "trec-query-unknown", {"query": "q"}),
        (["q"], ["a", "c"], "trec-passage-unknown", {"query": "q", "passage": "b"}),
    ],
)
def test_read_ranking_rejects_unknown_ids(tmp_path, query_ids, pool_ids, code, values):
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 1 2 t\nq Q0 b 2 1 t\n")
    with pytest.raises(DataError) as caught:
        read_ranking(path, query_ids, pool_ids)
    assert (caught.value.code, caught.value.values) == (code, {"path": path, **values})


@pytest.mark.parametrize(
    ("line", "code", "values"),
    [
        ("q Q0 a 1 0.5", "trec-line-fields", {"found": 5, "expected": 6}),
        ("q Q0 a b 1 0.5 t", "trec-line-fields", {"found": 7, "expected": 6}),
        ("q Q0 a one 0.5 t", "trec-number-not-whole", {"field": "rank", "found": "one"}),
        ("q Q0 a 1 high t", "trec-score-not-finite", {"found": "high"}),
        ("q Q0 a 1 nan t", "trec-score-not-finite", {"found": "nan"}),
        ("q Q0 a 1 -inf t", "trec-score-not-finite", {"found": "-inf"}),
        ("q Q0 a 1 1e39 t", "trec-score-not-finite", {"found": "1e39"}),
        ("q Q0 first 2 0.5 t", "trec-passage-ranked-twice", {"query": "q", "passage": "first"}),
    ],
)
def test_read_run_reports_invalid_line(tmp_path, line, code, values):
    path = tmp_path / "run.trec"
    path.write_text(f"q Q0 first 1 1 t\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_run(path)
    assert (caught.value.code, caught.value.values) == (code, {"path": path, "line": 2, **values})
    assert caught.value.message.startswith(f"{path}:2: ")


def test_unreadable_files_are_reported(tmp_path):
    (tmp_path / "binary.trec").write_bytes(b"\xff\xfe\x00")
    for name, code in (("missing.trec", "trec-unreadable"), ("binary.trec", "trec-not-utf8")):
        with pytest.raises(DataError) as caught:
            read_run(tmp_path / name)
        assert (caught.value.code, caught.value.path) == (code, tmp_path / name)


@pytest.mark.parametrize(
    ("query_ids", "pool_ids", "code", "values"),
    [
        (["q", "q"], ["a"], "trec-query-twice", {"query": "q"}),
        (["q", ""], ["a"], "trec-id-empty", {}),
        (["q", "r"], [""], "trec-id-empty", {}),
    ],
)
def test_invalid_ids_keep_existing_run(tmp_path, query_ids, pool_ids, code, values):
    path = tmp_path / "run.trec"
    path.write_text("old")
    with pytest.raises(DataError) as caught:
        write_run(path, query_ids, ranking([[0], [0]], [[1.0], [1.0]]), pool_ids)
    assert (caught.value.code, caught.value.values) == (code, {"path": path, **values})
    assert path.read_text() == "old"


def test_interrupted_write_creates_no_file(tmp_path):
    path = tmp_path / "run.trec"
    with pytest.raises(IndexError):
        write_run(path, ["q", "r"], ranking([[0], [5]], [[1.0], [1.0]]), ["a"])
    assert list(tmp_path.iterdir()) == []


def test_write_qrels_lines(tmp_path):
    path = tmp_path / "qrels.txt"
    write_qrels(path, ["q 1", "r", "s"], [["b", "a", "b"], [], ["c%"]])
    assert path.read_text() == "q%201 0 b 1\nq%201 0 a 1\ns 0 c%25 1\n"


@settings(max_examples=50)
@given(st.dictionaries(IDS, st.lists(IDS, min_size=1, max_size=4, unique=True), min_size=1, max_size=4))
def test_qrels_round_trip(tmp_path_factory, positives):
    path = tmp_path_factory.mktemp("runs") / "qrels.txt"
    write_qrels(path, list(positives), list(positives.values()))
    assert read_qrels(path) == {query: tuple(ids) for query, ids in positives.items()}


def test_read_qrels_binarizes_relevance(tmp_path):
    path = tmp_path / "qrels.txt"
    path.write_text("q 0 a 2\nr 0 a 0\n\nq 0 b 0\nq 0 c -1\nq 0 d 1\n")
    assert read_qrels(path) == {"q": ("a", "d"), "r": ()}


@pytest.mark.parametrize(
    ("line", "code", "values"),
    [
        ("q 0 a", "trec-line-fields", {"found": 3, "expected": 4}),
        ("q Q0 a 1 0.5 t", "trec-line-fields", {"found": 6, "expected": 4}),
        ("q 0 a yes", "trec-number-not-whole", {"field": "relevance", "found": "yes"}),
        ("q 1 first 1", "trec-qrels-duplicate", {"query": "q", "passage": "first"}),
    ],
)
def test_read_qrels_reports_invalid_line(tmp_path, line, code, values):
    path = tmp_path / "qrels.txt"
    path.write_text(f"q 0 first 1\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_qrels(path)
    assert (caught.value.code, caught.value.values) == (code, {"path": path, "line": 2, **values})


def test_different_lengths_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="got 1 query ids and 2 rankings"):
        write_run(tmp_path / "x", ["q"], ranking([[0], [0]], [[1.0], [1.0]]), ["a"])
    with pytest.raises(ValueError, match="got 2 ids and 1 lists"):
        write_qrels(tmp_path / "x", ["q", "r"], [["a"]])
