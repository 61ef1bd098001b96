"""Codes of errors: stable, unique, and not lost between processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import ret_lightning
from ret_lightning.errors import ConfigError, DataError, Stopped, TokenError, UserError, split_code

PACKAGE = Path(ret_lightning.__file__).parent


def test_code_and_values_are_attributes() -> None:
    error = ConfigError("data.batch_size=0 must be at least 1", code="batch-size", key="data.batch_size", found=0)
    assert (error.code, error.key, error.found) == ("batch-size", "data.batch_size", 0)
    assert error.message == "data.batch_size=0 must be at least 1"
    assert str(error) == "data.batch_size=0 must be at least 1 [batch-size]"
    with pytest.raises(AttributeError, match="ConfigError has no attribute 'line'"):
        _ = error.line


def test_error_without_code_prints_message_only() -> None:
    assert str(UserError("no room")) == "no room"


@pytest.mark.parametrize(
    "error",
    [
        UserError("a", code="b", path=Path("c")),
        DataError("a", "missing_image", code="b", line=3),
        TokenError("a", code="b"),
        Stopped("a", 15, code="b", step=7),
    ],
)
def test_error_survives_pickling(error: UserError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.code, copy.values, copy.exit_code) == (
        str(error),
        error.code,
        error.values,
        error.exit_code,
    )
    assert getattr(copy, "kind", None) == getattr(error, "kind", None)


class _Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise DataError("rows.jsonl:8: field passage_id is missing", "missing_field", code="missing-field", line=8)


def test_code_survives_loader_worker() -> None:
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(_Broken(), num_workers=1)))
    assert str(caught.value) == "rows.jsonl:8: field passage_id is missing [missing-field]"
    assert caught.value.code == "missing-field"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a: b [missing-field]", ("a: b", "missing-field")),
        ("a: b", ("a: b", None)),
        ("a [b] c", ("a [b] c", None)),
        ("data.subsets=[wit, iglue]", ("data.subsets=[wit, iglue]", None)),
    ],
)
def test_split_code(line: str, expected: tuple[str, str | None]) -> None:
    assert split_code(line) == expected
