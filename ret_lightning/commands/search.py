"""ret-search: answers queries from what ret-index made."""

from __future__ import annotations

from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.schema import SearchConfig

VERBATIM = ("index", "qdrant", "collection", "query", "image", "queries", "image_root", "output", "checkpoint")


def main() -> None:
    """The console script."""
    run(_search, config_name="search", schema=SearchConfig, prog="ret-search", verbatim=VERBATIM)


def _search(config: DictConfig) -> None:
    # Imported here: --help and a misspelt option answer without torch.
    from ret_lightning.search.answer import search, write_answers

    names = ("query", "image", "queries", "image_root", "qdrant", "collection", "top_k", "checkpoint", "verify")
    names += ("batch_size", "num_workers", "device")
    write_answers(search(config.index, **{name: config[name] for name in names}), config.output, config.overwrite)


if __name__ == "__main__":
    main()
