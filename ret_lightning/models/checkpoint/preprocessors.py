"""Tokenizers and image transforms in checkpoints: the name of the class, its settings and its files.

Those of CLIP are stored in the fields of the published layout instead (`max_length`, `image_size` and others).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import isabstract
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from ret_lightning.config.targets.own_packages import import_own_packages
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.inputs import ClipTokenizer, ImageTransform, Preprocessor, Tokenizer
from ret_lightning.models.checkpoint.config_fields import ConfigFields
from ret_lightning.models.exchangeable_parts import class_name, is_own, json_value, subclasses
from ret_lightning.models.tower import RetTower
from ret_lightning.models.two_towers import TwoTowers

# Attribute of a tower to its interface, and to the class that the published layout stores.
KINDS: dict[str, type[Preprocessor]] = {"tokenizer": Tokenizer, "image_transform": ImageTransform}
PUBLISHED: dict[str, type[Preprocessor]] = {"tokenizer": ClipTokenizer, "image_transform": ImageTransform}
FILES_FOLDER = "preprocessors"  # in the folder of a checkpoint


@dataclass(frozen=True)
class StoredPreprocessor:
    """A tokenizer or image transform as stored in a checkpoint.

    Attributes:
        name: `name` attribute of its class.
        settings: Constructor settings, in JSON types.
        modules: Module of a user-defined class; empty for a class of this package.
        files: Mapping of file name, without a folder, to content.
    """

    name: str
    settings: dict[str, Any]
    modules: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, part: object, kind: str) -> StoredPreprocessor:
        """Describe a tokenizer or image transform.

        Args:
            part: The tokenizer or image transform.
            kind: Key of `KINDS`.

        Raises:
            ConfigError: If it cannot be stored.
        """
        if not isinstance(part, KINDS[kind]):
            raise ConfigError(
                f"backbone.{kind}: {class_name(part)} cannot be stored in a checkpoint; derive the class from "
                f"ret_lightning.inputs.{KINDS[kind].__name__}, or keep the training checkpoint",
                code="preprocessor-not-storable",
                key=f"backbone.{kind}",
                found=class_name(part),
                allowed=KINDS[kind].__name__,
            )
        settings = part.to_config()
        try:
            settings = json_value(settings)
        except TypeError as error:
            raise ConfigError(
                f"backbone.{kind}: the settings of {class_name(part)} cannot be stored in a checkpoint ({error}); expected "
                "numbers, strings, lists, or mappings with strings as keys",
                code="preprocessor-settings-not-json",
                key=f"backbone.{kind}",
                found=class_name(part),
            ) from error
        files = part.files()
        if odd := [name for name in files if PurePosixPath(name).name != name or "\\" in name]:
            raise ConfigError(
                f"backbone.{kind}: expected a file name without a folder in {class_name(part)}.files, got {odd[0]!r}",
                code="preprocessor-file-name",
                key=f"backbone.{kind}",
                found=odd[0],
            )
        own = is_own(part) and type(part).__module__ != "__main__"
        return cls(part.name, settings, (type(part).__module__,) if own else (), files)

    def restore(self, kind: str, where: object) -> Preprocessor:
        """Build the tokenizer or image transform.

        Args:
            kind: Key of `KINDS`.
            where: Name of the checkpoint, for messages.

        Raises:
            UserError: If the class does not exist or rejects the stored settings.
        """
        part_class = _class_named(KINDS[kind], self.name, self.modules, f"{where}: {kind}")
        try:
            with torch.device("cpu"):  # the caller may build the model on the meta device
                return part_class.from_config(self.settings, self.files)
        except Exception as error:  # user-defined classes may raise anything
            reason = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            raise UserError(
                f"{where}: {kind}: {_dotted(part_class)} cannot be built from the settings in the checkpoint ({reason})",
                code="preprocessor-not-restored",
                path=str(where),
                key=kind,
                reason=reason,
            ) from error

    @property
    def folder(self) -> str:
        """The folder of the files in a checkpoint. It depends on their content, so that equal files are stored once."""
        digest = hashlib.blake2b(digest_size=6)
        for name, content in sorted(self.files.items()):
            digest.update(f"{name} {len(content)} ".encode() + content)
        return f"{FILES_FOLDER}/{digest.hexdigest()}"

    def entry(self) -> dict[str, Any]:
        """Return the entry in `config.json`, with the paths of the files in the folder of the checkpoint."""
        entry: dict[str, Any] = {"name": self.name, "settings": self.settings}
        return entry | ({"files": sorted(self.paths())} if self.files else {})

    def paths(self) -> dict[str, bytes]:
        """Return the files as a mapping of path in the folder of a checkpoint to content."""
        return {f"{self.folder}/{name}": content for name, content in self.files.items()}


def stored_of(tower: RetTower) -> dict[str, StoredPreprocessor]:
    """Describe a tower's tokenizer and image transform, except those that the published layout has fields for."""
    parts = {kind: getattr(tower, kind) for kind in KINDS}
    return {
        kind: StoredPreprocessor.of(part, kind) for kind, part in parts.items() if type(part) is not PUBLISHED[kind]
    }


def stored_preprocessors(retriever: TwoTowers) -> list[dict[str, StoredPreprocessor]]:
    """Describe the tokenizers and image transforms of each distinct tower.

    Raises:
        ConfigError: If a tokenizer or image transform cannot be stored.
    """
    return [stored_of(tower) for tower in dict.fromkeys((retriever.query_tower, retriever.passage_tower))]


def preprocessor_files(retriever: TwoTowers) -> dict[str, bytes]:
    """Return the files of all tokenizers and image transforms: path in the folder of a checkpoint to content."""
    stored = [each for of_tower in stored_preprocessors(retriever) for each in of_tower.values()]
    return {path: content for each in stored for path, content in each.paths().items()}


def preprocessor_records(tower: RetTower) -> dict[str, dict[str, Any]]:
    """Return the tokenizer and image transform of a tower for a training checkpoint, if they can be stored.

    Files are uint8 tensors, which `torch.load` accepts with `weights_only=True`.
    """
    records = {}
    for kind in KINDS:
        with suppress(ConfigError):  # a part that cannot be stored is built from the config of the run
            stored = StoredPreprocessor.of(getattr(tower, kind), kind)
            files = {name: torch.from_numpy(np.frombuffer(c, np.uint8).copy()) for name, c in stored.files.items()}
            values = {"name": stored.name, "settings": stored.settings, "modules": list(stored.modules), "files": files}
            records[kind] = values
    return records


def restored_preprocessors(records: Mapping[str, Mapping[str, Any]], where: object) -> dict[str, Preprocessor]:
    """Build the tokenizer and image transform from the result of `preprocessor_records`.

    Raises:
        UserError: If a class does not exist or rejects the stored settings.
    """
    return {kind: _of_record(record).restore(kind, where) for kind, record in records.items()}


def record_differences(
    record: Mapping[str, Any],
    other: Mapping[str, Any] | None,
    sources: tuple[str, str] = ("the checkpoint", "the config"),
) -> list[str]:
    """Describe the differences between two results of `preprocessor_records`, each as a text.

    Args:
        record: Record of a tokenizer or image transform.
        other: Record to compare with; None if it cannot be stored.
        sources: Where the two records come from, for the texts.
    """
    first, second = sources
    there, here = _of_record(record), None if other is None else _of_record(other)
    if here is None or there.name != here.name:
        return [f"{there.name} in {first} and {here and here.name} in {second}"]
    settings = {name: (there.settings.get(name), here.settings.get(name)) for name in there.settings | here.settings}
    files = sorted(n for n in there.files | here.files if there.files.get(n) != here.files.get(n))
    differing = [
        f"{name}={theirs} in {first} and {ours} in {second}"
        for name, (theirs, ours) in settings.items()
        if theirs != ours
    ]
    return differing + [f"the file {name} differs" for name in files]


def read_entry(config: ConfigFields, kind: str, modules: tuple[str, ...], read: Callable[[str], bytes]) -> Preprocessor:
    """Build the tokenizer or image transform of an entry of `config.json`.

    Args:
        config: Extension section of a tower.
        kind: Key of `KINDS`.
        modules: Modules of user-defined classes.
        read: Returns the content of a file, given its path in the folder of the checkpoint.

    Raises:
        UserError: If the entry is invalid, or the class does not exist or rejects the stored settings.
    """
    entry = config.section(kind, {"files": []})
    files = {}
    for path in entry.get("files", list):
        parts = path.split("/") if isinstance(path, str) else []
        if len(parts) != 3 or parts[0] != FILES_FOLDER or {"", ".", ".."} & {*parts} or "\\" in path:
            message = f"contains {path!r}; expected {FILES_FOLDER}/FOLDER/NAME"
            raise entry.error("files", message, code="checkpoint-preprocessor-path", found=repr(path))
        files[parts[2]] = read(path)
    settings = dict(entry.get("settings", Mapping))
    return StoredPreprocessor(entry.get("name", str), settings, modules, files).restore(kind, config.where)


def fingerprint_settings(part: object, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of a part that are not in `known`, and the digests of its files."""
    if not isinstance(part, Preprocessor):
        return {}
    settings: dict[str, Any] = {}
    with suppress(ConfigError):  # a model that cannot be stored has a fingerprint as well
        settings = {name: value for name, value in part.to_config().items() if name not in known}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in part.files().items()}
    return settings | ({"files": files} if files else {})


def _of_record(record: Mapping[str, Any]) -> StoredPreprocessor:
    files = {name: content.numpy().tobytes() for name, content in record["files"].items()}
    return StoredPreprocessor(record["name"], dict(record["settings"]), tuple(record["modules"]), files)


def _class_named(kind: type[Preprocessor], name: str, modules: tuple[str, ...], where: str) -> type[Preprocessor]:
    """Find a class by its name, first among imported classes, then in the packages of RET_LIGHTNING_TARGETS."""
    found, hint = _named(kind, name), ""
    if not found:
        hint = import_own_packages(modules)
        found = _named(kind, name)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ConfigError(
            f"{where}: several classes are named {name!r}: {', '.join(found)}; give each class a unique `name`",
            code="preprocessor-name-ambiguous",
            found=name,
            classes=tuple(found),
        )
    known = sorted({each.name for each in (kind, *subclasses(kind)) if not isabstract(each)})
    raise ConfigError(
        f"{where}: unknown class {name!r}; {hint or 'import the module that defines it first'}; known: {', '.join(known)}",
        code="preprocessor-name-unknown",
        found=name,
        allowed=tuple(known),
    )


def _named(kind: type[Preprocessor], name: str) -> dict[str, type[Preprocessor]]:
    # Keyed by dotted name, so that a class redefined in a notebook replaces the earlier one.
    return {_dotted(each): each for each in (kind, *subclasses(kind)) if each.name == name}


def _dotted(part_class: type) -> str:
    return f"{part_class.__module__}.{part_class.__qualname__}"
