"""All metrics compared with their definitions and with trec_eval on the same files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import pytrec_eval
import torch

from ret_lightning.errors import ConfigError
from ret_lightning.retrieval import (
    Ranking,
    evaluate_ranking,
    query_means,
    read_qrels,
    read_ranking,
    read_run,
    write_qrels,
    write_run,
)
from tests.support.plain_metrics import KS, by_definition, evaluate_case, make_case


@pytest.mark.parametrize("seed", range(3))
def test_metrics_match_definitions(seed: int) -> None:
    case = make_case(seed=seed)
    results = evaluate_case(case)
    assert list(results) == [
        *(f"recall@{k}" for k in KS), "mrr@10", "ndcg@10", *(f"fractional_recall@{k}" for k in KS),
        *(f"pseudo_recall@{k}" for k in KS),
    ]  # fmt: skip
    for query in range(len(case.positives)):
        expected = by_definition(case, query)
        ours = {name: float(values[query]) for name, values in results.items()}
        assert {name for name, value in ours.items() if math.isnan(value)} == set(results) - set(expected)
        assert {name: ours[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    means = query_means(results)
    assert all(0 < means[name] < 1 for name in ("recall@5", "mrr@10", "ndcg@10", "pseudo_recall@5"))


def test_means_are_over_counted_queries() -> None:
    case = make_case()
    means = query_means(evaluate_case(case))
    every = [by_definition(case, query) for query in range(len(case.positives))]
    for name, mean in means.items():
        values = [metrics[name] for metrics in every if name in metrics]
        assert mean == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert sum("pseudo_recall@5" in metrics for metrics in every) == len(every) // 2


def trec_eval(run: Path, qrels: Path) -> dict[str, dict[str, float]]:
    """Evaluate files with trec_eval, which parses them itself; query to metric to value."""
    with open(run) as run_file, open(qrels) as qrels_file:
        scored, right = pytrec_eval.parse_run(run_file), pytrec_eval.parse_qrel(qrels_file)
    success = "success." + ",".join(map(str, KS))
    found = pytrec_eval.RelevanceEvaluator(
        right, {success, success.replace("success", "recall"), "ndcg_cut.10", "recip_rank"}
    ).evaluate(scored)
    names = {f"success_{k}": f"recall@{k}" for k in KS} | {"ndcg_cut_10": "ndcg@10"}
    names |= {f"recall_{k}": f"fractional_recall@{k}" for k in KS}
    # Its reciprocal rank has no cutoff; values below 1/10 are beyond rank 10.
    return {
        query: {ours: values[theirs] for theirs, ours in names.items()}
        | {"mrr@10": values["recip_rank"] if values["recip_rank"] > 1 / 10.5 else 0.0}
        for query, values in found.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_metrics_match_trec_eval(seed: int, tmp_path: Path) -> None:
    """Includes ties, positives missing from the pool and short rankings."""
    case = make_case(seed=seed)
    run, qrels = tmp_path / "run.trec", tmp_path / "run.qrels"
    write_run(run, case.query_ids, case.ranking, case.ids)
    write_qrels(qrels, case.query_ids, case.positives)
    theirs = trec_eval(run, qrels)
    results = evaluate_case(case)
    compared = 0
    for position, query in enumerate(case.query_ids):
        name = query.replace(" ", "%20")
        if name in theirs:
            ours = {metric: float(results[metric][position]) for metric in theirs[name]}
            assert ours == pytest.approx(theirs[name], rel=1e-12), query
            compared += 1
        else:  # trec_eval omits queries with empty rankings; here they count as misses
            assert not (case.ranking.rows[position] >= 0).any()
            assert results["ndcg@10"][position] == 0
    assert compared > 50


def test_tied_run_is_read_in_trec_eval_order(tmp_path: Path) -> None:
    """A run of another program: rounded scores, meaningless ranks, shuffled lines."""
    case = make_case(seed=5)
    run, qrels = tmp_path / "run.trec", tmp_path / "run.qrels"
    write_qrels(qrels, case.query_ids, case.positives)
    lines = [
        f"{query.replace(' ', '%20')} Q0 {case.ids[row]} 0 {score:.1f} another"
        for query, rows, scores in zip(case.query_ids, case.ranking.rows, case.ranking.scores, strict=True)
        for row, score in reversed(list(zip(rows.tolist(), scores.tolist(), strict=True)))
        if row >= 0
    ]
    run.write_text("\n".join(lines))
    read = replace(case, ranking=read_ranking(run, case.query_ids, case.ids))
    assert any(a != b for a, b in zip(read.ranking.rows.tolist(), case.ranking.rows.tolist(), strict=True))
    results = evaluate_case(read)
    for query, theirs in trec_eval(run, qrels).items():
        position = int(query.rpartition("%20")[2])
        assert {m: float(results[m][position]) for m in theirs} == pytest.approx(theirs, rel=1e-12)


def test_metrics_of_written_files_are_equal(tmp_path: Path) -> None:
    case = make_case(seed=1)
    run, qrels = tmp_path / "run.trec", tmp_path / "run.qrels"
    write_run(run, case.query_ids, case.ranking, case.ids)
    write_qrels(qrels, case.query_ids, case.positives)
    right = read_qrels(qrels)
    ids = sorted({passage for ranked in read_run(run).values() for passage, _ in ranked})
    ranking = read_ranking(run, list(right), ids)
    results = evaluate_ranking(ranking, ids, list(right.values()), KS)
    expected = evaluate_case(case)
    assert "pseudo_recall@5" not in results
    for metric, values in results.items():
        torch.testing.assert_close(values, expected[metric], rtol=1e-12, atol=0)


def test_pool_smaller_than_k() -> None:
    rows = torch.tensor([[1, 0] + [-1] * 8, [-1] * 10])
    scores = torch.tensor([[2.0, 1.0] + [-torch.inf] * 8, [-torch.inf] * 10])
    results = evaluate_ranking(Ranking(rows, scores), ["a", "b"], [["a"], ["a"]], [5])
    assert query_means(results) == pytest.approx(
        {"recall@5": 0.5, "fractional_recall@5": 0.5, "mrr@10": 0.25, "ndcg@10": 0.5 / math.log2(3)}
    )


def test_empty_recall_at_is_rejected() -> None:
    case = make_case()
    with pytest.raises(ConfigError) as caught:
        evaluate_ranking(case.ranking, case.ids, case.positives, [])
    assert (caught.value.code, caught.value.found) == ("metric-k-too-small", ())


def test_ranking_narrower_than_k_is_rejected() -> None:
    case = make_case(width=9)
    with pytest.raises(ValueError, match=r"recall@50: expected bool hits of shape \(N, 50 or more\)"):
        evaluate_case(case)
    with pytest.raises(ValueError, match="mrr@10: expected bool hits"):
        evaluate_ranking(case.ranking, case.ids, case.positives, [5])
