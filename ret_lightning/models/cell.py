"""The recurrent cell of ReT: one step reads the text and the image states of one depth into the k vectors of a row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ret_lightning.errors import ConfigError
from ret_lightning.models.attention import Attention
from ret_lightning.models.exchangeable_parts import class_name
from ret_lightning.models.gates import Gate, GateActivations
from ret_lightning.models.layer_states import ModalityStates
from ret_lightning.ops.onednn_linear import Linear

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class RetCell(nn.Module):
    """One step of the recurrence (ReT, arXiv 2503.01980, section 3; equations as in the published code).

        x  = q + P                                 P: sinusoidal table, added at every step
        z  = LN(x)
        r  = x + SelfAttention(z, z, z)
        hT = CrossAttention_T(z, LN_T(text))       padded positions masked out
        hV = CrossAttention_V(z, LN_V(image))
        s  = a(r) * f + a(hT) * iT + a(hV) * iV    activations f, iT, iV and a from the gate
        q' = s + MLP(LN(s))

    Rows without a modality are left out of its cross-attention; their h is 0, which the gate multiplies by 0 anyway.

    Args:
        gate: see gates.py.
        hidden_size: H.
        num_tokens: k, the vectors a row, at most H.
        num_heads: of all three attentions; divides H.
        intermediate_size: width of the MLP.
        dropout: in the MLP.
        attention_dropout: of the attention weights.
        activation: of the MLP.

    Raises:
        ConfigError: if the sizes do not fit each other.
    """

    def __init__(
        self,
        gate: Gate,
        hidden_size: int,
        num_tokens: int,
        num_heads: int,
        intermediate_size: int,
        dropout: float = 0.05,
        attention_dropout: float = 0.05,
        activation: Literal["gelu", "relu"] = "gelu",
    ) -> None:
        super().__init__()
        if not isinstance(gate, Gate):
            raise ConfigError(
                f"gate: {class_name(gate)} is no subclass of ret_lightning.models.Gate; derive the class from it, and give the "
                "group `gate` the class itself with _partial_: true",
                code="gate-of-wrong-type",
                found=class_name(gate),
            )
        self.num_tokens = num_tokens
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.intermediate_size = intermediate_size
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation = activation
        if hidden_size % num_heads:
            raise ConfigError(
                f"model.hidden_size={hidden_size} is not divisible by model.num_heads={num_heads}",
                code="cell-heads-not-divisor",
                found=num_heads,
                hidden_size=hidden_size,
            )
        if num_tokens > hidden_size:
            raise ConfigError(
                f"model.num_tokens={num_tokens} is more than model.hidden_size={hidden_size}, the rows of the position table",
                code="cell-tokens-too-many",
                found=num_tokens,
                most=hidden_size,
            )

        def attention(bias: bool) -> Attention:
            return Attention(hidden_size, num_heads, attention_dropout, bias)

        self.register_buffer("positions", sinusoidal_table(num_tokens, hidden_size)[None])
        self.state_norm = nn.LayerNorm(hidden_size)
        self.self_attention = attention(bias=True)
        self.text_norm = nn.LayerNorm(hidden_size)
        self.text_attention = attention(bias=False)
        self.image_norm = nn.LayerNorm(hidden_size)
        self.image_attention = attention(bias=False)
        self.gate = gate
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            Linear(hidden_size, intermediate_size),
            nn.Dropout(dropout),
            ACTIVATIONS[activation](),
            Linear(intermediate_size, hidden_size),
            nn.Dropout(dropout),
        )
        self.unused_norm = UnusedNorm(hidden_size)

    def forward(self, state: Tensor, text: ModalityStates, image: ModalityStates) -> tuple[Tensor, GateActivations]:
        """One step.

        Args:
            state: q, (N, k, H).
            text: adapted states (n_text, L, H) of the rows that have a text.
            image: adapted states (n_image, L', H) of the rows that have an image.

        Returns:
            q', (N, k, H), and the activations of the gate.
        """
        x = state + self.positions
        z = self.state_norm(x)
        residual = x + self.self_attention(z, z)
        h_text = _read(self.text_attention, z, text, self.text_norm(text.values))
        h_image = _read(self.image_attention, z, image, self.image_norm(image.values))
        activations = self.gate.activations(h_text, h_image, text.present, image.present)
        _check_activations(self.gate, activations, state.shape)
        mixed = self.gate.mix(residual, h_text, h_image, activations)
        if mixed.shape != state.shape:
            raise _wrong_shape(self.gate, "mix: the new state", mixed, state.shape, "gate-state-shape")
        return mixed + self.mlp(self.mlp_norm(mixed)), activations


class UnusedNorm(nn.Module):
    """The layer norm that every published checkpoint holds and nothing uses, kept so that it is written as it was read.

    Of buffers, since a parameter without a gradient stops DDP.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(hidden_size))
        self.register_buffer("bias", torch.zeros(hidden_size))


def _check_activations(gate: Gate, activations: GateActivations, shape: torch.Size) -> None:
    """Raises ConfigError unless a gate, perhaps of the user's own, returned activations that fit states of a shape."""
    if not isinstance(activations, GateActivations):
        raise ConfigError(
            f"gate: {class_name(gate)}.activations returned a {type(activations).__name__}; expected GateActivations",
            code="gate-without-activations",
            gate=class_name(gate),
            found=type(activations).__name__,
        )
    for name in ("forget", "text", "image"):
        activation = getattr(activations, name)
        fits = isinstance(activation, Tensor) and activation.dim() == 3
        # The full size first: under torch.compile no guard is needed where it is the same symbol.
        if not fits or not all(activation.shape[at] == shape[at] or activation.shape[at] == 1 for at in range(3)):
            raise _wrong_shape(gate, f"activations: {name}", activation, shape, "gate-activation-shape")


def _wrong_shape(gate: Gate, what: str, found: object, shape: torch.Size, code: str) -> ConfigError:
    of_found = f"has the shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"is a {type(found).__name__}"
    allowed = ", or 1 in place of any of the three" if "activation" in code else ""
    return ConfigError(
        f"gate: {class_name(gate)}.{what} {of_found}; expected (N, k, H) = {tuple(shape)}{allowed}",
        code=code,
        gate=class_name(gate),
        found=tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__,
        expected=tuple(shape),
    )


def _read(attention: Attention, z: Tensor, source: ModalityStates, values: Tensor) -> Tensor:
    """Cross-attention of the rows that have the modality, (N, k, H); 0 in the others."""
    if len(source.rows) == 0:
        # No row has the modality, or there is no row. Attention of nothing has no gradient; a product with 0 gives the
        # parameters one, of zeros, so that DDP does not wait for it.
        return z.new_zeros(z.shape) + 0 * (values.sum() + sum(p.sum() for p in attention.parameters()))
    if source.is_complete:
        return attention(z, values, source.padding)
    read = attention(z[source.rows], values, source.padding)
    return z.new_zeros(z.shape, dtype=read.dtype).index_copy(0, source.rows, read)


def sinusoidal_table(rows: int, width: int) -> Tensor:
    """(rows, width) float32, sine in the even columns and cosine in the odd ones (Vaswani et al., 2017, section 3.5)."""
    position = torch.arange(rows, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-torch.log(torch.tensor(10000.0)) / width))
    table = torch.zeros(rows, width)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)[:, : width // 2]
    return table
