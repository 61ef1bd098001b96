"""ret-evaluate: the published evaluation of a trained model."""

from __future__ import annotations

from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.schema import EvaluateConfig


def main() -> None:
    """The console script."""
    run(_evaluate, config_name="evaluate", schema=EvaluateConfig, prog="ret-evaluate")


def _evaluate(config: DictConfig) -> None:
    # Imported here: --help and a misspelt option answer without torch.
    from hydra.core.hydra_config import HydraConfig

    from ret_lightning.training.standalone import evaluate

    config.output_dir = HydraConfig.get().runtime.output_dir  # of a sweep's job its own
    evaluate(config)


if __name__ == "__main__":
    main()
