"""ret-train: train and evaluate a retriever."""

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
    """Run the console script ret-train."""
    run(
        _train,
        config_name="train",
        schema=TrainConfig,
        prog="ret-train",
        choose=_choose_unfinished,
        base=resumed_base,
        before_run=_check_before_run,
    )


def _choose_unfinished(jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Return the jobs of a sweep that are not finished; in a dry run, print all jobs and return none."""
    from ret_lightning.runs.sweep_plan import describe_plans, plan_jobs

    plans = plan_jobs(jobs)
    if jobs[0].config.dry_run:
        from ret_lightning.report.sweep_table import print_plans

        if not print_plans(plans):
            raise UserError(
                "dry_run=true: some models cannot be built; fix the settings whose errors the table lists",
                code="dry-run-unbuildable",
            )
        return []
    log.info(describe_plans(plans))
    if all(each.state == "finished" for each in plans):
        log.info("all jobs are finished; to compare the runs: ret-report runs=%s", jobs[0].folder.parent)
    return [each.job for each in plans if each.state != "finished"]


def _check_before_run(config: DictConfig) -> None:
    """Raise an error if the devices or the folder do not allow the run, before anything is written.

    Makes the paths of `config` absolute, in place.
    """
    make_paths_absolute(config)
    if config.trainer.get("accelerator") in ("gpu", "cuda"):
        from ret_lightning.runs.early_checks import check_devices  # imports torch

        check_devices(config.trainer)
    if not is_first_rank():  # under SLURM the first rank may have started writing
        return
    resumed = config.resume not in (None, "auto")
    try:
        folder = Path(str(config.resume if resumed else config.output_dir)).expanduser().absolute()
    except OmegaConfBaseException:  # refers to settings of a job that are not known yet
        return
    refuse_locked(folder)
    if resumed:
        refuse_finished(folder, config)
    elif config.resume is None:
        refuse_taken(folder)


def _train(config: DictConfig) -> float | None:
    # Imported here so that --help and config problems do not load torch.
    from hydra.core.hydra_config import HydraConfig

    from ret_lightning.runs.training_run import best_validation, run_training

    make_paths_absolute(config)
    hydra = HydraConfig.get()
    resume, config.resume = config.resume, None
    if resume not in (None, "auto"):  # the config is loaded from the folder by `resumed_base`
        run_training(config, resume=True)
        return None
    # The folder that Hydra created; a time stamp in output_dir would resolve to another one now.
    config.output_dir = hydra.runtime.output_dir
    if hydra.mode == RunMode.MULTIRUN:
        config.sweep = Path(hydra.sweep.dir).name
        resume = "auto"  # the same command resumes interrupted runs
    if resume is None:
        run_training(config)
        return None
    from ret_lightning.runs.resume.same_run import holds_same_run
    from ret_lightning.runtime.run_layout import METRICS_FILE

    folder = Path(config.output_dir)
    is_unfinished = holds_same_run(folder, config)
    if (folder / METRICS_FILE).exists():
        log.info("%s: the run is already finished", folder)
    else:
        run_training(config, resume=is_unfinished)
    needs_score = hydra.mode == RunMode.MULTIRUN and not is_grid(hydra)
    return best_validation(folder) if needs_score else None


if __name__ == "__main__":
    main()
