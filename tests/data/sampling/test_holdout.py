"""Tests of the holdout: training and validation share no passage, and the selection depends on passage ids and limits."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ret_lightning.data.sampling import holdout as holdout_file
from ret_lightning.data.sampling.holdout import Holdout, HoldoutLimits, hold_out
from ret_lightning.data.subset_loading import load_holdout_subset
from ret_lightning.errors import ConfigError
from tests.support.row_files import jsonl_files, training_row

NAMES = ("wit", "okvqa")


def select_holdout(rows: list[dict | str], limits: HoldoutLimits, names: tuple[str, ...] = NAMES) -> Holdout:
    with tempfile.TemporaryDirectory() as folder:
        return hold_out(jsonl_files(Path(folder) / "train.jsonl", rows), NAMES, names, limits)


def held_out_ids(rows: list[dict], found: Holdout, name: str) -> set[str]:
    return {passage_id for i in found.subsets[name].held_out for passage_id in rows[i]["passage_id"]}


ids = st.integers(0, 25).map(lambda i: f"p{i}")
corpora = st.lists(
    st.tuples(st.sampled_from([*NAMES, "unknown"]), st.lists(ids, min_size=1, max_size=4, unique=True)), max_size=60
).map(lambda rows: [training_row(i, *parts) for i, parts in enumerate(rows)])
limits = st.builds(HoldoutLimits, st.integers(1, 12), st.floats(0.01, 0.6), st.one_of(st.none(), st.integers(1, 20)))


@given(corpora, limits)
def test_training_and_validation_share_no_passage(rows: list[dict], limits: HoldoutLimits) -> None:
    found = select_holdout(rows, limits)
    assert sorted(found.subsets) == sorted(NAMES)
    for name, of in found.subsets.items():
        own = [i for i, r in enumerate(rows) if r["data_id"].startswith(name)]
        held = held_out_ids(rows, found, name)
        named = {i: len(held.intersection(rows[i]["passage_id"])) for i in own}
        # All rows with held-out ids are removed from training; those with other ids too are not queries.
        assert of.held_out.tolist() == [i for i in own if named[i] == len(rows[i]["passage_id"])]
        assert of.left_out.tolist() == [i for i in own if 0 < named[i] < len(rows[i]["passage_id"])]
        assert of.rows == len(own)
        assert bool(of.reason) == (len(of.held_out) == 0)
    removed = [i for of in found.subsets.values() for part in (of.held_out, of.left_out) for i in part]
    assert found.removed.tolist() == sorted(removed)


@given(corpora, limits)
def test_limits_are_respected(rows: list[dict], limits: HoldoutLimits) -> None:
    found = select_holdout(rows, limits)
    for name, of in found.subsets.items():
        removed = len(of.held_out) + len(of.left_out)
        assert removed <= limits.rows
        assert removed < of.rows or of.rows == 0
        if removed > limits.fraction * of.rows:  # no set fits, so the set with the fewest rows is held out
            sets = {frozenset(rows[i]["passage_id"]) for i in of.held_out}
            own = [set(r["passage_id"]) for r in rows if r["data_id"].startswith(name)]
            least = min(sum(bool(other & one) for other in own) for one in own)
            assert removed == least > int(limits.fraction * of.rows)
            assert max(sets, key=len) == held_out_ids(rows, found, name)


@given(corpora, limits)
def test_subset_is_held_out_if_limits_allow(rows: list[dict], limits: HoldoutLimits) -> None:
    found = select_holdout(rows, limits)
    for name, of in found.subsets.items():
        own = [set(r["passage_id"]) for r in rows if r["data_id"].startswith(name)]
        least = min((sum(bool(other & one) for other in own) for one in own), default=0)
        assert (len(of.held_out) > 0) == (0 < least <= min(limits.rows, len(own) - 1))


@given(corpora, limits, st.randoms(use_true_random=False))
def test_holdout_does_not_depend_on_row_order(rows: list[dict], limits: HoldoutLimits, random) -> None:
    found = select_holdout(rows, limits)
    shuffled = random.sample(rows, len(rows))
    again = select_holdout(shuffled, limits)
    for name, of in found.subsets.items():
        other = again.subsets[name]
        for one, two in ((of.held_out, other.held_out), (of.left_out, other.left_out)):
            assert {rows[i]["data_id"] for i in one} == {shuffled[i]["data_id"] for i in two}
        firsts = {rows[i]["passage_id"][0] for i in of.passages}
        assert firsts == {shuffled[i]["passage_id"][0] for i in other.passages}


@given(corpora, limits)
def test_pool_contains_positives_and_training_passages(rows: list[dict], limits: HoldoutLimits) -> None:
    found = select_holdout(rows, limits)
    for name, of in found.subsets.items():
        own = [i for i, r in enumerate(rows) if r["data_id"].startswith(name)]
        firsts = [rows[i]["passage_id"][0] for i in of.passages]
        assert len(firsts) == len(set(firsts))
        held = held_out_ids(rows, found, name)
        positives = held & {rows[i]["passage_id"][0] for i in own}
        assert positives <= set(firsts)
        others = set(firsts) - positives
        training = {rows[i]["passage_id"][0] for i in own if not held.intersection(rows[i]["passage_id"])}
        expected = 1_000 if limits.pool is None else max(0, limits.pool - len(positives))
        assert others <= training
        assert len(others) == (min(expected, len(training)) if held else 0)
        for i in of.held_out:
            assert rows[i]["passage_id"][0] in firsts


@given(st.lists(st.integers(0, 30), max_size=150), st.integers(1, 10), st.floats(0.01, 0.5))
def test_rows_with_one_id_are_selected_by_hash(numbers: list[int], most: int, fraction: float) -> None:
    """Ids are selected in the order of the blake2b hash of subset and id while their rows fit."""
    rows = [training_row(i, "wit", [f"p{n}"]) for i, n in enumerate(numbers)]
    count = Counter(r["passage_id"][0] for r in rows)
    order = sorted(count, key=lambda p: hashlib.blake2b(f"wit\0{p}".encode(), digest_size=8).digest())
    left, expected = min(most, int(fraction * len(rows))), set()
    for passage_id in order:
        if count[passage_id] <= left:
            expected.add(passage_id)
            left -= count[passage_id]
    found = select_holdout(rows, HoldoutLimits(most, fraction))
    held = held_out_ids(rows, found, "wit")
    if expected:
        assert held == expected
    else:
        fewest = min(order, key=count.get, default=None)
        assert held == ({fewest} if len(order) > 1 and count[fewest] <= most else set())


def test_default_limits_are_two_percent_and_1000_rows() -> None:
    rows = [training_row(i, "wit", [f"p{i}"]) for i in range(60_000)] + [
        training_row(i, "okvqa", [f"p{i}"]) for i in range(500)
    ]
    found = select_holdout(rows, HoldoutLimits())
    assert {name: (len(of.held_out), len(of.passages)) for name, of in found.subsets.items()} == {
        "wit": (1000, 2000), "okvqa": (10, 500),
    }  # fmt: skip


def test_equal_ids_of_two_subsets_are_independent() -> None:
    rows = [training_row(i, name, [f"p{i}"]) for name in NAMES for i in range(100)]
    found = select_holdout(rows, HoldoutLimits(fraction=0.1))
    held = {name: held_out_ids(rows, found, name) for name in NAMES}
    assert held["wit"] != held["okvqa"]
    assert (
        found.subsets["wit"].held_out.tolist()
        == select_holdout(rows[:100], HoldoutLimits(fraction=0.1)).removed.tolist()
    )


def test_rows_with_many_ids_are_held_out() -> None:
    """Whole sets of ids are held out: with single ids, hardly any row would have all of its ids held out."""
    random = np.random.default_rng(0)
    rows = [training_row(i, "wit", [f"p{n}" for n in random.choice(3000, 5, replace=False)]) for i in range(2000)]
    of = select_holdout(rows, HoldoutLimits()).subsets["wit"]
    assert len(of.held_out) >= 2
    assert len(of.held_out) + len(of.left_out) <= 40


def test_id_shared_by_most_rows_is_fast() -> None:
    rows = [training_row(i, "wit", ["hub", f"p{i}"]) for i in range(20_000)] + [training_row(20_000, "wit", ["alone"])]
    of = select_holdout(rows, HoldoutLimits()).subsets["wit"]
    assert of.held_out.tolist() == [20_000]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "no training rows"),
        ([training_row(0, "okvqa", ["a"])], "no training rows"),
        ([training_row(i, "wit", ["a"]) for i in range(5)], "its 5 training rows have the same passage id"),
        (
            [training_row(i, "wit", ["ab"[i % 2]]) for i in range(100)],
            "each would remove more than data.holdout_rows=10 rows",
        ),
        ([training_row(i, "wit", ["a", "b"]) for i in range(3)], "or all of them"),
        (["{", '{"data_id": "wit_1", "passage_id": "a"}'], "no training rows"),
    ],
)
def test_reason_is_reported_if_nothing_is_held_out(rows: list, reason: str) -> None:
    of = select_holdout(rows, HoldoutLimits(rows=10)).subsets["wit"]
    assert reason in of.reason
    assert len(of.held_out) == len(of.left_out) == len(of.passages) == 0


def test_bad_row_is_never_held_out() -> None:
    rows: list = [training_row(i, "wit", [f"p{i}"]) for i in range(4)]
    rows[2] |= {"image_path": "../outside.png"}
    found = select_holdout([*rows, "{broken"], HoldoutLimits(rows=4, fraction=0.9))
    assert found.subsets["wit"].rows == 3
    assert set(found.removed.tolist()) < {0, 1, 3}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"rows": 0}, "holdout-rows-out-of-range"),
        ({"fraction": 0}, "holdout-fraction-out-of-range"),
        ({"fraction": 1}, "holdout-fraction-out-of-range"),
    ],
)
def test_limit_out_of_range_is_an_error(options: dict, code: str) -> None:
    with pytest.raises(ConfigError) as error:
        HoldoutLimits(**options)
    assert (error.value.code, error.value.found) == (code, *options.values())


def test_repeated_row_is_one_query(tmp_path: Path) -> None:
    rows = [training_row(i % 20, "wit", [f"p{i % 20}"]) for i in range(60)]
    files = jsonl_files(tmp_path / "train.jsonl", rows)
    found = hold_out(files, NAMES, ["wit"], HoldoutLimits(fraction=0.2))
    subset = load_holdout_subset(found, "wit")
    assert len(found.subsets["wit"].held_out) == 12
    assert len(subset.queries) == len({query.data_id for query in subset.queries}) == 4
    assert [query.location.line for query in subset.queries] == sorted(query.location.line for query in subset.queries)
    assert len(load_holdout_subset(found, "wit", limit=3).queries) == 3
    assert {q.instruction for q in load_holdout_subset(found, "wit", instruction="Find:").queries} == {"Find:"}


@pytest.mark.parametrize("pool", [None, 5])
def test_pool_has_documented_size(pool: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdout_file, "DISTRACTORS", 20)
    rows = [training_row(i, "wit", [f"p{i}"]) for i in range(100)]
    of = select_holdout(rows, HoldoutLimits(pool=pool)).subsets["wit"]
    assert len(of.passages) == (2 + 20 if pool is None else 5)
