"""Small classes for `_target_`s of test configs, and the schema of these configs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial, wraps
from os import getcwd
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Optional, TypeVar, Union

from omegaconf import DictConfig

from ret_lightning.errors import ConfigError, DataError

T = TypeVar("T")
Kind = Literal["elementwise", "scalar"]
Size = Union[int, Sequence[int]]  # noqa: UP007


class Level(Enum):
    LOW = 1


class Gate:
    def __init__(self, hidden: int, prior: float = 0.0, kind: Kind = "elementwise") -> None:
        self.hidden = hidden
        self.prior = prior
        self.kind = kind


class NoGate:
    def __init__(self, hidden: int = 1) -> None:
        self.hidden = hidden


class Model:
    def __init__(self, gate: Gate | NoGate, width: int = 8, name: str | None = None) -> None:
        self.gate = gate
        self.width = width
        self.name = name


class Trainer:
    def __init__(self, max_epochs: int | None = None, max_steps: int = -1, callbacks: list[Any] | None = None) -> None:
        self.max_epochs = max_epochs
        self.callbacks = callbacks


class Stopper:
    def __init__(self, monitor: str, patience: int = 3) -> None:
        self.monitor = monitor


class Optimizer:
    def __init__(self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        if lr < 0:
            raise ValueError(f"negative rate {lr}")
        self.params = params
        self.lr = lr


class Log:
    def __init__(self, save_dir: str | Path, **options: Any) -> None:
        self.save_dir = save_dir


class Corpus:
    """A corpus whose constructor raises a DataError."""

    def __init__(self, root: str) -> None:
        raise DataError(f"{root}/rows.jsonl:3: no question")


def _wrap(function: Callable[..., T]) -> Callable[..., T]:
    @wraps(function)
    def inner(*args: Any, **kwargs: Any) -> T:
        return function(*args, **kwargs)

    return inner


def _bind_first(function: Callable[..., T]) -> Callable[..., T]:
    return partial(function, 1)


class Base(Generic[T]):
    def __init__(self, size: Size, *, depth: Optional[int] = None, where: str = None) -> None:  # noqa: RUF013, UP045
        self.size = size


class Mixin:
    pass


class Derived(Mixin, Base[int]):
    pass


class Left(Base[int]):
    pass


class Right(Base[int]):
    def __init__(self, right: int) -> None: ...


class Diamond(Left, Right):
    """Left has no constructor, and Right comes before their common base in the method resolution order."""


class Wrapped:
    @_wrap
    def __init__(self, size: int, level: Level = Level.LOW) -> None: ...


class Changed:
    @_bind_first
    def __init__(self, first: int, second: int) -> None: ...


class Made:
    def __new__(cls, size: int, **rest: Any) -> Made:
        return super().__new__(cls)

    @classmethod
    def from_size(cls, size: int, name: str = "x") -> Made:
        return cls(size)

    @staticmethod
    def plain(size: int) -> int:
        return size


class MadeAnyhow:
    def __new__(cls, *args: Any, **kwargs: Any) -> MadeAnyhow:
        return super().__new__(cls)

    def __init__(self, size: int) -> None: ...


@dataclass
class Record:
    count: int
    total: ClassVar[int] = 0
    names: list[str] = field(default_factory=list)
    cached: int = field(default=0, init=False)


@dataclass
class LongRecord(Record):
    extra: str = "x"


class RecordChild(LongRecord):
    pass


def positional(first: int, /, second: int, *rest: int, third: int = 3) -> int:
    return first


def folder() -> str:
    return getcwd()


@dataclass
class Schema:
    """Schema of the test configs."""

    model: dict[str, Any]
    trainer: dict[str, Any]
    optimizer: dict[str, Any]
    logger: dict[str, Any]
    seed: int = 1
    output_dir: str = "runs"
    resume: str | None = None
    corpus: dict[str, Any] | None = None
    record: Record | None = None

    @staticmethod
    def check(config: DictConfig) -> Iterable[tuple[str, ConfigError]]:
        if config.trainer.get("max_epochs") == 13:
            yield (
                "trainer.max_epochs",
                ConfigError("13 epochs bring bad luck; take 14", code="unlucky-epochs", found=13),
            )
