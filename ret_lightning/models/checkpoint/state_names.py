"""Names of the published classes against ours.

| published, in `query_model.` or `passage_model.` | ours, in `query_tower.` or `passage_tower.` |
|---|---|
| `ret_cell.*` | `cells.0.*`, see `CELL_NAMES`; `ret_cells.N.*` is our extension for a cell a step |
| `ret_cell.query_hidden_states` | `start` |
| `text_adapter.N`, `vision_adapter.N` | `text_adapters.N`, `image_adapters.N` |
| `late_proj` | `output` |
| `text_model`, `vision_model` | what the backbone's `layout_state` says |

What the towers share is stored once, under `query_model`. `ret_cell.sa_ln` is stored, but nothing uses it.
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
    """Every tensor of a retriever by its published name: the live ones, or views of them."""
    state: dict[str, Tensor] = {}
    for side, tower in published_sides(retriever).items():
        state |= {f"{side}.{theirs}": tensor for theirs, tensor in _of_tower(tower).items()}
        for field, stack in _stacks(retriever, side).items():
            state |= {f"{side}.{field}.{name}": tensor for name, tensor in stack.layout_state().items()}
    return state


def load_published_state(retriever: TwoTowers, state: Mapping[str, Tensor]) -> None:
    """Makes the tensors of a whole published state the retriever's own, with their dtype, not copies of them."""
    for side, tower in published_sides(retriever).items():
        own = {ours: state[f"{side}.{published_name(ours, len(tower.cells))}"] for ours in _own_names(tower)}
        tower.load_state_dict(own, strict=False, assign=True)  # the backbones follow
        for field, stack in _stacks(retriever, side).items():
            prefix = f"{side}.{field}."
            stack.load_layout_state({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})


def published_sides(retriever: TwoTowers) -> dict[str, RetTower]:
    """`query_model` and, where it is another tower, `passage_model`."""
    sides = {"query_model": retriever.query_tower}
    if retriever.passage_tower is not retriever.query_tower:
        sides["passage_model"] = retriever.passage_tower
    return sides


def published_name(ours: str, cells: int) -> str:
    """The published name of a tower's tensor that is not a backbone's.

    Args:
        ours: its name in `RetTower.state_dict()`.
        cells: how many cells the tower has.
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
    """The backbones that stand under a side: on the passage side only those that the query tower does not have."""
    tower, query = published_sides(retriever)[side], retriever.query_tower
    stacks = {"text_model": tower.text_backbone, "vision_model": tower.vision_backbone}
    if tower is query:
        return stacks
    shared = (query.text_backbone, query.vision_backbone)
    return {field: stack for field, stack in stacks.items() if not any(stack is other for other in shared)}
