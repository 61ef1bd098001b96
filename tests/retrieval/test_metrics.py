from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval import (
    PseudoRecallAtK,
    RecallAtK,
    answer_hits,
    count_positives,
    has_answers,
    positive_hits,
    random_recall,
    unreachable,
)

KS = (1, 2, 5)


@st.composite
def rankings(draw):
    """A pool of ids, rankings of it (some cut short), and positives, some of them not in the pool."""
    n = draw(st.integers(1, 12))
    rows = draw(st.lists(st.permutations(range(n)), min_size=1, max_size=6))
    rows = [(row[: draw(st.integers(0, n))] + [-1] * 12)[:12] for row in rows]
    ids = [str(number) for number in range(n)]
    positive = st.lists(st.sampled_from([*ids, "elsewhere", "nowhere"]), max_size=4)
    return torch.tensor(rows), ids, [draw(positive) for _ in rows]


def recall_by_definition(rows, ids, positives, k):
    found = 0
    for ranked, own in zip(rows.tolist(), positives, strict=True):
        for row in ranked[:k]:
            if row >= 0 and ids[row] in own:
                found += 1
                break
    return found / len(positives)


@settings(max_examples=100)
@given(rankings())
def test_recall_is_the_definition(case):
    rows, ids, positives = case
    metric = RecallAtK(KS)
    metric.update(positive_hits(rows, ids, positives))
    assert metric.compute() == {f"recall@{k}": recall_by_definition(rows, ids, positives, k) for k in KS}


@settings(max_examples=100)
@given(rankings())
def test_positives_are_counted_and_the_unreachable_named(case):
    _, ids, positives = case
    counts = [sum(passage in own for passage in ids) for own in positives]
    assert count_positives(ids, positives) == counts
    assert unreachable(ids, positives) == [query for query, count in enumerate(counts) if count == 0]


def test_recall_is_a_hit_rate():
    hits = positive_hits(torch.tensor([[2, 0, 1]]), ["a", "b", "c"], [["c", "b"]])
    assert hits.tolist() == [[True, False, True]]
    metric = RecallAtK([1])
    metric.update(hits)
    assert metric.compute() == {"recall@1": 1.0}


def test_a_query_without_reachable_positives_is_a_miss():
    metric = RecallAtK([1])
    metric.update(positive_hits(torch.tensor([[0], [1]]), ["a", "b"], [["a"], ["gone"]]))
    assert metric.compute() == {"recall@1": 0.5}


def test_passages_that_share_an_id_are_all_positive():
    assert positive_hits(torch.tensor([[0, 1, 2]]), ["x", "y", "x"], [["x"]]).tolist() == [[True, False, True]]
    assert count_positives(["x", "y", "x"], [["x", "x"]]) == [2]


def test_ids_are_compared_as_strings():
    assert positive_hits(torch.tensor([[0, 1]]), ["1", "01"], [["1"]]).tolist() == [[True, False]]


def test_one_string_instead_of_a_list_is_refused():
    with pytest.raises(TypeError, match="got the string 'abc'"):
        positive_hits(torch.tensor([[0]]), ["a"], ["abc"])
    with pytest.raises(TypeError, match="got the string 'abc'"):
        answer_hits(torch.tensor([[0]]), ["a"], ["abc"])


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"rows of shape \(1, 1\) for 2 lists of positives"):
        positive_hits(torch.tensor([[0]]), ["a"], [["a"], ["a"]])
    with pytest.raises(ValueError, match="for 0 lists of answers"):
        answer_hits(torch.tensor([[0]]), ["a"], [])


ANSWERS = st.lists(st.sampled_from(["", "  ", "Straße", "STRASSE", " ss", "ſ", "İ", "K", "ab", "a b", "É"]), max_size=3)
TEXTS = st.lists(
    st.one_of(st.none(), st.text(alphabet="abksſßKİié ÉE", max_size=12), st.just("Hauptstraße 5")),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200)
@given(TEXTS, st.lists(ANSWERS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_pseudo_recall_is_the_definition(texts, answers, random):
    order = [random.sample(range(len(texts)), len(texts)) for _ in answers]
    rows = torch.tensor([(ranked + [-1] * 8)[:8] for ranked in order])
    expected = {}
    for k in KS:
        found, counted = 0, 0
        for ranked, own in zip(order, answers, strict=True):
            own = [answer.strip().casefold() for answer in own if answer.strip() != ""]
            if own == []:
                continue
            counted += 1
            if any(texts[row] is not None and answer in texts[row].casefold() for row in ranked[:k] for answer in own):
                found += 1
        if counted > 0:
            expected[f"pseudo_recall@{k}"] = found / counted
    metric = PseudoRecallAtK(KS)
    metric.update(answer_hits(rows, texts, answers), has_answers(answers))
    assert metric.compute() == expected


@pytest.mark.parametrize(
    ("text", "answer", "hit"),
    [
        ("Hauptstraße", "STRASSE", True),
        ("ΣΊΣΥΦΟΣ", "σίσυφος", True),
        ("the cat sat", "  Cat\n", True),
        ("concatenate", "cat", True),
        ("the cat", "cat sat", False),
        ("anything", " \t", False),
        (None, "none", False),
        ("", "a", False),
    ],
)
def test_answers_are_stripped_and_case_folded_substrings(text, answer, hit):
    assert answer_hits(torch.tensor([[0, -1]]), [text], [[answer]]).tolist() == [[hit, False]]


def test_queries_without_answers_are_left_out():
    answers = [["a"], [], [" "], ["z"]]
    assert has_answers(answers).tolist() == [True, False, False, True]
    metric = PseudoRecallAtK([1])
    metric.update(answer_hits(torch.zeros(4, 1, dtype=torch.int64), ["a"], answers), has_answers(answers))
    assert metric.compute() == {"pseudo_recall@1": 0.5}


def test_no_query_with_answers_gives_no_pseudo_recall():
    metric = PseudoRecallAtK([1])
    metric.update(answer_hits(torch.tensor([[0], [0]]), ["a"], [[], [""]]), has_answers([[], [""]]))
    assert metric.compute() == {}


def test_batches_add_up_and_reset_starts_again():
    generator = torch.Generator().manual_seed(0)
    hits = torch.rand(50, 6, generator=generator) < 0.1
    whole, parts = RecallAtK([5, 1, 5]), RecallAtK([1, 5])
    whole.update(hits)
    for part in hits.split(7):
        parts.update(part)
    assert list(whole.compute()) == ["recall@1", "recall@5"]
    assert parts.compute() == whole.compute()
    assert parts.hits.dtype == parts.queries.dtype == torch.float64
    parts.reset()
    parts.update(torch.ones(1, 5, dtype=torch.bool))
    assert parts.compute() == {"recall@1": 1.0, "recall@5": 1.0}


def _two_ranks(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    hits = torch.tensor([[True, False], [False, True], [False, False]])
    recall, pseudo = RecallAtK([1, 2]), PseudoRecallAtK([1])
    recall.update(hits[:2] if rank == 0 else hits[2:])
    pseudo.update(hits[:1], torch.tensor([rank == 0]))
    torch.save((recall.compute(), pseudo.compute()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_add_up(tmp_path):
    torch.multiprocessing.spawn(_two_ranks, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        recall, pseudo = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert recall == {"recall@1": 1 / 3, "recall@2": 2 / 3}
        assert pseudo == {"pseudo_recall@1": 1.0}


@pytest.mark.parametrize("ks", [[], [0, 5], [-1]])
def test_k_below_one_is_refused(ks):
    with pytest.raises(ConfigError, match=r"^pseudo_recall@K: K must be one or more numbers of at least 1"):
        PseudoRecallAtK(ks)


@pytest.mark.parametrize(
    ("hits", "counted", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.bool), None, r"recall@5 needs bool hits of shape \(N, 5 or more\).*\(2, 4\)"),
        (torch.zeros(2, 5), None, "got torch.float32"),
        (torch.zeros(2, 5, dtype=torch.bool), torch.ones(3, dtype=torch.bool), r"shape \(2,\), got torch.bool"),
        (torch.zeros(2, 5, dtype=torch.bool), torch.ones(2), r"got torch.float32 of shape \(2,\)"),
    ],
)
def test_hits_that_do_not_fit_are_refused(hits, counted, message):
    with pytest.raises(ValueError, match=message):
        RecallAtK([1, 5]).update(hits, counted)


@pytest.mark.parametrize("n", [1, 5, 8])
def test_random_recall_is_the_share_of_all_draws(n):
    for positives in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations(range(n), k))
            share = sum(min(draw) < positives for draw in draws) / len(draws)
            assert random_recall(n, [positives], k) == pytest.approx(share, rel=1e-15)


def test_random_recall_averages_queries_and_handles_large_pools():
    assert random_recall(10, [1, 0, 3], 2) == pytest.approx((0.2 + 0 + 1 - comb(7, 2) / comb(10, 2)) / 3)
    assert random_recall(110_000, [1], 100) == pytest.approx(100 / 110_000, rel=1e-15)
    assert random_recall(5, [1, 0], 100) == 0.5


def test_random_recall_is_what_random_rankings_reach():
    generator = torch.Generator().manual_seed(0)
    ids = [str(row) for row in range(50)]
    positives = [["3"], ["1", "4"], ["gone"], ["7", "8", "9"]] * 1000
    rows = torch.rand(len(positives), 50, generator=generator).argsort(dim=1)
    metric = RecallAtK([5])
    metric.update(positive_hits(rows, ids, positives))
    expected = random_recall(50, count_positives(ids, positives), 5)
    assert metric.compute()["recall@5"] == pytest.approx(expected, abs=0.02)  # four standard deviations


@pytest.mark.parametrize(("counts", "k"), [([], 1), ([1], 0), ([6], 1), ([-1], 1)])
def test_random_recall_refuses_what_cannot_be(counts, k):
    with pytest.raises(ValueError, match="random_recall"):
        random_recall(5, counts, k)
