"""W ranks with batch size B produce the loss and gradients of one rank with W * B, under Lightning's DDP."""

from __future__ import annotations

import os
import socket
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from lightning import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from ret_lightning import RetModule
from ret_lightning.data.batch import TrainingBatch
from ret_lightning.distributed import SameConfigDDP
from ret_lightning.losses import PADDING, ContrastiveLoss
from ret_lightning.models import EncoderInput
from ret_lightning.training.schedule import WarmupCosine
from tests.support.tiny_models import batch, make

# Pairs per rank in the batch of each step. The second batch is uneven, one rank of the third has no pairs (all its rows
# were invalid), and the fourth is empty on every rank.
SHARES = {
    1: ([12], [7], [5], [0]),
    2: ([6, 6], [4, 3], [5, 0], [0, 0]),
    3: ([4, 4, 4], [3, 2, 2], [0, 3, 2], [0, 0, 0]),
}
STEPS = len(SHARES[1])
# Tolerances of the first step and of later steps. In float32, rounding of the updated weights increases the difference of
# later gradients; the float64 tolerance verifies that rounding is the only difference.
TOLERANCES = {torch.float32: (1e-5, 3e-5), torch.float64: (1e-11, 1e-11)}


@dataclass(frozen=True)
class Scenario:
    """Training settings whose result must not depend on the number of ranks."""

    name: str
    loss: dict
    trained: tuple[bool | int, bool | int] = (True, 2)
    negatives: bool = False
    accumulate: int = 1
    clip: float | None = None
    sharing: tuple[str, ...] = ()
    micro_batch: int | None = None


SCENARIOS = (
    Scenario("symmetric", {}),
    Scenario("one-way", {"symmetric": False}),
    Scenario("learned temperature", {"temperature": 0.5, "learn_temperature": True}, trained=(False, False)),
    Scenario("negatives", {"temperature": 0.3}, negatives=True),
    Scenario("micro-batches", {}, micro_batch=2),
    Scenario(
        "micro-batches, negatives, clipped", {}, micro_batch=3, negatives=True, clip=0.01, sharing=("share_towers",)
    ),
    Scenario("micro-batches, accumulated", {}, micro_batch=2, accumulate=2, trained=(False, True)),
)


def whole_batch(step: int) -> tuple[EncoderInput, EncoderInput, Tensor, EncoderInput, Tensor]:
    """Return the queries, positives, labels, negatives and negative labels of a step; some rows lack a modality."""
    count = sum(SHARES[1][step]) or 4  # an empty step uses none of these rows
    half = count // 2
    lacking = [1, 0] * (half // 2) + [1] * (count - half // 2 * 2)
    queries = batch([1] * half + [i % 2 for i in range(count - half)], lacking, seed=step)
    # The second half has no images, so the later ranks have none at all.
    passages = batch([1] * count, [1] * (half - 1) + [0] * (count - half + 1), length=5, seed=10 + step)
    labels = torch.full((count, 3), PADDING)
    labels[:, 0] = torch.arange(count) % (count - 2)  # two passages occur twice, on different ranks
    labels[: half + 1, 1] = torch.arange(half + 1) + 2  # rows of later ranks have one label each
    labels[1:3, 2] = torch.arange(2) + half
    negatives = batch([1] * count, [0, 1] * (count // 2) + [0] * (count % 2), length=6, seed=20 + step)
    return queries, passages, labels, negatives, torch.arange(count) + 3  # some negatives are positives of other rows


def rank_batch(step: int, rank: int, world: int, negatives: bool, dtype: torch.dtype) -> TrainingBatch:
    shares = SHARES[world][step]
    start, stop = sum(shares[:rank]), sum(shares[: rank + 1])
    queries, passages, labels, others, other_labels = whole_batch(step)
    queries, passages, others = (
        replace(rows, pixel_values=rows.pixel_values.to(dtype)) for rows in (queries, passages, others)
    )
    labels = labels[start:stop]
    labels = labels[:, : max(1, int((labels != PADDING).any(dim=0).sum()))]  # without unused label columns
    own, own_labels, rows = passages.slice(start, stop), labels[:, 0], torch.arange(stop - start)
    if negatives:
        own = joined(own, others.slice(start, stop))
        own_labels = torch.cat([own_labels, other_labels[start:stop]])
        rows = rows.repeat(2)
    return TrainingBatch(queries.slice(start, stop), own, labels, own_labels, rows, ("x",) * (stop - start))


def joined(one: EncoderInput, other: EncoderInput) -> EncoderInput:
    """Concatenate the rows of two inputs."""
    longer = max(one.input_ids.shape[1], other.input_ids.shape[1])

    def padded(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, longer - tensor.shape[1]))

    return EncoderInput(
        torch.cat([padded(one.input_ids), padded(other.input_ids)]),
        torch.cat([padded(one.attention_mask), padded(other.attention_mask)]),
        torch.cat([one.pixel_values, other.pixel_values]),
        torch.cat([one.text_rows, other.text_rows + len(one)]),
        torch.cat([one.image_rows, other.image_rows + len(one)]),
    )


class Recorder(Callback):
    """Records the gradients before each optimizer step and the losses of this rank."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        # Before clipping, whose effect is visible in the gradients of the next step.
        self.steps.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.requires_grad})


def train(scenario: Scenario, dtype: torch.dtype, rank: int, world: int) -> dict:
    torch.manual_seed(0)
    sharing = dict.fromkeys(scenario.sharing, True)
    retriever = make("lstm", sharing, scenario.trained, dropout=0.0, attention_dropout=0.0)
    optimizer = partial(torch.optim.SGD, lr=0.5)
    module = RetModule(
        retriever,
        ContrastiveLoss(**scenario.loss),
        optimizer,
        WarmupCosine(warmup_steps=0),
        1.0,
        micro_batch=scenario.micro_batch,
    )
    module.to(dtype)
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy=SameConfigDDP("") if world > 1 else "auto", max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, barebones=False,
        use_distributed_sampler=False, accumulate_grad_batches=scenario.accumulate, gradient_clip_val=scenario.clip,
        callbacks=[recorder],
    )  # fmt: skip
    batches = [rank_batch(step, rank, world, scenario.negatives, dtype) for step in range(STEPS)]
    trainer.fit(module, DataLoader(batches, batch_size=None))
    weights = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    return {"losses": recorder.losses, "gradients": recorder.steps, "weights": weights}


def _rank(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    for scenario in SCENARIOS:
        for dtype in TOLERANCES:
            torch.save(train(scenario, dtype, rank, world), Path(folder) / f"{scenario.name}_{dtype}_{rank}.pt")


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Run all scenarios in several processes, and return their number and the folder of their results."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, args=(request.param, port, str(folder)), nprocs=request.param)
    return request.param, folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_ranks_match_one_rank(ranks: tuple[int, Path], scenario: Scenario, dtype: torch.dtype) -> None:
    world, folder = ranks
    alone = train(scenario, dtype, 0, 1)
    found = [torch.load(folder / f"{scenario.name}_{dtype}_{rank}.pt", weights_only=True) for rank in range(world)]
    first, later = TOLERANCES[dtype]
    for step, loss in enumerate(alone["losses"]):
        assert sum(part["losses"][step] for part in found) / world == pytest.approx(loss, rel=first)
    assert alone["losses"][-1] == 0
    assert len(alone["gradients"]) == STEPS // scenario.accumulate
    for part in found:
        for step, (theirs, ours) in enumerate(zip(alone["gradients"], part["gradients"], strict=True)):
            assert_close(ours, theirs, later if step else first)
        assert_close(part["weights"], alone["weights"], later)
        assert all(torch.equal(part["weights"][name], value) for name, value in found[0]["weights"].items())


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # The bias of the keys shifts all logits of a softmax equally, so its gradient is only rounding.
        if "k_proj.bias" not in name:
            assert (ours[name] - value).abs().max() <= tolerance * max(float(value.abs().max()), 1e-3), name
