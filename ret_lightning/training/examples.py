"""A table of example queries on the W&B dashboard: the query with its image, the gold passage, and what was retrieved."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from ret_lightning.data.images import ImageSource
from ret_lightning.data.rows import Passage
from ret_lightning.errors import DataError
from ret_lightning.inputs import decode_image
from ret_lightning.training.evaluation import RetrievalEvaluation, SubsetResult


class ExampleTable(Callback):
    """Logs `val/examples` after every validation and `test/examples` after the test, where W&B is a logger.

    The same queries come every time, evenly spread over each subset's file, so that their progress can be watched.

    Args:
        per_subset: queries a subset.
        top_k: retrieved passages a query.
    """

    def __init__(self, per_subset: int = 2, top_k: int = 5) -> None:
        self.per_subset = per_subset
        self.top_k = top_k

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the validation queries."""
        if not trainer.sanity_checking:
            self._log(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the test queries."""
        self._log(trainer, "test")

    def _log(self, trainer: Trainer, split: str) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        results = RetrievalEvaluation.of(trainer).results.get(split)
        if not loggers or not results or not trainer.is_global_zero:
            return
        images = trainer.datamodule.files.image_source()
        rows = [row for result in results.values() for row in self._rows(result, images)]
        retrieved = [f"rank {rank}" for rank in range(1, self.top_k + 1)]
        columns = ["subset", "data_id", "query", "query image", "gold", "gold image", *retrieved, "rank 1 image"]
        for logger in loggers:
            logger.log_table(f"{split}/examples", columns=columns, data=rows)

    def _rows(self, result: SubsetResult, images: ImageSource) -> list[list[Any]]:
        subset = result.subset
        count = min(self.per_subset, len(result.query_rows))
        rows = []
        for position in (i * len(result.query_rows) // count for i in range(count)):
            query = subset.queries[result.query_rows[position]]
            gold = next((p for p in subset.pool if p.passage_id in query.passage_ids), None)
            best = [subset.pool[row] for row in result.pool_rows(position)[: self.top_k]]
            shown = [("+ " if p.passage_id in query.passage_ids else "- ") + _text(p) for p in best]
            rows.append(
                [
                    subset.name,
                    query.data_id,
                    query.text or "",
                    _image(query.image, images),
                    "not in the pool" if gold is None else _text(gold),
                    None if gold is None else _image(gold.image, images),
                    *shown,
                    *[""] * (self.top_k - len(shown)),
                    _image(best[0].image, images) if best else None,
                ]
            )
        return rows


def _text(passage: Passage) -> str:
    return f"{passage.passage_id}: {passage.text or '(image only)'}"[:300]


def _image(image: str | bytes | None, images: ImageSource) -> Any:
    import wandb

    if image is None:
        return None
    try:
        data = image if isinstance(image, bytes) else images.read(image)
        return wandb.Image(decode_image(data))
    except DataError:  # was told of when the row was encoded
        return None
