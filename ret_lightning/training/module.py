"""LightningModule that trains a retriever."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
from lightning import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ret_lightning.data.batch import TrainingBatch
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.evaluation.encoding_module import EncodingModule
from ret_lightning.losses.base import NONFINITE_REMEDY, EncodedBatch, RetrievalLoss
from ret_lightning.models import ActivationMeans, BlockStack, RetRetriever
from ret_lightning.models.gradient_cache import encode_in_micro_batches
from ret_lightning.training.callbacks.bad_row_count import BadRowCount
from ret_lightning.training.callbacks.rng_states import seed_gpu
from ret_lightning.training.callbacks.text_lengths import TextLengths
from ret_lightning.training.checkpointing.checkpoint_io import FROZEN
from ret_lightning.training.epoch_steps import EpochSteps, resolve_horizon
from ret_lightning.training.fused_optimizer import (
    clip_unscaled_gradients,
    keep_implementation,
    select_fused,
    unscale_gradients,
)
from ret_lightning.training.resumed_epoch import ResumedEpoch
from ret_lightning.training.schedule import WarmupCosine

log = logging.getLogger(__name__)

EPOCH_STEPS = "epoch_steps"  # key of a checkpoint: the state of EpochSteps
MAX_CONSECUTIVE_SKIPS = 10  # consecutive steps without a finite gradient before the run stops


class RetModule(EncodingModule):
    """Trains a retriever on pairs, and encodes the rows of evaluation loaders.

    Logs every `log_every_n_steps`: `train/loss`, the metrics of the loss as `train/<name>` (see `ContrastiveLoss`),
    `train/learning_rate`, `train/gradient_norm` (before clipping), and `gate/<side>/<forget|text|image>/step_<n>`, the
    mean gate activations over the rows of rank 0.

    A step is skipped if all of its rows are bad on all ranks. Training starts in training mode, also with a retriever
    from `from_pretrained`, which is in eval mode.

    Args:
        retriever: the model.
        loss: the loss of a batch of pairs.
        optimizer: function from parameter groups to an optimizer. A `functools.partial` of an optimizer of PyTorch without
            `fused` uses its fused implementation if all parameters are on a GPU.
        scheduler: the learning rate schedule, per step.
        backbone_learning_rate_scale: factor of the learning rate of trained backbones; pretrained backbones need a
            lower learning rate than the new layers.
        on_nonfinite: what to do if a loss or a gradient is not finite: `stop` raises an error, `skip` skips the
            optimizer step and counts it in `train/skipped_steps`, up to MAX_CONSECUTIVE_SKIPS consecutive steps.
        micro_batch: maximum number of pairs whose activations are in memory at a time (gradient caching, see
            `models.gradient_cache`), for batches that do not fit into memory; None encodes the whole batch at once.

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
                f"micro_batch={micro_batch}: expected at least 1, or null to encode the whole batch at once",
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
        self._consecutive_skips = 0
        self._resumed_step = 0
        self._epoch_steps: EpochSteps | None = None  # None: each step counts as one
        self._pairs = 0  # of the current step, over all accumulated batches

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks that count bad rows and truncated texts, and resume an epoch at its position."""
        return [BadRowCount(), TextLengths(), ResumedEpoch()]

    def on_fit_start(self) -> None:
        """Set training mode; Lightning keeps the mode of a module, so a model in eval mode would train without dropout."""
        self.train()

    def on_train_start(self) -> None:
        """Seed the GPU of this rank; a resumed run restores its state at the first batch."""
        seed_gpu(self.device, self.global_rank)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Return the loss of this rank's part of a batch."""
        logs = self._is_logging_step()
        means = (ActivationMeans(), ActivationMeans()) if logs else (None, None)
        vectors = encode_in_micro_batches(self.retriever, batch.queries, batch.passages, self.micro_batch, *means)
        encoded = EncodedBatch(*vectors, batch.labels, batch.passage_labels, batch.passage_rows, batch.extra)
        if self.on_nonfinite == "stop":
            encoded.check_finite()
        output = self.loss(encoded)
        self._pairs += output.pairs
        rows = max(len(batch), 1)  # Lightning divides by this weight
        if logs:
            values = {"loss": output.loss.detach(), **output.metrics}
            # The values are scaled so that their mean over the ranks is the value of the global batch.
            self.log_dict({f"train/{name}": v for name, v in values.items()}, sync_dist=True, batch_size=rows)
            self.log("loss", output.loss.detach(), prog_bar=True, logger=False, batch_size=rows)
            self.log("train/learning_rate", cast(Any, self.optimizers()).param_groups[0]["lr"], batch_size=rows)
            for side, mean in zip(("query", "passage"), means, strict=True):
                assert mean is not None
                gates = {f"gate/{side}/{name}/step_{step:02d}": v for (step, name), v in mean.means().items()}
                self.log_dict(gates, rank_zero_only=True, batch_size=rows)
        return output.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Compute and log the gradient norm before clipping; stop or skip the step if it is not finite.

        Gradients are already reduced, so all ranks take the same decision.

        Raises:
            UserError: if the norm is not finite and `on_nonfinite` is `stop`, or too many consecutive steps were
                skipped.
        """
        unscale_gradients(self.trainer.precision_plugin, optimizer)
        pairs, self._pairs = self._pairs, 0
        if pairs == 0:
            self._skip_step()
            return
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._is_logging_step():
            self.log("train/gradient_norm", norm)
            if self.on_nonfinite == "skip":
                self.log("train/skipped_steps", float(self.skipped_steps))
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return  # float16 gradients overflow occasionally; the gradient scaler handles this
        if torch.isfinite(norm):
            self._consecutive_skips = 0
            return
        problem = f"non-finite gradient at step {self.global_step + 1}"
        if self.on_nonfinite == "stop":
            raise UserError(
                f"{problem}: {NONFINITE_REMEDY}; on_nonfinite=skip skips such steps",
                code="gradient-not-finite",
                step=self.global_step + 1,
                found=float(norm),
            )
        self.skipped_steps += 1
        self._consecutive_skips += 1
        log.warning("%s: step skipped (%d skipped in this run)", problem, self.skipped_steps)
        if self._consecutive_skips == MAX_CONSECUTIVE_SKIPS:
            raise UserError(
                f"{problem}: {MAX_CONSECUTIVE_SKIPS} consecutive steps skipped; {NONFINITE_REMEDY}",
                code="too-many-skipped-steps",
                step=self.global_step + 1,
                skipped=self.skipped_steps,
            )
        self._skip_step()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients as Lightning does, also for fused optimizers under mixed precision, which Lightning rejects."""
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision):
            clip_unscaled_gradients(plugin, optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _skip_step(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None  # optimizers skip parameters without a gradient

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the names of frozen weights, the number of skipped steps, and the step counter of the schedule."""
        checkpoint["skipped_steps"] = self.skipped_steps
        if self._epoch_steps is not None:
            checkpoint[EPOCH_STEPS] = asdict(self._epoch_steps)
        # All names of tied weights, as in state_dict.
        checkpoint[FROZEN] = [n for n, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the number of skipped steps, the step, and the step counter of the schedule."""
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        self._resumed_step = checkpoint.get("global_step", 0)
        self._epoch_steps = EpochSteps(**checkpoint[EPOCH_STEPS]) if EPOCH_STEPS in checkpoint else None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer over `build_parameter_groups`, and the learning rate schedule, which is updated per step."""
        groups = build_parameter_groups(self)
        make_optimizer = select_fused(self.make_optimizer, (p for group in groups for p in group["params"]))
        optimizer = make_optimizer(groups)
        keep_implementation(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group.pop("learning_rate_scale")
        horizon, self._epoch_steps = resolve_horizon(self.schedule, self.trainer, self._epoch_steps, self._resumed_step)
        self.schedule_horizon = horizon
        # A lambda: LambdaLR would store the attributes of a callable object and restore outdated ones.
        count = self._epoch_steps.count if self._epoch_steps else int
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.schedule.compute_scale(count(step), horizon=horizon)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _is_logging_step(self) -> bool:
        # Lightning logs after the step, when global_step is one higher.
        return (self.global_step + 1) % cast(Any, self.trainer).log_every_n_steps == 0


def build_parameter_groups(module: RetModule) -> list[dict[str, Any]]:
    """Split the trainable parameters into up to four groups: new layers or backbone, with or without weight decay.

    Weight decay applies to the weight matrices of linear layers; biases, norms, embeddings and the start state have
    none.

    Args:
        module: the module to optimize.

    Returns:
        Groups with `params`, `name`, `learning_rate_scale` and, for parameters without decay, `weight_decay`.
    """
    backbone = {id(p) for stack in module.modules() if isinstance(stack, BlockStack) for p in stack.parameters()}
    undecayed = {id(p) for p in _list_undecayed_parameters(module)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in backbone, id(parameter) in undecayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "name": ("backbone" if is_backbone else "new") + ("_no_decay" if is_undecayed else ""),
            "learning_rate_scale": module.backbone_learning_rate_scale if is_backbone else 1.0,
            **({"weight_decay": 0.0} if is_undecayed else {}),
        }
        for (is_backbone, is_undecayed), parameters in sorted(groups.items())
    ]


def _list_undecayed_parameters(module: nn.Module) -> Sequence[nn.Parameter]:
    embeddings = [p for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()]
    start_states = [p for name, p in module.named_parameters() if name.endswith("_tower.start")]
    return [*embeddings, *start_states, *(p for p in module.parameters() if p.ndim < 2)]
