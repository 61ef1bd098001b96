"""Gates: how much of the old state and of each modality's reading goes into the new state.

A gate is one small class and one config of the group `gate`. It sees what the cell read from each modality in a step and
returns three openings; the cell forms

    s = a(r) * forget + a(h_text) * text + a(h_image) * image            a: identity, or tanh
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Openings:
    """The openings of one step, each (N, k, H) or broadcastable to it, in [0, 1].

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

    Args:
        hidden_size: H, the width of the state.
        tanh: whether the three parts pass a tanh before they are weighed: a is tanh in the equation above.
    """

    def __init__(self, hidden_size: int, tanh: bool = False) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.tanh = tanh

    @abstractmethod
    def openings(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> Openings:
        """The openings of one step.

        Args:
            text: (N, k, H) read from the text; 0 in rows without one.
            image: (N, k, H) read from the image, likewise.
            text_mask: (N, 1, 1), 1 where the row has a text, else 0.
            image_mask: (N, 1, 1) likewise.
        """

    def mix(self, state: Tensor, text: Tensor, image: Tensor, openings: Openings) -> Tensor:
        """The new state s, (N, k, H), from the old one and what was read, see the module's equation."""
        if self.tanh:
            state, text, image = torch.tanh(state), torch.tanh(text), torch.tanh(image)
        return state * openings.forget + text * openings.text + image * openings.image


class LSTMGate(Gate):
    """The published gate: an input gate a modality and a forget gate, elementwise, as in an LSTM.

        text   = sigmoid(W_iT h_text  + b_iT + input_bias) * m_text
        image  = sigmoid(W_iV h_image + b_iV + input_bias) * m_image
        forget = sigmoid(m_text * (W_fT h_text + b_fT) + m_image * (W_fV h_image + b_fV) + forget_bias)

    Args:
        hidden_size: H.
        input_bias: prior added before the sigmoid of the input gates; negative: closed at the start.
        forget_bias: prior of the forget gate; positive: the state is kept at the start.
        tanh: see `Gate`.
    """

    def __init__(self, hidden_size: int, input_bias: float = 0.0, forget_bias: float = 0.0, tanh: bool = False) -> None:
        super().__init__(hidden_size, tanh)
        self.text_input = nn.Linear(hidden_size, hidden_size)
        self.image_input = nn.Linear(hidden_size, hidden_size)
        self.text_forget = nn.Linear(hidden_size, hidden_size)
        self.image_forget = nn.Linear(hidden_size, hidden_size)
        # Buffers, since the published checkpoints store them with the weights.
        self.register_buffer("input_bias", torch.tensor(float(input_bias)))
        self.register_buffer("forget_bias", torch.tensor(float(forget_bias)))

    def openings(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> Openings:
        forget = text_mask * self.text_forget(text) + image_mask * self.image_forget(image)
        return Openings(
            forget=torch.sigmoid(forget + self.forget_bias),
            text=torch.sigmoid(self.text_input(text) + self.input_bias) * text_mask,
            image=torch.sigmoid(self.image_input(image) + self.input_bias) * image_mask,
        )
