"""ret-train: trains a retriever as its config says."""

from __future__ import annotations

from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.schema import TrainConfig


def main() -> None:
    """The console script."""
    run(_train, config_name="train", schema=TrainConfig, prog="ret-train")


def _train(config: DictConfig) -> None:
    # Imported here: --help and a misspelt option answer without torch.
    from hydra.core.hydra_config import HydraConfig

    from ret_lightning.training.run import train

    # In a sweep, and in a second process of DDP, the folder is the one that Hydra made, whatever the time is by now.
    config.output_dir = HydraConfig.get().runtime.output_dir
    train(config)


if __name__ == "__main__":
    main()
