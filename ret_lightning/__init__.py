"""ReT: train, ablate, evaluate and search with a recurrent vision-and-language late-interaction retriever."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ret_lightning.data.datamodule import M2KRDataModule
    from ret_lightning.evaluation.callback import RetrievalEvaluation
    from ret_lightning.models.retriever import RetRetriever
    from ret_lightning.training.module import RetModule

try:
    __version__ = version("ret_lightning")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = ["M2KRDataModule", "RetModule", "RetRetriever", "RetrievalEvaluation"]

_HOMES = {
    "M2KRDataModule": "ret_lightning.data.datamodule",
    "RetModule": "ret_lightning.training.module",
    "RetRetriever": "ret_lightning.models.retriever",
    "RetrievalEvaluation": "ret_lightning.evaluation.callback",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch and lightning take seconds, and `ret-train --help` needs neither.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
