"""The published checkpoint layout: a `config.json` and `model.safetensors`, as transformers 4.45 wrote them for ReT.

Names of the published classes against ours, for each of `query_model` / `query_tower` and `passage_model` / `passage_tower`:

| published | ours |
|---|---|
| `ret_cell.*` | `cell.*`, see `CELL_NAMES` |
| `text_adapter.N`, `vision_adapter.N` | `text_adapters.N`, `image_adapters.N` |
| `late_proj` | `output` |
| `text_model.text_model`, `vision_model.vision_model` | `text_backbone.model`, `vision_backbone.model` |

What both towers share is stored once, under `query_model`. `ret_cell.sa_ln` is stored, but nothing uses it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ret_lightning.errors import UserError
from ret_lightning.models.backbone import BlockStack
from ret_lightning.models.cell import ACTIVATIONS, RetCell
from ret_lightning.models.gates import LSTMGate
from ret_lightning.models.layers import PUBLISHED_PLANS
from ret_lightning.models.retriever import RetRetriever
from ret_lightning.models.tower import RetTower

CONFIG_FILE, WEIGHTS_FILE, WEIGHTS_INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

CELL_NAMES = {
    "query_hidden_states": "start",
    "query_state_ids": "positions",
    "xa_ln": "state_norm",
    "sa": "self_attention",
    "text_ln": "text_norm",
    "text_xa": "text_attention",
    "vision_ln": "image_norm",
    "vision_xa": "image_attention",
    "text_input_gate_w": "gate.text_input",
    "vision_input_gate_w": "gate.image_input",
    "text_forget_gate_w": "gate.text_forget",
    "vision_forget_gate_w": "gate.image_forget",
    "input_gate_bias_prior": "gate.input_bias",
    "forget_gate_bias_prior": "gate.forget_bias",
    "mlp_ln": "mlp_norm",
    "mlp": "mlp",
}
TOWER_NAMES = {
    **{f"ret_cell.{theirs}": f"cell.{ours}" for theirs, ours in CELL_NAMES.items()},
    "text_adapter": "text_adapters",
    "vision_adapter": "image_adapters",
    "late_proj": "output",
    "text_model.text_model": "text_backbone.model",
    "vision_model.vision_model": "vision_backbone.model",
}
UNUSED = "ret_cell.sa_ln"
SIDES = {"query_model": "query_tower", "passage_model": "passage_tower"}

# The fields of the backbones' configs that make a difference; the rest of what transformers 4.45 wrote is about text
# generation and classification, and transformers 5 does not know all of it.
_COMMON_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "projection_dim",
    "initializer_range",
    "initializer_factor",
)
TEXT_FIELDS = (*_COMMON_FIELDS, "vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
VISION_FIELDS = (*_COMMON_FIELDS, "image_size", "patch_size", "num_channels")


def our_name(published: str) -> str | None:
    """The name of a published tensor in `RetRetriever.state_dict()`; None for the unused ones.

    Raises:
        KeyError: for a name that the published classes do not have.
    """
    side, _, rest = published.partition(".")
    if rest.startswith(UNUSED + "."):
        return None
    for theirs, ours in TOWER_NAMES.items():
        if rest == theirs or rest.startswith(theirs + "."):
            return f"{SIDES[side]}.{ours}{rest[len(theirs) :]}"
    raise KeyError(published)


def load_published(source: str | Path) -> RetRetriever:
    """A retriever with the weights of a folder, or hub id, in the published layout; in eval mode, on the CPU.

    Raises:
        UserError: if there is no such checkpoint, or its weights do not fit its config.
    """
    folder = _folder(source)
    config = _read_config(folder / CONFIG_FILE)
    retriever = retriever_from_config(config, folder / CONFIG_FILE)
    weights: dict[str, Tensor] = {}
    for name, tensor in _read_weights(folder).items():
        try:
            ours = our_name(name)
        except KeyError:
            raise UserError(f"{folder}: tensor {name} is none of a ReT checkpoint; is this another model?") from None
        if ours is not None:
            weights[ours] = tensor
    _load(retriever, weights, folder)
    return retriever.eval()


def retriever_from_config(config: Mapping[str, Any], where: Path) -> RetRetriever:
    """A retriever of random weights with the architecture of a published config.

    Raises:
        UserError: naming `where` and the field, if a field is missing or cannot be served.
    """
    try:
        query_config, passage_config = config["query_config"], config["passage_config"]
        query_stacks = (_text_stack(query_config), _vision_stack(query_config))
        query_tower = _tower(query_config, *query_stacks, where)
        if config["share_query_passage_models"]:
            return RetRetriever(query_tower, query_tower)
        text = query_stacks[0] if config["share_text_models"] else _text_stack(passage_config)
        vision = query_stacks[1] if config["share_vision_models"] else _vision_stack(passage_config)
        return RetRetriever(query_tower, _tower(passage_config, text, vision, where))
    except KeyError as error:
        raise UserError(f"{where}: field {error.args[0]!r} is missing; is this the config of a ReT model?") from error


def _text_stack(config: Mapping[str, Any]) -> BlockStack:
    from ret_lightning.models.clip_transformers import text_stack

    return text_stack({k: config["text_config"][k] for k in TEXT_FIELDS if k in config["text_config"]})


def _vision_stack(config: Mapping[str, Any]) -> BlockStack:
    from ret_lightning.models.clip_transformers import vision_stack

    return vision_stack({k: config["vision_config"][k] for k in VISION_FIELDS if k in config["vision_config"]})


def _tower(config: Mapping[str, Any], text: BlockStack, vision: BlockStack, where: Path) -> RetTower:
    for field, choices in (("layer_strategy", PUBLISHED_PLANS), ("activation_fn", ACTIVATIONS)):
        if config[field] not in choices:
            raise UserError(f"{where}: {field}={config[field]!r} is unknown; known: {', '.join(choices)}")
    hidden_size = config["hidden_size"]
    gate = LSTMGate(
        hidden_size,
        input_bias=config["input_gate_bias_prior"],
        forget_bias=config["forget_gate_bias_prior"],
        tanh=config["use_tanh"],
    )
    cell = RetCell(
        gate,
        hidden_size=hidden_size,
        num_tokens=config["num_queries"],
        num_heads=config["num_attention_heads"],
        intermediate_size=config["intermediate_size"],
        dropout=config["dropout_p"],
        attention_dropout=config["attention_dropout"],
        activation=config["activation_fn"],
    )
    plan = PUBLISHED_PLANS[config["layer_strategy"]]
    text.freeze(config["is_text_frozen"], max(plan.text))
    vision.freeze(config["is_vision_frozen"], max(plan.vision))
    return RetTower(
        text, vision, plan, cell, hidden_size, config["late_proj_output_size"], pooled=config["use_pooler_features"]
    )


def _folder(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or str(source).startswith(("./", "../", "~")) or str(source).count("/") != 1:
        raise UserError(f"checkpoint {source}: no such folder (a hub id would be owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"checkpoint {source}: neither a folder here nor a model that can be had from the hub ({reason}); fetch it "
            f"where there is a network with `hf download {source}`"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"checkpoint {path.parent}: there is no {path.name} in it") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if (folder / WEIGHTS_INDEX).is_file():
        shards = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(shards))]
    else:
        files = [folder / WEIGHTS_FILE]
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights.update(load_file(file))
        except FileNotFoundError:
            raise UserError(
                f"checkpoint {folder}: {file.name} is missing; weights are read from safetensors only"
            ) from None
        except SafetensorError as error:
            raise UserError(f"{file}: not a whole safetensors file ({error}); fetch it again") from error
    return weights


def _load(retriever: RetRetriever, weights: dict[str, Tensor], folder: Path) -> None:
    own = retriever.state_dict(keep_vars=True)
    # One tensor under two names is shared by the towers; the file holds one of the names.
    stored = {id(own[name]) for name in weights if name in own}
    missing = [name for name, tensor in own.items() if name not in weights and id(tensor) not in stored]
    unexpected = [name for name in weights if name not in own]
    misfit = [
        f"{name} is {tuple(weights[name].shape)} in the file and {tuple(own[name].shape)} by the config"
        for name in weights
        if name in own and weights[name].shape != own[name].shape
    ]
    for what, names in (
        ("missing in the file", missing),
        ("not in the model", unexpected),
        ("of another shape", misfit),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{folder}: the weights do not fit the config: {what}: {'; '.join(names[:3])}{more}")
    retriever.load_state_dict(weights, strict=False)
