"""ret-evaluate: the published evaluation of a trained model."""

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
    """The console script."""
    run(_evaluate, config_name="evaluate", schema=EvaluateConfig, prog="ret-evaluate", ready=_refuse)


def _refuse(config: DictConfig) -> None:
    """Raise what refuses an evaluation because of its devices or its folder, before anything is written."""
    if config.trainer.get("accelerator") in ("gpu", "cuda"):
        from ret_lightning.runs.early_checks import check_devices  # imports torch

        check_devices(config.trainer)
    try:
        folder = Path(str(config.output_dir)).expanduser().absolute()
    except OmegaConfBaseException:  # it refers to what Hydra knows of a job
        return
    if is_first_rank() and not (folder / EMBEDDINGS_FOLDER).exists():  # those may be continued, or left over
        refuse_locked(folder)
        refuse_evaluated(folder)


def _evaluate(config: DictConfig) -> None:
    # Imported here: --help and a misspelt option answer without torch.
    from hydra.core.hydra_config import HydraConfig

    from ret_lightning.runs.evaluation_run import run_evaluation

    make_paths_absolute(config)
    config.output_dir = HydraConfig.get().runtime.output_dir  # of a sweep's job its own
    run_evaluation(config)


if __name__ == "__main__":
    main()
