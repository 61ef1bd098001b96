"""Gates: how much of the old state and of each modality's reading goes into the new state.

A gate is one small class and one config of the group `gate`. It sees what the cell read from each modality in a step and
returns three activations; the cell forms

    s = a(r) * forget + a(h_text) * text + a(h_image) * image            a: identity, or tanh

In the equations of the gates, m_text and m_image are 1 in rows that have the modality and 0 in the others, so that a row
without one does not depend on it.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ret_lightning.config.targets.own_packages import import_own_packages
from ret_lightning.config.targets.renamed_keys import deprecation
from ret_lightning.errors import ConfigError
from ret_lightning.models.exchangeable_parts import constructor_settings, subclasses
from ret_lightning.ops.onednn_linear import Linear


@dataclass
class GateActivations:
    """The activations of one step, each (N, k, H), or 1 in any place of that, in [0, 1].

    Attributes:
        forget: of the old state (open: it is kept).
        text: of what was read from the text; 0 in rows without one.
        image: of what was read from the image; 0 in rows without one.
    """

    forget: Tensor
    text: Tensor
    image: Tensor


class Gate(nn.Module, ABC):
    """Base of all gates.

    The gates of this module take the same settings, so that one command line sweeps over them
    (`-m gate=lstm,none gate.forget_bias=1`); a gate that lacks an input gate or a forget gate does not use that prior. A
    subclass may take further settings, or fewer; its constructor takes the width first.

    A subclass sets `name`, by which a checkpoint finds it again (see `gate_named`); one without a name cannot be exported.

    Args:
        hidden_size: H, the width of the state.
        input_bias: prior added before the sigmoid of the input gates; negative: closed at the start of training.
        forget_bias: prior of the forget gate, likewise; positive: the state is kept at the start.
        tanh: whether the three parts pass a tanh before they are weighed: a is tanh in the module's equation.

    Attributes:
        settings: the arguments of the constructor by name, without the width: a checkpoint stores them and builds the gate
            with them. None where they are unknown.
        priors: `input_bias`, `forget_bias` and `tanh`, as this base class got them.
    """

    name: ClassVar[str] = ""
    settings: dict[str, Any] | None
    priors: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Never the parent's: a checkpoint with it would be read as the parent.
        cls.name = cls.__dict__.get("name", "")
        # The method's earlier name, in gates of users.
        if "openings" in cls.__dict__ and "activations" not in cls.__dict__:
            warnings.warn(deprecation(f"{cls.__name__}.openings", "activations"), FutureWarning, stacklevel=2)
            cls.activations = cls.__dict__["openings"]
        if "activations" in cls.__dict__:  # for `super().openings(...)` in such a gate
            cls.openings = cls.__dict__["activations"]

    def __new__(cls, *args: Any, **kwargs: Any) -> Gate:
        gate = super().__new__(cls)
        # Recorded here, since what a subclass passes to this constructor need not be all that it takes.
        gate.__dict__["settings"] = constructor_settings(gate, args, kwargs)
        return gate

    def __init__(self, hidden_size: int, input_bias: float = 0.0, forget_bias: float = 0.0, tanh: bool = False) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.tanh = tanh
        self.priors = {"input_bias": input_bias, "forget_bias": forget_bias, "tanh": tanh}
        # Buffers, since the published checkpoints store them with the weights.
        self.register_buffer("input_bias", torch.tensor(float(input_bias)))
        self.register_buffer("forget_bias", torch.tensor(float(forget_bias)))

    @abstractmethod
    def activations(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
        """The activations of one step.

        Args:
            text: (N, k, H) read from the text; 0 in rows without one.
            image: (N, k, H) read from the image, likewise.
            text_mask: (N, 1, 1), 1 where the row has a text, else 0.
            image_mask: (N, 1, 1) likewise.
        """

    def mix(self, state: Tensor, text: Tensor, image: Tensor, activations: GateActivations) -> Tensor:
        """The new state s, (N, k, H), from the old one and what was read, see the module's equation."""
        if self.tanh:
            state, text, image = torch.tanh(state), torch.tanh(text), torch.tanh(image)
        return state * activations.forget + text * activations.text + image * activations.image


class LSTMGate(Gate):
    """The published gate: an input gate a modality and a forget gate, elementwise, as in an LSTM.

        text   = sigmoid(W_iT h_text  + b_iT + input_bias) * m_text
        image  = sigmoid(W_iV h_image + b_iV + input_bias) * m_image
        forget = sigmoid(m_text * (W_fT h_text + b_fT) + m_image * (W_fV h_image + b_fV) + forget_bias)

    Adds 4 H (H + 1) parameters.
    """

    name = "lstm"

    def __init__(self, hidden_size: int, input_bias: float = 0.0, forget_bias: float = 0.0, tanh: bool = False) -> None:
        super().__init__(hidden_size, input_bias, forget_bias, tanh)
        self.text_input = Linear(hidden_size, hidden_size)
        self.image_input = Linear(hidden_size, hidden_size)
        self.text_forget = Linear(hidden_size, hidden_size)
        self.image_forget = Linear(hidden_size, hidden_size)

    def activations(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
        forget = _forget_activation(self, text, image, text_mask, image_mask)
        return GateActivations(forget, *_input_activations(self, text, image, text_mask, image_mask))


class NoForgetGate(Gate):
    """The state is kept whole: input gates alone (variant NFG of Greff et al., 2017, arXiv 1503.04069).

        text   = sigmoid(W_iT h_text  + b_iT + input_bias) * m_text
        image  = sigmoid(W_iV h_image + b_iV + input_bias) * m_image
        forget = 1

    Adds 2 H (H + 1) parameters. `forget_bias` has no use.
    """

    name = "no_forget"

    def __init__(self, hidden_size: int, input_bias: float = 0.0, forget_bias: float = 0.0, tanh: bool = False) -> None:
        super().__init__(hidden_size, input_bias, forget_bias, tanh)
        self.text_input = Linear(hidden_size, hidden_size)
        self.image_input = Linear(hidden_size, hidden_size)

    def activations(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
        return GateActivations(
            torch.ones_like(text_mask), *_input_activations(self, text, image, text_mask, image_mask)
        )


class NoInputGate(Gate):
    """What is read goes in whole: a forget gate alone (variant NIG of Greff et al., 2017, arXiv 1503.04069).

        text   = m_text
        image  = m_image
        forget = sigmoid(m_text * (W_fT h_text + b_fT) + m_image * (W_fV h_image + b_fV) + forget_bias)

    Adds 2 H (H + 1) parameters. `input_bias` has no use.
    """

    name = "no_input"

    def __init__(self, hidden_size: int, input_bias: float = 0.0, forget_bias: float = 0.0, tanh: bool = False) -> None:
        super().__init__(hidden_size, input_bias, forget_bias, tanh)
        self.text_forget = Linear(hidden_size, hidden_size)
        self.image_forget = Linear(hidden_size, hidden_size)

    def activations(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
        forget = _forget_activation(self, text, image, text_mask, image_mask)
        return GateActivations(forget, text=text_mask, image=image_mask)


class NoGate(Gate):
    """No gate at all: a plain sum of the state and what is read.

        text   = m_text
        image  = m_image
        forget = 1

    Adds no parameters. `input_bias` and `forget_bias` have no use.
    """

    name = "none"

    def activations(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
        return GateActivations(torch.ones_like(text_mask), text=text_mask, image=image_mask)


class CoupledGate(Gate):
    """One gate opens what the other closes: what is read takes the place of what is forgotten.

        forget = sigmoid(m_text * (W_fT h_text + b_fT) + m_image * (W_fV h_image + b_fV) + forget_bias)
        text   = (1 - forget) * m_text
        image  = (1 - forget) * m_image

    The coupled input and forget gate (CIFG) of Greff et al., 2017, arXiv 1503.04069, and the update gate of the GRU (Cho et
    al., 2014, arXiv 1406.1078), with one coupling for both modalities.

    Adds 2 H (H + 1) parameters. `input_bias` has no use.
    """

    name = "coupled"

    def __init__(self, hidden_size: int, input_bias: float = 0.0, forget_bias: float = 0.0, tanh: bool = False) -> None:
        super().__init__(hidden_size, input_bias, forget_bias, tanh)
        self.text_forget = Linear(hidden_size, hidden_size)
        self.image_forget = Linear(hidden_size, hidden_size)

    def activations(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
        forget = _forget_activation(self, text, image, text_mask, image_mask)
        return GateActivations(forget, text=(1 - forget) * text_mask, image=(1 - forget) * image_mask)


class ScalarGate(Gate):
    """As `LSTMGate`, with one value a vector instead of one a channel: each W maps to one value, each b is one.

        text   = sigmoid(W_iT h_text  + b_iT + input_bias) * m_text
        image  = sigmoid(W_iV h_image + b_iV + input_bias) * m_image
        forget = sigmoid(m_text * (W_fT h_text + b_fT) + m_image * (W_fV h_image + b_fV) + forget_bias)

    The activations are (N, k, 1). Adds 4 (H + 1) parameters.
    """

    name = "scalar"

    def __init__(self, hidden_size: int, input_bias: float = 0.0, forget_bias: float = 0.0, tanh: bool = False) -> None:
        super().__init__(hidden_size, input_bias, forget_bias, tanh)
        self.text_input = Linear(hidden_size, 1)
        self.image_input = Linear(hidden_size, 1)
        self.text_forget = Linear(hidden_size, 1)
        self.image_forget = Linear(hidden_size, 1)

    def activations(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
        forget = _forget_activation(self, text, image, text_mask, image_mask)
        return GateActivations(forget, *_input_activations(self, text, image, text_mask, image_mask))


class ConstantGate(Gate):
    """Learned activations, one a channel, that are blind to what is read.

        text   = sigmoid(b_iT + input_bias) * m_text
        image  = sigmoid(b_iV + input_bias) * m_image
        forget = sigmoid(b_f + forget_bias)

    The vectors b start at 0. Adds 3 H parameters.
    """

    name = "constant"

    def __init__(self, hidden_size: int, input_bias: float = 0.0, forget_bias: float = 0.0, tanh: bool = False) -> None:
        super().__init__(hidden_size, input_bias, forget_bias, tanh)
        self.text_logits = nn.Parameter(torch.zeros(hidden_size))
        self.image_logits = nn.Parameter(torch.zeros(hidden_size))
        self.forget_logits = nn.Parameter(torch.zeros(hidden_size))

    def activations(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
        return GateActivations(
            forget=torch.sigmoid(self.forget_logits + self.forget_bias)[None, None],
            text=torch.sigmoid(self.text_logits + self.input_bias) * text_mask,
            image=torch.sigmoid(self.image_logits + self.input_bias) * image_mask,
        )


def gate_named(name: str, modules: Sequence[str] = ()) -> type[Gate]:
    """The gate class of this `name`, of all that are imported, and then of the packages in RET_LIGHTNING_TARGETS.

    Args:
        name: the `name` of the class.
        modules: where a checkpoint says that its own parts are; imported only if they are in these packages.

    Raises:
        ConfigError: if there is none, or more than one.
    """
    found, hint = _gates_named(name), ""
    if not found and name:
        hint = import_own_packages(modules)
        found = _gates_named(name)
    if not found:
        known = tuple(dict.fromkeys(gate.name for gate in subclasses(Gate) if gate.name))
        raise ConfigError(
            f"no gate is named {name!r}; {hint or 'import the module that defines it first'}; known: {', '.join(known)}",
            code="gate-name-unknown",
            found=name,
            allowed=known,
        )
    if len(found) > 1:
        raise ConfigError(
            f"more than one gate is named {name!r}: {', '.join(found)}; give each a name of its own",
            code="gate-name-ambiguous",
            found=name,
            classes=tuple(found),
        )
    return next(iter(found.values()))


def _gates_named(name: str) -> dict[str, type[Gate]]:
    # By place, so that a class defined a second time, as in a notebook, replaces its old self.
    return {f"{gate.__module__}.{gate.__qualname__}": gate for gate in subclasses(Gate) if gate.name == name != ""}


def _input_activations(
    gate: Gate, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The input gates of text and image, by the maps `text_input` and `image_input`."""
    return (
        torch.sigmoid(gate.text_input(text) + gate.input_bias) * text_mask,
        torch.sigmoid(gate.image_input(image) + gate.input_bias) * image_mask,
    )


def _forget_activation(gate: Gate, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> Tensor:
    """The forget gate, by the maps `text_forget` and `image_forget`."""
    forget = text_mask * gate.text_forget(text) + image_mask * gate.image_forget(image)
    return torch.sigmoid(forget + gate.forget_bias)
