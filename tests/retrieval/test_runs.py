from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ret_lightning.errors import DataError
from ret_lightning.retrieval import Ranking, read_run, write_qrels, write_run

IDS = st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)


def ranking(rows, scores) -> Ranking:
    return Ranking(torch.tensor(rows, dtype=torch.int64), torch.tensor(scores, dtype=torch.float32))


def test_the_lines_of_a_run(tmp_path):
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
def test_reading_gives_back_what_was_written(tmp_path_factory, query_ids, pool_ids, data):
    path = tmp_path_factory.mktemp("runs") / "run.trec"
    score = st.floats(width=32, allow_nan=False, allow_infinity=False)
    rows, scores = [], []
    for _ in query_ids:
        rows.append(data.draw(st.permutations(range(len(pool_ids)))))
        scores.append(sorted((data.draw(score) for _ in pool_ids), reverse=True))
    write_run(path, query_ids, ranking(rows, scores), pool_ids, "a tag")
    run = read_run(path)
    assert list(run) == query_ids
    for query, ranked, own in zip(query_ids, rows, scores, strict=True):
        assert [passage for passage, _ in run[query]] == [pool_ids[row] for row in ranked]
        assert np.array_equal(np.float32([read for _, read in run[query]]), np.float32(own))


def test_every_column_stays_one_column_whatever_the_ids(tmp_path):
    path = tmp_path / "run.trec"
    spaces = ["a b", "a\tb", "a\nb", "a\u00a0b", "a\u2028b", "a\x1cb", "a\x85b", "a%20b", "%", " "]
    write_run(path, spaces, ranking([[0]] * len(spaces), [[1.0]] * len(spaces)), ["p"])
    assert [len(line.split()) for line in path.read_text().splitlines()] == [6] * len(spaces)
    assert list(read_run(path)) == spaces


def test_ties_keep_the_order_of_their_ranks(tmp_path):
    path = tmp_path / "run.trec"
    write_run(path, ["q"], ranking([[2, 0, 1]], [[1.0, 1.0, 1.0]]), ["a", "b", "c"])
    assert [passage for passage, _ in read_run(path)["q"]] == ["c", "a", "b"]


def test_a_run_whose_lines_are_out_of_order_is_read_by_rank(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 10 1.0 t\n\nr Q0 a 1 5 t\nq Q0 b 9 2e0 t\n")
    assert read_run(path) == {"q": [("b", 2.0), ("a", 1.0)], "r": [("a", 5.0)]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 a 1 0.5", "5 columns, a TREC run has six"),
        ("q Q0 a b 1 0.5 t", "7 columns"),
        ("q Q0 a one 0.5 t", "rank 'one' is not a whole number"),
        ("q Q0 a 1 high t", "score 'high' is not a finite number"),
        ("q Q0 a 1 nan t", "score 'nan' is not a finite number"),
        ("q Q0 first 2 0.5 t", "passage 'first' is ranked a second time for query 'q'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "run.trec"
    path.write_text(f"q Q0 first 1 1 t\n{line}\n")
    with pytest.raises(DataError, match=f"run.trec, line 2: {message}"):
        read_run(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone.trec: cannot be read \(No such file or directory\)"):
        read_run(tmp_path / "gone.trec")
    (tmp_path / "binary.trec").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"binary.trec: not a UTF-8 text file"):
        read_run(tmp_path / "binary.trec")


@pytest.mark.parametrize(
    ("query_ids", "pool_ids", "message"),
    [
        (["q", "q"], ["a"], "query id 'q' occurs twice"),
        (["q", ""], ["a"], "an empty id"),
        (["q", "r"], [""], "an empty id"),
    ],
)
def test_ids_that_a_run_cannot_hold_are_refused_and_leave_the_old_file(tmp_path, query_ids, pool_ids, message):
    path = tmp_path / "run.trec"
    path.write_text("old")
    with pytest.raises(DataError, match=f"run.trec: {message}"):
        write_run(path, query_ids, ranking([[0], [0]], [[1.0], [1.0]]), pool_ids)
    assert path.read_text() == "old"


def test_a_write_that_breaks_off_leaves_nothing(tmp_path):
    path = tmp_path / "run.trec"
    with pytest.raises(IndexError):
        write_run(path, ["q", "r"], ranking([[0], [5]], [[1.0], [1.0]]), ["a"])
    assert list(tmp_path.iterdir()) == []


def test_qrels(tmp_path):
    path = tmp_path / "qrels.txt"
    write_qrels(path, ["q 1", "r", "s"], [["b", "a", "b"], [], ["c%"]])
    assert path.read_text() == "q%201 0 b 1\nq%201 0 a 1\ns 0 c%25 1\n"


def test_lengths_that_differ_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 query ids for 2 rankings"):
        write_run(tmp_path / "x", ["q"], ranking([[0], [0]], [[1.0], [1.0]]), ["a"])
    with pytest.raises(ValueError, match="2 query ids for 1 lists"):
        write_qrels(tmp_path / "x", ["q", "r"], [["a"]])
