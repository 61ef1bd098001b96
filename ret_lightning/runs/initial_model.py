"""Initial model of a run: new, or with the weights of `init_from`."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from ret_lightning.config.build import build
from ret_lightning.config.nodes import to_plain
from ret_lightning.errors import ConfigError
from ret_lightning.models import RetRetriever
from ret_lightning.models.checkpoint.files import architecture_differences, find_checkpoint, load_weights
from ret_lightning.models.checkpoint.partial_loading import load_fitting_weights
from ret_lightning.training.checkpointing.load import build_untrained, find_training_checkpoint, load_retriever

log = logging.getLogger(__name__)


def initial_retriever(config: DictConfig) -> RetRetriever:
    """Build the model of a training config, and load the weights of `init_from`.

    With `init_partial=true`, only tensors that match the model are loaded, and the others are logged.

    Args:
        config: resolved config of the run.

    Raises:
        UserError: if the checkpoint does not exist.
        ConfigError: if the checkpoint has another architecture or, with `init_partial=true`, no tensor matches.
    """
    if config.init_from is None:
        return build(config.model)
    source = _open_source(config.init_from)
    where = f"init_from={config.init_from}"
    # Without pretrained backbones, which the checkpoint overwrites.
    retriever = build_untrained(to_plain(config, resolve=True))
    if not config.init_partial:
        load_weights(retriever, source, where)
        return retriever
    differences = architecture_differences(retriever, source)
    if any(key.removeprefix("passage.").startswith("backbone.") for key in differences):
        retriever = build(config.model)
    _load_partially(retriever, source, where, list(differences.values()))
    return retriever


def _open_source(source: str) -> RetRetriever:
    file = find_training_checkpoint(source, option="init_from")
    if file is not None:
        return load_retriever(file)
    folder = find_checkpoint(source)
    log.info("init_from: weights of %s (the step is not recorded)", folder)
    return RetRetriever.from_pretrained(folder)


def _load_partially(retriever: RetRetriever, source: RetRetriever, where: str, differences: list[str]) -> None:
    done = load_fitting_weights(retriever, source)
    if not done.loaded:
        raise ConfigError(
            f"{where}: no tensor of the checkpoint matches the model of this config: {'; '.join(differences)}",
            code="checkpoint-nothing-fits",
            differences=tuple(differences),
        )
    log.info("%s: loaded %d tensors (init_partial=true)", where, done.loaded)
    for what, names in (
        ("architecture differs from this config", differences),
        ("not loaded, kept as initialized", done.initialised),
        ("in the checkpoint, but not used", done.unused),
    ):
        if names:
            log.warning("%s: %s: %s", where, what, "; ".join(names))
