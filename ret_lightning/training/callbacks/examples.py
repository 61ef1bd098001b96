"""Example queries after every evaluation: the query, its gold passage, and what was retrieved, as a W&B table and a picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from ret_lightning.data.images.sources import ImageSource
from ret_lightning.data.rows import Passage
from ret_lightning.errors import DataError
from ret_lightning.evaluation.callback import RetrievalEvaluation
from ret_lightning.evaluation.evaluation_result import SubsetResult
from ret_lightning.inputs import decode_image
from ret_lightning.training.callbacks.example_figure import draw_examples
from ret_lightning.training.callbacks.example_types import Example, ExampleItem


class Examples(Callback):
    """Draws example queries into `<folder>/val_epoch_<n>.png` after every validation and `<folder>/test.png` after the test.

    A validation within an epoch has the step in its picture's name, `val_epoch_<n>_step_<m>.png`; one without training is
    `val.png`.

    Where W&B is a logger, they are also logged as the table `val/examples` or `test/examples`. The same queries come every
    time, evenly spread over each subset's file, so that their progress can be watched.

    Args:
        folder: of the pictures; None: none are drawn.
        per_subset: queries a subset.
        top_k: retrieved passages a query.
    """

    def __init__(self, folder: str | None = None, per_subset: int = 2, top_k: int = 5) -> None:
        self.folder = None if folder is None else Path(folder)
        self.per_subset = per_subset
        self.top_k = top_k

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the validation queries."""
        if not trainer.sanity_checking:
            loop = trainer.fit_loop.epoch_loop
            within = trainer.state.fn == "fit" and not loop.batch_progress.is_last_batch
            step = f"_step_{trainer.global_step:08d}" if within else ""
            epoch = f"_epoch_{trainer.current_epoch + 1:04d}{step}" if trainer.state.fn == "fit" else ""
            self._show(trainer, "val", f"val{epoch}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the test queries."""
        self._show(trainer, "test", "test")

    def _show(self, trainer: Trainer, split: str, name: str) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        result = RetrievalEvaluation.of(trainer).results.get(split)
        if result is None or not trainer.is_global_zero or not (loggers or self.folder):
            return
        images = trainer.datamodule.layout.image_source()
        examples = list(examples_of(result.subsets.values(), images, self.per_subset, self.top_k))
        if self.folder is not None:
            draw_examples(examples, self.top_k, self.folder / f"{name}.png")
        for logger in loggers:
            columns, rows = _table(examples, self.top_k)
            logger.log_table(f"{split}/examples", columns=columns, data=rows)


def examples_of(results: Iterable[SubsetResult], images: ImageSource, per_subset: int, top_k: int) -> Iterable[Example]:
    """Evenly spread queries of each subset, with their best passages."""
    for result in results:
        pool, queries = result.subset.pool, result.subset.queries
        count = min(per_subset, len(result.query_rows))
        for position in (i * len(result.query_rows) // count for i in range(count)):
            query = queries[result.query_rows[position]]

            def shown(passage: Passage, positives: tuple[str, ...] = query.passage_ids) -> ExampleItem:
                text = f"{passage.passage_id}: {passage.text or '(image only)'}"
                return ExampleItem(text[:300], _image(passage.image, images), passage.passage_id in positives)

            gold = next((p for p in pool if p.passage_id in query.passage_ids), None)
            yield Example(
                result.subset.name,
                query.data_id,
                ExampleItem(query.text or "", _image(query.image, images)),
                None if gold is None else shown(gold),
                [shown(pool[row]) for row in result.pool_rows(position)[:top_k]],
            )


def _table(examples: list[Example], top_k: int) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a W&B table; `+` stands before a right passage, `-` before a wrong one."""
    import wandb

    def picture(shown: ExampleItem | None) -> Any:
        return None if shown is None or shown.image is None else wandb.Image(shown.image)

    ranks = range(1, top_k + 1)
    columns = ["subset", "data_id", "query", "query image", "gold", "gold image"]
    columns += [column for rank in ranks for column in (f"rank {rank}", f"rank {rank} image")]
    rows = []
    for example in examples:
        gold = "not in the pool" if example.gold is None else example.gold.text
        row = [example.subset, example.data_id, example.query.text, picture(example.query), gold, picture(example.gold)]
        for rank in ranks:
            passage = example.ranked[rank - 1] if rank <= len(example.ranked) else None
            row += ["" if passage is None else f"{'+' if passage.right else '-'} {passage.text}", picture(passage)]
        rows.append(row)
    return columns, rows


def _image(image: str | bytes | None, images: ImageSource) -> Image.Image | None:
    if image is None:
        return None
    try:
        return decode_image(image if isinstance(image, bytes) else images.read(image))
    except DataError:  # was told of when the row was encoded
        return None
