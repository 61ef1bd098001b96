"""ret-index: encodes passages so that ret-search can answer from them."""

from __future__ import annotations

from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.schema import IndexConfig

VERBATIM = ("checkpoint", "passages", "image_root", "index", "qdrant", "collection")


def main() -> None:
    """The console script."""
    run(_index, config_name="index", schema=IndexConfig, prog="ret-index", verbatim=VERBATIM)


def _index(config: DictConfig) -> None:
    # Imported here: --help and a misspelt option answer without torch.
    from ret_lightning.search.build_index import index_passages

    index_passages(config)


if __name__ == "__main__":
    main()
