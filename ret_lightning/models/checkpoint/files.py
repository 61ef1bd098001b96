"""Loading and saving of checkpoints: `config.json` and `model.safetensors`, in the layout of the published ReT checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ret_lightning.errors import ConfigError, UserError
from ret_lightning.models.checkpoint.config_reader import RetrieverT, retriever_from_config
from ret_lightning.models.checkpoint.config_writer import architecture, config_of
from ret_lightning.models.checkpoint.preprocessors import FILES_FOLDER, preprocessor_files, stored_preprocessors
from ret_lightning.models.checkpoint.state_names import load_published_state, published_sides, published_state
from ret_lightning.models.precision import device_named, dtype_named
from ret_lightning.models.two_towers import TwoTowers
from ret_lightning.runtime.atomic_files import whole_file
from ret_lightning.runtime.cache_errors import cache_error
from ret_lightning.runtime.git_lfs import refuse_lfs_pointer

CONFIG_FILE, WEIGHTS_FILE, WEIGHTS_INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_HUB_FILES = ["*.json", "*.safetensors", f"{FILES_FOLDER}/*"]


def load_checkpoint(
    retriever_class: type[RetrieverT],
    source: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
) -> RetrieverT:
    """Load a retriever in eval mode from a folder or hub id.

    Args:
        retriever_class: Class to build, `TwoTowers` or a subclass.
        source: Folder with `config.json` and `model.safetensors` (or its shards), or a hub id.
        device: Device of the model; None uses the CPU.
        dtype: Dtype of the weights; None keeps the stored dtype.
        revision: Branch, tag or commit of a hub repository.

    Raises:
        UserError: If the checkpoint does not exist or its weights do not fit its config.
    """
    dtype = None if dtype is None else dtype_named(dtype)
    device = None if device is None else device_named(device)
    folder = find_checkpoint(source, revision)
    config = read_config(folder)
    # Tensors created in a caller's inference mode could never be trained.
    with torch.inference_mode(False):
        with torch.device("meta"):  # allocates no random weights, which would be replaced at once
            retriever = retriever_from_config(config, folder / CONFIG_FILE, retriever_class)
        own = published_state(retriever)
        state = _drop_copies(_read_weights(folder), own)
        check_fit(own, state, f"{folder}: the weights do not fit the config")
        load_published_state(retriever, state)
        return retriever.to(device=device, dtype=dtype).eval()


def load_weights(retriever: TwoTowers, source: TwoTowers, where: str | Path) -> None:
    """Copy the weights of a retriever into another one of the same architecture.

    Dtypes, devices, trained parts and dropout of the target are unchanged. The backbones may come from different libraries.

    Args:
        retriever: Target, modified in place.
        source: Source of the weights, not modified.
        where: Name of the source, for messages.

    Raises:
        ConfigError: If the architectures differ.
    """
    other = list(architecture_differences(retriever, source).values())
    if other:
        raise ConfigError(
            f"{where}: the architecture of the checkpoint differs from the config: {'; '.join(other)}; change the config, or "
            "set init_partial=true to load the weights that fit",
            code="checkpoint-other-architecture",
            path=str(where),
            differences=tuple(other),
        )
    own, state = published_state(retriever), published_state(source)
    check_fit(own, state, f"{where}: the checkpoint does not fit the model of this config")
    load_published_state(retriever, {name: tensor.to(own[name], copy=True) for name, tensor in state.items()})
    retriever.stored_config = source.stored_config
    for side, tower in published_sides(retriever).items():
        other_tower = published_sides(source)[side]
        tower.text_backbone.source = other_tower.text_backbone.source
        tower.vision_backbone.source = other_tower.vision_backbone.source


def architecture_differences(retriever: TwoTowers, source: TwoTowers) -> dict[str, str]:
    """Return the settings in which a model differs from the source of its weights, by key, each described as a text."""
    here, there = architecture(retriever), architecture(source)
    both = {key: (_of(there, key), _of(here, key)) for key in here | there}
    return {key: f"{key}={a} in the checkpoint and {b} in the config" for key, (a, b) in both.items() if a != b}


def _of(described: Mapping[str, Any], key: str) -> Any:
    """Return a value of `architecture`; the passage tower defaults to the value of the query tower."""
    return described[key] if key in described else described.get(key.removeprefix("passage."))


def save_checkpoint(retriever: TwoTowers, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
    """Save `config.json` and `model.safetensors` in the published layout, atomically.

    Args:
        retriever: Retriever to save.
        folder: Target folder, created if needed. Other files in it are kept.
        max_shard_size: Maximum size of a weight file, in bytes or as a string such as `"5GB"`.

    Raises:
        UserError: If the folder cannot be written.
        ConfigError: If a part of the model cannot be stored.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder, size = Path(folder), check_shard_size(max_shard_size)
    config, parts = storable_config(retriever), preprocessor_files(retriever)
    state = _without_shared_memory(published_state(retriever))
    shards = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=size
    )
    files = shards.filename_to_tensors
    try:
        with ExitStack() as unfinished:
            # All files are written before any is renamed; the config, entered first, is renamed last.
            write_to = unfinished.enter_context(whole_file(folder / CONFIG_FILE))
            write_to.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            old = [path for path in _weight_files(folder) if path.name not in files]
            kept = {folder / path for path in parts}
            old += [path for path in folder.glob(f"{FILES_FOLDER}/*/*") if path not in kept]
            old += [] if shards.is_sharded else [folder / WEIGHTS_INDEX]

            @unfinished.push
            def remove_old(kind: type | None, *_: object) -> None:
                for path in old if kind is None else ():
                    path.unlink(missing_ok=True)
                    if path.parent != folder and not any(path.parent.iterdir()):
                        path.parent.rmdir()

            for path, content in parts.items():
                unfinished.enter_context(whole_file(folder / path)).write_bytes(content)

            if shards.is_sharded:
                index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
                write_to = unfinished.enter_context(whole_file(folder / WEIGHTS_INDEX))
                write_to.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            for file, names in files.items():
                write_to = unfinished.enter_context(whole_file(folder / file))
                save_file({name: state[name].cpu() for name in names}, write_to, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        text = f"{folder}: cannot write the checkpoint ({reason}); choose a writable folder"
        raise UserError(text, code="checkpoint-not-written", path=folder, reason=reason) from error


def storable_config(retriever: TwoTowers) -> dict[str, Any]:
    """Return the content of a retriever's `config.json`, after verifying that it restores the same architecture.

    Raises:
        ConfigError: If a part cannot be stored or would be restored differently.
    """
    config = config_of(retriever)
    try:
        with torch.inference_mode(False), torch.device("meta"):
            files, content = preprocessor_files(retriever), json.loads(json.dumps(config))
            again = retriever_from_config(content, Path(CONFIG_FILE), TwoTowers, files.__getitem__)
    except Exception as error:  # user-defined classes may raise anything
        reason = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"the model cannot be exported, because its checkpoint cannot be loaded: {reason}",
            code="checkpoint-not-readable-again",
            reason=reason,
        ) from error
    here, there = architecture(retriever), architecture(again)
    both = {key: (_of(here, key), _of(there, key)) for key in here | there}
    differences = [f"{key} is {a!r} but would be loaded as {b!r}" for key, (a, b) in both.items() if a != b]
    if stored_preprocessors(again) != stored_preprocessors(retriever):
        differences.append("the tokenizer or image transform would be loaded with different settings or files")
    own, state = published_state(again), published_state(retriever)
    differences += [f"tensor {name} does not exist in the loaded model" for name in state if name not in own]
    differences += [
        f"tensor {name} would be {'missing' if name not in state else 'of another shape'}"
        for name, tensor in own.items()
        if name not in state or state[name].shape != tensor.shape
    ]
    if differences:
        raise ConfigError(
            f"the model cannot be exported, because the loaded model would differ: {'; '.join(differences[:3])}",
            code="checkpoint-read-differently",
            differences=tuple(differences),
        )
    return config


def check_shard_size(size: int | str) -> int | str:
    """Return a file size in the format of `huggingface_hub`.

    Raises:
        ConfigError: If it is not a positive number of bytes or a string such as `"5GB"`.
    """
    if isinstance(size, int) and size >= 1:
        return size
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)", str(size), re.IGNORECASE)
    if match and float(match[1]) > 0:
        return f"{match[1]}{match[2].upper()}"
    raise ConfigError(
        f"max_shard_size={size!r}: expected a number of bytes, or a number with KB, MB, GB or TB, for example 5GB",
        code="shard-size-invalid",
        found=size,
    )


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint in a folder."""
    pattern = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file()]


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Raise a UserError that starts with `what` if the published state of a model and the tensors of a file differ."""
    shapes = [
        f"{name} has shape {tuple(state[name].shape)} in the file and {tuple(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = [
        f"{name} is {state[name].dtype}"
        for name, tensor in own.items()
        # The scalar gate priors may be stored as integers.
        if name in state and tensor.dim() and tensor.is_floating_point() and not state[name].is_floating_point()
    ]
    for problem, names in (
        ("missing in the file", [name for name in own if name not in state]),
        ("not in the model", [name for name in state if name not in own]),
        ("of another shape", shapes),
        ("no floating point numbers", kinds),
        ("two tensors in the file and one in the model", _shared_but_different(own, state)),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{what}: {problem}: {'; '.join(names[:3])}{more}",
                code="checkpoint-tensors-differ",
                reason=problem,
                found=tuple(names),
            )


def find_checkpoint(source: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint, downloaded from the hub if `source` is a hub id.

    Raises:
        UserError: If `source` is neither a folder nor an available hub id.
    """
    if not isinstance(source, str | Path) or not str(source):
        raise UserError(
            f"checkpoint {source!r}: expected a folder or a hub id", code="checkpoint-not-a-name", found=repr(source)
        )
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise not_a_folder(path)
    if path.exists() or path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") != 1:
        raise UserError(
            f"checkpoint {source}: the folder does not exist; expected a folder or a hub id (owner/name)",
            code="checkpoint-folder-missing",
            path=path,
        )
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=_HUB_FILES))
    except (OSError, HFValidationError) as error:  # the base classes of huggingface_hub's errors
        if (unwritable := cache_error(error)) is not None:
            raise unwritable from error
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"checkpoint {source}: not a folder, and not available from the hub or in {constants.HF_HUB_CACHE} ({reason}); run "
            f"`hf download {source}` on a machine with a network",
            code="checkpoint-not-downloaded",
            found=str(source),
            reason=reason,
        ) from error


def not_a_folder(file: Path) -> UserError:
    """Return the error for a file in place of a folder, which names the folder or the command that writes it."""
    if file.suffix == ".ckpt":
        remedy = f"convert the training checkpoint with `ret-export checkpoint={file} output=DIR`"
    elif (file.parent / CONFIG_FILE).is_file():
        remedy = f"use the folder {file.parent}"
    elif any(file.parent.glob("*.ckpt")):
        remedy = (
            f"it contains only the weights of a run; use a .ckpt file or the run folder {file.parent.resolve().parent}"
        )
    else:
        remedy = f"the weights do not define an architecture, and {file.parent} has no {CONFIG_FILE}"
    return UserError(
        f"checkpoint {file}: expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, got a file; {remedy}",
        code="checkpoint-not-a-folder",
        path=file,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's `config.json`.

    Raises:
        UserError: If the file is missing or not a JSON object.
    """
    path = folder / CONFIG_FILE
    missing = f"checkpoint {folder}: {path.name} is missing"
    run = folder if any(folder.glob("checkpoints/*.ckpt")) else folder.parent if any(folder.glob("*.ckpt")) else None
    if not path.exists() and run is not None:
        missing += f"; convert the training run with `ret-export checkpoint={run} output=DIR`"
    return _read_json(path, missing)


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    refuse_lfs_pointer(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(missing, code="checkpoint-config-missing", path=path) from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})", code="checkpoint-not-json", path=path) from error
    if not isinstance(content, dict):
        text = f"{path}: expected a JSON object, got {type(content).__name__}"
        raise UserError(text, code="checkpoint-no-json-object", path=path, found=type(content).__name__)
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    names = [WEIGHTS_FILE]
    if not (folder / WEIGHTS_FILE).is_file() and (folder / WEIGHTS_INDEX).is_file():
        shards = _read_json(folder / WEIGHTS_INDEX, "").get("weight_map")
        if not isinstance(shards, dict) or any(Path(str(name)).name != name for name in shards.values()):
            raise UserError(
                f"{folder / WEIGHTS_INDEX}: expected weight_map to map tensors to names of files in this folder",
                code="checkpoint-weight-map",
                path=folder / WEIGHTS_INDEX,
            )
        names = sorted(set(shards.values()))
    weights: dict[str, Tensor] = {}
    for file in (folder / name for name in names):
        refuse_lfs_pointer(file)
        try:
            weights.update(load_file(file))
        except FileNotFoundError:
            raise UserError(
                f"checkpoint {folder}: {file.name} is missing; weights are read from safetensors only",
                code="checkpoint-weights-missing",
                path=file,
            ) from None
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: not a complete safetensors file ({error}); download or copy it again",
                code="checkpoint-weights-broken",
                path=file,
            ) from error
    # position_ids is a constant, which transformers stored before version 4.31.
    return {name: tensor for name, tensor in weights.items() if not name.endswith(".embeddings.position_ids")}


def _drop_copies(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop passage tensors that equal query tensors if the model shares them; some files store shared tensors twice."""
    for name in [name for name in state if name not in own and name.startswith("passage_model.")]:
        other = name.replace("passage_model.", "query_model.", 1)
        if other in state and torch.equal(state[name], state[other]):
            del state[name]
    return state


def _shared_but_different(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that differ in a file but are shared in the model."""
    first: dict[int, str] = {}
    united = []
    for name, tensor in own.items():
        other = first.setdefault(tensor.data_ptr() or id(tensor), name)
        if other != name and name in state and other in state and not torch.equal(state[name], state[other]):
            united.append(f"{name} and {other}")
    return united


def _without_shared_memory(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy views and shared tensors, because safetensors rejects tensors that share memory."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        else:
            seen.add(storage.data_ptr())
        separate[name] = tensor
    return separate
