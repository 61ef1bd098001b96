"""The plan of a run's validation: from which source the queries of each subset come."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ret_lightning.data.layouts.base import Layout
from ret_lightning.data.layouts.subset_names import UNKNOWN
from ret_lightning.data.sampling.holdout import Holdout, HoldoutLimits, hold_out
from ret_lightning.data.sampling.subset_index import scan_subsets
from ret_lightning.data.types import Source
from ret_lightning.errors import ConfigError, DataError

log = logging.getLogger(__name__)

# auto: val if the subset has a file, else holdout, else test. val_or_test: val if the subset has a file, else test.
Validation = Literal["auto", "val", "holdout", "test", "val_or_test"]


@dataclass(frozen=True)
class ValidationPlan:
    """The sources of the validation queries of a run.

    Attributes:
        sources: source of the queries of each validated subset, by name, in the order of the subsets.
        holdout: the held-out training rows; None if no subset uses them.
    """

    sources: dict[str, Source]
    holdout: Holdout | None = None

    def log(self) -> None:
        """Log how many training rows of each subset are held out."""
        for name, found in self.holdout.subsets.items() if self.holdout else ():
            if found.reason:
                log.info("val/%s: no training rows are held out: %s", name, found.reason)
                continue
            held_out, left_out = len(found.held_out), len(found.left_out)
            log.info(
                "val/%s: %d of %d training rows are removed from training: %d are held out as validation queries, %d are left "
                "out because only some of their passage ids are held out",
                name, held_out + left_out, found.rows, held_out, left_out,
            )  # fmt: skip


def check_validation(validation: str) -> None:
    """Check the setting `data.validation`.

    Args:
        validation: value of the setting.

    Raises:
        ConfigError: if it is not one of the choices.
    """
    if validation not in get_args(Validation):
        raise ConfigError(
            f"data.validation={validation}: expected one of {', '.join(get_args(Validation))}",
            code="unknown-validation",
            found=validation,
            allowed=get_args(Validation),
        )


def plan_validation(
    layout: Layout, names: Sequence[str], chosen: Sequence[str], validation: Validation, limits: HoldoutLimits
) -> ValidationPlan:
    """Decide the source of the validation queries of each subset; scan the training files if rows may have to be held out.

    Args:
        layout: layout of the corpus.
        names: names of the evaluated subsets.
        chosen: `data.subsets`, or empty.
        validation: `data.validation`.
        limits: limits of the holdout.

    Raises:
        ConfigError: if `validation` is `holdout` and no row can be held out.
        DataError: if `validation` is `holdout` and the training files are missing, or if they cannot be read.
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
            log.info("val: no validation queries for %s: %s", ", ".join(without), error.message)
        return _without_holdout(names, with_file, error.message)
    # With all names of the corpus, the subset of a row does not depend on `data.subsets`.
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
            f"data.validation=holdout: no row can be held out of {training} ({reasons}); choices: val, to read validation "
            f"queries of the corpus ({layout.root}), or test, to select the best checkpoint on the test queries",
            code="nothing-to-hold-out",
            path=str(training),
            allowed=("val", "test"),
        )
    return replace(_without_holdout(names, with_file, reasons), holdout=holdout)


def _without_holdout(names: Sequence[str], with_file: Sequence[str], reason: str) -> ValidationPlan:
    """Return the plan of `auto` if no row can be held out: the `val` files if there are any, else the test queries."""
    if with_file:
        return ValidationPlan(dict.fromkeys(with_file, "val"))
    log.warning(
        "data.validation=auto: there are no validation files and no row can be held out (%s), so the best checkpoint is "
        "selected on the test queries; set data.validation=test to accept this without a warning",
        reason,
    )
    return ValidationPlan(dict.fromkeys(names, "test"))
