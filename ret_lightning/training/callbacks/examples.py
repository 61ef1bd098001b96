"""Log example queries with their retrieved passages after every evaluation, as images and W&B tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from ret_lightning.data.images.sources import ImageSource
from ret_lightning.data.rows import Passage
from ret_lightning.data.types import Split
from ret_lightning.errors import DataError
from ret_lightning.evaluation.callback import RetrievalEvaluation
from ret_lightning.evaluation.evaluation_result import SubsetResult
from ret_lightning.inputs import decode_image
from ret_lightning.training.callbacks.example_figure import draw_examples
from ret_lightning.training.callbacks.example_types import Example, ExampleItem


class Examples(Callback):
    """Draws example queries after every validation and after the test.

    The images are `<folder>/val_epoch_<n>.png`, `<folder>/val_epoch_<n>_step_<m>.png` for a validation within an epoch,
    `<folder>/val.png` for a validation without training, and `<folder>/test.png`. If W&B is a logger, the examples are
    also logged as the tables `val/examples` and `test/examples`. The queries are spread evenly over each subset and are
    the same in every evaluation, so that changes are visible.

    Args:
        folder: folder of the images; if None, no image is drawn.
        per_subset: number of queries per subset.
        top_k: number of retrieved passages per query.
    """

    def __init__(self, folder: str | None = None, per_subset: int = 2, top_k: int = 5) -> None:
        self.folder = None if folder is None else Path(folder)
        self.per_subset = per_subset
        self.top_k = top_k

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and log the examples of the validation."""
        if not trainer.sanity_checking:
            loop = trainer.fit_loop.epoch_loop
            within = trainer.state.fn == "fit" and not loop.batch_progress.is_last_batch
            step = f"_step_{trainer.global_step:08d}" if within else ""
            epoch = f"_epoch_{trainer.current_epoch + 1:04d}{step}" if trainer.state.fn == "fit" else ""
            self._log_examples(trainer, "val", f"val{epoch}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and log the examples of the test."""
        self._log_examples(trainer, "test", "test")

    def _log_examples(self, trainer: Trainer, split: Split, name: str) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        result = RetrievalEvaluation.from_trainer(trainer).results.get(split)
        if result is None or not trainer.is_global_zero or not (loggers or self.folder):
            return
        images = cast(Any, trainer).datamodule.layout.image_source()
        examples = list(select_examples(result.subsets.values(), images, self.per_subset, self.top_k))
        if self.folder is not None:
            draw_examples(examples, self.top_k, self.folder / f"{name}.png")
        for logger in loggers:
            columns, rows = _make_table(examples, self.top_k)
            logger.log_table(f"{split}/examples", columns=columns, data=rows)


def select_examples(
    results: Iterable[SubsetResult], images: ImageSource, per_subset: int, top_k: int
) -> Iterable[Example]:
    """Select evenly spaced queries of each subset, with their top-ranked passages.

    Args:
        results: the results of the subsets.
        images: the source of the images.
        per_subset: number of queries per subset.
        top_k: number of retrieved passages per query.

    Yields:
        One example per selected query.
    """
    for result in results:
        pool, queries = result.subset.pool, result.subset.queries
        count = min(per_subset, len(result.query_rows))
        for position in (i * len(result.query_rows) // count for i in range(count)):
            query = queries[result.query_rows[position]]

            def make_item(passage: Passage, positives: tuple[str, ...] = query.passage_ids) -> ExampleItem:
                text = f"{passage.passage_id}: {passage.text or '(image only)'}"
                return ExampleItem(text[:300], _read_image(passage.image, images), passage.passage_id in positives)

            gold = next((p for p in pool if p.passage_id in query.passage_ids), None)
            yield Example(
                result.subset.name,
                query.data_id,
                ExampleItem(query.text or "", _read_image(query.image, images)),
                None if gold is None else make_item(gold),
                [make_item(pool[row]) for row in result.pool_rows(position)[:top_k]],
            )


def _make_table(examples: list[Example], top_k: int) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a W&B table; `+` marks positive passages, `-` the others."""
    import wandb

    def to_wandb(item: ExampleItem | None) -> Any:
        return None if item is None or item.image is None else wandb.Image(item.image)

    ranks = range(1, top_k + 1)
    columns = ["subset", "data_id", "query", "query image", "gold", "gold image"]
    columns += [column for rank in ranks for column in (f"rank {rank}", f"rank {rank} image")]
    rows = []
    for example in examples:
        gold = "not in the candidate pool" if example.gold is None else example.gold.text
        row = [
            example.subset,
            example.data_id,
            example.query.text,
            to_wandb(example.query),
            gold,
            to_wandb(example.gold),
        ]
        for rank in ranks:
            passage = example.ranked[rank - 1] if rank <= len(example.ranked) else None
            row += [
                "" if passage is None else f"{'+' if passage.is_positive else '-'} {passage.text}",
                to_wandb(passage),
            ]
        rows.append(row)
    return columns, rows


def _read_image(image: str | bytes | None, images: ImageSource) -> Image.Image | None:
    if image is None:
        return None
    try:
        return decode_image(image if isinstance(image, bytes) else images.read(image))
    except DataError:  # reported when the row was encoded
        return None
