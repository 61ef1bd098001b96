"""Options of encoding passages."""

from __future__ import annotations

from pathlib import Path

from ret_lightning.search.encoding_options import EncodingOptions


def test_paths_are_converted_to_strings() -> None:
    options = EncodingOptions.from_paths(Path("run"), Path("images"), batch_size=4, device="cpu")
    assert options == EncodingOptions("run", "images", batch_size=4, device="cpu")


def test_missing_paths_stay_none() -> None:
    assert EncodingOptions.from_paths(None, None) == EncodingOptions()
