"""The LightningModule: a retriever, its loss, and how they are optimised and logged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning import Callback
from torch import Tensor, nn

from ret_lightning.data.batch import TrainingBatch
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.evaluation.encoding_module import EncodingModule
from ret_lightning.losses.base import NONFINITE_REMEDY, EncodedBatch, RetrievalLoss
from ret_lightning.models import ActivationMeans, BlockStack, RetRetriever
from ret_lightning.models.gradient_cache import encode_in_micro_batches
from ret_lightning.training.callbacks.bad_row_count import BadRowCount
from ret_lightning.training.callbacks.text_lengths import TextLengths
from ret_lightning.training.checkpointing.checkpoint_io import FROZEN
from ret_lightning.training.epoch_steps import EpochSteps, lay_out
from ret_lightning.training.resumed_epoch import ResumedEpoch
from ret_lightning.training.schedule import WarmupCosine

log = logging.getLogger(__name__)

EPOCH_STEPS = "epoch_steps"  # key of a checkpoint
SKIPPED_IN_A_ROW = 10  # steps without a finite gradient, after which there is no hope


class RetModule(EncodingModule):
    """Trains a retriever on pairs, and encodes the rows of evaluation loaders as `EncodingModule` does.

    Logs, every `log_every_n_steps`: `train/loss`, the metrics of the loss as `train/<name>` (see `ContrastiveLoss`),
    `train/learning_rate`, `train/gradient_norm` (before clipping), and `gate/<side>/<forget|text|image>/step_<n>`, the mean
    activation of a gate over the rows of rank 0.

    A step whose rows are all bad, on all ranks, leaves weights and optimiser as they are. Training begins in training mode,
    also with a retriever from `from_pretrained`, which is in eval mode.

    Args:
        retriever: the model.
        loss: of a batch of pairs; any `RetrievalLoss`.
        optimizer: makes an optimiser from parameter groups.
        scheduler: of the learning rate, by step.
        backbone_learning_rate_scale: factor of the learning rate for trained backbones; pretrained ones want less than
            the new layers.
        on_nonfinite: what to do where a loss or a gradient is infinite or NaN: `stop` with an error, or `skip` the
            optimiser step and count it (`train/skipped_steps`), until SKIPPED_IN_A_ROW have been.
        micro_batch: most pairs whose activations are in memory at a time (gradient caching, see `models.gradient_cache`), for
            batches beyond memory; None: the whole batch at once.

    Raises:
        ConfigError: if `micro_batch` is below 1.
    """

    def __init__(
        self,
        retriever: RetRetriever,
        loss: RetrievalLoss,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        scheduler: WarmupCosine,
        backbone_learning_rate_scale: float = 0.1,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        micro_batch: int | None = None,
    ) -> None:
        super().__init__(retriever)
        if micro_batch is not None and micro_batch < 1:
            raise ConfigError(
                f"micro_batch={micro_batch} must be at least 1; null encodes the batch at once",
                code="micro-batch-too-small",
                key="micro_batch",
                found=micro_batch,
            )
        self.loss = loss
        self.make_optimizer = optimizer
        self.schedule = scheduler
        self.backbone_learning_rate_scale = backbone_learning_rate_scale
        self.on_nonfinite = on_nonfinite
        self.micro_batch = micro_batch
        self.skipped_steps = 0
        self._skipped_in_a_row = 0
        self._resumed_step = 0
        self._epoch_steps: EpochSteps | None = None  # None: each step counts as one
        self._pairs = 0  # of this step, which may be of several batches

    def configure_callbacks(self) -> list[Callback]:
        """Counts rows that are left out and texts that are cut; resumes an epoch at its position."""
        return [BadRowCount(), TextLengths(), ResumedEpoch()]

    def on_fit_start(self) -> None:
        """Sets training mode: Lightning trains a module in the mode that it is in, so without dropout in eval mode."""
        self.train()

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """The loss of this rank's share of a batch."""
        logs = self._logs_this_step()
        means = (ActivationMeans(), ActivationMeans()) if logs else (None, None)
        vectors = encode_in_micro_batches(self.retriever, batch.queries, batch.passages, self.micro_batch, *means)
        encoded = EncodedBatch(*vectors, batch.labels, batch.passage_labels, batch.passage_rows, batch.extra)
        if self.on_nonfinite == "stop":
            encoded.check_finite()
        output = self.loss(encoded)
        self._pairs += output.pairs
        rows = max(len(batch), 1)  # a weight that Lightning divides by
        if logs:
            values = {"loss": output.loss.detach(), **output.metrics}
            # Each rank's value is scaled so that the mean over ranks is that of the global batch.
            self.log_dict({f"train/{name}": v for name, v in values.items()}, sync_dist=True, batch_size=rows)
            self.log("loss", output.loss.detach(), prog_bar=True, logger=False, batch_size=rows)
            self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"], batch_size=rows)
            for side, mean in zip(("query", "passage"), means, strict=True):
                gates = {f"gate/{side}/{name}/step_{step:02d}": v for (step, name), v in mean.means().items()}
                self.log_dict(gates, rank_zero_only=True, batch_size=rows)
        return output.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Looks at the norm of all gradients before they are clipped: logs it, and stops or skips where it is not finite.

        Gradients are the same on all ranks by now, so all decide alike.

        Raises:
            UserError: where it is not finite and `on_nonfinite` says stop, or too many steps in a row were skipped.
        """
        pairs, self._pairs = self._pairs, 0
        if pairs == 0:
            self._leave_out_step()
            return
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._logs_this_step():
            self.log("train/gradient_norm", norm)
            if self.on_nonfinite == "skip":
                self.log("train/skipped_steps", float(self.skipped_steps))
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return  # in float16 gradients overflow now and then, which the scaler finds out and sees to
        if torch.isfinite(norm):
            self._skipped_in_a_row = 0
            return
        where = f"the gradient of step {self.global_step + 1} is not finite: {NONFINITE_REMEDY}"
        if self.on_nonfinite == "stop":
            raise UserError(
                f"{where}; on_nonfinite=skip leaves such steps out",
                code="gradient-not-finite",
                step=self.global_step + 1,
                found=float(norm),
            )
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        log.warning("%s; the step is skipped, number %d in this run", where.split(":")[0], self.skipped_steps)
        if self._skipped_in_a_row == SKIPPED_IN_A_ROW:
            raise UserError(
                f"{where}; {SKIPPED_IN_A_ROW} steps in a row were skipped",
                code="too-many-skipped-steps",
                step=self.global_step + 1,
                skipped=self.skipped_steps,
            )
        self._leave_out_step()

    def _leave_out_step(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None  # an optimiser passes over parameters without a gradient

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores which weights are frozen, how many steps were skipped, and how steps count towards the horizon."""
        checkpoint["skipped_steps"] = self.skipped_steps
        if self._epoch_steps is not None:
            checkpoint[EPOCH_STEPS] = asdict(self._epoch_steps)
        # By all names of tied weights, as state_dict has them.
        checkpoint[FROZEN] = [n for n, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counts."""
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        self._resumed_step = checkpoint.get("global_step", 0)
        self._epoch_steps = EpochSteps(**checkpoint[EPOCH_STEPS]) if EPOCH_STEPS in checkpoint else None

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimiser over `parameter_groups`, and the schedule, step by step."""
        optimizer = self.make_optimizer(parameter_groups(self))
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group.pop("learning_rate_scale")
        horizon, self._epoch_steps = lay_out(self.schedule, self.trainer, self._epoch_steps, self._resumed_step)
        self.schedule_horizon = horizon
        # A function, since LambdaLR stores the attributes of other callables and would restore those of the checkpoint.
        count = self._epoch_steps.count if self._epoch_steps else int
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.schedule.scale(count(step), horizon=horizon)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _logs_this_step(self) -> bool:
        # Lightning logs after the step; by then the count is one up.
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0


def parameter_groups(module: RetModule) -> list[dict[str, Any]]:
    """Trainable parameters in up to four groups: new layers or backbone, with weight decay or without.

    Decay is for the matrices of linear maps; biases, norms, embeddings and the start state are free of it. A group holds
    `params`, `name`, `learning_rate_scale` and, where there is no decay, `weight_decay`.
    """
    backbone = {id(p) for stack in module.modules() if isinstance(stack, BlockStack) for p in stack.parameters()}
    free = {id(p) for p in _free_of_decay(module)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in backbone, id(parameter) in free), []).append(parameter)
    return [
        {
            "params": parameters,
            "name": ("backbone" if is_backbone else "new") + ("_no_decay" if is_free else ""),
            "learning_rate_scale": module.backbone_learning_rate_scale if is_backbone else 1.0,
            **({"weight_decay": 0.0} if is_free else {}),
        }
        for (is_backbone, is_free), parameters in sorted(groups.items())
    ]


def _free_of_decay(module: nn.Module) -> Sequence[nn.Parameter]:
    embeddings = [p for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()]
    start_states = [p for name, p in module.named_parameters() if name.endswith("_tower.start")]
    return [*embeddings, *start_states, *(p for p in module.parameters() if p.ndim < 2)]
