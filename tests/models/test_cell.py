"""The cell compared with the equations of the paper, implemented separately with tensor arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ret_lightning.errors import ConfigError
from ret_lightning.models import GateActivations, LSTMGate, RetCell
from ret_lightning.models.cell import sinusoidal_table
from ret_lightning.models.layer_states import ModalityStates

N, K, H, HEADS = 5, 4, 16, 2


def layer_norm(x: Tensor, module) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * module.weight + module.bias


def attention(z: Tensor, source: Tensor, module, valid: Tensor | None = None) -> Tensor:
    w_q, w_k, w_v = module.in_proj_weight.chunk(3)
    b_q, b_k, b_v = (0, 0, 0) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    q, k, v = z @ w_q.T + b_q, source @ w_k.T + b_k, source @ w_v.T + b_v
    heads = []
    for head in range(HEADS):
        part = slice(head * H // HEADS, (head + 1) * H // HEADS)
        logits = q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(H // HEADS)
        if valid is not None:
            logits = logits.masked_fill(~valid[:, None, :], -torch.inf)
        heads.append(logits.softmax(-1) @ v[..., part])
    out = torch.cat(heads, -1) @ module.out_proj.weight.T
    return out if module.out_proj.bias is None else out + module.out_proj.bias


def plain_step(
    cell: RetCell, q: Tensor, text: Tensor, image: Tensor, valid: Tensor, m_t: Tensor, m_v: Tensor
) -> Tensor:
    gate = cell.gate
    sigma = torch.sigmoid
    a = torch.tanh if gate.tanh else (lambda x: x)
    x = q + cell.positions
    z = layer_norm(x, cell.state_norm)
    r = x + attention(z, z, cell.self_attention)
    h_t = attention(z, layer_norm(text, cell.text_norm), cell.text_attention, valid)
    h_v = attention(z, layer_norm(image, cell.image_norm), cell.image_attention)
    i_t = sigma(gate.text_input(h_t) + gate.input_bias) * m_t
    i_v = sigma(gate.image_input(h_v) + gate.input_bias) * m_v
    f = sigma(m_t * gate.text_forget(h_t) + m_v * gate.image_forget(h_v) + gate.forget_bias)
    s = a(r) * f + a(h_t) * i_t + a(h_v) * i_v
    return s + cell.mlp(layer_norm(s, cell.mlp_norm))


def make_cell(tanh: bool = False, activation: str = "gelu") -> RetCell:
    gate = LSTMGate(H, input_bias=-0.7, forget_bias=1.3, tanh=tanh)
    cell = RetCell(gate, H, K, HEADS, 4 * H, activation=activation).eval()
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return cell


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("has_text", [[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
@pytest.mark.parametrize("has_image", [[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
def test_step_matches_equations(tanh: bool, has_text: list[int], has_image: list[int]) -> None:
    cell = make_cell(tanh)
    q, text, image = torch.randn(N, K, H), torch.randn(N, 6, H), torch.randn(N, 9, H)
    valid = torch.arange(6)[None] < torch.tensor([6, 3, 2, 1, 4])[:, None]
    m_t, m_v = (torch.tensor(m, dtype=torch.float32)[:, None, None] for m in (has_text, has_image))
    t_rows, v_rows = (torch.tensor(m).nonzero().squeeze(1) for m in (has_text, has_image))
    ours, activations = cell(
        q,
        ModalityStates(text[t_rows], t_rows, m_t, ~valid[t_rows]),
        ModalityStates(image[v_rows], v_rows, m_v),
    )
    torch.testing.assert_close(ours, plain_step(cell, q, text, image, valid, m_t, m_v), rtol=1e-5, atol=1e-5)
    assert activations.text.shape == activations.image.shape == activations.forget.shape == (N, K, H)
    assert torch.equal(activations.text.flatten(1).sum(1) > 0, torch.tensor(has_text) > 0)


def test_parameters_get_gradients_without_modality() -> None:
    cell = make_cell()
    for has_text, has_image in ((1, 1), (1, 0), (0, 1), (0, 0)):
        cell.zero_grad(set_to_none=True)
        t_rows, v_rows = torch.arange(N * has_text), torch.arange(N * has_image)
        present = torch.ones(N, 1, 1)
        out, _ = cell(
            torch.randn(N, K, H),
            ModalityStates(torch.randn(len(t_rows), 6, H), t_rows, present * has_text),
            ModalityStates(torch.randn(len(v_rows), 9, H), v_rows, present * has_image),
        )
        out.square().sum().backward()
        without = [name for name, p in cell.named_parameters() if p.grad is None and name != "start"]
        assert not without, (has_text, has_image, without)
        if has_text and has_image:
            assert all(p.grad.abs().sum() > 0 for name, p in cell.named_parameters() if name != "start")


def test_sinusoidal_table_matches_formula() -> None:
    table = sinusoidal_table(7, 10)
    for row in range(7):
        for column in range(10):
            angle = row / 10000 ** (2 * (column // 2) / 10)
            expected = math.sin(angle) if column % 2 == 0 else math.cos(angle)
            assert table[row, column].item() == pytest.approx(expected, abs=1e-6)


def test_inconsistent_sizes_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        RetCell(LSTMGate(H), H, K, 3, H)
    assert (error.value.code, error.value.found, error.value.hidden_size) == ("cell-heads-not-divisor", 3, 16)
    with pytest.raises(ConfigError) as error:
        RetCell(LSTMGate(H), H, 17, HEADS, H)
    assert (error.value.code, error.value.found, error.value.most) == ("cell-tokens-too-many", 17, 16)


class UserGate(LSTMGate):
    def __init__(self, width: int, change: Callable[[GateActivations], object], mixed: slice = slice(None)) -> None:
        super().__init__(width)
        self.change, self.mixed = change, mixed

    def activations(self, *inputs: Tensor) -> object:
        return self.change(super().activations(*inputs))

    def mix(self, *inputs: object) -> Tensor:
        return super().mix(*inputs)[:, self.mixed]


def step(cell: RetCell, rows: int) -> None:
    def states() -> ModalityStates:
        return ModalityStates(torch.randn(rows, 6, H), torch.arange(rows), torch.ones(rows, 1, 1))

    with torch.no_grad():
        cell(torch.randn(rows, K, H), states(), states())


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("gate", "code", "found"),
    [
        (lambda o: GateActivations(o.forget.repeat(1, 1, 3), o.text, o.image), "gate-activation-shape", (N, K, 3 * H)),
        (lambda o: GateActivations(o.forget, o.text.mean(-1), o.image), "gate-activation-shape", (N, K)),
        (lambda o: GateActivations(o.forget, o.text, o.image[:2]), "gate-activation-shape", (2, K, H)),
        (lambda o: GateActivations(1.0, o.text, o.image), "gate-activation-shape", "float"),
        (lambda o: (o.forget, o.text, o.image), "gate-without-activations", "tuple"),
        (lambda o: None, "gate-without-activations", "NoneType"),
        (slice(2), "gate-state-shape", (N, 2, H)),
    ],
)
def test_user_gate_results_are_checked(gate: Any, code: str, found: object, compiled: bool) -> None:
    change = gate if callable(gate) else lambda activations: activations
    own = UserGate(H, change, gate if isinstance(gate, slice) else slice(None))
    cell = RetCell(own, H, K, HEADS, H).eval()
    if compiled:
        cell.compile(dynamic=True, backend="eager")
    with pytest.raises(ConfigError) as raised:
        step(cell, N)
    assert (raised.value.code, raised.value.found) == (code, found)
    assert raised.value.gate.endswith("UserGate")


@pytest.mark.slow
def test_checks_do_not_break_compiled_graph() -> None:
    cell = RetCell(LSTMGate(H), H, K, HEADS, H).eval()
    cell.compile(dynamic=True, fullgraph=True, backend="eager")
    for rows in (N, N + 1):
        step(cell, rows)


def test_cell_refuses_module_that_is_no_gate() -> None:
    with pytest.raises(ConfigError) as raised:
        RetCell(torch.nn.Linear(H, H), H, K, HEADS, H)
    assert raised.value.code == "gate-of-wrong-type"
