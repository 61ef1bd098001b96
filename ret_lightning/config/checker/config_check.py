"""The check that runs before a command does anything: every mistake in a config at once, and nothing imported for it.

Each option has one owner. A key in a node with a `_target_` belongs to the signature of what the target builds; a key
of the top level belongs to a dataclass that the command gives, the schema. The check composes the config as Hydra will,
then holds every file that takes part, every override on the command line, and the final config against those owners.

A schema's fields are the keys of the top level: one without a default must be set in the config, and its annotation
says what fits (`Any` or `dict[str, Any]` for a node with a `_target_`). For what no single key can tell it may have

    @staticmethod
    def check(config: DictConfig) -> Iterable[tuple[str, ConfigError]]: ...

which gets the composed config when nothing else is wrong, and yields pairs of a dotted key and the error in its value.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from ret_lightning.config.allowed_targets import built_refusal, not_a_name, target_refusal
from ret_lightning.config.checker.annotations import dataclass_in, element_of, problem
from ret_lightning.config.checker.composition import Composer, Composition
from ret_lightning.config.checker.lookup import Class, Expression, Function, UnknownTarget, locate
from ret_lightning.config.checker.overrides import ParsedOverride, on_command_line, parse, variants, wrong_sweep
from ret_lightning.config.checker.signatures import (
    Parameter,
    Signature,
    class_signature,
    signature_of,
    signature_of_type,
)
from ret_lightning.config.checker.yaml_files import Entry, entry_of, first_line
from ret_lightning.config.config_errors import COMMAND_LINE, Mistake, choices, nearest
from ret_lightning.errors import ConfigError

Keys = tuple[str, ...]  # a key's place in the config

_SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")  # what instantiate reads itself


@dataclass(frozen=True)
class Verdict:
    """What the check found.

    Attributes:
        mistakes: all of them.
        multirun: the config or the command line asks for a multirun.
        dry_run: only the jobs are to be listed.
        config: the composed config without `hydra`, unresolved; None where nothing could be composed. Of a multirun it is
            the first job's.
    """

    mistakes: list[Mistake]
    multirun: bool
    dry_run: bool = False
    config: DictConfig | None = None


def check(
    search_path: Sequence[str],
    config_name: str,
    overrides: Sequence[str],
    schema: type,
    *,
    multirun: bool = False,
    complete: bool = True,
) -> Verdict:
    """Compose a config and find every mistake in it.

    Args:
        search_path: the folders that Hydra searches, see `initialized`.
        config_name: the primary config's name.
        overrides: the command line's overrides, as typed.
        schema: the dataclass of the top level's keys.
        multirun: the command line asks for a sweep. Each value of each sweep is checked beside the first of the others;
            of a range, the first.
        complete: missing values are mistakes; False for a config that is looked at and not run.
    """
    root, composer, parsed, mistakes = prepare(search_path, config_name, overrides, schema)
    if composer is None:
        return Verdict(mistakes, multirun)
    jobs = variants(parsed)
    first = composer.compose(next(jobs), multirun=multirun)
    if first.config is not None and first.config.hydra.mode == RunMode.MULTIRUN:
        multirun = True
    if multirun and first.config is not None:
        of_sweeper, broken = _sweeper_settings(first, {override.get_key_element() for override in parsed})
        mistakes += broken
        jobs = variants([*of_sweeper, *parsed])
        first = composer.compose(next(jobs), multirun=True)
    mistakes += [wrong for override in parsed if (wrong := wrong_sweep(override, multirun=multirun)) is not None]
    mistakes += Check(composer, first, root, schema).run(complete)
    for job in jobs if multirun else ():
        mistakes += Check(composer, composer.compose(job, multirun=True), root, schema).run(complete)
    dry_run = first.config is not None and bool(OmegaConf.select(first.config, "dry_run"))
    unreadable = {mistake.key for mistake in mistakes if mistake.code == "override-needs-quotes"}
    mistakes = [each for each in mistakes if each.code != "value-missing" or each.key not in unreadable]
    return Verdict(distinct(mistakes), multirun, dry_run, without_hydra(first.config))


def prepare(
    search_path: Sequence[str], config_name: str, overrides: Sequence[str], schema: type
) -> tuple[Signature, Composer | None, list[ParsedOverride], list[Mistake]]:
    """What a check starts from: the schema's keys, a composer, the overrides that can be read, and the mistakes so far."""
    setup_globals()
    root = signature_of_type(schema)
    if root is None:
        raise ValueError(f"the schema {schema.__qualname__} must be a dataclass at the top of a module")
    parsed, mistakes = parse(overrides, [on_command_line(line) for line in overrides])
    try:
        composer = Composer(search_path, config_name, parsed)
    except ConfigError as error:
        return root, None, parsed, [*mistakes, Mistake("config search path", "", error)]
    for override in parsed:
        override.config_loader = composer.loader  # a glob asks it for the options
    return root, composer, parsed, mistakes


def without_hydra(config: DictConfig | None) -> DictConfig | None:
    """A composed config's own keys."""
    return None if config is None else OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def distinct(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """The mistakes in order, of those that read alike the first."""
    found: dict[str, Mistake] = {}
    for mistake in mistakes:
        found.setdefault(str(mistake), mistake)
    return list(found.values())


def _sweeper_settings(composition: Composition, typed: set[str]) -> tuple[list[ParsedOverride], list[Mistake]]:
    """What the sweeper's own parameters (`hydra.sweeper.params`) set, where the command line does not."""
    params = OmegaConf.select(composition.config, "hydra.sweeper.params") or {}
    sources: dict[Keys, str] = {}
    for file in composition.files:
        sources |= {(*file.package, *path): entry.source for path, entry in file.content.walk()}
    keys = [key for key in params if key not in typed]
    place = ("hydra", "sweeper", "params")
    lines = [f"{key}={params[key]}" for key in keys]
    return parse(lines, [sources.get((*place, key), ".".join((*place, key))) for key in keys])


class Check:
    """One composition held against the owners of its keys."""

    def __init__(self, composer: Composer, composition: Composition, root: Signature, schema: type) -> None:
        self.repository = composer.repository
        self.primary = composer.repository.source_of(composer.config_name)
        self.composition = composition
        self.root = root
        self.schema = schema
        self.mistakes = list(composition.mistakes)
        self.sources: dict[Keys, str] = {}  # who set a key last
        # A file's key that the command line takes away again need not fit, as when another _target_ is set.
        self.deleted = {override.path for override in composition.overrides if override.is_delete()}

    def run(self, complete: bool) -> list[Mistake]:
        everything = self.composition.config
        if everything is None:
            return self.mistakes
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
        return self.mistakes

    def _add(self, path: Keys, source: str, error: ConfigError) -> None:
        self.mistakes.append(Mistake(source, ".".join(path), error))

    def _hold(self, path: Keys, entry: Entry) -> None:
        """Hold what one source sets, at its place in the config, against its owners."""
        for part in reversed(path):
            entry = Entry({part: entry}, entry.source)
        self._mapping(entry, (), self.plain, None)

    def _hold_override(self, override: ParsedOverride) -> None:
        before = len(self.mistakes)
        path = override.path
        if not override.is_delete() and not override.is_hydra_override():
            self._hold(path, entry_of(override.value(), override.source))
        if len(self.mistakes) == before and self.composition.whole:
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
                owned = not depth or ("_target_" in node and depth == len(path) - 1 and path[0] != "hydra")
                if owned and not override.is_delete():
                    text = f"this config does not set it; to add it write +{override.input_line}"
                    return ConfigError(text, code="key-needs-plus", found=part)
                text = f"no {part} in {'.'.join(path[:depth]) or 'the config'}{choices(part, siblings)}"
                if not override.is_delete() and path[0] != "hydra":
                    text = f"{text} (to add it write +{override.input_line})"
                return ConfigError(text, code="key-not-in-config", found=part, allowed=tuple(siblings))
            node = node[part]
        return reason

    def _mapping(self, entry: Entry, path: Keys, final: Any, annotation: Expression | None) -> None:
        """Hold a mapping's keys, as one source gives them, against the owner that the final config has for it."""
        owner, signature = self._owner(entry.plain(), path, final, annotation)
        for key, child in entry.value.items():
            inner, name = (*path, str(key)), str(key)
            if inner == ("hydra",) or inner in self.composition.unsure or inner in self.deleted:
                continue
            self.sources[inner] = child.source
            known = signature.parameters.get(name) if signature is not None else None
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

    def _owner(self, own: Any, path: Keys, final: Any, annotation: Expression | None) -> tuple[str, Signature | None]:
        """Who says which keys a mapping may have: a name for messages, and the signature where it is known."""
        if not path:
            return "", self.root
        places = [place for place in (final, own) if isinstance(place, dict)]
        target = next((place["_target_"] for place in places if "_target_" in place), None)
        if isinstance(target, str):
            return target, _known_signature(self._resolved(target))
        class_ = dataclass_in(annotation)
        return (class_.node.name, class_signature(class_)) if class_ is not None else ("", None)

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
        elif "${" not in entry.value and entry.value != "???" and (wrong := _wrong_target(entry.value)) is not None:
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
            self._node(self.config, (), None, complete)
            if complete and not self.mistakes and hasattr(self.schema, "check"):
                for key, wrong in self.schema.check(copy.deepcopy(self.config)):
                    path = tuple(key.split("."))
                    self._add(path, self._source(path), wrong)
        finally:
            running.cfg = before

    def _node(self, node: DictConfig | ListConfig, path: Keys, annotation: Expression | None, complete: bool) -> None:
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
            return  # the missing value is told at its own place
        except OmegaConfBaseException as error:
            missing = re.search(r"Interpolation key '(.+?)' not found", str(error))
            meant = nearest(missing[1], [".".join(at) for at, _ in entry_of(self.plain, "").walk()]) if missing else []
            hint = f"; did you mean {meant[0]}?" if meant else ""
            wrong = ConfigError(f"{raw}: {first_line(error)}{hint}", code="interpolation-failed", found=raw)
            self._add(path, self._source(path), wrong)
            return
        if isinstance(value, DictConfig | ListConfig):
            value = OmegaConf.to_container(value, resolve=False)
        wrong = _wrong_target(str(value)) if path[-1] == "_target_" else problem(parameter, value)
        known = {mistake.key for mistake in self.mistakes}
        if wrong is not None and not known.intersection(re.findall(r"\$\{([\w.]+)\}", raw)):  # else reported there
            placed = ConfigError(f"{raw}: {wrong.message}", code=wrong.code, **wrong.values)
            self._add(path, self._source(path), placed)

    def _source(self, path: Keys) -> str:
        """Who set a key, or else the nearest key above it, or else the primary config."""
        above = [path[:count] for count in range(len(path), 0, -1)]
        return next((self.sources[at] for at in above if at in self.sources), self.primary)


def _known_signature(target: str) -> Signature | None:
    """A target's signature; None also for one that is refused or unknown, which is told where it is set."""
    try:
        return signature_of(target) if target_refusal(target) is None else None
    except UnknownTarget:
        return None


def _wrong_target(target: str) -> ConfigError | None:
    """What is wrong with a `_target_`, or None where it is right or nobody can tell."""
    if (reason := target_refusal(target)) is not None:
        return reason
    try:
        found = locate(target)
    except UnknownTarget as error:
        return error
    if isinstance(found, Class | Function):
        return built_refusal(target, found.module.name, is_class=isinstance(found, Class))
    return None
