"""Gates: how much of the old state and of each modality enters the new state of the recurrence.

A gate is one class and one config of the group `gate`. It receives the cross-attention outputs of both modalities and returns
three activations, with which the cell computes the new state

    s = a(r) * forget + a(h_text) * text + a(h_image) * image            a: identity or tanh

r is the old state after self-attention, h_text and h_image are the cross-attention outputs. In the equations of the gates,
m_text and m_image are 1 in rows that have the modality and 0 in the others, so the state of a row never depends on a modality
that it lacks.

Shape legend: N rows, k vectors per row, H hidden size.
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
from ret_lightning.errors import ConfigError
from ret_lightning.models.exchangeable_parts import constructor_settings, subclasses
from ret_lightning.ops.onednn_linear import Linear
from ret_lightning.runtime.deprecation import deprecation


@dataclass
class GateActivations:
    """The gate activations of one step, each in [0, 1] and of shape (N, k, H), where any size may be 1.

    Attributes:
        forget: Activation of the forget gate; 1 keeps the old state.
        text: Activation of the text's input gate; 0 in rows without a text.
        image: Activation of the image's input gate; 0 in rows without an image.
    """

    forget: Tensor
    text: Tensor
    image: Tensor


class Gate(nn.Module, ABC):
    """Base class of all gates.

    To add a gate, derive a class from this one, set its `name`, implement `activations`, and add a config to the group `gate`.
    A checkpoint stores the name and the constructor arguments of its gate; a gate without a name cannot be exported.

    All gates of this module take the same arguments, so that one command line can sweep over them
    (`-m gate=lstm,none gate.forget_bias=1`). A gate without an input gate or forget gate ignores the respective bias. A
    subclass may take other arguments; the first argument of its constructor is the width.

    Args:
        hidden_size: H, width of the state.
        input_bias: Prior added to the logits of the input gates. Negative values close them at the start of training.
        forget_bias: Prior added to the logit of the forget gate. Positive values keep the state at the start of training.
        tanh: Whether a is tanh instead of the identity in the equation of the new state s.

    Attributes:
        name: Name by which a checkpoint refers to the class; empty if the gate cannot be exported.
        settings: Constructor arguments by name, without the width, as a checkpoint stores them; None if they are unknown.
        priors: `input_bias`, `forget_bias` and `tanh`, as passed to this base class.
    """

    name: ClassVar[str] = ""
    settings: dict[str, Any] | None
    priors: dict[str, Any]
    input_bias: Tensor
    forget_bias: Tensor
    openings: ClassVar[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The name is not inherited: a checkpoint of the subclass would be loaded as the parent class.
        cls.name = cls.__dict__.get("name", "")
        # The former name of the method, which users' gates may define.
        if "openings" in cls.__dict__ and "activations" not in cls.__dict__:
            warnings.warn(deprecation(f"{cls.__name__}.openings", "activations"), FutureWarning, stacklevel=2)
            cls.activations = cls.__dict__["openings"]  # type: ignore[method-assign]  # takes the earlier name
        if "activations" in cls.__dict__:  # for `super().openings(...)` in such a gate
            cls.openings = cls.__dict__["activations"]

    def __new__(cls, *args: Any, **kwargs: Any) -> Gate:
        gate = super().__new__(cls)
        # Recorded here because a subclass may not pass all its arguments to the base constructor.
        gate.__dict__["settings"] = constructor_settings(gate, args, kwargs)
        return gate

    def __init__(self, hidden_size: int, input_bias: float = 0.0, forget_bias: float = 0.0, tanh: bool = False) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.tanh = tanh
        self.priors = {"input_bias": input_bias, "forget_bias": forget_bias, "tanh": tanh}
        # Buffers, because published checkpoints store them with the weights.
        self.register_buffer("input_bias", torch.tensor(float(input_bias)))
        self.register_buffer("forget_bias", torch.tensor(float(forget_bias)))

    @abstractmethod
    def activations(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
        """Compute the gate activations of one step.

        Args:
            text: (N, k, H) cross-attention output of the text; 0 in rows without a text.
            image: (N, k, H) cross-attention output of the image; 0 in rows without an image.
            text_mask: (N, 1, 1), 1 in rows with a text, 0 in the others.
            image_mask: (N, 1, 1), 1 in rows with an image, 0 in the others.

        Returns:
            Three activations in [0, 1], each (N, k, H), where any size may be 1.
        """

    def mix(self, state: Tensor, text: Tensor, image: Tensor, activations: GateActivations) -> Tensor:
        """Compute the new state, s = a(state) * forget + a(text) * text gate + a(image) * image gate.

        Args:
            state: r, (N, k, H), the old state after self-attention.
            text: (N, k, H) cross-attention output of the text.
            image: (N, k, H) cross-attention output of the image.
            activations: Result of `activations`.

        Returns:
            s, (N, k, H).
        """
        if self.tanh:
            state, text, image = torch.tanh(state), torch.tanh(text), torch.tanh(image)
        return state * activations.forget + text * activations.text + image * activations.image


class LSTMGate(Gate):
    """The published gate: elementwise input gates, one per modality, and a forget gate, as in an LSTM.

        text   = sigmoid(W_iT h_text  + b_iT + input_bias) * m_text
        image  = sigmoid(W_iV h_image + b_iV + input_bias) * m_image
        forget = sigmoid(m_text * (W_fT h_text + b_fT) + m_image * (W_fV h_image + b_fV) + forget_bias)

    Equations as in the published code of ReT (arXiv 2503.01980), after the LSTM with forget gate (Gers et al., 2000).
    Unlike in an LSTM, the gates depend on the cross-attention outputs only, not on the state.

    Adds 4 H (H + 1) parameters.

    Args:
        hidden_size: H, width of the state.
        input_bias: Prior added to the logits of the input gates.
        forget_bias: Prior added to the logit of the forget gate.
        tanh: Whether a is tanh instead of the identity in the equation of the new state.
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
    """Input gates without a forget gate (variant NFG of Greff et al., 2017, arXiv 1503.04069).

        text   = sigmoid(W_iT h_text  + b_iT + input_bias) * m_text
        image  = sigmoid(W_iV h_image + b_iV + input_bias) * m_image
        forget = 1

    Adds 2 H (H + 1) parameters.

    Args:
        hidden_size: H, width of the state.
        input_bias: Prior added to the logits of the input gates.
        forget_bias: Ignored.
        tanh: Whether a is tanh instead of the identity in the equation of the new state.
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
    """A forget gate without input gates (variant NIG of Greff et al., 2017, arXiv 1503.04069).

        text   = m_text
        image  = m_image
        forget = sigmoid(m_text * (W_fT h_text + b_fT) + m_image * (W_fV h_image + b_fV) + forget_bias)

    Adds 2 H (H + 1) parameters.

    Args:
        hidden_size: H, width of the state.
        input_bias: Ignored.
        forget_bias: Prior added to the logit of the forget gate.
        tanh: Whether a is tanh instead of the identity in the equation of the new state.
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
    """No gating: the new state is the sum of the old state and both cross-attention outputs.

        text   = m_text
        image  = m_image
        forget = 1

    Adds no parameters.

    Args:
        hidden_size: H, width of the state.
        input_bias: Ignored.
        forget_bias: Ignored.
        tanh: Whether a is tanh instead of the identity in the equation of the new state.
    """

    name = "none"

    def activations(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
        return GateActivations(torch.ones_like(text_mask), text=text_mask, image=image_mask)


class CoupledGate(Gate):
    """Coupled input and forget gates: the input activation is one minus the forget activation.

        forget = sigmoid(m_text * (W_fT h_text + b_fT) + m_image * (W_fV h_image + b_fV) + forget_bias)
        text   = (1 - forget) * m_text
        image  = (1 - forget) * m_image

    This is the variant CIFG of Greff et al., 2017, arXiv 1503.04069, and the update gate of the GRU (Cho et al., 2014,
    arXiv 1406.1078), with one forget gate for both modalities.

    Adds 2 H (H + 1) parameters.

    Args:
        hidden_size: H, width of the state.
        input_bias: Ignored.
        forget_bias: Prior added to the logit of the forget gate.
        tanh: Whether a is tanh instead of the identity in the equation of the new state.
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
    """Input gates and a forget gate with one scalar activation per vector, instead of one per channel.

        text   = sigmoid(w_iT . h_text  + b_iT + input_bias) * m_text
        image  = sigmoid(w_iV . h_image + b_iV + input_bias) * m_image
        forget = sigmoid(m_text * (w_fT . h_text + b_fT) + m_image * (w_fV . h_image + b_fV) + forget_bias)

    Each w is a vector of width H and each b a scalar; the activations are (N, k, 1). Otherwise identical to `LSTMGate`.

    Adds 4 (H + 1) parameters.

    Args:
        hidden_size: H, width of the state.
        input_bias: Prior added to the logits of the input gates.
        forget_bias: Prior added to the logit of the forget gate.
        tanh: Whether a is tanh instead of the identity in the equation of the new state.
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
    """Learned constant activations, one per channel, that do not depend on the inputs.

        text   = sigmoid(b_iT + input_bias) * m_text
        image  = sigmoid(b_iV + input_bias) * m_image
        forget = sigmoid(b_f + forget_bias)

    The vectors b, of width H, are initialised to 0. Adds 3 H parameters.

    Args:
        hidden_size: H, width of the state.
        input_bias: Prior added to the logits of the input gates.
        forget_bias: Prior added to the logit of the forget gate.
        tanh: Whether a is tanh instead of the identity in the equation of the new state.
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
    """Find a gate class by its `name`, first among imported classes, then in the packages of RET_LIGHTNING_TARGETS.

    Args:
        name: The `name` attribute of the class.
        modules: Modules that a checkpoint lists for its user-defined classes; imported only if RET_LIGHTNING_TARGETS allows
            their package.

    Returns:
        The class.

    Raises:
        ConfigError: If no class or more than one class has this name.
    """
    found, hint = _gates_named(name), ""
    if not found and name:
        hint = import_own_packages(modules)
        found = _gates_named(name)
    if not found:
        known = tuple(dict.fromkeys(gate.name for gate in subclasses(Gate) if gate.name))
        raise ConfigError(
            f"unknown gate {name!r}; {hint or 'import the module that defines it first'}; known: {', '.join(known)}",
            code="gate-name-unknown",
            found=name,
            allowed=known,
        )
    if len(found) > 1:
        raise ConfigError(
            f"several gates are named {name!r}: {', '.join(found)}; give each gate a unique name",
            code="gate-name-ambiguous",
            found=name,
            classes=tuple(found),
        )
    return next(iter(found.values()))


def _gates_named(name: str) -> dict[str, type[Gate]]:
    # Keyed by dotted name, so that a class redefined in a notebook replaces the earlier one.
    return {f"{gate.__module__}.{gate.__qualname__}": gate for gate in subclasses(Gate) if gate.name == name != ""}


def _input_activations(
    gate: LSTMGate | NoForgetGate | ScalarGate, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the input gates of text and image from the layers `text_input` and `image_input`."""
    return (
        torch.sigmoid(gate.text_input(text) + gate.input_bias) * text_mask,
        torch.sigmoid(gate.image_input(image) + gate.input_bias) * image_mask,
    )


def _forget_activation(
    gate: LSTMGate | NoInputGate | CoupledGate | ScalarGate,
    text: Tensor,
    image: Tensor,
    text_mask: Tensor,
    image_mask: Tensor,
) -> Tensor:
    """Compute the forget gate from the layers `text_forget` and `image_forget`."""
    forget = text_mask * gate.text_forget(text) + image_mask * gate.image_forget(image)
    return torch.sigmoid(forget + gate.forget_bias)
