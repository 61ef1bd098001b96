"""Lightning callback that evaluates retrieval after every validation and test."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from ret_lightning.config.targets.renamed_keys import RENAMED_KEYS, accept_renamed
from ret_lightning.data.batch import EvaluationBatch
from ret_lightning.data.types import Split
from ret_lightning.errors import ConfigError
from ret_lightning.evaluation.embedding_sink import EmbeddingSink, MemorySink
from ret_lightning.evaluation.evaluation_result import EvaluationResult
from ret_lightning.evaluation.evaluator import Evaluator
from ret_lightning.evaluation.metric_list import print_metrics
from ret_lightning.evaluation.published_results import MAIN_MEANS
from ret_lightning.retrieval import Index
from ret_lightning.retrieval.metrics.ann_recall import FALLBACK_SHARE
from ret_lightning.runtime.deprecation import RenamedAttribute

log = logging.getLogger(__name__)


class RetrievalEvaluation(Callback):
    """Computes recall, MRR and nDCG on every subset, after every validation and on the test split.

    The module's validation and test steps return the vectors of an `EvaluationBatch`, as `EncodingModule` does. The data
    module has a method `evaluation_subsets(split)`, as `M2KRDataModule` has. The callback collects the vectors and ranks
    the candidate pool of each subset with an `Evaluator`. Rows are identified by their position in the file, so a row that
    the loaders repeat is counted once.

    Logged metrics:

    - `<split>/<subset>/recall@K`, `fractional_recall@K`, `pseudo_recall@K`, `mrr@10`, `ndcg@10`, and their means over the
      subsets as `<split>/mean/...`
    - `<split>/seconds/...`: the time of encoding, building and searching
    - `test/<subset>/recall@5/low` and `/high`: the 95 % intervals of the main metrics, after a test
    - `<split>/index/<subset>/ann_recall@10` and `.../recall_loss@K`, with their means under `<split>/index/`: an
      approximate index compared with exact search, on a sample of each subset's queries
    - `<split>/index/<subset>/fallback_share`: the share of queries for which an approximate index found fewer than
      `ranked` candidates and that its exact fallback ranked; `recall_loss_without_fallback@K` is the recall loss of the
      index alone

    Args:
        index: the index; it is built for each subset in turn.
        recall_at: the values of K for the three kinds of recall.
        ranked: number of passages per query in the rankings, at least the largest K and the 10 of MRR and nDCG.
        ann_recall_sample: number of queries per subset on which an approximate index is compared with exact search, the
            same ones in every evaluation; 0 disables the comparison.

    Attributes:
        evaluator: ranks and scores the vectors.
        sink: stores the encoded vectors, by default in memory.
        results: split to the result of its last evaluation.
    """

    @accept_renamed(RENAMED_KEYS["ret_lightning.evaluation.RetrievalEvaluation"])
    def __init__(
        self,
        index: Index,
        recall_at: Sequence[int] = (1, 2, 3, 5, 10, 50, 100),
        ranked: int = 500,
        ann_recall_sample: int = 64,
    ) -> None:
        self.evaluator = Evaluator(index, recall_at, ranked, ann_recall_sample)
        self.sink: EmbeddingSink = MemorySink()
        self.results: dict[Split, EvaluationResult] = {}
        self._started = 0.0

    @staticmethod
    def from_trainer(trainer: Trainer) -> RetrievalEvaluation:
        """Return the evaluation callback of a Trainer.

        Raises:
            ConfigError: if the Trainer has none.
        """
        for callback in cast(Any, trainer).callbacks:  # set by a connector
            if isinstance(callback, RetrievalEvaluation):
                return callback
        raise ConfigError(
            "trainer.callbacks: RetrievalEvaluation is missing; this callback requires it", code="evaluation-missing"
        )

    of = RenamedAttribute("from_trainer")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the vectors of the previous evaluation."""
        self.sink.start()
        self._started = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvaluationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the vectors of a batch."""
        self.sink.add(batch, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Index, search, score and log; a sanity check before training logs nothing."""
        self._evaluate(trainer, pl_module, "val")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Index, search, score and log."""
        self._evaluate(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print each metric once, if the call of the Trainer prints metrics."""
        print_metrics(trainer)

    on_test_end = on_validation_end

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, split: Split) -> None:
        data = cast(Any, trainer).datamodule
        subsets, is_sanity_check = data.evaluation_subsets(split), trainer.sanity_checking
        max_bad_fraction = getattr(data, "max_bad_fraction", 1.0)
        self.sink.complete(subsets, pl_module.device, max_bad_fraction, is_sanity_check)
        encode = time.perf_counter() - self._started
        found = self.evaluator.score(subsets, self.sink, pl_module.device, is_sanity_check)
        if is_sanity_check:
            return
        result = self.results[split] = replace(found, seconds={"encode": encode, **found.seconds})
        pl_module.log_dict({f"{split}/{name}": value for name, value in result.metrics.items()}, sync_dist=True)
        pl_module.log_dict({f"{split}/index/{k}": value for k, value in result.ann_recall.items()}, sync_dist=True)
        pl_module.log_dict({f"{split}/seconds/{k}": v for k, v in result.seconds.items()}, sync_dist=True)
        if split == "test":
            self._log_intervals(pl_module, result)
        if trainer.is_global_zero:
            log.info("%s", self._format_line(split, trainer, result))

    def _log_intervals(self, pl_module: LightningModule, result: EvaluationResult) -> None:
        reported = {f"{name}/{metric}" for name, own in result.subsets.items() for metric in own.main_metrics}
        reported.update(f"mean/{name}" for name in MAIN_MEANS)
        for key, (low, high) in result.intervals().items():
            if key in reported:
                pl_module.log_dict({f"test/{key}/low": low, f"test/{key}/high": high}, sync_dist=True)

    def _format_line(self, split: Split, trainer: Trainer, result: EvaluationResult) -> str:
        recall_at, metrics = self.evaluator.recall_at, result.metrics | result.ann_recall
        at = 5 if 5 in recall_at else recall_at[-1]
        each = ", ".join(f"{name} {metrics[f'{name}/recall@{at}']:.3f}" for name in result.subsets)
        times = ", ".join(f"{what} {value:.2f} s" for what, value in result.seconds.items())
        if "ann_recall@10" in metrics:
            times = f"ann_recall@10 {metrics['ann_recall@10']:.3f}, {times}"
        if metrics.get(FALLBACK_SHARE):
            alone = metrics.get(f"recall_loss_without_fallback@{at}")
            loss = "" if alone is None else f", recall@{at} loss without exact fallback {alone:.3f}"
            share, ranked = metrics[FALLBACK_SHARE], self.evaluator.ranked
            times = f"{share:.1%} of queries with fewer than {ranked} candidates{loss}, {times}"
        fit = trainer.state.fn == "fit"
        where = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}" if fit else split
        return f"{where}: recall@{at} {metrics[f'mean/recall@{at}']:.3f} ({each}); {times}"
