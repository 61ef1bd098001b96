"""The model: backbones, the recurrent cell with its gates, towers, the retriever, and the published checkpoint layout."""

from ret_lightning.inputs import EncoderInput
from ret_lightning.models.backbones.base import Backbone, BlockStack
from ret_lightning.models.cell import RetCell
from ret_lightning.models.gate_activations import OpeningMeans
from ret_lightning.models.gates import (
    ConstantGate,
    CoupledGate,
    Gate,
    LSTMGate,
    NoForgetGate,
    NoGate,
    NoInputGate,
    Openings,
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
    "Backbone",
    "BlockStack",
    "ConstantGate",
    "CoupledGate",
    "EncoderInput",
    "Evenly",
    "Explicit",
    "FirstMiddleLast",
    "Gate",
    "LSTMGate",
    "Last",
    "LayerPlan",
    "LayerStates",
    "NoForgetGate",
    "NoGate",
    "NoInputGate",
    "OpeningMeans",
    "Openings",
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
