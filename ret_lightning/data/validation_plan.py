"""Which queries validate a run: files of their own, held-out training rows, or the test queries."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ret_lightning.data.layouts.base import Layout
from ret_lightning.data.layouts.subset_names import UNKNOWN
from ret_lightning.data.readers.fields import Content
from ret_lightning.data.readers.indexed_rows import IndexedRows
from ret_lightning.data.readers.row_files import suffix_of
from ret_lightning.data.readers.source_location import BytePlace, Place
from ret_lightning.data.rows import Query
from ret_lightning.data.sampling.holdout import Holdout, HoldoutLimits, hold_out
from ret_lightning.data.sampling.subset_index import scan_subsets
from ret_lightning.data.types import EvaluationSubset, Source
from ret_lightning.errors import ConfigError, DataError

log = logging.getLogger(__name__)

# auto: val where a subset has a file, else holdout, else test. val_or_test: what auto meant before there was a holdout.
Validation = Literal["auto", "val", "holdout", "test", "val_or_test"]


@dataclass(frozen=True)
class ValidationPlan:
    """Where the validation queries of a run come from.

    Attributes:
        sources: by subset, in their order; a subset that is missing is not validated.
        holdout: what is held out of training; None where nothing has to be.
    """

    sources: dict[str, Source]
    holdout: Holdout | None = None

    def log(self) -> None:
        """Logs what the holdout takes from training, a line per subset."""
        for name, found in self.holdout.subsets.items() if self.holdout else ():
            if found.reason:
                log.info("val/%s: nothing is held out: %s", name, found.reason)
                continue
            held_out, left_out = len(found.held_out), len(found.left_out)
            log.info(
                "val/%s: %d of %d training rows are not trained on: %d are held out for validation, %d are left out because "
                "only some of their passage ids are held out",
                name, held_out + left_out, found.rows, held_out, left_out,
            )  # fmt: skip


def check_validation(validation: str) -> None:
    """Raises ConfigError where the setting is none of the choices."""
    if validation not in get_args(Validation):
        raise ConfigError(
            f"data.validation={validation} must be one of {', '.join(get_args(Validation))}",
            code="unknown-validation",
            found=validation,
            allowed=get_args(Validation),
        )


def plan_validation(
    layout: Layout, names: Sequence[str], chosen: Sequence[str], validation: Validation, limits: HoldoutLimits
) -> ValidationPlan:
    """Decides where the queries of each subset come from; scans the training files where rows may have to be held out.

    Args:
        layout: of the corpus.
        names: the evaluated subsets.
        chosen: `data.subsets`.
        validation: the setting.
        limits: of the holdout.

    Raises:
        ConfigError: if `holdout` is asked for and no subset has rows to hold out.
        DataError: if `holdout` is asked for and there are no training files, or they cannot be read.
    """
    if validation in ("val", "test"):
        return ValidationPlan(dict.fromkeys(names, validation))
    with_file = [] if validation == "holdout" else [name for name in names if layout.has_validation(name)]
    without = [name for name in names if name not in with_file]
    if validation == "val_or_test":
        return ValidationPlan({name: "val" if name in with_file else "test" for name in names})
    if not without:
        return ValidationPlan(dict.fromkeys(names, "val"))
    try:
        training = layout.training_files()
    except DataError as error:
        if validation == "holdout":
            raise
        if with_file:
            log.info("val: %s are not validated: %s", ", ".join(without), error.message)
        return _without_holdout(names, with_file, error.message)
    # All names of the corpus, so that the rows' subsets do not depend on `data.subsets`.
    known = tuple(dict.fromkeys((*layout.known_subsets(), *layout.subsets(), *chosen)))
    holdout = hold_out(training, known, without, limits, layout.parser)
    sources: dict[str, Source] = {
        name: "val" if name in with_file else "holdout"
        for name in names
        if name in with_file or not holdout.subsets[name].reason
    }
    if "holdout" in sources.values():
        return ValidationPlan(sources, holdout)
    reasons = "; ".join(f"{name}: {found.reason}" for name, found in holdout.subsets.items())
    unknown = scan_subsets(training, known, layout.parser).counts.get(UNKNOWN)
    if unknown:
        reasons += f"; {unknown} training rows state no subset, neither in the field subset nor at the start of data_id"
    if validation == "holdout":
        raise ConfigError(
            f"data.validation=holdout: nothing can be held out of {training} ({reasons}); choices: val, which reads "
            f"validation queries of the corpus ({layout.root}), or test, which chooses the best checkpoint on the test queries",
            code="nothing-to-hold-out",
            path=str(training),
            allowed=("val", "test"),
        )
    return replace(_without_holdout(names, with_file, reasons), holdout=holdout)


def _without_holdout(names: Sequence[str], with_file: Sequence[str], reason: str) -> ValidationPlan:
    """What `auto` does where nothing can be held out."""
    if with_file:
        return ValidationPlan(dict.fromkeys(with_file, "val"))
    log.warning(
        "data.validation=auto: there are no validation files and nothing can be held out (%s), so the best checkpoint is "
        "chosen on the test queries; data.validation=test accepts that without this warning",
        reason,
    )
    return ValidationPlan(dict.fromkeys(names, "test"))


def load_holdout_subset(
    holdout: Holdout, name: str, instruction: str | None = None, limit: int | None = None, indexed: bool = False
) -> EvaluationSubset:
    """The held-out rows of a subset as queries, and their pool of training passages, both in the order of the files.

    Args:
        holdout: that holds out some of it.
        name: of the subset.
        instruction: see `load_subset`.
        limit: see `load_subset`.
        indexed: whether rows of compressed and parquet files are looked up in the Arrow copy.
    """
    found = holdout.subsets[name]
    held_out = found.held_out.tolist()
    rows = sorted({*held_out, *found.passages.tolist()})
    pairs = dict(zip(rows, (holdout.parser.parse_pair(*row) for row in _contents(holdout, rows, indexed)), strict=True))
    # A file that repeats rows to weight them validates on each of them once.
    distinct: dict[Query, Query] = {}
    for row in held_out:
        query = pairs[row].query
        distinct.setdefault(replace(query, place=None), query)
    queries = list(distinct.values())[:limit]
    if instruction is not None:
        queries = [query.instructed(instruction) for query in queries]
    pool = [pairs[row].passage for row in found.passages.tolist()]
    return EvaluationSubset(name, "val", queries, pool, source="holdout")


def _contents(holdout: Holdout, rows: Sequence[int], indexed: bool) -> Iterator[tuple[Content, Place | BytePlace]]:
    files = holdout.files
    if indexed and any(suffix_of(path) != ".jsonl" for path in files.paths):
        copy = IndexedRows(files)
        yield from (copy[row] for row in rows)
        return
    positions: dict[int, list[int]] = {}
    for row in rows:
        file, position = holdout.locations[row]
        positions.setdefault(file, []).append(position)
    for file, own in positions.items():
        yield from (files[row] for row in files.at(file, own))
