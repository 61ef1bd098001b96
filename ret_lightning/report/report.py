"""Writing of a report: from a folder of runs to tables, a figure and an HTML page."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ret_lightning.config.config_errors import choices
from ret_lightning.errors import ConfigError, UserError
from ret_lightning.report import tables
from ret_lightning.report.comparison import Row, VariantScores, compare, score_variants
from ret_lightning.report.disagreements import find_disagreements, load_gallery_data
from ret_lightning.report.page import ReportContent, render_page
from ret_lightning.report.results_figure import draw_results
from ret_lightning.report.run_folders import Run, find_runs
from ret_lightning.report.training_logs import read_log
from ret_lightning.report.variants import Variant, choose_baseline, group_runs
from ret_lightning.runtime.atomic_files import write_files
from ret_lightning.training.checkpointing.selection_queries import describe

log = logging.getLogger(__name__)

PAGE_FILE = "report.html"
FIGURE_FILE = "results.png"
FILES = ("results.csv", "metrics.csv", "runs.csv", "results.md", "results.tex", FIGURE_FILE, PAGE_FILE)


def write_report(
    runs: str | Path,
    output: str | Path,
    metric: str = "mean/recall@5",
    baseline: str | None = None,
    gallery: int = 24,
    overwrite: bool = False,
) -> list[Row]:
    """Compare all finished runs below a folder, and write tables, a figure and an HTML page without external resources.

    The same runs produce the same bytes.

    Args:
        runs: folder that contains the run folders, at any depth.
        output: folder to write: `report.html`, `results.csv`, `.md`, `.tex` and `.png`, `metrics.csv`, `runs.csv`.
        metric: to compare variants by, as named in `metrics.json`.
        baseline: settings of the variant that the others are compared with, such as `gate=lstm`; None: the first variant.
        gallery: largest number of queries to display that variants disagree on.
        overwrite: whether to replace a report in `output`.

    Returns:
        The rows of the results table.

    Raises:
        UserError: if there is no finished run, a metric or baseline is unknown, or `output` exists or cannot be written.
    """
    output = Path(output)
    _check_output(output, overwrite)
    finished, unfinished = find_runs(runs)
    measured = [run for run in finished if metric in run.metrics]
    if not measured:
        known = sorted({name for run in finished for name in run.metrics})
        raise ConfigError(
            f"metric={metric}: not in the metrics.json of any of the {len(finished)} finished runs{choices(metric, known)}",
            code="report-metric-unknown",
            found=metric,
            allowed=tuple(known),
        )
    variants, settings, remarks = group_runs(measured)
    remarks += [
        f"{run.name} is left out: its metrics.json has no {metric}" for run in finished if metric not in run.metrics
    ]
    base = choose_baseline(variants, settings, baseline)
    data = functools.cache(lambda: load_gallery_data(base.runs[0]))
    scores = score_variants(variants, metric, lambda: data().subsets)
    rows = compare(variants, base, metric, scores)
    logs = {run.name: read_log(run) for variant in variants for run in variant.runs}
    # The dataset is read only if there is something to display.
    disagreements = find_disagreements(variants, scores, data(), gallery) if gallery and _comparable(scores) else []
    facts, method = _facts(variants, base, metric, len(unfinished)), _method(rows, base)
    remarks += _remarks(rows, scores, [run for variant in variants for run in variant.runs])
    content = ReportContent(
        metric=metric,
        baseline=base,
        rows=rows,
        settings=settings,
        unfinished=unfinished,
        logs=logs,
        gallery=disagreements,
        gallery_missing=data().missing if disagreements else "",
        facts=facts,
        method=method,
        remarks=remarks,
    )
    notes = [*facts, *method, *remarks, *(f"unfinished: {run.name}: {run.reason}" for run in unfinished)]
    texts = {
        "results.csv": tables.results_csv(rows, settings, metric),
        "metrics.csv": tables.metrics_csv(variants, settings),
        "runs.csv": tables.runs_csv(variants, settings),
        "results.md": tables.markdown_table(rows, settings, metric, notes),
        "results.tex": tables.latex_table(rows, settings, metric, base, notes),
    }
    files = {name: text.encode() for name, text in texts.items()}
    files |= {FIGURE_FILE: draw_results(content), PAGE_FILE: render_page(content).encode()}
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
        raise ConfigError("output is empty; set a folder", code="report-output-empty", key="output")
    if output.is_file():
        raise ConfigError(
            f"output={output}: is a file, expected a folder; choose another name",
            code="report-output-is-file",
            path=output,
        )
    existing = [name for name in FILES if (output / name).exists()]
    if existing and not overwrite:
        raise ConfigError(
            f"output={output}: {existing[0]} exists; choose another folder, or set overwrite=true to replace the report",
            code="report-exists",
            path=output,
            found=existing[0],
        )
    if not existing and output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ConfigError(
            f"output={output}: the folder contains other files; choose a new folder, or set overwrite=true to write next to "
            "them",
            code="report-folder-not-empty",
            path=output,
        )


def _comparable(scores: Mapping[str, VariantScores | str]) -> bool:
    return sum(isinstance(found, VariantScores) for found in scores.values()) > 1


def _facts(variants: Sequence[Variant], base: Variant, metric: str, unfinished: int) -> list[str]:
    runs = sum(len(variant.runs) for variant in variants)
    facts = [f"{_count(runs, 'run')} of {_count(len(variants), 'variant')}, compared by {metric}"]
    if len(variants) > 1:
        facts.append(f"baseline: {base.label}")
    chosen = dict.fromkeys(describe(run.selected_on) for variant in variants for run in variant.runs)
    facts.append(f"checkpoint of a run: {'; or '.join(chosen)}")
    if unfinished:
        facts.append(f"{_count(unfinished, 'unfinished run')} not included, listed below")
    return facts


def _method(rows: Sequence[Row], base: Variant) -> list[str]:
    """Describe how the numbers are computed, and their limits."""
    notes = []
    if any(row.summary.count > 1 for row in rows):
        notes.append(
            "std is the sample standard deviation over seeds (n − 1). The 95% confidence interval of the mean over seeds is "
            "Student's t with n − 1 degrees of freedom. It assumes normally distributed seeds, and is wide for few seeds."
        )
    if any(row.summary.deviation == 0 for row in rows):
        notes.append(
            "Where all seeds have the same value, std is 0 and the interval has no width, which understates the variation."
        )
    single = [row.variant.label for row in rows if row.summary.count == 1]
    if single:
        which = "Each variant has" if len(single) == len(rows) else f"{'; '.join(single)}:"
        notes.append(f"{which} one seed, so no std and no confidence interval are computed. Other seeds may differ.")
    tested = [row for row in rows if row.p is not None]
    if tested:
        notes.append(
            "p is the two-sided p value of a paired randomisation test over queries (Fisher, 1935; Smucker, Allan and "
            "Carterette, CIKM 2007) with 9,999 resamples (seed 0), so its minimum is 0.0001. The metric of each query is "
            f"averaged over the seeds of each side and paired by data_id with that of {base.label}. A small p means that these "
            "trained models differ on queries of this kind. It does not mean that training with other seeds shows the same "
            "difference; for that, see the confidence interval of the difference over seeds (Welch's t; at least two seeds on "
            "both sides)."
        )
        notes.append(
            f"p (Holm) is corrected for the {_count(len(tested), 'comparison')} of this table (Holm, 1979). It does not "
            "account for comparisons by other metrics or in other reports."
        )
    return notes


def _remarks(rows: Sequence[Row], scores: Mapping[str, VariantScores | str], runs: Sequence[Run]) -> list[str]:
    """List what limits the comparison."""
    remarks = []
    dirty = [run.name for run in runs if run.dirty]
    if dirty:
        remarks.append(
            f"{_count(len(dirty), 'run')} with uncommitted code changes, which cannot be reproduced from a commit: "
            f"{', '.join(dirty)}"
        )
    versions = dict.fromkeys(run.code for run in runs)
    if len(versions) > 1:
        remarks.append(f"the runs have {len(versions)} different code versions: {'; '.join(versions)}")
    reasons = dict.fromkeys([found for found in scores.values() if isinstance(found, str)])
    reasons |= dict.fromkeys(row.untested for row in rows if row.untested)
    remarks += [f"no test over queries: {reason}" for reason in reasons]
    seeds = {tuple(run.seed for run in row.variant.runs) for row in rows}
    if len(seeds) > 1:
        remarks.append("the variants have different seeds; see the list of runs")
    return remarks


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
