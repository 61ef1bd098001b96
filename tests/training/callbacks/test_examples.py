"""Example queries with their retrieved passages, as figures and as a table."""

from __future__ import annotations

from pathlib import Path

from lightning import Trainer
from PIL import Image

from ret_lightning import RetrievalEvaluation
from ret_lightning.retrieval import ExactIndex
from ret_lightning.training.callbacks import example_figure
from ret_lightning.training.callbacks.example_types import Example, ExampleItem
from ret_lightning.training.callbacks.examples import Examples, _make_table, select_examples
from tests.support.m2kr_folder import SUBSETS
from tests.support.tiny_training import OPTIONS, evaluate, make_data, make_module


def test_examples_are_drawn_after_every_evaluation(root: Path, tmp_path: Path) -> None:
    evaluation = RetrievalEvaluation(ExactIndex(), recall_at=[1, 3], ranked=10)
    trainer, _ = evaluate(root, evaluation, callbacks=[Examples(str(tmp_path / "examples"), per_subset=3, top_k=2)])
    assert [p.name for p in (tmp_path / "examples").iterdir()] == ["test.png"]
    with Image.open(tmp_path / "examples" / "test.png") as picture:
        assert picture.width == 4 * example_figure.CELL_WIDTH + example_figure.GAP
        each = example_figure.CELL_HEIGHT + example_figure.HEADER
        assert picture.height == example_figure.HEADER + 3 * len(SUBSETS) * each
    images = trainer.datamodule.layout.image_source()
    examples = list(select_examples(evaluation.results["test"].subsets.values(), images, 3, 2))
    assert [e.subset for e in examples] == [name for name in evaluation.results["test"].subsets for _ in range(3)]
    for example in examples:
        result = evaluation.results["test"].subsets[example.subset]
        (row,) = [i for i, q in enumerate(result.subset.queries) if q.data_id == example.data_id]
        query, position = result.subset.queries[row], result.query_rows.index(row)
        best = [result.subset.pool[i] for i in result.pool_rows(position)[:2]]
        assert [s.text.split(":")[0] for s in example.ranked] == [p.passage_id for p in best]
        assert [s.is_positive for s in example.ranked] == [p.passage_id in query.passage_ids for p in best]
        assert (example.query.image is None) == (query.image_path is None)
        if example.gold is not None:
            assert example.gold.text.split(":")[0] in query.passage_ids


def test_each_validation_in_an_epoch_has_its_own_file(root: Path, tmp_path: Path) -> None:
    callbacks = [RetrievalEvaluation(ExactIndex(), recall_at=[1], ranked=10), Examples(str(tmp_path), per_subset=1)]
    trainer = Trainer(**{**OPTIONS, "val_check_interval": 1, "max_epochs": 1}, logger=False, callbacks=callbacks)
    trainer.fit(make_module(), datamodule=make_data(root))
    names = ["val_epoch_0001.png", "val_epoch_0001_step_00000001.png", "val_epoch_0001_step_00000002.png"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == names


def test_table_has_one_column_per_rank(monkeypatch) -> None:
    monkeypatch.setattr("wandb.Image", lambda image: ("image", image.size))
    item = ExampleItem("text", Image.new("RGB", (4, 3)))
    ranked = [ExampleItem("a", None, False), ExampleItem("b", item.image, True)]
    columns, rows = _make_table([Example("s", "1", item, None, ranked)], 3)
    assert dict(zip(columns, rows[0], strict=True)) == {
        "subset": "s", "data_id": "1", "query": "text", "query image": ("image", (4, 3)),
        "gold": "not in the candidate pool", "gold image": None, "rank 1": "- a", "rank 1 image": None,
        "rank 2": "+ b", "rank 2 image": ("image", (4, 3)), "rank 3": "", "rank 3 image": None,
    }  # fmt: skip
