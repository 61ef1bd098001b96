"""The mapping between tensor names in published checkpoints and in this project.

| published, in `query_model.` or `passage_model.` | this project, in `query_tower.` or `passage_tower.` |
|---|---|
| `ret_cell.*` | `cells.0.*`, names in `CELL_NAMES`; `ret_cells.N.*` (extension) for one cell per step |
| `ret_cell.query_hidden_states` | `start` |
| `text_adapter.N`, `vision_adapter.N` | `text_adapters.N`, `image_adapters.N` |
| `late_proj` | `output` |
| `text_model.*`, `vision_model.*` | the names of `BlockStack.layout_state` |

Modules that the towers share are stored once, under `query_model`. `ret_cell.sa_ln` is stored but never used.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ret_lightning.models.backbones.base import BlockStack
from ret_lightning.models.tower import RetTower
from ret_lightning.models.two_towers import TwoTowers

CELL_NAMES = {
    "positions": "query_state_ids",
    "state_norm": "xa_ln",
    "self_attention": "sa",
    "text_norm": "text_ln",
    "text_attention": "text_xa",
    "image_norm": "vision_ln",
    "image_attention": "vision_xa",
    "gate.text_input": "text_input_gate_w",
    "gate.image_input": "vision_input_gate_w",
    "gate.text_forget": "text_forget_gate_w",
    "gate.image_forget": "vision_forget_gate_w",
    "gate.input_bias": "input_gate_bias_prior",
    "gate.forget_bias": "forget_gate_bias_prior",
    "mlp_norm": "mlp_ln",
    "unused_norm": "sa_ln",
}
TOWER_NAMES = {
    "start": "ret_cell.query_hidden_states",
    "text_adapters": "text_adapter",
    "image_adapters": "vision_adapter",
    "output": "late_proj",
}
_BACKBONES = ("text_backbone", "vision_backbone")


def published_state(retriever: TwoTowers) -> dict[str, Tensor]:
    """Return all tensors of a retriever, or views of them, by their published names."""
    state: dict[str, Tensor] = {}
    for side, tower in published_sides(retriever).items():
        state |= {f"{side}.{theirs}": tensor for theirs, tensor in _of_tower(tower).items()}
        for field, stack in _stacks(retriever, side).items():
            state |= {f"{side}.{field}.{name}": tensor for name, tensor in stack.layout_state().items()}
    return state


def load_published_state(retriever: TwoTowers, state: Mapping[str, Tensor]) -> None:
    """Assign the tensors of a complete published state to a retriever, keeping their dtype. They are not copied."""
    for side, tower in published_sides(retriever).items():
        own = {ours: state[f"{side}.{published_name(ours, len(tower.cells))}"] for ours in _own_names(tower)}
        tower.load_state_dict(own, strict=False, assign=True)  # backbones are assigned below
        for field, stack in _stacks(retriever, side).items():
            prefix = f"{side}.{field}."
            stack.load_layout_state({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})


def published_sides(retriever: TwoTowers) -> dict[str, RetTower]:
    """Return the towers by their published names: `query_model`, and `passage_model` if it is a different tower."""
    sides = {"query_model": retriever.query_tower}
    if retriever.passage_tower is not retriever.query_tower:
        sides["passage_model"] = retriever.passage_tower
    return sides


def published_name(ours: str, cells: int) -> str:
    """Return the published name of a tensor of a tower, outside its backbones.

    Args:
        ours: Name in `RetTower.state_dict()`.
        cells: Number of cells of the tower.
    """
    if ours.startswith("cells."):
        _, number, rest = ours.split(".", 2)
        return f"{'ret_cell' if cells == 1 else f'ret_cells.{number}'}.{_renamed(rest, CELL_NAMES)}"
    return _renamed(ours, TOWER_NAMES)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    return name


def _of_tower(tower: RetTower) -> dict[str, Tensor]:
    state = tower.state_dict()
    return {published_name(ours, len(tower.cells)): state[ours] for ours in _own_names(tower)}


def _own_names(tower: RetTower) -> list[str]:
    return [name for name in tower.state_dict() if not name.startswith(_BACKBONES)]


def _stacks(retriever: TwoTowers, side: str) -> dict[str, BlockStack]:
    """Return the backbones stored under a side; for the passage side, only those not shared with the query tower."""
    tower, query = published_sides(retriever)[side], retriever.query_tower
    stacks = {"text_model": tower.text_backbone, "vision_model": tower.vision_backbone}
    if tower is query:
        return stacks
    shared = (query.text_backbone, query.vision_backbone)
    return {field: stack for field, stack in stacks.items() if not any(stack is other for other in shared)}
