"""ret-train: trains a retriever as its config says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ret_lightning.commands.application import run
from ret_lightning.config.paths import make_paths_absolute
from ret_lightning.config.schema import TrainConfig
from ret_lightning.config.sweeping import PlannedJob, is_grid
from ret_lightning.errors import UserError
from ret_lightning.runs.resume.resumed_config import refuse_finished, resumed_base
from ret_lightning.runs.resume.takeover import refuse_taken
from ret_lightning.runtime.lock import is_first_rank, refuse_locked

log = logging.getLogger(__name__)


def main() -> None:
    """The console script."""
    run(
        _train,
        config_name="train",
        schema=TrainConfig,
        prog="ret-train",
        choose=_missing,
        base=resumed_base,
        ready=_refuse,
    )


def _missing(jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Of a sweep's jobs those that are not finished; none in a dry run, which lists them."""
    from ret_lightning.runs.sweep_plan import describe_plans, plan_jobs

    plans = plan_jobs(jobs)
    if jobs[0].config.dry_run:
        from ret_lightning.report.sweep_table import print_plans

        if not print_plans(plans):
            raise UserError("not every model can be built, see the table", code="dry-run-unbuildable")
        return []
    log.info(describe_plans(plans))
    if all(each.state == "finished" for each in plans):
        log.info("nothing is left to do; ret-report runs=%s compares the runs", jobs[0].folder.parent)
    return [each.job for each in plans if each.state != "finished"]


def _refuse(config: DictConfig) -> None:
    """Raise what refuses a run because of its devices or its folder, before anything is written."""
    make_paths_absolute(config)
    if config.trainer.get("accelerator") in ("gpu", "cuda"):
        from ret_lightning.runs.early_checks import check_devices  # imports torch

        check_devices(config.trainer)
    if not is_first_rank():  # under SLURM the first one may have begun
        return
    resumed = config.resume not in (None, "auto")
    try:
        folder = Path(str(config.resume if resumed else config.output_dir)).expanduser().absolute()
    except OmegaConfBaseException:  # it refers to what Hydra knows of a job
        return
    refuse_locked(folder)
    if resumed:
        refuse_finished(folder, config)
    elif config.resume is None:
        refuse_taken(folder)


def _train(config: DictConfig) -> float | None:
    # Imported here: --help and a misspelt option answer without torch.
    from hydra.core.hydra_config import HydraConfig

    from ret_lightning.runs.training_run import best_validation, run_training

    make_paths_absolute(config)
    hydra = HydraConfig.get()
    resume, config.resume = config.resume, None
    if resume not in (None, "auto"):  # the config is that of the folder, see `resumed_base`
        run_training(config, resume=True)
        return None
    # In a sweep the folder is the one that Hydra made, whatever the time is by now.
    config.output_dir = hydra.runtime.output_dir
    if hydra.mode == RunMode.MULTIRUN:
        config.sweep = Path(hydra.sweep.dir).name
        resume = "auto"  # the same command again continues what was interrupted
    if resume is None:
        run_training(config)
        return None
    from ret_lightning.runs.resume.same_run import same_run
    from ret_lightning.runtime.run_layout import METRICS_FILE

    folder = Path(config.output_dir)
    unfinished = same_run(folder, config)
    if (folder / METRICS_FILE).exists():
        log.info("%s: the run is finished already", folder)
    else:
        run_training(config, resume=unfinished)
    searched = hydra.mode == RunMode.MULTIRUN and not is_grid(hydra)
    return best_validation(folder) if searched else None


if __name__ == "__main__":
    main()
