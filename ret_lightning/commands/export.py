"""ret-export: write a trained model in the published checkpoint layout, with a model card."""

from __future__ import annotations

from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.schema import ExportConfig


def main() -> None:
    """Run the console script ret-export."""
    run(_export, config_name="export", schema=ExportConfig, prog="ret-export")


def _export(config: DictConfig) -> None:
    # Imported here so that --help and config problems do not load torch.
    from ret_lightning.runs.export import export

    export(config.checkpoint, config.output, config.overwrite, config.max_shard_size)


if __name__ == "__main__":
    main()
