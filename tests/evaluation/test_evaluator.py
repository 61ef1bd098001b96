"""Evaluation from plain objects, without Lightning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ret_lightning import RetRetriever, RetrievalEvaluation
from ret_lightning.data import EvaluationSubset, Passage, Query
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.evaluation import Evaluator, MemorySink, StoredSink
from ret_lightning.losses import maxsim
from ret_lightning.retrieval import ExactIndex, FaissIndex
from tests.support.tiny_training import evaluate, make_data, make_module

TEXTS = ["a red bird", "a green tree", "two ships at sea", "an old map of Rome", "the moon", "a lion", "snow"]


@pytest.fixture(scope="module")
def retriever() -> RetRetriever:
    return make_module().retriever.eval()


def make_subset(name: str = "mine") -> EvaluationSubset:
    """Return a subset in which some passages have text and image, and one has an image only."""
    passages = [
        Passage(f"p{i}", None if i == 4 else text, f"{i}.png" if i % 2 == 0 else None) for i, text in enumerate(TEXTS)
    ]
    queries = [Query(f"q{i}", question=f"where is {text}?", passage_ids=(f"p{i}",)) for i, text in enumerate(TEXTS[:5])]
    return EvaluationSubset(name, "test", queries, passages)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 20, 20, 3), dtype=np.uint8)
    for number in range(0, 7, 2):
        Image.fromarray(pixels[number]).save(tmp_path / f"{number}.png")
    return tmp_path


def test_rankings_match_maxsim_reference(retriever: RetRetriever, images: Path) -> None:
    result = Evaluator(ExactIndex(), recall_at=[1, 2], ranked=10).evaluate(
        retriever, [make_subset()], images=images, batch_size=3, progress=False
    )
    subset = make_subset()
    queries = retriever.encode_queries([(query.text, None) for query in subset.queries])
    pool = retriever.encode_passages([(p.text, images / p.image_path if p.image_path else None) for p in subset.pool])
    order = maxsim(queries.double(), pool.half().double()).argsort(dim=1, descending=True)
    assert [result.subsets["mine"].pool_rows(i) for i in range(5)] == order.tolist()
    for k in (1, 2):
        expected = sum(i in order[i, :k].tolist() for i in range(5)) / 5
        assert result.metrics[f"mine/recall@{k}"] == result.metrics[f"mean/recall@{k}"] == pytest.approx(expected)
    assert set(result.seconds) == {"encode", "build", "search"}
    assert not retriever.training


def test_callback_gives_the_same_result(root: Path) -> None:
    callback = RetrievalEvaluation(ExactIndex(), recall_at=[1, 3], ranked=12)
    evaluate(root, callback)
    data = make_data(root)
    data.setup("test")
    result = Evaluator(recall_at=[1, 3], ranked=12).evaluate(
        make_module().retriever, data.evaluation_subsets("test"), images=root / "images/m2kr/images", batch_size=5,
        progress=False,
    )  # fmt: skip
    assert result.metrics == callback.results["test"].metrics
    assert result.intervals() == callback.results["test"].intervals()
    for name, own in result.subsets.items():
        assert torch.equal(own.ranking.scores, callback.results["test"].subsets[name].ranking.scores)


def test_stored_evaluation_resumes(retriever: RetRetriever, images: Path, tmp_path: Path, monkeypatch) -> None:
    subsets, encoded = [make_subset("one"), make_subset("two")], []
    encode = RetRetriever.encode

    def counting(self: RetRetriever, side: str, inputs: object) -> torch.Tensor:
        if len(encoded) == 4:
            raise KeyboardInterrupt
        encoded.append((side, len(inputs)))
        return encode(self, side, inputs)

    monkeypatch.setattr(RetRetriever, "encode", counting)
    options = {"images": images, "batch_size": 4, "progress": False}
    evaluator = Evaluator(FaissIndex(candidates=7), recall_at=[1], ranked=10)
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(retriever, subsets, sink=StoredSink(tmp_path / "kept", retriever), **options)
    encoded.clear()
    resumed = evaluator.evaluate(retriever, subsets, sink=StoredSink(tmp_path / "kept", retriever), **options)
    assert encoded == [("passage", 4), ("passage", 3), ("query", 4), ("query", 1)]  # the second subset
    encoded[:] = [None] * 5  # disables the interruption
    whole = evaluator.evaluate(retriever, subsets, sink=MemorySink(), **options)
    assert resumed.metrics == whole.metrics
    assert resumed.ann_recall == whole.ann_recall
    assert whole.ann_recall["ann_recall@10"] == 1


def test_unreadable_images_are_raised_or_skipped(retriever: RetRetriever, images: Path) -> None:
    (images / "2.png").unlink()
    evaluator = Evaluator(recall_at=[1], ranked=10)
    with pytest.raises(DataError) as error:
        evaluator.evaluate(retriever, [make_subset()], images=images, progress=False)
    assert error.value.code == "image-missing"
    with pytest.raises(DataError) as error:
        evaluator.evaluate(
            retriever, [make_subset()], images=images, on_bad_row="skip", max_bad_fraction=0.1, progress=False
        )
    assert (error.value.code, error.value.found, error.value.rows) == ("too-many-bad-rows", 1, 7)
    result = evaluator.evaluate(
        retriever, [make_subset()], images=images, on_bad_row="skip", max_bad_fraction=0.5, progress=False
    )
    assert result.subsets["mine"].indexed_rows == list(range(7))


def test_limit_takes_whole_batches(retriever: RetRetriever, images: Path) -> None:
    result = Evaluator(recall_at=[1], ranked=10).evaluate(
        retriever, [make_subset()], images=images, batch_size=2, limit=2, progress=False
    )
    assert result.subsets["mine"].indexed_rows == result.subsets["mine"].query_rows == [0, 1, 2, 3]


def test_index_uses_gpu_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu, cpu = torch.device("cuda", 1), torch.device("cpu")
    unset, chosen, on_cpu = (Evaluator(ExactIndex(device=device)) for device in (None, "cpu", None))
    unset.score([], MemorySink(), gpu)
    chosen.score([], MemorySink(), gpu)
    on_cpu.score([], MemorySink(), cpu)
    assert [each.index.device for each in (unset, chosen, on_cpu)] == [gpu, cpu, None]


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("evaluation-ranked", {"recall_at": [100], "ranked": 50}),
        ("evaluation-ranked", {"recall_at": [1], "ranked": 5}),  # below the 10 of MRR and nDCG
        ("evaluation-ann-recall-sample", {"ann_recall_sample": -1}),
        ("evaluation-recall-at", {"recall_at": []}),
        ("evaluation-recall-at", {"recall_at": [0]}),
    ],
)
def test_invalid_settings_are_refused(code: str, options: dict) -> None:
    with pytest.raises(ConfigError) as error:
        Evaluator(ExactIndex(), **options)
    assert error.value.code == code
