"""The HTML page of a report: one file without external resources."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TypeAlias

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ret_lightning.report import tables
from ret_lightning.report.charts import COLOURS, Bar, Line, bar_chart, dash, heat_map, line_chart
from ret_lightning.report.comparison import Row
from ret_lightning.report.disagreements import Disagreement
from ret_lightning.report.per_query_results import resolve_mean_metric
from ret_lightning.report.run_folders import Run, UnfinishedRun
from ret_lightning.report.statistics import Summary
from ret_lightning.report.training_logs import (
    GateMap,
    TrainingLog,
    average_gate_maps,
    loss_curves,
    median_throughput,
    validation_curve,
)
from ret_lightning.report.variants import Variant, VariedSetting, format_setting
from ret_lightning.runs.identity import ABSENT
from ret_lightning.training.checkpointing.selection_queries import describe

# Maps the logs of a variant's runs to the (optimizer steps, value) points of each.
Curves: TypeAlias = Callable[[Sequence[TrainingLog]], list[list[tuple[int, float]]]]


@dataclass(frozen=True)
class ReportContent:
    """The content of a report.

    Attributes:
        metric: that the variants are compared by.
        baseline: the variant that the others are compared with.
        rows: of the results table.
        settings: config keys that vary.
        unfinished: runs without metrics.
        logs: name of a run to its training log.
        gallery: queries that variants disagree on.
        gallery_missing: why the gallery has no texts and images; empty otherwise.
        facts: what is compared.
        method: how the numbers are computed.
        remarks: warnings about the comparison.
    """

    metric: str
    baseline: Variant
    rows: list[Row]
    settings: list[VariedSetting]
    unfinished: list[UnfinishedRun]
    logs: Mapping[str, TrainingLog]
    gallery: list[Disagreement]
    gallery_missing: str
    facts: list[str]
    method: list[str]
    remarks: list[str]

    @property
    def variants(self) -> list[Variant]:
        return [row.variant for row in self.rows]

    @property
    def runs(self) -> list[Run]:
        return [run for variant in self.variants for run in variant.runs]


def render_page(content: ReportContent) -> str:
    """Render the page as HTML, with style, script, charts and images inside."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folder = files("ret_lightning.report")
    template = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    numbers = {id(run): i + 1 for i, run in enumerate(content.runs)}
    return template.render(
        content=content,
        style=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(folder.joinpath("page.js").read_text(encoding="utf-8")),
        run_id=lambda run: f"run-{numbers[id(run)]}",
        origin=describe_origin,
        in_words=describe,
        tables=tables,
        bars=bar_chart(metric_bars(content), f"{content.metric} of each variant"),
        curves=_line_chart(metric_curves(content), f"{content.metric} on the validation queries"),
        losses=_line_chart(loss_lines(content), "training loss"),
        subsets=_subset_table(content),
        gates=[
            (v, [(m, _gate_chart(v, m)) for m in maps]) for v in content.variants if (maps := _gate_maps(v, content))
        ],
        costs=[(variant, _cost_cells(variant, content.logs)) for variant in content.variants],
        differences=_config_differences(content),
    )


def describe_origin(variant: Variant) -> str:
    """Describe in one line which runs, config and code version the numbers of a variant come from."""
    runs = ", ".join(f"{run.name} (seed {run.seed})" for run in variant.runs)
    return f"runs {runs}; config {variant.fingerprint}; code {'; '.join(tables.code_versions(variant))}"


def _describe_run(run: Run, variant: Variant) -> str:
    return f"run {run.name}, seed {run.seed}, config {variant.fingerprint}, code {run.code}"


def metric_bars(content: ReportContent) -> list[Bar]:
    """Return one bar per variant, in the order of the table."""
    bars = []
    for row in content.rows:
        runs = row.variant.runs
        dots = [(run.metrics[content.metric], _describe_run(run, row.variant)) for run in runs] if len(runs) > 1 else []
        bars.append(Bar(row.variant.label, row.summary.mean, row.summary.interval, dots, describe_origin(row.variant)))
    return bars


def metric_curves(content: ReportContent) -> list[Line]:
    """Return the metric on the validation queries over optimizer steps, one line per variant that logged it."""
    return _lines(content, lambda logs: [validation_curve(log, content.metric) for log in logs])


def loss_lines(content: ReportContent) -> list[Line]:
    """Return the training loss over optimizer steps, averaged over intervals, one line per variant that logged it."""
    return _lines(content, loss_curves)


def _lines(content: ReportContent, curves_of: Curves) -> list[Line]:
    """Return one line per variant. The mean over seeds is computed at the steps that all seeds of a variant have."""
    lines = []
    for series, variant in enumerate(content.variants):
        found = curves_of([content.logs[run.name] for run in variant.runs])
        curves = [(points, run) for points, run in zip(found, variant.runs, strict=True) if points]
        if not curves:
            continue
        common = sorted(set.intersection(*({step for step, _ in points} for points, _ in curves)))
        by_step = [dict(points) for points, _ in curves]
        mean = [(float(step), statistics.fmean(values[step] for values in by_step)) for step in common]
        single = [([(float(s), v) for s, v in points], _describe_run(run, variant)) for points, run in curves]
        lines.append(Line(variant.label, mean, single if len(single) > 1 else [], series))
    return [line for line in lines if line.mean]


def _line_chart(lines: list[Line], name: str) -> tuple[Markup, list[tuple[str, Markup, str]]] | None:
    """Return a chart, and colour, dash attribute and label of each curve for its legend; None without curves."""
    if not lines:
        return None
    legend = [(f"--series-{line.series % COLOURS}", Markup(dash(line.series)), line.label) for line in lines]
    return line_chart(lines, name, "optimizer steps"), legend


def _subset_table(content: ReportContent) -> tuple[list[str], list[list[str]]]:
    """Return column names, and per variant `mean ± deviation` in each subset that the metric averages."""
    columns: dict[str, None] = {}
    for run in content.runs:
        parts = resolve_mean_metric(content.metric, run.metrics)
        columns |= {f"{subset}/{name}": None for subset, name in parts.items()}
    if len(columns) < 2:
        return [], []
    lines = []
    for variant in content.variants:
        metrics = tables.summarise_metrics(variant)
        lines.append([_with_deviation(metrics[name]) if name in metrics else tables.MISSING for name in columns])
    return list(columns), lines


def _with_deviation(summary: Summary) -> str:
    return f"{summary.mean:.3f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.3f}")


def _gate_maps(variant: Variant, content: ReportContent) -> list[GateMap]:
    return average_gate_maps([content.logs[run.name] for run in variant.runs])


def _gate_chart(variant: Variant, gates: GateMap) -> Markup:
    return heat_map(gates, f"gate activations of the {gates.side} tower, {variant.label}")


def _cost_cells(variant: Variant, logs: Mapping[str, TrainingLog]) -> list[tuple[float | None, str]]:
    """Return for each column of the cost table the value to sort by and its text; means over the variant's runs."""

    def mean(name: str) -> float | None:
        values = [run.cost[name] for run in variant.runs if run.cost.get(name) is not None]
        return statistics.fmean(values) if values else None

    speeds = [value for run in variant.runs if (value := median_throughput(logs[run.name])) is not None]
    devices = dict.fromkeys(
        f"{run.cost['ranks']} × {run.cost['device']}" for run in variant.runs if {"ranks", "device"} <= run.cost.keys()
    )
    numbers = [
        (mean("training_seconds"), _format_time),
        (mean("test_seconds"), _format_time),
        (statistics.fmean(speeds) if speeds else None, lambda value: f"{value:.1f}"),
        (mean("parameters"), _format_millions),
        (mean("trained_parameters"), _format_millions),
        (mean("resident_bytes"), _format_memory),
        (mean("cuda_bytes"), _format_memory),
    ]
    cells = [(value, tables.MISSING if value is None else format_(value)) for value, format_ in numbers]
    return [*cells, (None, ", ".join(devices) or tables.MISSING)]


def _format_time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _format_millions(count: float) -> str:
    return f"{count / 1e6:.2f} M"


def _format_memory(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _config_differences(content: ReportContent) -> list[tuple[str, str, list[str]]]:
    """Return for each config key that differs its setting, the key, and its value in each variant."""
    return [
        (setting.name, key, [format_setting(variant.config.get(key, ABSENT)) for variant in content.variants])
        for setting in content.settings
        for key in sorted(setting.keys)
    ]
