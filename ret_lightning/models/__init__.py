"""The model: backbones, the recurrent cell and its gates, towers, the retriever, and checkpoints."""

import warnings
from typing import Any

from ret_lightning.config.targets.renamed_keys import deprecation
from ret_lightning.inputs import EncoderInput
from ret_lightning.models.backbones.base import Backbone, BlockStack
from ret_lightning.models.cell import RetCell
from ret_lightning.models.gate_activations import ActivationMeans
from ret_lightning.models.gates import (
    ConstantGate,
    CoupledGate,
    Gate,
    GateActivations,
    LSTMGate,
    NoForgetGate,
    NoGate,
    NoInputGate,
    ScalarGate,
    gate_named,
)
from ret_lightning.models.layer_plans import (
    PUBLISHED_PLANS,
    Evenly,
    Explicit,
    FirstMiddleLast,
    Last,
    LayerPlan,
    Published,
    Recurrence,
)
from ret_lightning.models.layer_states import LayerStates
from ret_lightning.models.retriever import RetRetriever, build_retriever
from ret_lightning.models.tower import RetTower, normalised

__all__ = [
    "PUBLISHED_PLANS",
    "ActivationMeans",
    "Backbone",
    "BlockStack",
    "ConstantGate",
    "CoupledGate",
    "EncoderInput",
    "Evenly",
    "Explicit",
    "FirstMiddleLast",
    "Gate",
    "GateActivations",
    "LSTMGate",
    "Last",
    "LayerPlan",
    "LayerStates",
    "NoForgetGate",
    "NoGate",
    "NoInputGate",
    "Published",
    "Recurrence",
    "RetCell",
    "RetRetriever",
    "RetTower",
    "ScalarGate",
    "build_retriever",
    "gate_named",
    "normalised",
]


def __getattr__(name: str) -> Any:
    if name == "Openings":  # the former name, which users' gates may import
        warnings.warn(deprecation("ret_lightning.models.Openings", "GateActivations"), FutureWarning, stacklevel=2)
        return GateActivations
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
