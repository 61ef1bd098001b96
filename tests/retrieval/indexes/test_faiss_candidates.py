"""What the indexes over FAISS share: settings, and a file of FAISS's own format."""

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
def test_file_is_faiss_s_own(name: str, tmp_path: Path) -> None:
    _, passages = clustered(100, 1)
    index = INDEXES[name]()
    index.build(passages)
    index.save(tmp_path)
    assert faiss.read_index(str(tmp_path / name)).ntotal >= 100
    (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(DataError) as refused:
        Index.load(tmp_path, passages, verify=False)
    assert refused.value.code == "faiss-file-unreadable"
    assert refused.value.path == tmp_path / name


@pytest.mark.parametrize("index", [FaissIndex, MuveraIndex])
@pytest.mark.parametrize("name", ["candidates", "nlist", "nprobe", "training_points"])
def test_settings_below_one_are_refused(index: type[Index], name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        index(**{name: 0})
    assert (refused.value.code, refused.value.key) == ("index-setting-too-small", name)
