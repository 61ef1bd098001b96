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
        # Different ones, as 0.0 and -0.0 are not.
        drawn = data.draw(st.lists(score, min_size=len(pool_ids), max_size=len(pool_ids), unique_by=lambda s: s + 0.0))
        scores.append(sorted(drawn, reverse=True))
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


def test_ties_keep_their_order_for_whoever_orders_by_score(tmp_path):
    path = tmp_path / "run.trec"
    write_run(path, ["q"], ranking([[2, 0, 1, 3]], [[1.0, 1.0, 1.0, 0.5]]), ["a", "b", "c", "d"])
    scores = [float(line.split()[4]) for line in path.read_text().splitlines()]
    one = np.float32(1)
    below = np.nextafter(one, np.float32(0))
    assert np.float32(scores).tolist() == [1, below, np.nextafter(below, np.float32(0)), 0.5]
    assert [passage for passage, _ in read_run(path)["q"]] == ["c", "a", "b", "d"]


def test_a_run_is_read_by_score_whatever_its_ranks_and_lines_say(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 1 1.0 t\n\nr Q0 a 1 5 t\nq Q0 b 9 2e0 t\n")
    assert read_run(path) == {"q": [("b", 2.0), ("a", 1.0)], "r": [("a", 5.0)]}


def test_equal_scores_are_read_by_the_bytes_of_the_id_last_first(tmp_path):
    """As trec_eval does, which has single precision; test_per_query.py compares with itself."""
    path = tmp_path / "run.trec"
    path.write_text(
        "".join(f"q Q0 {name} 1 {score} t\n" for name, score in zip("aBé", [1.00000000001, 1, 1], strict=True))
    )
    assert [passage for passage, _ in read_run(path)["q"]] == ["é", "a", "B"]


def test_a_run_becomes_a_ranking(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q%201 Q0 b 1 2 t\nr Q0 a 1 -1 t\nq%201 Q0 a 2 1 t\n")
    read = read_ranking(path, ["r", "s", "q 1"], ["a", "b", "c"])
    assert read.rows.tolist() == [[0, -1], [-1, -1], [1, 0]]
    assert read.scores.tolist() == [[-1, -np.inf], [-np.inf, -np.inf], [2, 1]]


@pytest.mark.parametrize(
    ("query_ids", "pool_ids", "message"),
    [
        (["r"], ["a", "b"], "query 'q' is not one of the 1 queries of this evaluation"),
        (["q"], ["a", "c"], "query 'q': passage 'b' is not in the pool of 2"),
    ],
)
def test_a_run_of_something_else_is_told(tmp_path, query_ids, pool_ids, message):
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 1 2 t\nq Q0 b 2 1 t\n")
    with pytest.raises(DataError, match=f"run.trec: {message}"):
        read_ranking(path, query_ids, pool_ids)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 a 1 0.5", "5 columns, a TREC run has 6: query Q0 passage rank score tag"),
        ("q Q0 a b 1 0.5 t", "7 columns"),
        ("q Q0 a one 0.5 t", "rank 'one' is not a whole number"),
        ("q Q0 a 1 high t", "score 'high' is not a finite number"),
        ("q Q0 a 1 nan t", "score 'nan' is not a finite number"),
        ("q Q0 a 1 -inf t", "score '-inf' is not a finite number"),
        ("q Q0 a 1 1e39 t", "score '1e39' is not a finite number in single precision"),
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


@settings(max_examples=50)
@given(st.dictionaries(IDS, st.lists(IDS, min_size=1, max_size=4, unique=True), min_size=1, max_size=4))
def test_reading_gives_back_the_qrels_that_were_written(tmp_path_factory, positives):
    path = tmp_path_factory.mktemp("runs") / "qrels.txt"
    write_qrels(path, list(positives), list(positives.values()))
    assert read_qrels(path) == {query: tuple(ids) for query, ids in positives.items()}


def test_grades_are_read_as_right_or_wrong(tmp_path):
    path = tmp_path / "qrels.txt"
    path.write_text("q 0 a 2\nr 0 a 0\n\nq 0 b 0\nq 0 c -1\nq 0 d 1\n")
    assert read_qrels(path) == {"q": ("a", "d"), "r": ()}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q 0 a", "3 columns, a TREC qrels file has 4: query 0 passage relevance"),
        ("q Q0 a 1 0.5 t", "6 columns"),
        ("q 0 a yes", "relevance 'yes' is not a whole number"),
        ("q 1 first 1", "passage 'first' is judged a second time for query 'q'"),
    ],
)
def test_a_broken_line_of_qrels_is_named(tmp_path, line, message):
    path = tmp_path / "qrels.txt"
    path.write_text(f"q 0 first 1\n{line}\n")
    with pytest.raises(DataError, match=f"qrels.txt, line 2: {message}"):
        read_qrels(path)


def test_lengths_that_differ_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 query ids for 2 rankings"):
        write_run(tmp_path / "x", ["q"], ranking([[0], [0]], [[1.0], [1.0]]), ["a"])
    with pytest.raises(ValueError, match="2 query ids for 1 lists"):
        write_qrels(tmp_path / "x", ["q", "r"], [["a"]])
