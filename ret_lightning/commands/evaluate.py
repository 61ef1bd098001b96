"""ret-evaluate: evaluate a trained model with the published protocol."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ret_lightning.commands.application import run
from ret_lightning.config.paths import make_paths_absolute
from ret_lightning.config.schema import EvaluateConfig
from ret_lightning.runs.resume.takeover import refuse_evaluated
from ret_lightning.runtime.lock import is_first_rank, refuse_locked
from ret_lightning.runtime.run_layout import EMBEDDINGS_FOLDER


def main() -> None:
    """Run the console script ret-evaluate."""
    run(_evaluate, config_name="evaluate", schema=EvaluateConfig, prog="ret-evaluate", before_run=_check_before_run)


def _check_before_run(config: DictConfig) -> None:
    """Raise an error if the devices or the folder do not allow the evaluation, before anything is written."""
    if config.trainer.get("accelerator") in ("gpu", "cuda"):
        from ret_lightning.runs.early_checks import check_devices  # imports torch

        check_devices(config.trainer)
    try:
        folder = Path(str(config.output_dir)).expanduser().absolute()
    except OmegaConfBaseException:  # refers to settings of a job that are not known yet
        return
    if is_first_rank() and not (folder / EMBEDDINGS_FOLDER).exists():  # an evaluation with embeddings may be resumed
        refuse_locked(folder)
        refuse_evaluated(folder)


def _evaluate(config: DictConfig) -> None:
    # Imported here so that --help and config problems do not load torch.
    from hydra.core.hydra_config import HydraConfig

    from ret_lightning.runs.evaluation_run import run_evaluation

    make_paths_absolute(config)
    config.output_dir = HydraConfig.get().runtime.output_dir  # in a sweep, the folder of the job
    run_evaluation(config)


if __name__ == "__main__":
    main()
