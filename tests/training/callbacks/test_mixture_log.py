"""Logged shares of the subsets, and training on streamed rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pandas
import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from ret_lightning.errors import ConfigError
from ret_lightning.training.callbacks.mixture_log import MixtureLog
from ret_lightning.training.checkpointing.last_checkpoint import LastCheckpoint
from ret_lightning.training.schedule import WarmupCosine
from tests.support.ranks import on_ranks
from tests.support.tiny_training import OPTIONS, make_data, make_module


def fit(
    root: Path,
    schedule: WarmupCosine | None = None,
    reading: str = "streaming",
    data: dict | None = None,
    checkpoint: Path | None = None,
    **options,
):
    seed_everything(1, verbose=False)
    module = make_module()
    module.schedule = schedule or WarmupCosine(horizon_steps=100)
    trainer = Trainer(**{**OPTIONS, "logger": False, "limit_val_batches": 0, "max_epochs": 2, **options})
    trainer.fit(module, datamodule=make_data(root, reading=reading, **(data or {})), ckpt_path=checkpoint)
    return module, trainer


@pytest.mark.parametrize("reading", ["indexed", "streaming"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_logged_shares_match_training_rows(root: Path, tmp_path: Path, reading: str, accumulate: int) -> None:
    logger = CSVLogger(tmp_path / "logs", name="csv", version="")
    data = {"repeat": {"okvqa": 3, "wit": 0}, "batch_size": 4}
    _, trainer = fit(
        root, reading=reading, data=data, logger=logger, callbacks=[MixtureLog()], max_epochs=3, log_every_n_steps=2,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    logs = pandas.read_csv(Path(logger.log_dir) / "metrics.csv")
    shares = logs[[name for name in logs if name.startswith("mixture/")]].dropna(how="all").fillna(0)
    assert set(shares) == {"mixture/okvqa", "mixture/evqa", "mixture/infoseek"}
    assert len(shares) == trainer.global_step // 2
    assert shares.sum(axis=1).tolist() == pytest.approx([1.0] * len(shares))
    rows = Counter(
        json.loads(line)["data_id"].split("_")[0].lower()
        for line in (root / "jsonl/m2kr/train/m2kr_up_train.jsonl").open()
    )
    assert rows == {"okvqa": 6, "wit": 6, "infoseek": 6, "evqa": 6}
    # Each epoch has 18 rows of OK-VQA and 6 of each other subset; the logs cover all but the last odd step.
    assert shares["mixture/okvqa"].mean() == pytest.approx(0.6, abs=0.1)


def test_resumed_run_logs_the_same_shares(root: Path, tmp_path: Path) -> None:
    def shares(name: str) -> list[dict[str, float]]:
        logs = pandas.read_csv(tmp_path / name / "csv" / "metrics.csv").set_index("step").filter(like="mixture/")
        return logs.dropna(how="all").reset_index().to_dict("records")

    def options(name: str) -> dict:
        logger = CSVLogger(tmp_path / name, name="csv", version="")
        callbacks = [MixtureLog(), LastCheckpoint(str(tmp_path / name), every_n_steps=3)]
        steps = {"log_every_n_steps": 2, "enable_checkpointing": True}
        return {"logger": logger, "callbacks": callbacks, "data": {"batch_size": 4}, **steps}

    fit(root, reading="indexed", **options("whole"))
    fit(root, reading="indexed", max_steps=3, **options("first"))
    fit(root, reading="indexed", checkpoint=tmp_path / "first" / "last.ckpt", **options("second"))
    assert [row["step"] for row in shares("second")] == [3, 5, 7, 9, 11]
    assert shares("first") + shares("second") == shares("whole")


def test_shares_cover_all_ranks(root: Path, tmp_path: Path) -> None:
    _, trainer = fit(
        root, data={"batch_size": 24}, max_steps=1, log_every_n_steps=1, callbacks=[callback := MixtureLog()]
    )
    assert callback._rows == Counter()
    assert trainer.logged_metrics["mixture/wit"] == pytest.approx(0.25)
    assert {tuple(sorted(counts.items())) for counts in on_ranks(_count, 2, tmp_path)} == {(("okvqa", 1), ("wit", 5))}


def _count(rank: int) -> dict[str, int]:
    from ret_lightning.training.callbacks.mixture_log import _sum_over_ranks

    return dict(_sum_over_ranks(Counter({"wit": 2 + rank}) if rank else Counter({"wit": 2, "okvqa": 1})))


def test_streamed_training_stops_at_its_limit(root: Path) -> None:
    _, trainer = fit(root, max_epochs=3)
    assert (trainer.global_step, trainer.num_training_batches) == (9, float("inf"))
    _, trainer = fit(root, max_epochs=-1, max_steps=5)
    assert trainer.global_step == 5
    module, trainer = fit(
        root, schedule=WarmupCosine(), max_epochs=-1, max_steps=5
    )  # the cosine ends where training does
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)
    again, _ = fit(root, schedule=WarmupCosine(), max_epochs=-1, max_steps=5)
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), again.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("schedule", "code"),
    [
        (WarmupCosine(), "schedule-without-end"),
        (WarmupCosine(horizon_epochs=2), "schedule-epochs-unknown"),
    ],
)
def test_schedule_without_known_end_is_refused(root: Path, schedule: WarmupCosine, code: str) -> None:
    with pytest.raises(ConfigError) as error:
        fit(root, schedule=schedule)
    assert error.value.code == code
    assert "data.reading=streaming" in error.value.message
    assert "scheduler.horizon_steps" in error.value.message
