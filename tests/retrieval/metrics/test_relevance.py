from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ret_lightning.retrieval import (
    answer_hits,
    count_positives,
    count_relevant,
    has_answers,
    positive_hits,
)

IDS = [str(number) for number in range(8)]
POSITIVES = st.lists(st.lists(st.sampled_from([*IDS, "elsewhere", "nowhere"]), max_size=4), min_size=1, max_size=6)


@settings(max_examples=100)
@given(st.lists(st.sampled_from(IDS), min_size=1, max_size=12), POSITIVES)
def test_positives_are_counted(ids, positives):
    """Some passages share an id, some positives are repeated, some are missing."""
    counts = [sum(passage in own for passage in ids) for own in positives]
    assert count_positives(ids, positives) == counts
    missing = [len({passage for passage in own if passage not in ids}) for own in positives]
    assert count_relevant(ids, positives) == [here + away for here, away in zip(counts, missing, strict=True)]


def test_passages_with_the_same_id_are_all_positive():
    assert positive_hits(torch.tensor([[0, 1, 2]]), ["x", "y", "x"], [["x"]]).tolist() == [[True, False, True]]
    assert count_positives(["x", "y", "x"], [["x", "x"]]) == [2]


def test_ids_are_compared_as_strings():
    assert positive_hits(torch.tensor([[0, 1]]), ["1", "01"], [["1"]]).tolist() == [[True, False]]


def test_string_instead_of_list_is_rejected():
    with pytest.raises(TypeError, match="got the string 'abc'"):
        positive_hits(torch.tensor([[0]]), ["a"], ["abc"])
    with pytest.raises(TypeError, match="got the string 'abc'"):
        answer_hits(torch.tensor([[0]]), ["a"], ["abc"])


def test_different_lengths_are_rejected():
    with pytest.raises(ValueError, match=r"Nq lists of positives, got \(1, 1\) and 2"):
        positive_hits(torch.tensor([[0]]), ["a"], [["a"], ["a"]])
    with pytest.raises(ValueError, match=r"Nq lists of answers, got \(1, 1\) and 0"):
        answer_hits(torch.tensor([[0]]), ["a"], [])


ANSWERS = st.lists(st.sampled_from(["", "  ", "Straße", "STRASSE", " ss", "ſ", "İ", "K", "ab", "a b", "É"]), max_size=3)
TEXTS = st.lists(
    st.one_of(st.none(), st.text(alphabet="abksſßKİié ÉE", max_size=12), st.just("Hauptstraße 5")),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200)
@given(TEXTS, st.lists(ANSWERS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_answer_hits_match_definition(texts, answers, random):
    order = [random.sample(range(len(texts)), len(texts)) for _ in answers]
    rows = torch.tensor([(ranked + [-1] * 8)[:8] for ranked in order])
    expected = []
    for ranked, own in zip(order, answers, strict=True):
        folded_answers = [answer.strip().casefold() for answer in own if answer.strip() != ""]
        found = [
            texts[r] is not None and any(answer in texts[r].casefold() for answer in folded_answers) for r in ranked
        ]
        expected.append((found + [False] * 8)[:8])
    assert answer_hits(rows, texts, answers).tolist() == expected
    assert has_answers(answers).tolist() == [any(answer.strip() for answer in own) for own in answers]


def test_answer_does_not_span_two_texts():
    answers = [["one\ntwo"], ["e\nt"], ["two"]]
    rows = torch.tensor([[0, 1]] * 3)
    assert answer_hits(rows, ["one", "two"], answers).tolist() == [[False, False], [False, False], [False, True]]
    assert answer_hits(torch.tensor([[0]]), ["one\ntwo"], [["one\ntwo"]]).tolist() == [[True]]


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
def test_answers_are_stripped_and_case_folded(text, answer, hit):
    assert answer_hits(torch.tensor([[0, -1]]), [text], [[answer]]).tolist() == [[hit, False]]
