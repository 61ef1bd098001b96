"""Check of one composed config against the signatures of its targets and the schema of the command."""

from __future__ import annotations

import copy
import re
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from ret_lightning.config.checker.annotations import check_value, element_annotation, find_dataclass
from ret_lightning.config.checker.composition import Composer, Composition
from ret_lightning.config.checker.overrides import ParsedOverride
from ret_lightning.config.checker.signatures import Parameter, Signature, signature_of
from ret_lightning.config.checker.yaml_files import Entry, first_line, to_entry
from ret_lightning.config.config_errors import COMMAND_LINE, Problem, choices, nearest
from ret_lightning.config.nodes import child_keys, to_plain
from ret_lightning.config.targets.allowed_targets import (
    check_target_name,
    check_target_origin,
    not_callable_error,
    target_type_error,
)
from ret_lightning.config.targets.locate import UnknownTarget, is_imported, locate
from ret_lightning.config.targets.renamed_keys import MOVED_KEYS, renamed_keys_of
from ret_lightning.errors import ConfigError

Keys = tuple[str, ...]  # path of a key in the config

_SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")  # keys that Hydra's instantiate reads


class Check:
    """Checks one composition against the owners of its keys: the signatures of targets, and the schema of the command.

    Args:
        composer: the composer of the composition.
        composition: the composition to check.
        root: signature of the schema.
        schema: dataclass of the top-level keys.
    """

    def __init__(self, composer: Composer, composition: Composition, root: Signature, schema: type) -> None:
        self.repository = composer.repository
        self.primary = composer.repository.source_of(composer.config_name)
        self.composition = composition
        self.root = root
        self.schema = schema
        # Keys that the command line deletes are not checked, for instance when it sets another _target_.
        self.deleted = {override.path for override in composition.overrides if override.is_delete()}

    def run(self, complete: bool, *, imports: bool) -> list[Problem]:
        """Find all problems of the composition.

        Args:
            complete: whether missing values are problems.
            imports: whether targets may be imported; else only targets that are already imported are checked.
        """
        self.imports = imports
        self.problems = list(self.composition.problems)
        self.sources: dict[Keys, str] = {}  # last source of each key
        composed = self.composition.config
        if composed is None:
            return self.problems
        self.config = OmegaConf.masked_copy(composed, [key for key in child_keys(composed) if key != "hydra"])
        self.plain = OmegaConf.to_container(self.config, resolve=False)
        for file in self.composition.files:
            if file.package and file.package[0] not in self.root.parameters:
                package = ".".join(file.package)
                text = f"the file sets keys of the unknown package {package}; to set top-level keys, add # @package _global_"
                error = ConfigError(text, code="package-unknown", found=package)
                self._add(file.package, file.content.source, error)
            else:
                self._check_source(file.package, file.content)
        for override in self.composition.overrides:
            self._check_override(override)
        if self.composition.is_complete:
            self._check_config(composed, complete)
        return self.problems

    def _add(self, path: Keys, source: str, error: ConfigError) -> None:
        self.problems.append(Problem(source, ".".join(path), error))

    def _check_source(self, path: Keys, entry: Entry) -> None:
        """Check the keys that one source sets at a path of the config."""
        for part in reversed(path):
            entry = Entry({part: entry}, entry.source)
        self._check_mapping(entry, (), self.plain, Any)

    def _check_override(self, override: ParsedOverride) -> None:
        before = len(self.problems)
        path = override.path
        if not override.is_delete() and not override.is_hydra_override():
            self._check_source(path, to_entry(override.value(), override.source))
        if len(self.problems) == before and self.composition.is_complete:
            for refused, reason in self.composition.refused:
                if refused is override:
                    self._add(path, override.source, self._refusal_error(override, path, reason))

    def _refusal_error(self, override: ParsedOverride, path: Keys, reason: ConfigError) -> ConfigError:
        """Return the error of an override that Hydra did not apply to a valid key."""
        config = self.composition.config
        assert config is not None  # else it has no refused overrides
        node: Any = to_plain(config)
        if override.is_delete() and OmegaConf.select(config, override.key_or_group) is None:
            reason = ConfigError("cannot delete a key that is not set", code="nothing-to-delete")
        for depth, part in enumerate(path):
            if not isinstance(node, dict):
                return reason
            if part not in node:
                siblings = [key for key in node if key not in _SPECIAL and (depth or key != "hydra")]
                owned = not depth or (depth == len(path) - 1 and path[0] != "hydra" and self._has_signature(node))
                if owned and not override.is_delete():
                    text = f"the config does not set this key; to add it, use +{override.input_line}"
                    return ConfigError(text, code="key-needs-plus", found=part)
                text = f"{'.'.join(path[:depth]) or 'the config'} has no key {part}{choices(part, siblings)}"
                if not override.is_delete() and path[0] != "hydra":
                    text = f"{text} (to add it, use +{override.input_line})"
                return ConfigError(text, code="key-not-in-config", found=part, allowed=tuple(siblings))
            node = node[part]
        return reason

    def _has_signature(self, node: dict[str, Any]) -> bool:
        """Return whether the keys that a node with a `_target_` accepts are known."""
        return self._signature(self._resolve(str(node.get("_target_", "")))) is not None

    def _check_mapping(self, entry: Entry, path: Keys, final: Any, annotation: Any) -> None:
        """Check the keys of a mapping of one source against the owner of the mapping in the final config."""
        owner, signature = self._find_owner(entry.plain(), path, final, annotation)
        for key, child in entry.value.items():
            inner, name = (*path, str(key)), str(key)
            if inner == ("hydra",) or inner in self.composition.unknown_paths or inner in self.deleted:
                continue
            self.sources[inner] = child.source
            if ".".join(inner) in MOVED_KEYS:
                continue
            known = signature.parameters.get(renamed_keys_of(owner).get(name, name)) if signature is not None else None
            if not path and isinstance(child.value, str) and child.value in self.repository.options(name):
                text = f"to choose an option, add it to the defaults list: - override /{name}: {child.value}"
                self._add(inner, child.source, ConfigError(text, code="option-outside-defaults", found=child.value))
            elif name == "_target_":
                self._check_target(child, inner)
            elif name in _SPECIAL:
                continue
            elif known is None and name.startswith("_"):
                text = f"unknown special key {name}{choices(name, _SPECIAL)}"
                error = ConfigError(text, code="unknown-special-key", found=name, allowed=_SPECIAL)
                self._add(inner, child.source, error)
            elif known is None and signature is not None and not signature.accepts_any:
                self._report_unknown(inner, child.source, owner, signature)
            else:
                self._check_entry(
                    child, inner, final, known or Parameter(name, False, element_annotation(annotation, dict))
                )

    def _find_owner(self, own: Any, path: Keys, final: Any, annotation: Any) -> tuple[str, Signature | None]:
        """Return the owner of a mapping's keys: its name for messages, and its signature if it is known."""
        if not path:
            return "", self.root
        nodes = [node for node in (final, own) if isinstance(node, dict)]
        target = next((node["_target_"] for node in nodes if "_target_" in node), None)
        if isinstance(target, str):
            return target, self._signature(self._resolve(target))
        class_ = find_dataclass(annotation)
        return (class_.__name__, signature_of(class_)) if class_ is not None else ("", None)

    def _signature(self, target: str) -> Signature | None:
        """Return the signature of a target; None if it is unknown, not allowed, or not imported yet."""
        if not (self.imports or is_imported(target)) or self._target_error(target) is not None:
            return None
        return signature_of(locate(target))

    def _target_error(self, target: str) -> ConfigError | None:
        """Return the error of a `_target_`; None if it is valid or not imported yet."""
        if (reason := check_target_name(target)) is not None:
            return reason
        if not (self.imports or is_imported(target) or is_imported(target.rpartition(".")[0])):
            return None
        try:
            found = locate(target)
        except UnknownTarget as error:
            return error
        if not callable(found):
            return not_callable_error(target)
        return check_target_origin(target, str(getattr(found, "__module__", None)), is_class=isinstance(found, type))

    def _resolve(self, target: str) -> str:
        if "${" not in target:
            return target
        try:
            return str(OmegaConf.create({"target": target}, parent=self.config).target)
        except OmegaConfBaseException:
            return ""

    def _check_entry(self, entry: Entry, path: Keys, above: Any, parameter: Parameter) -> None:
        key = path[-1]
        final = above.get(key) if isinstance(above, dict) else None
        if isinstance(above, list) and key.isdigit() and int(key) < len(above):
            final = above[int(key)]  # an override of a list item
        is_part = isinstance(entry.value, dict) and isinstance(final, dict) and "_target_" in final
        error = None if is_part else check_value(parameter, entry.plain())
        if error is not None:
            self._add(path, entry.source, error)
        elif isinstance(entry.value, dict):
            self._check_mapping(entry, path, final, parameter.annotation)
        elif isinstance(entry.value, list):
            for index, item in enumerate(entry.value):
                if isinstance(item.value, dict):
                    self._check_mapping(item, (*path, str(index)), None, element_annotation(parameter.annotation, list))

    def _check_target(self, entry: Entry, path: Keys) -> None:
        if not isinstance(entry.value, str):
            self._add(path, entry.source, target_type_error(entry.plain()))
        elif (
            "${" not in entry.value and entry.value != "???" and (error := self._target_error(entry.value)) is not None
        ):
            self._add(path, entry.source, error)

    def _report_unknown(self, path: Keys, source: str, owner: str, signature: Signature) -> None:
        key, known = path[-1], tuple(signature.parameters)
        if owner:
            hint = "" if source.startswith(COMMAND_LINE) else self._removal_hint(path)
            text = f"{owner} has no parameter {key}{choices(key, known)}{hint}"
            error = ConfigError(text, code="unknown-parameter", owner=owner, found=key, allowed=known)
        else:
            typed = source.startswith(COMMAND_LINE)
            options = (*known, *self.repository.groups()) if typed else known
            text = f"unknown key{' or group' if typed else ''} {key}{choices(key, options)}"
            error = ConfigError(text, code="unknown-key", found=key, allowed=options)
        self._add(path, source, error)

    def _removal_hint(self, path: Keys) -> str:
        """Return how to remove a file's key if the command line replaced the `_target_` of its node; else an empty string."""
        target = (*path[:-1], "_target_")
        if not any(override.path == target and not override.is_delete() for override in self.composition.overrides):
            return ""
        return (
            f"; the command line replaces the _target_ of this node; remove the key with '~{'.'.join(path)}', or use a config "
            "file with the keys of the new target"
        )

    def _check_config(self, composed: DictConfig, complete: bool) -> None:
        """Check the final config: missing values, interpolations, and the rules of the schema."""
        running = HydraConfig.instance()
        before = running.cfg
        running.set_config(composed)
        try:
            self._check_node(self.config, (), Any, complete)
            if complete and self.imports and not self.problems and hasattr(self.schema, "check"):
                for key, error in self.schema.check(copy.deepcopy(self.config)):
                    path = tuple(key.split("."))
                    self._add(path, self._source(path), error)
        finally:
            running.cfg = before

    def _check_node(self, node: DictConfig | ListConfig, path: Keys, annotation: Any, complete: bool) -> None:
        plain: Any = OmegaConf.to_container(node, resolve=False)
        owner, signature = self._find_owner(plain, path, plain, annotation)
        parameters = signature.parameters if signature is not None else {}
        partial = isinstance(plain, dict) and plain.get("_partial_", False) is True
        needs_values = complete and not partial  # the caller of a partial sets the rest
        if parameters and needs_values:
            for parameter in list(parameters.values())[len(plain.get("_args_") or ()) :]:
                if parameter.required and parameter.name not in plain:
                    text = f"{owner or 'the command'} requires {parameter.name}, which is not set"
                    error = ConfigError(text, code="required-key-unset", owner=owner, expected=parameter.name)
                    self._add((*path, parameter.name), self._source((*path, "_target_")), error)
        container = dict if isinstance(node, DictConfig) else list
        for key in child_keys(node):
            inner = (*path, str(key))
            parameter = parameters.get(str(key)) or Parameter(
                str(key), False, element_annotation(annotation, container)
            )
            if OmegaConf.is_missing(node, key):
                if needs_values:
                    text = f"required value is not set; set {'.'.join(inner)}=<value>"
                    self._add(inner, self._source(inner), ConfigError(text, code="value-missing"))
            elif OmegaConf.is_interpolation(node, key):
                self._check_interpolation(node, key, inner, parameter)
            elif isinstance(node[key], DictConfig | ListConfig):
                self._check_node(node[key], inner, parameter.annotation, complete)

    def _check_interpolation(self, node: Any, key: Any, path: Keys, parameter: Parameter) -> None:
        raw = str(to_plain(node)[key])
        try:
            value = node[key]
        except InterpolationToMissingValueError:
            return  # the missing value itself is reported
        except OmegaConfBaseException as error:
            missing = re.search(r"Interpolation key '(.+?)' not found", str(error))
            all_keys = [".".join(keys) for keys, _ in to_entry(self.plain, "").walk()] if missing else []
            meant = nearest(missing[1], all_keys) if missing else []
            hint = f"; did you mean {meant[0]}?" if meant else ""
            failed = ConfigError(f"{raw}: {first_line(error)}{hint}", code="interpolation-failed", found=raw)
            self._add(path, self._source(path), failed)
            return
        if isinstance(value, DictConfig | ListConfig):
            value = OmegaConf.to_container(value, resolve=False)
        invalid = self._target_error(str(value)) if path[-1] == "_target_" else check_value(parameter, value)
        known = {problem.key for problem in self.problems}
        if invalid is not None and not known.intersection(re.findall(r"\$\{([\w.]+)\}", raw)):  # else already reported
            located = ConfigError(f"{raw}: {invalid.message}", code=invalid.code, **invalid.values)
            self._add(path, self._source(path), located)

    def _source(self, path: Keys) -> str:
        """Return the source of a key, else of the nearest key above it, else of the primary config."""
        above = [path[:count] for count in range(len(path), 0, -1)]
        return next((self.sources[each] for each in above if each in self.sources), self.primary)
