"""What the indexes with FAISS candidates share: settings, and a file in the format of FAISS."""

from __future__ import annotations

from pathlib import Path

import faiss
import pytest

from ret_lightning.errors import ConfigError, DataError
from ret_lightning.retrieval import FaissIndex, Index, MuveraIndex
from tests.support.random_pools import clustered

INDEXES = {
    "tokens.faiss": lambda: FaissIndex("SQ8", candidates=30),
    "encodings.faiss": lambda: MuveraIndex("Flat", candidates=30, repetitions=2),
}


@pytest.mark.parametrize("name", INDEXES)
def test_saved_file_is_readable_by_faiss(name: str, tmp_path: Path) -> None:
    _, passages = clustered(100, 1)
    index = INDEXES[name]()
    index.build(passages)
    index.save(tmp_path)
    assert faiss.read_index(str(tmp_path / name)).ntotal >= 100
    (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(DataError) as caught:
        Index.load(tmp_path, passages, verify=False)
    assert caught.value.code == "faiss-file-unreadable"
    assert caught.value.path == tmp_path / name


@pytest.mark.parametrize("index", [FaissIndex, MuveraIndex])
@pytest.mark.parametrize("name", ["candidates", "nlist", "nprobe", "training_points"])
def test_settings_below_one_are_rejected(index: type[Index], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        index(**{name: 0})
    assert (caught.value.code, caught.value.key) == ("index-setting-too-small", name)
