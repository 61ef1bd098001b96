"""What tokenizers and image transforms have in common: a checkpoint stores them and builds them again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ret_lightning.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self


class Preprocessor:
    """Turns texts or images into what a backbone takes.

    A checkpoint stores the class by `name`, its settings (`to_config`) and its files (`files`); `from_config` builds it again
    from these. Nothing stored is executed: settings are JSON, and files are whatever the class itself reads safely.

    By default the settings are the arguments of the constructor, each read from the attribute of the same name, as in
    scikit-learn. A subclass that keeps them otherwise, or has files, overrides the three methods.

    Attributes:
        name: by which a checkpoint stores the class. A class that sets none is stored by its dotted name, so a checkpoint of it
            is not read once the class is moved or renamed.
    """

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Never the parent's: a checkpoint would be read as the parent.
        cls.name = cls.__dict__.get("name") or f"{cls.__module__}.{cls.__qualname__}"

    def to_config(self) -> dict[str, Any]:
        """The settings, which JSON can store.

        Raises:
            ConfigError: if an argument of the constructor has no attribute of its name.
        """
        settings = {}
        for parameter in inspect.signature(type(self)).parameters.values():
            named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if not named or not hasattr(self, parameter.name):
                raise ConfigError(
                    f"{type(self).__module__}.{type(self).__qualname__} cannot be stored in a checkpoint: it has no attribute "
                    f"for the argument {parameter.name} of its constructor; store the value under that name, or override "
                    "to_config and from_config",
                    code="preprocessor-setting-missing",
                    found=type(self).__qualname__,
                    key=parameter.name,
                )
            settings[parameter.name] = getattr(self, parameter.name)
        return settings

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """The object of `to_config` and `files`; lists of JSON may have been tuples."""
        return cls(**config)

    def files(self) -> dict[str, bytes]:
        """The content of the files that it is built from, by plain file name, such as a vocabulary."""
        return {}
