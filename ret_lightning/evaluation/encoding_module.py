"""A LightningModule that encodes the rows of evaluation loaders: what evaluation asks of a module, trained or not."""

from __future__ import annotations

import logging

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
        self._warned_of_no_evaluation = False

    def on_validation_start(self) -> None:
        """Warn if nothing evaluates the vectors."""
        evaluated = any(isinstance(callback, RetrievalEvaluation) for callback in self.trainer.callbacks)
        if not evaluated and not self._warned_of_no_evaluation and self.trainer.is_global_zero:
            self._warned_of_no_evaluation = True
            log.warning(
                "the trainer has no RetrievalEvaluation callback, so %s computes no metrics; add "
                "Trainer(callbacks=[RetrievalEvaluation(ExactIndex())])",
                "the test" if self.trainer.testing else "the validation",
            )

    on_test_start = on_validation_start

    def validation_step(self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the (B, k, d) vectors of a batch, see `encode_batch`."""
        return encode_batch(self.retriever, batch)

    def test_step(self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the (B, k, d) vectors of a batch, see `encode_batch`."""
        return encode_batch(self.retriever, batch)
