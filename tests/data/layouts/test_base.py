"""Tests of the defaults of a layout, and of the list of published results."""

from __future__ import annotations

from pathlib import Path

from ret_lightning.data import Layout
from ret_lightning.data.layouts.base import PublishedResults, published_results
from ret_lightning.data.layouts.m2kr import M2KR_PUBLISHED, M2KRLayout
from ret_lightning.data.rows import M2KR_ROWS


class Plain(Layout):
    evaluated_subsets = ("a", "b")
    training_subsets = ("c",)

    def training_files(self): ...

    def query_files(self, subset, split): ...

    def passage_files(self, subset): ...

    def subsets(self):
        return ["a"]


def test_defaults_of_a_layout(tmp_path: Path) -> None:
    layout = Plain()
    layout.root = tmp_path
    layout.prepare()
    assert layout.known_subsets() == ("a", "b", "c")
    assert layout.pools() == ["a"]
    assert not layout.has_validation("a")
    assert layout.parser is M2KR_ROWS
    assert not layout.is_generated
    (tmp_path / "x.png").touch()
    layout.image_source().find("x.png")


def test_published_results_are_listed_once() -> None:
    class Again(M2KRLayout):
        pass

    class Other(Plain):
        published = PublishedResults("other", (("a", "recall@1"),), {"m": (0.5,)})

    found = list(published_results())
    assert sum(each is M2KR_PUBLISHED for each in found) == 1
    assert sum(each is Other.published for each in found) == 1
    assert Again.published is M2KR_PUBLISHED
