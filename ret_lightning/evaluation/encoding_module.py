"""LightningModule that encodes the rows of evaluation loaders."""

from __future__ import annotations

import logging
from typing import Any, cast

from lightning import LightningModule
from torch import Tensor

from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.evaluation.callback import RetrievalEvaluation
from ret_lightning.evaluation.encode_rows import encode_batch
from ret_lightning.models import RetRetriever

log = logging.getLogger(__name__)


class EncodingModule(LightningModule):
    """Encodes batches in validation and test; `RetrievalEvaluation` collects and scores the vectors.

    Args:
        retriever: the model.
    """

    def __init__(self, retriever: RetRetriever) -> None:
        super().__init__()
        self.retriever = retriever
        self._has_warned = False

    def on_validation_start(self) -> None:
        """Warn once if the Trainer has no callback that evaluates the vectors."""
        evaluated = any(isinstance(callback, RetrievalEvaluation) for callback in cast(Any, self.trainer).callbacks)
        if not evaluated and not self._has_warned and self.trainer.is_global_zero:
            self._has_warned = True
            log.warning(
                "trainer.callbacks: RetrievalEvaluation is missing, %s computes no metrics; use "
                "Trainer(callbacks=[RetrievalEvaluation(ExactIndex())])",
                "the test" if self.trainer.testing else "the validation",
            )

    on_test_start = on_validation_start

    def validation_step(self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Encode a batch.

        Args:
            batch: B queries or passages.
            batch_idx: ignored.
            dataloader_idx: ignored.

        Returns:
            (B, k, d) float32, vectors of length 1.
        """
        return encode_batch(self.retriever, batch)

    test_step = validation_step
