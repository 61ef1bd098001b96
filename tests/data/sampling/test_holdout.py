"""Held-out training rows: no passage is in both halves, the limits hold, and nothing else decides which rows they are."""

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
from ret_lightning.data.validation_plan import load_holdout_subset
from ret_lightning.errors import ConfigError
from tests.support.row_files import jsonl_files, training_row

NAMES = ("wit", "okvqa")


def chosen(rows: list[dict | str], limits: HoldoutLimits, names: tuple[str, ...] = NAMES) -> Holdout:
    with tempfile.TemporaryDirectory() as folder:
        return hold_out(jsonl_files(Path(folder) / "train.jsonl", rows), NAMES, names, limits)


def held_ids(rows: list[dict], found: Holdout, name: str) -> set[str]:
    return {passage_id for i in found.subsets[name].held_out for passage_id in rows[i]["passage_id"]}


ids = st.integers(0, 25).map(lambda i: f"p{i}")
corpora = st.lists(
    st.tuples(st.sampled_from([*NAMES, "unknown"]), st.lists(ids, min_size=1, max_size=4, unique=True)), max_size=60
).map(lambda rows: [training_row(i, *parts) for i, parts in enumerate(rows)])
limits = st.builds(HoldoutLimits, st.integers(1, 12), st.floats(0.01, 0.6), st.one_of(st.none(), st.integers(1, 20)))


@given(corpora, limits)
def test_no_passage_is_trained_and_validated_on(rows: list[dict], limits: HoldoutLimits) -> None:
    found = chosen(rows, limits)
    assert sorted(found.subsets) == sorted(NAMES)
    for name, of in found.subsets.items():
        own = [i for i, r in enumerate(rows) if r["data_id"].startswith(name)]
        held = held_ids(rows, found, name)
        named = {i: len(held.intersection(rows[i]["passage_id"])) for i in own}
        # Exactly the rows with held-out ids leave training, and those with others too do not validate.
        assert of.held_out.tolist() == [i for i in own if named[i] == len(rows[i]["passage_id"])]
        assert of.left_out.tolist() == [i for i in own if 0 < named[i] < len(rows[i]["passage_id"])]
        assert of.rows == len(own)
        assert bool(of.reason) == (len(of.held_out) == 0)
    removed = [i for of in found.subsets.values() for part in (of.held_out, of.left_out) for i in part]
    assert found.removed.tolist() == sorted(removed)


@given(corpora, limits)
def test_limits_hold(rows: list[dict], limits: HoldoutLimits) -> None:
    found = chosen(rows, limits)
    for name, of in found.subsets.items():
        removed = len(of.held_out) + len(of.left_out)
        assert removed <= limits.rows
        assert removed < of.rows or of.rows == 0
        if removed > limits.fraction * of.rows:  # the exception: nothing fits, and this affects the fewest rows
            sets = {frozenset(rows[i]["passage_id"]) for i in of.held_out}
            own = [set(r["passage_id"]) for r in rows if r["data_id"].startswith(name)]
            least = min(sum(bool(other & one) for other in own) for one in own)
            assert removed == least > int(limits.fraction * of.rows)
            assert max(sets, key=len) == held_ids(rows, found, name)


@given(corpora, limits)
def test_every_subset_that_can_validates(rows: list[dict], limits: HoldoutLimits) -> None:
    found = chosen(rows, limits)
    for name, of in found.subsets.items():
        own = [set(r["passage_id"]) for r in rows if r["data_id"].startswith(name)]
        least = min((sum(bool(other & one) for other in own) for one in own), default=0)
        assert (len(of.held_out) > 0) == (0 < least <= min(limits.rows, len(own) - 1))


@given(corpora, limits, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_decides_nothing(rows: list[dict], limits: HoldoutLimits, random) -> None:
    found = chosen(rows, limits)
    shuffled = random.sample(rows, len(rows))
    again = chosen(shuffled, limits)
    for name, of in found.subsets.items():
        other = again.subsets[name]
        for one, two in ((of.held_out, other.held_out), (of.left_out, other.left_out)):
            assert {rows[i]["data_id"] for i in one} == {shuffled[i]["data_id"] for i in two}
        firsts = {rows[i]["passage_id"][0] for i in of.passages}
        assert firsts == {shuffled[i]["passage_id"][0] for i in other.passages}


@given(corpora, limits)
def test_pools_hold_the_positives_and_training_passages(rows: list[dict], limits: HoldoutLimits) -> None:
    found = chosen(rows, limits)
    for name, of in found.subsets.items():
        own = [i for i, r in enumerate(rows) if r["data_id"].startswith(name)]
        firsts = [rows[i]["passage_id"][0] for i in of.passages]
        assert len(firsts) == len(set(firsts))
        held = held_ids(rows, found, name)
        positives = held & {rows[i]["passage_id"][0] for i in own}
        assert positives <= set(firsts)
        others = set(firsts) - positives
        training = {rows[i]["passage_id"][0] for i in own if not held.intersection(rows[i]["passage_id"])}
        wanted = 1_000 if limits.pool is None else max(0, limits.pool - len(positives))
        assert others <= training
        assert len(others) == (min(wanted, len(training)) if held else 0)
        for i in of.held_out:
            assert rows[i]["passage_id"][0] in firsts


@given(st.lists(st.integers(0, 30), max_size=150), st.integers(1, 10), st.floats(0.01, 0.5))
def test_rows_with_one_id_follow_the_documented_rule(numbers: list[int], most: int, fraction: float) -> None:
    """Ids in the order of blake2b of subset and id, as long as their rows fit."""
    rows = [training_row(i, "wit", [f"p{n}"]) for i, n in enumerate(numbers)]
    count = Counter(r["passage_id"][0] for r in rows)
    order = sorted(count, key=lambda p: hashlib.blake2b(f"wit\0{p}".encode(), digest_size=8).digest())
    left, expected = min(most, int(fraction * len(rows))), set()
    for passage_id in order:
        if count[passage_id] <= left:
            expected.add(passage_id)
            left -= count[passage_id]
    found = chosen(rows, HoldoutLimits(most, fraction))
    held = held_ids(rows, found, "wit")
    if expected:
        assert held == expected
    else:
        fewest = min(order, key=count.get, default=None)
        assert held == ({fewest} if len(order) > 1 and count[fewest] <= most else set())


def test_defaults_take_two_percent_and_at_most_a_thousand_rows() -> None:
    rows = [training_row(i, "wit", [f"p{i}"]) for i in range(60_000)] + [
        training_row(i, "okvqa", [f"p{i}"]) for i in range(500)
    ]
    found = chosen(rows, HoldoutLimits())
    assert {name: (len(of.held_out), len(of.passages)) for name, of in found.subsets.items()} == {
        "wit": (1000, 2000), "okvqa": (10, 500),
    }  # fmt: skip


def test_subsets_do_not_share_ids() -> None:
    rows = [training_row(i, name, [f"p{i}"]) for name in NAMES for i in range(100)]
    found = chosen(rows, HoldoutLimits(fraction=0.1))
    held = {name: held_ids(rows, found, name) for name in NAMES}
    assert held["wit"] != held["okvqa"]
    assert found.subsets["wit"].held_out.tolist() == chosen(rows[:100], HoldoutLimits(fraction=0.1)).removed.tolist()


def test_rows_with_many_ids_validate_too() -> None:
    """Held-out ids alone would leave hardly any row all of whose ids are held out."""
    random = np.random.default_rng(0)
    rows = [training_row(i, "wit", [f"p{n}" for n in random.choice(3000, 5, replace=False)]) for i in range(2000)]
    of = chosen(rows, HoldoutLimits()).subsets["wit"]
    assert len(of.held_out) >= 2
    assert len(of.held_out) + len(of.left_out) <= 40


def test_a_hub_id_costs_no_time() -> None:
    rows = [training_row(i, "wit", ["hub", f"p{i}"]) for i in range(20_000)] + [training_row(20_000, "wit", ["alone"])]
    of = chosen(rows, HoldoutLimits()).subsets["wit"]
    assert of.held_out.tolist() == [20_000]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "no training rows"),
        ([training_row(0, "okvqa", ["a"])], "no training rows"),
        ([training_row(i, "wit", ["a"]) for i in range(5)], "its 5 training rows have one and the same passage id"),
        ([training_row(i, "wit", ["ab"[i % 2]]) for i in range(100)], "each takes more than data.holdout_rows=10 rows"),
        ([training_row(i, "wit", ["a", "b"]) for i in range(3)], "or all of them"),
        (["{", '{"data_id": "wit_1", "passage_id": "a"}'], "no training rows"),
    ],
)
def test_what_cannot_be_held_out_has_a_reason(rows: list, reason: str) -> None:
    of = chosen(rows, HoldoutLimits(rows=10)).subsets["wit"]
    assert reason in of.reason
    assert len(of.held_out) == len(of.left_out) == len(of.passages) == 0


def test_a_bad_row_is_never_held_out() -> None:
    rows: list = [training_row(i, "wit", [f"p{i}"]) for i in range(4)]
    rows[2] |= {"image_path": "../outside.png"}
    found = chosen([*rows, "{broken"], HoldoutLimits(rows=4, fraction=0.9))
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
def test_limits_out_of_range(options: dict, code: str) -> None:
    with pytest.raises(ConfigError) as error:
        HoldoutLimits(**options)
    assert error.value.code == code


def test_repeated_rows_validate_once(tmp_path: Path) -> None:
    rows = [training_row(i % 20, "wit", [f"p{i % 20}"]) for i in range(60)]
    files = jsonl_files(tmp_path / "train.jsonl", rows)
    found = hold_out(files, NAMES, ["wit"], HoldoutLimits(fraction=0.2))
    subset = load_holdout_subset(found, "wit")
    assert len(found.subsets["wit"].held_out) == 12
    assert len(subset.queries) == len({query.data_id for query in subset.queries}) == 4
    assert [query.place.line for query in subset.queries] == sorted(query.place.line for query in subset.queries)
    assert len(load_holdout_subset(found, "wit", limit=3).queries) == 3
    assert {q.instruction for q in load_holdout_subset(found, "wit", instruction="Find:").queries} == {"Find:"}


@pytest.mark.parametrize("pool", [None, 5])
def test_pools_are_of_the_documented_size(pool: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdout_file, "DISTRACTORS", 20)
    rows = [training_row(i, "wit", [f"p{i}"]) for i in range(100)]
    of = chosen(rows, HoldoutLimits(pool=pool)).subsets["wit"]
    assert len(of.passages) == (2 + 20 if pool is None else 5)
