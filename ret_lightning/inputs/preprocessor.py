"""Base class of tokenizers and image transforms, which are stored in checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ret_lightning.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self


class Preprocessor:
    """Base class of the preprocessing of a backbone's inputs.

    A checkpoint stores the `name` of the class, its settings (`to_config`) and its files (`files`), and `from_config` restores
    the object. Nothing in a checkpoint is executed: settings are JSON, and files are data.

    By default the settings are the arguments of the constructor, each read from the attribute of the same name, as in
    scikit-learn. A subclass with other attributes, or with files, overrides the three methods.

    Attributes:
        name: name of the class in checkpoints. The default is the dotted name of the class, with which a checkpoint can no
            longer be loaded once the class is moved or renamed.
    """

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Not inherited: a checkpoint would be restored as the parent class.
        cls.name = cls.__dict__.get("name") or f"{cls.__module__}.{cls.__qualname__}"

    def to_config(self) -> dict[str, Any]:
        """Return the settings as values that JSON can store.

        Raises:
            ConfigError: if an argument of the constructor has no attribute of the same name.
        """
        settings = {}
        for parameter in inspect.signature(type(self)).parameters.values():
            named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if not named or not hasattr(self, parameter.name):
                raise ConfigError(
                    f"{type(self).__module__}.{type(self).__qualname__} cannot be stored in a checkpoint: expected an "
                    f"attribute {parameter.name} for that constructor argument; add it, or override to_config and from_config",
                    code="preprocessor-setting-missing",
                    found=type(self).__qualname__,
                    key=parameter.name,
                )
            settings[parameter.name] = getattr(self, parameter.name)
        return settings

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """Restore an object from its settings and files.

        Args:
            config: the result of `to_config`, with lists for tuples.
            files: the result of `files`.
        """
        return cls(**config)

    def files(self) -> dict[str, bytes]:
        """Return the contents of the files that are needed to restore the object, such as a vocabulary, by file name."""
        return {}
