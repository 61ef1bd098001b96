"""The page: one HTML file with everything in it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ret_lightning.report import tables
from ret_lightning.report.charts import COLOURS, Bar, Line, bar_chart, dash, heat_map, line_chart
from ret_lightning.report.comparison import Row
from ret_lightning.report.disagreements import Disagreement
from ret_lightning.report.per_query_results import mean_parts
from ret_lightning.report.run_folders import Run, Unfinished
from ret_lightning.report.statistics import Summary
from ret_lightning.report.training_logs import GateMap, Log, curve, logged_gate_maps, speed
from ret_lightning.report.variants import Variant, VariedSetting, typed_value
from ret_lightning.runs.identity import ABSENT
from ret_lightning.training.checkpointing.selection_queries import in_words


@dataclass(frozen=True)
class Content:
    """What the page tells.

    Attributes:
        metric: that the variants are compared by.
        baseline: one of them.
        rows: of the table.
        settings: that vary.
        unfinished: runs without metrics.
        logs: name of a run to its log.
        gallery: queries that variants disagree on.
        gallery_missing: why their texts and images are not there; empty where they are.
        facts: what is compared.
        method: how the numbers are made.
        remarks: what to be wary of.
    """

    metric: str
    baseline: Variant
    rows: list[Row]
    settings: list[VariedSetting]
    unfinished: list[Unfinished]
    logs: Mapping[str, Log]
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


def page(content: Content) -> str:
    """The page as text; no address in it leads outside."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folder = files("ret_lightning.report")
    template = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    numbers = {id(run): i + 1 for i, run in enumerate(content.runs)}
    return template.render(
        content=content,
        style=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(folder.joinpath("page.js").read_text(encoding="utf-8")),
        run_id=lambda run: f"run-{numbers[id(run)]}",
        origin=origin,
        in_words=in_words,
        tables=tables,
        bars=bar_chart(bars(content), f"{content.metric} of each variant"),
        curves=_curves(content),
        curve_legend=_legend([row for row in content.rows if _has_curve(row.variant, content)]),
        subsets=_by_subset(content),
        gates=[(v, [(m, _heat_map(v, m)) for m in maps]) for v in content.variants if (maps := _gates(v, content))],
        costs=[(variant, _cost(variant, content.logs)) for variant in content.variants],
        differences=_differences(content),
    )


def origin(variant: Variant) -> str:
    """Where a variant's numbers come from, in a line."""
    runs = ", ".join(f"{run.name} (seed {run.seed})" for run in variant.runs)
    return f"runs {runs}; config {variant.fingerprint}; code {'; '.join(tables.codes(variant))}"


def _of_run(run: Run, variant: Variant) -> str:
    return f"run {run.name}, seed {run.seed}, config {variant.fingerprint}, code {run.code}"


def bars(content: Content) -> list[Bar]:
    """A bar a variant, in the order of the table."""
    drawn = []
    for row in content.rows:
        several = len(row.variant.runs) > 1
        dots = [(run.metrics[content.metric], _of_run(run, row.variant)) for run in row.variant.runs] if several else []
        drawn.append(Bar(row.variant.label, row.summary.mean, row.summary.interval, dots, origin(row.variant)))
    return drawn


def _has_curve(variant: Variant, content: Content) -> bool:
    return any(curve(content.logs[run.name], content.metric) for run in variant.runs)


def curves(content: Content) -> list[Line]:
    """The metric on the validation queries over the optimiser steps, a line a variant that logged it."""
    drawn = []
    for variant in content.variants:
        own = [(points, run) for run in variant.runs if (points := curve(content.logs[run.name], content.metric))]
        if not own:
            continue
        # Seeds are averaged at the steps that all of them reached.
        common = sorted(set.intersection(*({step for step, _ in points} for points, _ in own)))
        at = [dict(points) for points, _ in own]
        mean = [(float(step), statistics.fmean(values[step] for values in at)) for step in common]
        single = [([(float(s), v) for s, v in points], _of_run(run, variant)) for points, run in own]
        drawn.append(Line(variant.label, mean, single if len(single) > 1 else []))
    return [line for line in drawn if line.mean]


def _curves(content: Content) -> Markup | None:
    lines = curves(content)
    return line_chart(lines, f"{content.metric} on the validation queries", "optimiser steps") if lines else None


def _legend(rows: Sequence[Row]) -> list[tuple[str, Markup, str]]:
    """Colour, dashes and label of each curve."""
    return [(f"--series-{i % COLOURS}", Markup(dash(i)), row.variant.label) for i, row in enumerate(rows)]


def _by_subset(content: Content) -> tuple[list[str], list[list[str]]]:
    """Column names, and of each row `mean ± deviation` in each subset that the metric is a mean over."""
    columns: dict[str, None] = {}
    for run in content.runs:
        columns |= {f"{subset}/{name}": None for subset, name in mean_parts(content.metric, run.metrics).items()}
    if len(columns) < 2:
        return [], []
    lines = []
    for variant in content.variants:
        of = tables.summaries(variant)
        lines.append([_with_deviation(of[name]) if name in of else tables.NONE for name in columns])
    return list(columns), lines


def _with_deviation(of: Summary) -> str:
    return f"{of.mean:.3f}" + ("" if of.deviation is None else f" ± {of.deviation:.3f}")


def _gates(variant: Variant, content: Content) -> list[GateMap]:
    return logged_gate_maps([content.logs[run.name] for run in variant.runs])


def _heat_map(variant: Variant, gates: GateMap) -> Markup:
    return heat_map(gates, f"activations of the gates of the {gates.side} tower, {variant.label}")


def _cost(variant: Variant, logs: Mapping[str, Log]) -> list[tuple[float | None, str]]:
    """Of each column the number to sort by, and its text; means over the variant's runs."""

    def mean(name: str) -> float | None:
        values = [run.cost[name] for run in variant.runs if run.cost.get(name) is not None]
        return statistics.fmean(values) if values else None

    speeds = [value for run in variant.runs if (value := speed(logs[run.name])) is not None]
    devices = dict.fromkeys(
        f"{run.cost['ranks']} × {run.cost['device']}" for run in variant.runs if {"ranks", "device"} <= run.cost.keys()
    )
    numbers = [
        (mean("training_seconds"), _time),
        (mean("test_seconds"), _time),
        (statistics.fmean(speeds) if speeds else None, lambda value: f"{value:.1f}"),
        (mean("parameters"), _millions),
        (mean("trained_parameters"), _millions),
        (mean("resident_bytes"), _memory),
        (mean("cuda_bytes"), _memory),
    ]
    cells = [(value, tables.NONE if value is None else told(value)) for value, told in numbers]
    return [*cells, (None, ", ".join(devices) or tables.NONE)]


def _time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{seconds:.1f} s"
    return (
        f"{whole // 3600} h {whole % 3600 // 60:02d} min" if whole >= 3600 else f"{whole // 60} min {whole % 60:02d} s"
    )


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f} M"


def _memory(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _differences(content: Content) -> list[tuple[str, str, list[str]]]:
    """Every config key that differs: the setting that it belongs to, the key, its value in each variant."""
    return [
        (setting.name, key, [typed_value(variant.config.get(key, ABSENT)) for variant in content.variants])
        for setting in content.settings
        for key in sorted(setting.keys)
    ]
