"""Retrieval evaluation through Lightning's loops, compared with reference implementations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import pytrec_eval
import torch
from lightning import Trainer

from ret_lightning import RetrievalEvaluation
from ret_lightning.errors import ConfigError
from ret_lightning.losses import maxsim
from ret_lightning.retrieval import ExactIndex, FaissIndex, read_qrels, read_run, sample_queries
from tests.support.m2kr_folder import SUBSETS
from tests.support.tiny_training import OPTIONS, evaluate, make_data, make_module


def compute_reference_metrics(root: Path) -> dict[str, float]:
    """Compute each metric from its definition, with loops."""
    module = make_module().eval()
    data = make_data(root)
    data.prepare_data()
    data.setup("test")
    metrics: dict[str, float] = {}
    with torch.no_grad():
        loaders = data.test_dataloader()
        for subset, pool, queries in zip(data.evaluation_subsets("test"), loaders[0::2], loaders[1::2], strict=True):
            passages = torch.cat([module.retriever.encode("passage", b.inputs) for b in pool])
            query = torch.cat([module.retriever.encode("query", b.inputs) for b in queries])
            scores = maxsim(query, passages, backend="plain")
            for k in (1, 3):
                hits, answered, found, shares = 0, 0, 0, 0.0
                for row, asked in enumerate(subset.queries):
                    best = [subset.pool[i] for i in scores[row].argsort(descending=True).tolist()[:k]]
                    hits += any(p.passage_id in asked.passage_ids for p in best)
                    shares += sum(p.passage_id in asked.passage_ids for p in best) / len(set(asked.passage_ids))
                    answers = [a.strip().casefold() for a in asked.answers]
                    answered += bool(answers)
                    found += any(w in (p.text or "").casefold() for w in answers for p in best)
                metrics[f"{subset.name}/recall@{k}"] = hits / len(subset.queries)
                metrics[f"{subset.name}/fractional_recall@{k}"] = shares / len(subset.queries)
                if answered:
                    metrics[f"{subset.name}/pseudo_recall@{k}"] = found / answered
            reciprocal, gain = 0.0, 0.0
            for row, asked in enumerate(subset.queries):
                order = scores[row].argsort(descending=True).tolist()[:10]
                ranks = [n for n, i in enumerate(order, start=1) if subset.pool[i].passage_id in asked.passage_ids]
                reciprocal += 1 / ranks[0] if ranks else 0
                # One of two positives is missing from the candidate pool, and still counts for the ideal ranking.
                ideal = 1 + 1 / math.log2(3) if len(asked.passage_ids) == 2 else 1
                gain += sum(1 / math.log2(rank + 1) for rank in ranks) / ideal
            metrics[f"{subset.name}/mrr@10"] = reciprocal / len(subset.queries)
            metrics[f"{subset.name}/ndcg@10"] = gain / len(subset.queries)
    return metrics


@pytest.mark.parametrize("index", [ExactIndex(), FaissIndex(candidates=12)])
def test_metrics_match_reference(root: Path, index) -> None:
    evaluation = RetrievalEvaluation(index, recall_at=[1, 3], ranked=12)
    _, logged = evaluate(root, evaluation)
    expected = compute_reference_metrics(root)
    flat = evaluation.results["test"].metrics
    assert {n: v for n, v in flat.items() if not n.startswith("mean/")} == pytest.approx(expected)
    assert {"okvqa/pseudo_recall@1", "infoseek/pseudo_recall@3"} <= set(flat)
    assert "wit/pseudo_recall@1" not in flat
    for k in (1, 3):
        recalls = [v for n, v in expected.items() if n.endswith(f"/recall@{k}")]
        assert flat[f"mean/recall@{k}"] == pytest.approx(sum(recalls) / len(recalls))
    for metric in ("mrr@10", "ndcg@10"):
        assert flat[f"mean/{metric}"] == pytest.approx(sum(expected[f"{name}/{metric}"] for name in SUBSETS) / 4)
    ends = {n for n in logged if n.endswith(("/low", "/high"))}
    assert {f"test/{n}": v for n, v in flat.items()} == pytest.approx(
        {n: v for n, v in logged.items() if not n.startswith(("test/seconds/", "test/index/")) and n not in ends},
        abs=1e-6,
    )
    assert ends == set()  # the main metrics are at 5 and 10, which are not computed
    timed = ["encode", "build", "search", *(["ann_recall"] if index.approximate else [])]
    assert {n for n in logged if "seconds" in n} == {f"test/seconds/{n}" for n in timed}


def test_ann_recall_compares_with_exact_search(root: Path) -> None:
    """An index that returns ten of twelve passages: its recall loss against exact search is logged."""
    found = RetrievalEvaluation(FaissIndex(candidates=10, hits=10), recall_at=[1, 3], ranked=10, ann_recall_sample=4)
    _, logged = evaluate(root, found)
    best = RetrievalEvaluation(ExactIndex(), recall_at=[1, 3], ranked=10, ann_recall_sample=4)
    _, without = evaluate(root, best)
    assert not any(name.startswith("test/index/") for name in without)
    means = []
    for name, result in found.results["test"].subsets.items():
        exact = best.results["test"].subsets[name]
        sampled = sample_queries(len(result.query_rows), 4, 0).tolist()
        shared = [
            len(set(result.ranking.rows[row].tolist()) & set(exact.ranking.rows[row].tolist())) / 10 for row in sampled
        ]
        assert logged[f"test/index/{name}/ann_recall@10"] == pytest.approx(sum(shared) / len(sampled))
        assert {"recall_loss@1", "recall_loss@3"} < set(result.ann_recall)
        means.append(sum(shared) / len(sampled))
    assert logged["test/index/ann_recall@10"] == pytest.approx(sum(means) / len(means))
    assert 0 < sum(means) / len(means) < 1
    for k in (1, 3):  # the sample is all queries here
        losses = [exact - own for exact, own in zip(*(recalls(e, k) for e in (best, found)), strict=True)]
        everything = RetrievalEvaluation(FaissIndex(candidates=10, hits=10), [1, 3], ranked=10, ann_recall_sample=1000)
        _, logged_all = evaluate(root, everything)
        assert logged_all[f"test/index/recall_loss@{k}"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)


def recalls(evaluation: RetrievalEvaluation, k: int) -> list[float]:
    return [result.metrics[f"recall@{k}"] for result in evaluation.results["test"].subsets.values()]


def test_main_metrics_have_means_and_intervals(root: Path) -> None:
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[5, 10], ranked=10)
    _, logged = evaluate(root, evaluation)
    results, flat = evaluation.results["test"].subsets, evaluation.results["test"].metrics
    assert {name: result.main_metrics for name, result in results.items()} == {
        "wit": ["recall@10"],
        "infoseek": ["recall@5", "pseudo_recall@5"],
        "evqa": ["recall@5"],  # its rows have no answers here
        "okvqa": ["recall@5", "pseudo_recall@5"],
    }
    recalls = [flat[key] for key in ("wit/recall@10", "infoseek/recall@5", "evqa/recall@5", "okvqa/recall@5")]
    assert flat["mean/main_recall"] == pytest.approx(sum(recalls) / 4)
    pseudo = [flat[f"{name}/pseudo_recall@5"] for name in ("infoseek", "okvqa")]
    assert flat["mean/main_pseudo_recall"] == pytest.approx(sum(pseudo) / 2)
    bounds = evaluation.results["test"].intervals()
    assert set(bounds) == set(flat)
    assert all(low <= flat[key] <= high for key, (low, high) in bounds.items())
    low, high = bounds["okvqa/recall@5"]
    assert 0.2 < high - low < 0.6  # twelve queries: 1.96 * 2 * sqrt(p (1 - p) / 12)
    reported = {f"{name}/{metric}" for name, result in results.items() for metric in result.main_metrics}
    reported |= {"mean/main_recall", "mean/main_pseudo_recall"}
    assert {n for n in logged if n.endswith("/low")} == {f"test/{key}/low" for key in reported}
    for key in reported:
        assert (logged[f"test/{key}/low"], logged[f"test/{key}/high"]) == pytest.approx(bounds[key], abs=1e-6)


def test_trec_files_give_the_same_metrics(root: Path, tmp_path: Path) -> None:
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1, 3], ranked=500)
    evaluate(root, evaluation)
    evaluation.results["test"].write_rankings(tmp_path / "rankings")
    for name, result in evaluation.results["test"].subsets.items():
        run_file, qrels_file = (tmp_path / "rankings" / f"{name}.{kind}" for kind in ("trec", "qrels"))
        run, right = read_run(run_file), read_qrels(qrels_file)
        assert list(run) == list(right) == [query.data_id for query in result.subset.queries]
        assert right == {query.data_id: query.passage_ids for query in result.subset.queries}
        assert all(len(ranked) == 12 for ranked in run.values())
        with run_file.open() as scored, qrels_file.open() as qrels:
            evaluator = pytrec_eval.RelevanceEvaluator(pytrec_eval.parse_qrel(qrels), {"success.1,3", "ndcg_cut.10"})
            theirs = evaluator.evaluate(pytrec_eval.parse_run(scored))
        for measure, metric in {"success_1": "recall@1", "success_3": "recall@3", "ndcg_cut_10": "ndcg@10"}.items():
            mean = sum(values[measure] for values in theirs.values()) / len(theirs)
            assert result.metrics[metric] == pytest.approx(mean, rel=1e-12)


def test_random_recall_is_expected_recall(root: Path) -> None:
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1, 5], ranked=10)
    evaluate(root, evaluation)
    assert evaluation.results["test"].subsets["wit"].random_recall == pytest.approx({1: 1 / 12, 5: 5 / 12})


def test_limited_batches_rank_encoded_rows_and_warn(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1], ranked=10)
    evaluate(root, evaluation, limit_test_batches=1)
    result = evaluation.results["test"].subsets["okvqa"]
    assert result.query_rows == result.indexed_rows == list(range(5))
    assert result.pool_rows(0)
    assert set(result.pool_rows(0)) == set(range(5))
    assert "test/okvqa: only 5 of 12 passages were encoded (trainer.limit_test_batches)" in caplog.text


def test_repeated_rows_are_counted_once(root: Path) -> None:
    """A padded sampler repeats rows to give every rank the same number."""
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1, 3], ranked=12)
    original = evaluation.on_test_batch_end

    def twice(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        for _ in range(2):
            original(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    evaluation.on_test_batch_end = twice
    evaluate(root, evaluation)
    assert {n: v for n, v in evaluation.results["test"].metrics.items() if "mean" not in n} == pytest.approx(
        compute_reference_metrics(root)
    )


def test_missing_callback_is_reported() -> None:
    with pytest.raises(ConfigError) as error:
        RetrievalEvaluation.from_trainer(Trainer(**OPTIONS, logger=False))
    assert error.value.code == "evaluation-missing"


def test_only_passages_are_in_half_precision(root: Path) -> None:
    """ret-search scores the same way: its passages come from a store in half precision."""
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1], ranked=12)
    trainer, _ = evaluate(root, evaluation)
    module, result = make_module().eval(), evaluation.results["test"].subsets["wit"]
    loaders = trainer.datamodule.test_dataloader()
    with torch.no_grad():
        pool = torch.cat([module.retriever.encode("passage", batch.inputs) for batch in loaders[0]])
        asked = torch.cat([module.retriever.encode("query", batch.inputs) for batch in loaders[1]])
    expected = maxsim(asked.double(), pool.half().double(), backend="plain").float()
    got = torch.empty_like(expected).scatter_(1, result.ranking.rows, result.ranking.scores)
    assert torch.equal(got, expected)
    assert not torch.equal(got, maxsim(asked.double(), pool.double(), backend="plain").float())


def test_sanity_check_evaluates_and_logs_nothing(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    searched = []

    class RecordingIndex(ExactIndex):
        def search(self, queries, top_k):
            searched.append(len(queries))
            return super().search(queries, top_k)

    evaluation = RetrievalEvaluation(RecordingIndex(), recall_at=[1], ranked=10)
    options = {**OPTIONS, "num_sanity_val_steps": 1, "max_steps": 1, "limit_val_batches": 2}
    trainer = Trainer(**options, logger=False, callbacks=[evaluation])
    trainer.fit(make_module(), datamodule=make_data(root, eval_batch_size=5))
    assert searched == [5] * len(SUBSETS)  # one batch of each query file; no validation is due after a single step
    assert evaluation.results == {}
    assert not any(name.startswith("val/") for name in trainer.callback_metrics)
    assert "were encoded" not in caplog.text
