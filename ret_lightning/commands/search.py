"""ret-search: search an index of ret-index."""

from __future__ import annotations

from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.schema import SearchConfig

VERBATIM = ("index", "qdrant", "collection", "query", "image", "queries", "image_root", "output", "checkpoint")


def main() -> None:
    """Run the console script ret-search."""
    run(_search, config_name="search", schema=SearchConfig, prog="ret-search", verbatim=VERBATIM)


def _search(config: DictConfig) -> None:
    # Imported here so that --help and config problems do not load torch.
    from ret_lightning.search.answer import search, write_answers

    names = ["query", "image", "queries", "image_root", "qdrant", "collection", "top_k", "checkpoint", "verify"]
    names += ["batch_size", "num_workers", "device"]
    write_answers(search(config.index, **{name: config[name] for name in names}), config.output, config.overwrite)


if __name__ == "__main__":
    main()
