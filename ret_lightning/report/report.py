"""The report: from a folder of runs to its files."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ret_lightning.config.config_errors import choices
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.report import tables
from ret_lightning.report.comparison import PerQuery, Row, compare, per_query
from ret_lightning.report.disagreements import disagreements, open_test_data
from ret_lightning.report.page import Content, page
from ret_lightning.report.results_figure import draw_results
from ret_lightning.report.run_folders import Run, find_runs
from ret_lightning.report.training_logs import read_log
from ret_lightning.report.variants import Variant, choose, group
from ret_lightning.runtime.atomic_files import write_files
from ret_lightning.training.checkpointing.selection_queries import in_words

log = logging.getLogger(__name__)

PAGE_FILE = "report.html"
PICTURE_FILE = "results.png"
FILES = ("results.csv", "metrics.csv", "runs.csv", "results.md", "results.tex", PICTURE_FILE, PAGE_FILE)


def write_report(
    runs: str | Path,
    output: str | Path,
    metric: str = "mean/recall@5",
    baseline: str | None = None,
    gallery: int = 24,
    overwrite: bool = False,
) -> list[Row]:
    """Compares all finished runs below a folder, and writes tables and a page that needs no other file.

    The same runs give the same bytes.

    Args:
        runs: the folder that they are in, at any depth.
        output: the folder to write: `report.html`, `results.csv`, `.md`, `.tex` and `.png`, `metrics.csv`, `runs.csv`.
        metric: that variants are compared by, as in `metrics.json`.
        baseline: settings of the variant that the others are compared with, `gate=lstm`; None: the first one.
        gallery: how many queries that variants disagree on are shown.
        overwrite: whether a report that stands in `output` may go.

    Returns:
        The rows of the table.

    Raises:
        UserError: if there is nothing to report, a name is not known, or `output` is taken.
    """
    output = Path(output)
    _check_output(output, overwrite)
    finished, unfinished = find_runs(runs)
    measured = [run for run in finished if metric in run.metrics]
    if not measured:
        known = sorted({name for run in finished for name in run.metrics})
        raise ConfigError(
            f"metric={metric}: none of the {len(finished)} finished runs has it{choices(metric, known)}",
            code="report-metric-unknown",
            found=metric,
            allowed=tuple(known),
        )
    variants, settings, remarks = group(measured)
    remarks += [f"{run.name} is left out: it has no {metric}" for run in finished if metric not in run.metrics]
    base = choose(variants, settings, baseline)
    data = functools.cache(lambda: open_test_data(base.runs[0]))
    queries = per_query(variants, metric, lambda: data().subsets)
    rows = compare(variants, base, metric, queries)
    logs = {run.name: read_log(run) for variant in variants for run in variant.runs}
    # Without anything to disagree on the data need not be here.
    shown = disagreements(variants, queries, data(), gallery) if gallery and _disagree(queries) else []
    facts, method = _facts(variants, base, metric, len(unfinished)), _method(rows, base)
    remarks += _remarks(rows, queries, [run for variant in variants for run in variant.runs])
    content = Content(
        metric=metric,
        baseline=base,
        rows=rows,
        settings=settings,
        unfinished=unfinished,
        logs=logs,
        gallery=shown,
        gallery_missing=data().missing if shown else "",
        facts=facts,
        method=method,
        remarks=remarks,
    )
    notes = [*facts, *method, *remarks, *(f"unfinished: {run.name}: {run.reason}" for run in unfinished)]
    texts = {
        "results.csv": tables.results_csv(rows, settings, metric),
        "metrics.csv": tables.metrics_csv(variants, settings),
        "runs.csv": tables.runs_csv(variants, settings),
        "results.md": tables.markdown(rows, settings, metric, notes),
        "results.tex": tables.latex(rows, settings, metric, base, notes),
    }
    files = {name: text.encode() for name, text in texts.items()}
    files |= {PICTURE_FILE: draw_results(content), PAGE_FILE: page(content).encode()}
    try:
        write_files(output, files)
    except OSError as error:
        raise UserError(
            f"output={output}: cannot be written ({error.strerror}); choose another folder",
            code="report-not-written",
            path=output,
        ) from error
    for run in unfinished:
        log.info("unfinished: %s: %s", run.name, run.reason)
    for remark in remarks:
        log.warning("%s", remark)
    log.info("%s: %s", output / PAGE_FILE, facts[0])
    return rows


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.name:
        raise ConfigError("output is empty; name the folder to write", code="report-output-empty")
    if output.is_file():
        raise ConfigError(
            f"output={output}: a file of that name is in the way", code="report-output-is-file", path=output
        )
    there = [name for name in FILES if (output / name).exists()]
    if there and not overwrite:
        raise ConfigError(
            f"output={output}: holds a {there[0]} already; choose another folder, or set overwrite=true",
            code="report-exists",
            path=output,
            found=there[0],
        )
    if not there and output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ConfigError(
            f"output={output}: is there already and holds other files; choose a new folder, or set overwrite=true, "
            "which leaves those files alone",
            code="report-folder-not-empty",
            path=output,
        )


def _disagree(queries: Mapping[str, PerQuery | str]) -> bool:
    return sum(isinstance(found, PerQuery) for found in queries.values()) > 1


def _facts(variants: Sequence[Variant], base: Variant, metric: str, unfinished: int) -> list[str]:
    runs = sum(len(variant.runs) for variant in variants)
    facts = [f"{_count(runs, 'run')} of {_count(len(variants), 'variant')}, compared by {metric}"]
    if len(variants) > 1:
        facts.append(f"baseline: {base.label}")
    chosen = dict.fromkeys(in_words(run.selected_on) for variant in variants for run in variant.runs)
    facts.append(f"checkpoint of a run: {'; or '.join(chosen)}")
    if unfinished:
        facts.append(f"{_count(unfinished, 'unfinished run')} beside them, listed below")
    return facts


def _method(rows: Sequence[Row], base: Variant) -> list[str]:
    """How the numbers are made and what they do not say."""
    told = []
    if any(row.summary.count > 1 for row in rows):
        told.append(
            "The deviation is the sample's over seeds (n − 1); the interval is that of the mean over seeds, 95 %, by Student's "
            "t with n − 1 degrees of freedom. It takes seeds for normally distributed, and is wide where they are few."
        )
    if any(row.summary.deviation == 0 for row in rows):
        told.append(
            "Where all seeds gave the same number the interval has no width: that is what the formula makes of it, and more "
            "than so few seeds can know."
        )
    single = [row.variant.label for row in rows if row.summary.count == 1]
    if single:
        which = "Each variant has" if len(single) == len(rows) else f"{'; '.join(single)}: there is"
        told.append(
            f"{which} one seed: no deviation and no interval is claimed, and nothing is known of how another seed would do."
        )
    tested = [row for row in rows if row.p is not None]
    if tested:
        told.append(
            "p is two-sided, of a paired randomisation test over queries (Fisher, 1935; Smucker, Allan and Carterette, CIKM "
            f"2007): what a query got is averaged over the seeds of each side, paired with what it got from {base.label} by "
            "its data_id, and the signs of the differences are drawn 9,999 times (seed 0); the least p is 0.0001. A small p "
            "says that these trained models differ by more than the choice of queries explains. It is over queries, not over "
            "seeds: whether training again would show the same is what the interval of the difference tells (Welch's t over "
            "seeds; none where a side has one seed)."
        )
        told.append(
            f"p (Holm) is corrected for the {_count(len(tested), 'comparison')} of this table (Holm, 1979). Who looks at "
            "several metrics or reports compares more often than that."
        )
    return told


def _remarks(rows: Sequence[Row], queries: Mapping[str, PerQuery | str], runs: Sequence[Run]) -> list[str]:
    """What a reader should be wary of."""
    remarks = []
    dirty = [run.name for run in runs if run.dirty]
    if dirty:
        remarks.append(
            f"{_count(len(dirty), 'run')} made by code with uncommitted changes, which no commit can bring back: "
            f"{', '.join(dirty)}"
        )
    codes = dict.fromkeys(run.code for run in runs)
    if len(codes) > 1:
        remarks.append(f"the runs were made by {len(codes)} code versions: {'; '.join(codes)}")
    reasons = dict.fromkeys([found for found in queries.values() if isinstance(found, str)])
    reasons |= dict.fromkeys(row.untested for row in rows if row.untested)
    remarks += [f"no test over queries: {reason}" for reason in reasons]
    seeds = {tuple(run.seed for run in row.variant.runs) for row in rows}
    if len(seeds) > 1:
        remarks.append("the variants were not run with the same seeds; see the list of runs")
    return remarks


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
