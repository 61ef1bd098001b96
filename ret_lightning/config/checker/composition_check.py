"""One composed config against the owners of its keys: the signatures of what it builds, and the command's schema."""

from __future__ import annotations

import copy
import re
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from ret_lightning.config.checker.annotations import dataclass_in, element_of, problem
from ret_lightning.config.checker.composition import Composer, Composition
from ret_lightning.config.checker.overrides import ParsedOverride
from ret_lightning.config.checker.signatures import Parameter, Signature, signature_of
from ret_lightning.config.checker.yaml_files import Entry, entry_of, first_line
from ret_lightning.config.config_errors import COMMAND_LINE, Problem, choices, nearest
from ret_lightning.config.targets.allowed_targets import built_refusal, not_a_name, not_callable, target_refusal
from ret_lightning.config.targets.locate import UnknownTarget, is_imported, locate
from ret_lightning.config.targets.renamed_keys import MOVED_KEYS, keys_of
from ret_lightning.errors import ConfigError

Keys = tuple[str, ...]  # a key's place in the config

_SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")  # what instantiate reads itself


class Check:
    """One composition held against the owners of its keys."""

    def __init__(self, composer: Composer, composition: Composition, root: Signature, schema: type) -> None:
        self.repository = composer.repository
        self.primary = composer.repository.source_of(composer.config_name)
        self.composition = composition
        self.root = root
        self.schema = schema
        # A file's key that the command line takes away again need not fit, as when another _target_ is set.
        self.deleted = {override.path for override in composition.overrides if override.is_delete()}

    def run(self, complete: bool, *, imports: bool) -> list[Problem]:
        """Find the problems; without imports of targets only in what is imported already."""
        self.imports = imports
        self.problems = list(self.composition.problems)
        self.sources: dict[Keys, str] = {}  # who set a key last
        everything = self.composition.config
        if everything is None:
            return self.problems
        self.config = OmegaConf.masked_copy(everything, [key for key in everything if key != "hydra"])
        self.plain = OmegaConf.to_container(self.config, resolve=False)
        for file in self.composition.files:
            if file.package and file.package[0] not in self.root.parameters:
                text = "the file's keys would go below this one, which does not exist; to set keys of the top level,"
                wrong = ConfigError(
                    f"{text} begin it with # @package _global_", code="package-unknown", found=".".join(file.package)
                )
                self._add(file.package, file.content.source, wrong)
            else:
                self._hold(file.package, file.content)
        for override in self.composition.overrides:
            self._hold_override(override)
        if self.composition.whole:
            self._finish(everything, complete)
        return self.problems

    def _add(self, path: Keys, source: str, error: ConfigError) -> None:
        self.problems.append(Problem(source, ".".join(path), error))

    def _hold(self, path: Keys, entry: Entry) -> None:
        """Hold what one source sets, at its place in the config, against its owners."""
        for part in reversed(path):
            entry = Entry({part: entry}, entry.source)
        self._mapping(entry, (), self.plain, Any)

    def _hold_override(self, override: ParsedOverride) -> None:
        before = len(self.problems)
        path = override.path
        if not override.is_delete() and not override.is_hydra_override():
            self._hold(path, entry_of(override.value(), override.source))
        if len(self.problems) == before and self.composition.whole:
            for refused, reason in self.composition.refused:
                if refused is override:
                    self._add(path, override.source, self._refused(override, path, reason))

    def _refused(self, override: ParsedOverride, path: Keys, reason: ConfigError) -> ConfigError:
        """Why Hydra would not apply an override to a key that its owner knows."""
        node: Any = OmegaConf.to_container(self.composition.config, resolve=False)
        if override.is_delete() and OmegaConf.select(self.composition.config, override.key_or_group) is None:
            reason = ConfigError("there is nothing to delete", code="nothing-to-delete")
        for depth, part in enumerate(path):
            if not isinstance(node, dict):
                return reason
            if part not in node:
                siblings = [key for key in node if key not in _SPECIAL and (depth or key != "hydra")]
                owned = not depth or (depth == len(path) - 1 and path[0] != "hydra" and self._known(node))
                if owned and not override.is_delete():
                    text = f"this config does not set it; to add it write +{override.input_line}"
                    return ConfigError(text, code="key-needs-plus", found=part)
                text = f"no {part} in {'.'.join(path[:depth]) or 'the config'}{choices(part, siblings)}"
                if not override.is_delete() and path[0] != "hydra":
                    text = f"{text} (to add it write +{override.input_line})"
                return ConfigError(text, code="key-not-in-config", found=part, allowed=tuple(siblings))
            node = node[part]
        return reason

    def _known(self, node: dict[str, Any]) -> bool:
        """Whether it is known which keys a node with a `_target_` takes."""
        return self._signature(self._resolved(str(node.get("_target_", "")))) is not None

    def _mapping(self, entry: Entry, path: Keys, final: Any, annotation: Any) -> None:
        """Hold a mapping's keys, as one source gives them, against the owner that the final config has for it."""
        owner, signature = self._owner(entry.plain(), path, final, annotation)
        for key, child in entry.value.items():
            inner, name = (*path, str(key)), str(key)
            if inner == ("hydra",) or inner in self.composition.unsure or inner in self.deleted:
                continue
            self.sources[inner] = child.source
            if ".".join(inner) in MOVED_KEYS:
                continue
            known = signature.parameters.get(keys_of(owner).get(name, name)) if signature is not None else None
            if not path and isinstance(child.value, str) and child.value in self.repository.options(name):
                text = f"to choose an option write it in the defaults list: - override /{name}: {child.value}"
                self._add(inner, child.source, ConfigError(text, code="option-outside-defaults", found=child.value))
            elif name == "_target_":
                self._target(child, inner)
            elif name in _SPECIAL:
                continue
            elif known is None and name.startswith("_"):
                text = f"no special key is called {name}{choices(name, _SPECIAL)}"
                wrong = ConfigError(text, code="unknown-special-key", found=name, allowed=_SPECIAL)
                self._add(inner, child.source, wrong)
            elif known is None and signature is not None and not signature.open:
                self._unknown(inner, child.source, owner, signature)
            else:
                self._value(child, inner, final, known or Parameter(name, False, element_of(annotation, dict)))

    def _owner(self, own: Any, path: Keys, final: Any, annotation: Any) -> tuple[str, Signature | None]:
        """Who says which keys a mapping may have: a name for messages, and the signature where it is known."""
        if not path:
            return "", self.root
        places = [place for place in (final, own) if isinstance(place, dict)]
        target = next((place["_target_"] for place in places if "_target_" in place), None)
        if isinstance(target, str):
            return target, self._signature(self._resolved(target))
        class_ = dataclass_in(annotation)
        return (class_.__name__, signature_of(class_)) if class_ is not None else ("", None)

    def _signature(self, target: str) -> Signature | None:
        """A target's signature; None also for one that is refused or unknown, which is reported where it is set."""
        if not (self.imports or is_imported(target)) or self._wrong_target(target) is not None:
            return None
        return signature_of(locate(target))

    def _wrong_target(self, target: str) -> ConfigError | None:
        """What is wrong with a `_target_`, or None where it is right or not imported yet."""
        if (reason := target_refusal(target)) is not None:
            return reason
        if not (self.imports or is_imported(target) or is_imported(target.rpartition(".")[0])):
            return None
        try:
            found = locate(target)
        except UnknownTarget as error:
            return error
        if not callable(found):
            return not_callable(target)
        return built_refusal(target, str(getattr(found, "__module__", None)), is_class=isinstance(found, type))

    def _resolved(self, target: str) -> str:
        if "${" not in target:
            return target
        try:
            return str(OmegaConf.create({"target": target}, parent=self.config).target)
        except OmegaConfBaseException:
            return ""

    def _value(self, entry: Entry, path: Keys, above: Any, parameter: Parameter) -> None:
        key = path[-1]
        final = above.get(key) if isinstance(above, dict) else None
        if isinstance(above, list) and key.isdigit() and int(key) < len(above):
            final = above[int(key)]  # an override of a list's item
        is_part = isinstance(entry.value, dict) and isinstance(final, dict) and "_target_" in final
        wrong = None if is_part else problem(parameter, entry.plain())
        if wrong is not None:
            self._add(path, entry.source, wrong)
        elif isinstance(entry.value, dict):
            self._mapping(entry, path, final, parameter.annotation)
        elif isinstance(entry.value, list):
            for place, item in enumerate(entry.value):
                if isinstance(item.value, dict):
                    self._mapping(item, (*path, str(place)), None, element_of(parameter.annotation, list))

    def _target(self, entry: Entry, path: Keys) -> None:
        if not isinstance(entry.value, str):
            self._add(path, entry.source, not_a_name(entry.plain()))
        elif (
            "${" not in entry.value and entry.value != "???" and (wrong := self._wrong_target(entry.value)) is not None
        ):
            self._add(path, entry.source, wrong)

    def _unknown(self, path: Keys, source: str, owner: str, signature: Signature) -> None:
        key, known = path[-1], tuple(signature.parameters)
        if owner:
            remedy = "" if source.startswith(COMMAND_LINE) else self._remedy(path)
            text = f"{owner} has no parameter {key}{choices(key, known)}{remedy}"
            wrong = ConfigError(text, code="unknown-parameter", owner=owner, found=key, allowed=known)
        else:
            typed = source.startswith(COMMAND_LINE)
            options = (*known, *self.repository.groups()) if typed else known
            text = f"no such key{' or group' if typed else ''}: {key}{choices(key, options)}"
            wrong = ConfigError(text, code="unknown-key", found=key, allowed=options)
        self._add(path, source, wrong)

    def _remedy(self, path: Keys) -> str:
        """How to remove a key of a file whose owner the command line replaced; empty where it did not."""
        target = (*path[:-1], "_target_")
        if not any(override.path == target and not override.is_delete() for override in self.composition.overrides):
            return ""
        return (
            f"; the command line replaces the _target_ that the file sets it for: remove it with '~{'.'.join(path)}', or "
            "choose a config file of your own with the keys of the new one only"
        )

    def _finish(self, everything: DictConfig, complete: bool) -> None:
        """Look at the config as a whole: what is missing, what interpolations come to, what does not go together."""
        running = HydraConfig.instance()
        before = running.cfg
        running.set_config(everything)
        try:
            self._node(self.config, (), Any, complete)
            if complete and self.imports and not self.problems and hasattr(self.schema, "check"):
                for key, wrong in self.schema.check(copy.deepcopy(self.config)):
                    path = tuple(key.split("."))
                    self._add(path, self._source(path), wrong)
        finally:
            running.cfg = before

    def _node(self, node: DictConfig | ListConfig, path: Keys, annotation: Any, complete: bool) -> None:
        plain = OmegaConf.to_container(node, resolve=False)
        owner, signature = self._owner(plain, path, plain, annotation)
        parameters = signature.parameters if signature is not None else {}
        partial = isinstance(plain, dict) and plain.get("_partial_", False) is True
        needs_values = complete and not partial  # what a partial lacks, its caller gives
        if parameters and needs_values:
            for parameter in list(parameters.values())[len(plain.get("_args_") or ()) :]:
                if parameter.required and parameter.name not in plain:
                    text = f"{owner or 'the command'} needs {parameter.name}, and nothing sets it"
                    wrong = ConfigError(text, code="required-key-unset", owner=owner, expected=parameter.name)
                    self._add((*path, parameter.name), self._source((*path, "_target_")), wrong)
        container = dict if isinstance(node, DictConfig) else list
        for key in node if container is dict else range(len(node)):
            inner = (*path, str(key))
            parameter = parameters.get(str(key)) or Parameter(str(key), False, element_of(annotation, container))
            if OmegaConf.is_missing(node, key):
                if needs_values:
                    text = f"has no value yet; give it one: {'.'.join(inner)}=<value>"
                    self._add(inner, self._source(inner), ConfigError(text, code="value-missing"))
            elif OmegaConf.is_interpolation(node, key):
                self._interpolation(node, key, inner, parameter)
            elif isinstance(node[key], DictConfig | ListConfig):
                self._node(node[key], inner, parameter.annotation, complete)

    def _interpolation(self, node: Any, key: Any, path: Keys, parameter: Parameter) -> None:
        raw = str(OmegaConf.to_container(node, resolve=False)[key])
        try:
            value = node[key]
        except InterpolationToMissingValueError:
            return  # the missing value is reported where it is
        except OmegaConfBaseException as error:
            missing = re.search(r"Interpolation key '(.+?)' not found", str(error))
            meant = nearest(missing[1], [".".join(at) for at, _ in entry_of(self.plain, "").walk()]) if missing else []
            hint = f"; did you mean {meant[0]}?" if meant else ""
            wrong = ConfigError(f"{raw}: {first_line(error)}{hint}", code="interpolation-failed", found=raw)
            self._add(path, self._source(path), wrong)
            return
        if isinstance(value, DictConfig | ListConfig):
            value = OmegaConf.to_container(value, resolve=False)
        wrong = self._wrong_target(str(value)) if path[-1] == "_target_" else problem(parameter, value)
        known = {problem.key for problem in self.problems}
        if wrong is not None and not known.intersection(re.findall(r"\$\{([\w.]+)\}", raw)):  # else reported there
            placed = ConfigError(f"{raw}: {wrong.message}", code=wrong.code, **wrong.values)
            self._add(path, self._source(path), placed)

    def _source(self, path: Keys) -> str:
        """Who set a key, or else the nearest key above it, or else the primary config."""
        above = [path[:count] for count in range(len(path), 0, -1)]
        return next((self.sources[at] for at in above if at in self.sources), self.primary)
