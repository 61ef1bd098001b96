"""ret-index: encode passages into an index for ret-search."""

from __future__ import annotations

from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.schema import IndexConfig

VERBATIM = ("checkpoint", "passages", "image_root", "index", "qdrant", "collection")


def main() -> None:
    """Run the console script ret-index."""
    run(_index, config_name="index", schema=IndexConfig, prog="ret-index", verbatim=VERBATIM)


def _index(config: DictConfig) -> None:
    # Imported here so that --help and config problems do not load torch.
    from ret_lightning.config.build import build
    from ret_lightning.search.index_builder import build_index

    names = ("append", "discard", "image_root", "batch_size", "num_workers", "device", "dtype")
    options = {name: config[name] for name in names}
    if config.qdrant is not None:
        from ret_lightning.search.qdrant import index_into_qdrant

        index_into_qdrant(config.passages, config.qdrant, config.collection, config.checkpoint, **options)
        return
    method = build(config.retrieval)
    build_index(config.passages, config.index, config.checkpoint, method=method, processes=config.processes, **options)


if __name__ == "__main__":
    main()
