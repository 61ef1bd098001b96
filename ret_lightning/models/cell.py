"""The recurrent cell of ReT. One step fuses the text and image states of one depth into the k vectors of a row.

Shape legend: N rows, k vectors per row, H hidden size, L text positions, L' image positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ret_lightning.errors import ConfigError
from ret_lightning.models.attention import Attention
from ret_lightning.models.exchangeable_parts import class_name
from ret_lightning.models.gates import Gate, GateActivations
from ret_lightning.models.layer_states import ModalityStates
from ret_lightning.ops.onednn_linear import Linear

Activation = Literal["gelu", "relu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class RetCell(nn.Module):
    """One step of the ReT recurrence (arXiv 2503.01980, section 3; equations as in the published code, aimagelab/ReT).

        x  = q + P                                 P: sinusoidal position table, added at every step
        z  = LN(x)
        r  = x + SelfAttention(z, z, z)
        hT = CrossAttention_T(z, LN_T(text))       padded text positions are masked
        hV = CrossAttention_V(z, LN_V(image))
        s  = a(r) * f + a(hT) * iT + a(hV) * iV    f, iT, iV: activations of the gate; a: identity or tanh
        q' = s + MLP(LN(s))                        MLP: Linear, Dropout, GELU or ReLU, Linear, Dropout

    With the published gate, `LSTMGate`, and m_T, m_V equal to 1 in rows that have the modality and 0 in the others:

        iT = sigmoid(W_iT hT + b_iT + input_bias) * m_T
        iV = sigmoid(W_iV hV + b_iV + input_bias) * m_V
        f  = sigmoid(m_T * (W_fT hT + b_fT) + m_V * (W_fV hV + b_fV) + forget_bias)

    Rows without a modality skip its cross-attention. Their h is 0, which is exact because the gate multiplies it by 0.

    Args:
        gate: Computes the activations f, iT and iV and the new state s; an instance of a subclass of `Gate`.
        hidden_size: H, width of the state.
        num_tokens: k, vectors per row, 1 to H.
        num_heads: Heads of the three attention layers, a divisor of H.
        intermediate_size: Width of the hidden layer of the MLP.
        dropout: Dropout probability in the MLP, in [0, 1].
        attention_dropout: Dropout probability of the attention weights, in [0, 1].
        activation: Activation function of the MLP, `gelu` or `relu`.

    Raises:
        ConfigError: If the sizes are inconsistent or the gate is not a `Gate`.
    """

    positions: Tensor

    def __init__(
        self,
        gate: Gate,
        hidden_size: int,
        num_tokens: int,
        num_heads: int,
        intermediate_size: int,
        dropout: float = 0.05,
        attention_dropout: float = 0.05,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self._compiled: dict[str, Callable[..., Any]] = {}
        if not isinstance(gate, Gate):
            raise ConfigError(
                f"gate: expected a subclass of ret_lightning.models.Gate, got {class_name(gate)}; derive the class from Gate, "
                "and set _partial_: true in the config of the group `gate`",
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
                f"model.num_tokens={num_tokens} is larger than model.hidden_size={hidden_size}, the number of rows of the "
                "position table",
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
        """Compute one step of the recurrence.

        Args:
            state: q, (N, k, H).
            text: Adapted states (n_text, L, H) of the rows that have a text.
            image: Adapted states (n_image, L', H) of the rows that have an image.

        Returns:
            q', (N, k, H), and the gate activations.

        Raises:
            ConfigError: If the gate returns activations or a state of the wrong type or shape.
        """
        if len(state) == 0:
            return self._without_rows(state, text, image)
        residual, z = self._part(RetCell._attend_state)(state)
        h_text = self._attend_modality(self.text_norm, self.text_attention, z, text)
        h_image = self._attend_modality(self.image_norm, self.image_attention, z, image)
        return self._part(RetCell._update)(residual, h_text, h_image, text.present, image.present)

    def compile(self, **options: Any) -> None:
        """Compile the parts of a step, in place of `nn.Module.compile`, which compiles `forward`.

        Which rows have a modality is decided between the parts. In one graph, each combination of all, some and no rows with
        a text or an image would be compiled separately.

        Args:
            options: Keyword arguments of `torch.compile`.
        """
        parts = (RetCell._attend_state, RetCell._attend_source, RetCell._update)
        self._compiled = {part.__name__: torch.compile(part, **options) for part in parts}

    def __getstate__(self) -> dict[str, Any]:
        # Compiled functions are neither copied nor pickled.
        return {**cast(Any, super()).__getstate__(), "_compiled": {}}

    def _part(self, part: Callable[..., Any]) -> Callable[..., Any]:
        return partial(self._compiled.get(part.__name__, part), self)

    def _attend_state(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return r and z, both (N, k, H)."""
        x = state + self.positions
        z = self.state_norm(x)
        return x + self.self_attention(z, z), z

    def _attend_modality(self, norm: nn.LayerNorm, attention: Attention, z: Tensor, source: ModalityStates) -> Tensor:
        """Compute the cross-attention of the rows that have the modality, (N, k, H); 0 in the other rows."""
        if len(source.rows) == 0:
            # The dtype is that of an attention output: another one would need another compiled graph.
            zero = _zero_gradient([norm(source.values), *attention.parameters()])
            return z.new_zeros(z.shape, dtype=source.values.dtype) + zero
        attend = self._part(RetCell._attend_source)
        if source.is_complete:
            return attend(norm, attention, z, source.values, source.padding)
        attended = attend(norm, attention, z[source.rows], source.values, source.padding)
        return z.new_zeros(z.shape, dtype=attended.dtype).index_copy(0, source.rows, attended)

    def _attend_source(
        self, norm: nn.LayerNorm, attention: Attention, z: Tensor, values: Tensor, padding: Tensor | None
    ) -> Tensor:
        """Return the cross-attention from z (n, k, H) to the states (n, L, H) of the same rows, (n, k, H)."""
        return attention(z, norm(values), padding)

    def _update(
        self, residual: Tensor, h_text: Tensor, h_image: Tensor, text_present: Tensor, image_present: Tensor
    ) -> tuple[Tensor, GateActivations]:
        """Return q' (N, k, H) and the gate activations."""
        activations = self.gate.activations(h_text, h_image, text_present, image_present)
        _check_activations(self.gate, activations, residual.shape)
        mixed = self.gate.mix(residual, h_text, h_image, activations)
        if mixed.shape != residual.shape:
            raise _wrong_shape(self.gate, "mix: the new state", mixed, residual.shape, code="gate-state-shape")
        return mixed + self.mlp(self.mlp_norm(mixed)), activations

    def _without_rows(
        self, state: Tensor, text: ModalityStates, image: ModalityStates
    ) -> tuple[Tensor, GateActivations]:
        """Return the result for a batch without rows, which the flash attention of a GPU does not support."""
        state = state + _zero_gradient([text.values, image.values, *self.parameters()])
        return state, GateActivations(state, state, state)


class UnusedNorm(nn.Module):
    """The layer norm `sa_ln`, which published checkpoints store but never use; kept so that it is saved unchanged.

    It consists of buffers because DDP fails on parameters without a gradient.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(hidden_size))
        self.register_buffer("bias", torch.zeros(hidden_size))


def _check_activations(gate: Gate, activations: GateActivations, shape: torch.Size) -> None:
    """Raise ConfigError if the activations of a possibly user-defined gate do not fit states of the given shape."""
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
        # The full size is tested first: torch.compile needs no guard if both sizes are the same symbol.
        if not fits or not all(activation.shape[at] == shape[at] or activation.shape[at] == 1 for at in range(3)):
            raise _wrong_shape(gate, f"activations: {name}", activation, shape, code="gate-activation-shape")


def _wrong_shape(gate: Gate, what: str, found: object, shape: torch.Size, *, code: str) -> ConfigError:
    of_found = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    allowed = "; each size may also be 1" if "activation" in code else ""
    return ConfigError(
        f"gate: {class_name(gate)}.{what}: expected shape (N, k, H) = {tuple(shape)}, got {of_found}{allowed}",
        code=code,
        gate=class_name(gate),
        found=tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__,
        expected=tuple(shape),
    )


def _zero_gradient(tensors: Iterable[Tensor]) -> Tensor:
    """Return 0 with a zero gradient for each of the tensors, which DDP waits for."""
    return cast(Tensor, 0 * sum(tensor.sum() for tensor in tensors))


def sinusoidal_table(rows: int, width: int) -> Tensor:
    """Return the sinusoidal position table of Vaswani et al., 2017, arXiv 1706.03762, section 3.5.

        P[i, 2 j] = sin(i / 10000^(2 j / width))          P[i, 2 j + 1] = cos(i / 10000^(2 j / width))

    Args:
        rows: Number of positions.
        width: Number of columns.

    Returns:
        (rows, width) float32 in [-1, 1].
    """
    position = torch.arange(rows, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-torch.log(torch.tensor(10000.0)) / width))
    table = torch.zeros(rows, width)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)[:, : width // 2]
    return table
