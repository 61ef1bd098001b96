"""RetModule in a real Trainer: optimization, logging and reproducibility."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from ret_lightning import RetModule
from ret_lightning.errors import ConfigError
from ret_lightning.losses import EncodedBatch
from ret_lightning.training.callbacks.throughput import Throughput
from ret_lightning.training.module import build_parameter_groups
from ret_lightning.training.schedule import WarmupCosine
from tests.support.tiny_training import fit, make_data, make_module


def test_parameter_groups_partition_trainable_parameters() -> None:
    module = make_module()
    groups = {group["name"]: group for group in build_parameter_groups(module)}
    assert set(groups) == {"new", "new_no_decay", "backbone", "backbone_no_decay"}
    grouped = [p for group in groups.values() for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in module.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})
    names = {id(p): name for name, p in module.named_parameters()}
    undecayed = {names[id(p)] for g in groups.values() if g.get("weight_decay") == 0.0 for p in g["params"]}
    assert "retriever.query_tower.start" in undecayed
    assert any("token_embedding" in name for name in undecayed)
    decayed = {names[id(p)] for g in groups.values() if "weight_decay" not in g for p in g["params"]}
    assert all("norm" not in name and not name.endswith("bias") for name in decayed)
    assert any("gate.text_input.weight" in name for name in decayed)
    assert all("_backbone." in names[id(p)] for p in groups["backbone"]["params"])
    assert {g["learning_rate_scale"] for n, g in groups.items() if n.startswith("new")} == {1.0}


def test_frozen_backbones_are_left_out(root: Path) -> None:
    module = make_module(train_backbones=False)
    assert {group["name"] for group in build_parameter_groups(module)} == {"new", "new_no_decay"}
    before = {n: p.clone() for n, p in module.named_parameters()}
    fit(root, module, max_epochs=1)
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in module.named_parameters() if p.requires_grad}


def test_training_lowers_the_loss_and_logs_metrics(root: Path, tmp_path: Path) -> None:
    module = make_module(backbone_learning_rate_scale=0.5)
    logger = CSVLogger(tmp_path / "logs", name="csv", version="")
    fit(
        root, module, max_epochs=12, logger=logger, log_every_n_steps=1, gradient_clip_val=1.0, callbacks=[Throughput()]
    )
    logs = pandas.read_csv(Path(logger.log_dir) / "metrics.csv")
    losses = logs["train/loss"].dropna()
    assert len(losses) == 12 * 3
    assert losses.tail(3).mean() < losses.head(3).mean() - 0.5
    halves = (logs["train/loss_query_to_passage"] + logs["train/loss_passage_to_query"]) / 2
    assert (halves - logs["train/loss"]).abs().max() < 1e-5
    for name in ("train/query_recall@1", "train/passage_recall@1"):
        assert logs[name].dropna().between(0, 1).all()
    assert logs["train/query_recall@1"].dropna().iloc[-1] > logs["train/query_recall@1"].dropna().iloc[0]
    assert (logs["train/gradient_norm"].dropna() > 0).all()
    assert (logs["train/samples_per_second"].dropna() > 0).all()
    rates = logs["train/learning_rate"].dropna().tolist()
    assert rates[:2] == pytest.approx([0.005, 0.01])
    assert rates[-1] < 1e-4
    for side in ("query", "passage"):
        for name in ("forget", "text", "image"):
            for step in range(2):
                assert logs[f"gate/{side}/{name}/step_{step:02d}"].dropna().between(0, 1).all()
    optimizer = module.trainer.optimizers[0]
    initial = {group["name"]: group["initial_lr"] for group in optimizer.param_groups}
    assert initial["new"] == pytest.approx(1e-2)
    assert initial["backbone"] == pytest.approx(5e-3)


def test_same_seed_gives_bitwise_equal_weights(root: Path) -> None:
    weights = []
    for _ in range(2):
        module = make_module()
        fit(root, module)
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_gradient_equals_that_of_the_written_out_loss(root: Path) -> None:
    """The gradient of a batch equals that of encoding each side separately and computing the loss from its definition."""
    module = make_module()
    data = make_data(root)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    query, passage = module.retriever(batch.queries, batch.passages)
    module.loss(EncodedBatch(query, passage, batch.labels, batch.passage_labels)).loss.backward()
    together = {n: p.grad.clone() for n, p in module.named_parameters() if p.requires_grad}
    module.zero_grad()
    normalise = torch.nn.functional.normalize
    query = normalise(module.retriever.query_tower(batch.queries), dim=-1)
    passage = normalise(module.retriever.passage_tower(batch.passages), dim=-1)
    scores = (query[:, None, :, None] * passage[None, :, None]).sum(-1).max(-1).values.sum(-1)
    positive = (batch.labels[:, :, None] == batch.passage_labels).any(1).float()
    targets, back_targets = (each / each.sum(1, keepdim=True) for each in (positive, positive.T))
    log_rows, log_columns = scores.log_softmax(1), scores.T.log_softmax(1)
    loss = -((targets * log_rows).sum(1).mean() + (back_targets * log_columns).sum(1).mean()) / 2
    loss.backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_micro_batches_match_full_batch_in_mixed_precision(root: Path) -> None:
    """With gradient clipping and accumulation."""

    def step(precision: str, micro_batch: int | None) -> torch.Tensor:
        """Return the change of one plain SGD step at rate 1: the clipped gradient of two batches."""
        module = make_module(backbone_learning_rate_scale=1.0)
        module.micro_batch = micro_batch
        module.make_optimizer = partial(torch.optim.SGD, lr=1.0)
        module.schedule = WarmupCosine(warmup_steps=0)
        before = parameters(module)
        options = {"precision": precision, "accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "max_steps": 1}
        fit(root, module, **options)
        return before - parameters(module)

    def parameters(module: RetModule) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    exact, full, micro = step("32-true", None), step("bf16-mixed", None), step("bf16-mixed", 3)
    assert exact.norm() == pytest.approx(0.1, rel=1e-4)
    assert micro.norm() == pytest.approx(0.1, rel=1e-4)
    rounding = (full - exact).norm()
    assert 1e-3 < rounding / exact.norm() < 0.5  # half precision changes the gradient, but only slightly
    assert (micro - exact).norm() < 3 * rounding


@pytest.mark.parametrize("size", [0, -1])
def test_micro_batch_below_one_is_refused(size: int) -> None:
    with pytest.raises(ConfigError) as caught:
        make_module(micro_batch=size)
    assert (caught.value.code, caught.value.key, caught.value.found) == ("micro-batch-too-small", "micro_batch", size)
