"""The model: backbones, the recurrent cell and its gates, towers, the retriever, and checkpoints."""

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
from ret_lightning.runtime.deprecation import find_in, renamed_names

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

__getattr__ = renamed_names(
    __name__, {"Openings": "GateActivations", "OpeningMeans": "ActivationMeans"}, find_in(globals())
)
