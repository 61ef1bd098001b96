"""ret-train: trains a retriever as its config says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.types import RunMode
from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.schema import TrainConfig
from ret_lightning.config.sweeping import BASIC_SWEEPER, PlannedJob
from ret_lightning.errors import ConfigError, UserError

log = logging.getLogger(__name__)


def main() -> None:
    """The console script."""
    run(_train, config_name="train", schema=TrainConfig, prog="ret-train", choose=_missing)


def _missing(jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Of a sweep's jobs those that are not finished; none in a dry run, which shows them."""
    from ret_lightning.training.planning import plan, told

    plans = plan(jobs)
    if jobs[0].config.dry_run:
        from ret_lightning.report.planned import show

        if not show(plans):
            raise UserError("not every model can be built, see the table")
        return []
    log.info(told(plans))
    if all(each.state == "finished" for each in plans):
        log.info("nothing is left to do; ret-report runs=%s compares the runs", jobs[0].folder.parent)
    return [each.job for each in plans if each.state != "finished"]


def _train(config: DictConfig) -> float | None:
    # Imported here: --help and a misspelt option answer without torch.
    from hydra.core.hydra_config import HydraConfig

    from ret_lightning.training.run import best_validation, train

    # In a sweep, and in a second process of DDP, the folder is the one that Hydra made, whatever the time is by now.
    hydra = HydraConfig.get()
    config.output_dir = hydra.runtime.output_dir
    resume, config.resume = config.resume, None
    if hydra.mode == RunMode.MULTIRUN:
        config.sweep = Path(hydra.sweep.dir).name
        resume = resume or "auto"  # the same command again goes on with what was cut off
    searched = hydra.mode == RunMode.MULTIRUN and hydra.sweeper._target_ != BASIC_SWEEPER
    if resume is None:
        train(config)
        return None
    from ret_lightning.training.folder import METRICS_FILE
    from ret_lightning.training.resumption import resumed_config, same_run

    folder = Path(config.output_dir)
    if resume == "auto":
        unfinished = same_run(folder, config)
        if (folder / METRICS_FILE).exists():
            log.info("%s: the run is finished already", folder)
        else:
            train(config, resume=unfinished)
        return best_validation(folder) if searched else None
    if folder != Path(resume).absolute():
        raise ConfigError(
            f"resume={resume} names the run folder, output_dir={folder} another one; leave output_dir out"
        )
    train(resumed_config(folder, hydra.overrides.task), resume=True)
    return None


if __name__ == "__main__":
    main()
