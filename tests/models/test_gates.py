"""Every gate compared with its equation, implemented separately with tensor arithmetic."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from ret_lightning.errors import ConfigError
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
from ret_lightning.models.layer_states import ModalityStates
from tests.support.paths import CONF

CONFIGS = CONF / "gate"
N, K, H, HEADS = 4, 3, 16, 2
GATES = {
    "lstm": LSTMGate,
    "no_forget": NoForgetGate,
    "no_input": NoInputGate,
    "none": NoGate,
    "coupled": CoupledGate,
    "scalar": ScalarGate,
    "constant": ConstantGate,
}
every_gate = pytest.mark.parametrize("name", GATES)
# Four rows: both modalities, only text, only image, neither.
HAS_TEXT, HAS_IMAGE = [1, 1, 0, 0], [1, 0, 1, 0]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make_gate(name: str, **settings) -> Gate:
    gate = GATES[name](H, **settings)
    for parameter in gate.parameters():
        nn.init.normal_(parameter, std=0.5)
    return gate


def mask(rows: list[int], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(rows, dtype=dtype)[:, None, None]


def plain_activations(
    name: str, gate: Gate, p_i: float, p_f: float, h_t: Tensor, h_v: Tensor, m_t: Tensor, m_v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the activations forget, text and image, each (N, k, H)."""

    def sigma(x: Tensor) -> Tensor:
        return 1 / (1 + (-x).exp())

    def linear(map_name: str, x: Tensor) -> Tensor:
        weight, bias = gate.get_parameter(f"{map_name}.weight"), gate.get_parameter(f"{map_name}.bias")
        return (x[..., None, :] * weight).sum(-1) + bias

    one = torch.ones_like(h_t)
    if name == "constant":
        f = sigma(gate.forget_logits + p_f)
        i_t, i_v = sigma(gate.text_logits + p_i) * m_t, sigma(gate.image_logits + p_i) * m_v
        return f * one, i_t * one, i_v * one
    if name in ("no_forget", "none"):
        f = one
    else:
        f = sigma(m_t * linear("text_forget", h_t) + m_v * linear("image_forget", h_v) + p_f)
    if name in ("no_input", "none"):
        i_t, i_v = m_t, m_v
    elif name == "coupled":
        i_t, i_v = (1 - f) * m_t, (1 - f) * m_v
    else:
        i_t, i_v = sigma(linear("text_input", h_t) + p_i) * m_t, sigma(linear("image_input", h_v) + p_i) * m_v
    return f * one, i_t * one, i_v * one


@every_gate
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize(("p_i", "p_f"), [(0.0, 0.0), (-0.7, 1.3)])
def test_gate_matches_equation(name: str, tanh: bool, p_i: float, p_f: float) -> None:
    gate = make_gate(name, input_bias=p_i, forget_bias=p_f, tanh=tanh)
    # The cell passes zeros for a missing modality, but the equation holds for any values.
    r, h_t, h_v = torch.randn(3, N, K, H).unbind()
    m_t, m_v = mask(HAS_TEXT), mask(HAS_IMAGE)
    activations = gate.activations(h_t, h_v, m_t, m_v)
    f, i_t, i_v = plain_activations(name, gate, p_i, p_f, h_t, h_v, m_t, m_v)
    for ours, plain in ((activations.forget, f), (activations.text, i_t), (activations.image, i_v)):
        torch.testing.assert_close(ours.expand(N, K, H), plain)
    a_r, a_t, a_v = ((x.exp() - (-x).exp()) / (x.exp() + (-x).exp()) if tanh else x for x in (r, h_t, h_v))
    torch.testing.assert_close(gate.mix(r, h_t, h_v, activations), a_r * f + a_t * i_t + a_v * i_v)


def test_scalar_gate_has_one_value_per_vector() -> None:
    activations = make_gate("scalar").activations(*torch.randn(2, N, K, H), mask(HAS_TEXT), mask(HAS_IMAGE))
    assert activations.forget.shape == activations.text.shape == activations.image.shape == (N, K, 1)


@pytest.mark.parametrize(
    ("name", "at_16", "at_1024"),
    [
        ("lstm", 4 * 16 * 17, 4_198_400),
        ("no_forget", 2 * 16 * 17, 2_099_200),
        ("no_input", 2 * 16 * 17, 2_099_200),
        ("none", 0, 0),
        ("coupled", 2 * 16 * 17, 2_099_200),
        ("scalar", 4 * 17, 4_100),
        ("constant", 3 * 16, 3_072),
    ],
)
def test_number_of_gate_parameters(name: str, at_16: int, at_1024: int) -> None:
    for hidden_size, expected in ((16, at_16), (1024, at_1024)):
        with torch.device("meta"):
            gate = GATES[name](hidden_size)
        assert sum(p.numel() for p in gate.parameters()) == expected


def test_constant_gate_starts_from_its_priors() -> None:
    activations = ConstantGate(H, input_bias=-2.0, forget_bias=3.0).activations(
        *torch.randn(2, N, K, H), mask([1] * N), mask([1] * N)
    )
    for activation, start in (
        (activations.forget, 0.9525741),
        (activations.text, 0.1192029),
        (activations.image, 0.1192029),
    ):
        torch.testing.assert_close(activation, torch.full_like(activation, start))  # sigmoid(3), sigmoid(-2)


@every_gate
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask_dtype", ["as the model", torch.float32, torch.bool])
def test_gate_supports_dtypes(name: str, dtype: torch.dtype, mask_dtype: torch.dtype | str) -> None:
    mask_dtype = dtype if mask_dtype == "as the model" else mask_dtype
    gate = make_gate(name, input_bias=-0.7, forget_bias=1.3, tanh=True).to(dtype)
    r, h_t, h_v = torch.randn(3, N, K, H, dtype=torch.float64).to(dtype).unbind()
    activations = gate.activations(h_t, h_v, mask(HAS_TEXT, mask_dtype), mask(HAS_IMAGE, mask_dtype))
    mixed = gate.mix(r, h_t, h_v, activations)
    assert mixed.dtype == torch.promote_types(dtype, mask_dtype)
    gate.double()
    h_t, h_v, m_t, m_v = h_t.double(), h_v.double(), mask(HAS_TEXT).double(), mask(HAS_IMAGE).double()
    # A half-precision model stores the priors in its own precision.
    p_i, p_f = (torch.tensor(p, dtype=torch.float32).to(dtype).item() for p in (-0.7, 1.3))
    f, i_t, i_v = plain_activations(name, gate, p_i, p_f, h_t, h_v, m_t, m_v)
    plain = r.double().tanh() * f + h_t.tanh() * i_t + h_v.tanh() * i_v
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(mixed.double(), plain, rtol=tolerance, atol=tolerance)


@every_gate
@pytest.mark.parametrize(("has_text", "has_image"), [(HAS_TEXT, HAS_IMAGE), ([1] * N, [0] * N)])
def test_mean_activations_of_gates(name: str, has_text: list[int], has_image: list[int]) -> None:
    gate = make_gate(name, input_bias=-0.7, forget_bias=1.3)
    h_t, h_v = torch.randn(2, N, K, H).unbind()
    m_t, m_v = mask(has_text), mask(has_image)
    means = ActivationMeans()
    means.add(0, gate.activations(h_t, h_v, m_t, m_v), m_t, m_v)
    f, i_t, i_v = plain_activations(name, gate, -0.7, 1.3, h_t, h_v, m_t, m_v)
    ours = means.means()
    torch.testing.assert_close(ours[0, "forget"], f.mean())
    torch.testing.assert_close(ours[0, "text"], i_t[torch.tensor(has_text) == 1].mean())
    torch.testing.assert_close(ours[0, "image"], i_v[torch.tensor(has_image) == 1].mean(), equal_nan=True)


# In the cell.


def make_cell(name: str, tanh: bool = False) -> RetCell:
    cell = RetCell(GATES[name](H, input_bias=-0.7, forget_bias=1.3, tanh=tanh), H, K, HEADS, 2 * H).eval()
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.3)
    return cell


def states(values: Tensor, has: list[int]) -> ModalityStates:
    """Select the rows that have the modality."""
    rows = torch.tensor(has).nonzero().squeeze(1)
    return ModalityStates(values[rows], rows, mask(has, values.dtype))


@every_gate
@pytest.mark.parametrize("modality", ["text", "image"])
def test_row_does_not_depend_on_missing_modality(name: str, modality: str) -> None:
    cell = make_cell(name)
    has = HAS_TEXT if modality == "text" else HAS_IMAGE
    other = states(torch.randn(N, 6, H), [1, 1, 1, 0])
    state, values = torch.randn(N, K, H), torch.randn(N, 5, H, requires_grad=True)

    def step(source: ModalityStates) -> Tensor:
        return cell(state, source, other)[0] if modality == "text" else cell(state, other, source)[0]

    # All rows pass the cross-attention, so that only the gate masks the missing modality.
    out = step(ModalityStates(values, torch.arange(N), mask(has)))
    torch.testing.assert_close(step(states(values, has)), out)
    (gradient,) = torch.autograd.grad(out.square().sum(), values)
    assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == [bool(h) for h in has]
    absent = mask(has) == 0
    changed = step(ModalityStates(values + 100 * torch.randn_like(values) * absent, torch.arange(N), mask(has)))
    assert torch.equal(changed, out)


@every_gate
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_gate_parameters_get_gradients(name: str, tanh: bool, autocast: bool) -> None:
    cell = make_cell(name, tanh)
    everywhere, nowhere = [1] * N, [0] * N
    for has_text, has_image in (
        (everywhere, everywhere),
        (HAS_TEXT, HAS_IMAGE),
        (everywhere, nowhere),
        (nowhere, everywhere),
        (nowhere, nowhere),
    ):
        cell.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out, _ = cell(
                torch.randn(N, K, H), states(torch.randn(N, 6, H), has_text), states(torch.randn(N, 5, H), has_image)
            )
        assert out.dtype == torch.float32
        out.square().sum().backward()
        gradients = {parameter_name: parameter.grad for parameter_name, parameter in cell.named_parameters()}
        assert not [n for n, g in gradients.items() if g is None], (has_text, has_image)
        assert all(g.isfinite().all() for g in gradients.values())
        if any(has_text) and any(has_image):
            assert not [n for n, g in gradients.items() if not g.any()], (has_text, has_image)


# Names.


@every_gate
def test_gate_is_rebuilt_by_name(name: str) -> None:
    gate = make_gate(name, input_bias=-0.7, forget_bias=1.3, tanh=True)
    assert gate.name == name
    assert gate_named(name) is GATES[name]
    again = gate_named(gate.name)(H, **gate.settings)
    again.load_state_dict(gate.state_dict())
    inputs = (*torch.randn(2, N, K, H), mask(HAS_TEXT), mask(HAS_IMAGE))
    state = torch.randn(N, K, H)
    mixed = [g.mix(state, *inputs[:2], g.activations(*inputs)) for g in (gate, again)]
    assert torch.equal(*mixed)


def test_every_gate_has_config_of_its_name() -> None:
    configs = {file.stem: yaml.safe_load(file.read_text()) for file in CONFIGS.glob("*.yaml")}
    assert configs.keys() == GATES.keys()
    for name, config in configs.items():
        assert config == {
            "_target_": f"ret_lightning.models.{GATES[name].__name__}",
            "_partial_": True,
            "input_bias": 0.0,
            "forget_bias": 0.0,
            "tanh": False,
        }


def test_user_gate_is_found_after_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_gates.py").write_text(
        "from ret_lightning.models.gates import LSTMGate\n\nclass Mine(LSTMGate):\n    name = 'mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine", "my_own_gates.Mine", "my_own_gates", "LSTMGate"):
        with pytest.raises(ConfigError) as raised:
            gate_named(name)
        assert (raised.value.code, raised.value.found) == ("gate-name-unknown", name)
        assert set(GATES) <= set(raised.value.allowed)
    assert "my_own_gates" not in sys.modules
    module = importlib.import_module("my_own_gates")
    try:
        assert gate_named("mine") is module.Mine
        assert gate_named("lstm") is LSTMGate
    finally:
        del sys.modules["my_own_gates"]


def test_gate_name_is_not_inherited() -> None:
    class Quiet(LSTMGate):
        pass

    class QuietTwice(Quiet):
        pass

    assert Quiet(H).name == QuietTwice(H).name == ""
    assert gate_named("lstm") is LSTMGate
    with pytest.raises(ConfigError) as error:
        gate_named("")
    assert (error.value.code, error.value.found) == ("gate-name-unknown", "")


def test_ambiguous_gate_name_is_refused() -> None:
    def define(class_name: str) -> type[Gate]:
        return type(class_name, (NoGate,), {"name": "duplicate name", "__module__": __name__})

    first = define("First")
    assert gate_named("duplicate name") is first
    again = define("First")  # redefined, as by running a notebook cell again
    assert gate_named("duplicate name") is again
    second = define("Second")
    with pytest.raises(ConfigError) as error:
        gate_named(second.name)
    assert (error.value.code, error.value.found) == ("gate-name-ambiguous", "duplicate name")
    assert [name.rpartition(".")[2] for name in error.value.classes] == ["First", "Second"]


def test_former_names_are_deprecated() -> None:
    with pytest.warns(FutureWarning, match="use GateActivations"):
        from ret_lightning.models import Openings
    assert Openings is GateActivations
    with pytest.warns(FutureWarning, match="EarlierGate.openings is deprecated .* use activations"):

        class EarlierGate(Gate):
            def openings(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
                return GateActivations(text_mask, text_mask, image_mask)

    with pytest.warns(FutureWarning, match="HalfOpen.openings"):

        class HalfOpen(LSTMGate):
            def openings(self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor) -> GateActivations:
                full = super().openings(text, image, text_mask, image_mask)
                return GateActivations(full.forget / 2, full.text, full.image)

    gate, masks = EarlierGate(2), (torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    activations = gate.activations(torch.ones(1, 3, 2), torch.zeros(1, 3, 2), *masks)
    assert (activations.forget.item(), activations.image.item()) == (1, 0)
    torch.manual_seed(0)
    half, reads = HalfOpen(2), (torch.randn(1, 3, 2), torch.randn(1, 3, 2))
    expected = LSTMGate.activations(half, *reads, *masks)
    torch.testing.assert_close(half.activations(*reads, *masks).forget, expected.forget / 2)
