"""Comparison of variants: per-query values against the ranks in the fixture, table values against plain formulas."""

from __future__ import annotations

import itertools
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest

from ret_lightning.report.comparison import VariantScores, compare, score_variants
from ret_lightning.report.run_folders import find_runs
from ret_lightning.report.variants import group_runs
from tests.support.m2kr_folder import PASSAGES
from tests.support.report_runs import SUBSETS, make_run


def compare_runs(folder: Path, metric: str = "mean/recall@5"):
    variants, _, _ = group_runs(find_runs(folder)[0])
    queries = score_variants(variants, metric, dict)
    return compare(variants, variants[0], metric, queries), queries


@pytest.mark.parametrize("metric", ["mean/recall@5", "mean/mrr@10", "okvqa/recall@1", "mean/main_recall"])
def test_queries_are_averaged_over_seeds_and_paired(tmp_path: Path, metric: str) -> None:
    ranks = {}
    for gate, skill in (("lstm", 0.3), ("none", 0.7)):
        for seed in (1, 2, 3):
            ranks[gate, seed] = make_run(tmp_path / f"{gate}/{seed}", f"gate={gate}", seed=seed, skill=skill)
    rows, queries = compare_runs(tmp_path, metric)
    of = {
        "mean/recall@5": lambda rank: float(rank <= 5),
        "mean/mrr@10": lambda rank: 1 / rank if rank <= 10 else 0.0,
        "okvqa/recall@1": lambda rank: float(rank == 1),
        "mean/main_recall": lambda rank: float(rank <= 5),
    }[metric]
    subsets = ["okvqa"] if metric.startswith("okvqa") else SUBSETS
    own = {
        gate: {
            s: [statistics.fmean(of(ranks[gate, seed][s][i]) for seed in (1, 2, 3)) for i in range(PASSAGES)]
            for s in subsets
        }
        for gate in ("lstm", "none")
    }
    for row, gate in zip(rows, ("lstm", "none"), strict=True):
        found = queries[row.variant.fingerprint]
        assert isinstance(found, VariantScores)
        assert {s: pytest.approx(values) for s, values in own[gate].items()} == {
            s: v.tolist() for s, v in found.means.items()
        }
        mean = statistics.fmean(statistics.fmean(values) for values in own[gate].values())
        assert row.summary.mean == pytest.approx(mean, abs=1e-12)
    differences = np.array([a - b for s in subsets for a, b in zip(own["none"][s], own["lstm"][s], strict=True)])
    differences = differences[differences != 0]
    signs = np.array(list(itertools.product([-1, 1], repeat=min(len(differences), 16))))
    if len(differences) <= 16:
        exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
        assert rows[1].p == pytest.approx(exact, abs=0.02)
    else:
        sampled = np.random.default_rng(9).choice([-1, 1], size=(20_000, len(differences))) @ differences
        assert rows[1].p == pytest.approx(np.mean(np.abs(sampled) >= abs(differences.sum()) - 1e-9), abs=0.02)
    assert rows[1].p_corrected == rows[1].p  # one comparison
    assert rows[1].difference == pytest.approx(rows[1].summary.mean - rows[0].summary.mean)
    assert (rows[0].difference, rows[0].p, rows[0].difference_interval) == (None, None, None)


def test_holm_correction_counts_comparisons(tmp_path: Path) -> None:
    for i, (gate, skill) in enumerate([("lstm", 0.1), ("none", 0.4), ("scalar", 0.9)]):
        make_run(tmp_path / str(i), f"gate={gate}", skill=skill, seed=i)
    rows, _ = compare_runs(tmp_path)
    low, high = sorted([rows[1].p, rows[2].p])
    assert {rows[1].p_corrected, rows[2].p_corrected} == {2 * low, max(2 * low, high)}


def test_queries_are_paired_by_id(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "gate=lstm", skill=0.3)
    make_run(tmp_path / "1", "gate=none", skill=0.7)
    before, _ = compare_runs(tmp_path)
    for file in (tmp_path / "1/rankings").iterdir():
        file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    after, _ = compare_runs(tmp_path)
    assert after[1].p == before[1].p


def test_invalid_rankings_are_not_tested(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "gate=lstm")
    make_run(tmp_path / "1", "gate=none", skill=0.9)
    make_run(tmp_path / "2", "gate=scalar")
    shutil.copy(tmp_path / "0/rankings/okvqa.trec", tmp_path / "1/rankings/okvqa.trec")
    (tmp_path / "2/rankings/infoseek.qrels").unlink()
    rows, _ = compare_runs(tmp_path)
    assert [row.p for row in rows] == [None, None, None]
    assert "okvqa.trec: recall@5 is " in rows[1].untested
    assert "infoseek.qrels: cannot be read (No such file or directory)" in rows[2].untested


def test_different_positives_are_not_tested(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "gate=lstm")
    make_run(tmp_path / "1", "gate=none")
    file = tmp_path / "1/rankings/okvqa.qrels"
    file.write_text(file.read_text() + "okvqa_test_0 0 elsewhere 1\n")
    rows, _ = compare_runs(tmp_path)
    assert rows[1].p is None
    assert rows[1].untested.startswith(
        "okvqa: the queries or their relevant passages differ from those of the baseline"
    )


def test_seeds_with_different_queries_are_not_tested(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "gate=lstm")
    for seed in (1, 2):
        make_run(tmp_path / f"none_{seed}", "gate=none", seed=seed)
    file = tmp_path / "none_2/rankings/okvqa.qrels"
    file.write_text(file.read_text() + "okvqa_test_0 0 elsewhere 1\n")
    rows, _ = compare_runs(tmp_path)
    assert rows[1].p is None
    assert rows[1].untested.startswith(f"{tmp_path}/none_2: okvqa: ")
    assert f"{tmp_path}/none_1" in rows[1].untested
    assert rows[1].untested.endswith("[report-queries-differ]")
