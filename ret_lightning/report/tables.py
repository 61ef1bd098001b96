"""Results table as CSV, Markdown and LaTeX, and all metrics of all runs as CSV."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from ret_lightning.report.comparison import Row
from ret_lightning.report.statistics import Summary, summarise
from ret_lightning.report.variants import Variant, VariedSetting
from ret_lightning.runtime.markdown import escape, markdown_line, paragraph

MISSING = "–"  # std of one seed, difference of the baseline to itself

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "`": r"\textasciigrave{}", "'": r"\textquotesingle{}", '"': r"\char34{}", "\u2013": "--", "\u2212": "$-$",
    # At the start of a row, LaTeX reads these as arguments of the preceding line break.
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip


def results_csv(rows: Sequence[Row], settings: Sequence[VariedSetting], metric: str) -> str:
    """Return the results table as CSV: one line per variant, at full precision."""
    lines = []
    for row in rows:
        summary, variant = row.summary, row.variant
        low, high = summary.interval or (None, None)
        difference_low, difference_high = row.difference_interval or (None, None)
        lines.append(
            {
                **_values(variant, settings), "metric": metric, "seeds": " ".join(str(run.seed) for run in variant.runs),
                "mean": summary.mean, "deviation": summary.deviation, "low": low, "high": high, "difference": row.difference,
                "difference_low": difference_low, "difference_high": difference_high, "p": row.p,
                "p_holm": row.p_corrected, "untested": row.untested, "fingerprint": variant.fingerprint,
                "runs": "; ".join(run.name for run in variant.runs), "code": "; ".join(code_versions(variant)),
                "selected_on": _selected_on(variant),
            }
        )  # fmt: skip
    return _csv(lines)


def runs_csv(variants: Sequence[Variant], settings: Sequence[VariedSetting]) -> str:
    """Return a CSV with one line per run: config, code version, cost and all metrics."""
    runs = [(variant, run) for variant in variants for run in variant.runs]
    metrics = sorted({metric for _, run in runs for metric in run.metrics})
    costs = sorted({name for _, run in runs for name in run.cost})
    return _csv(
        [
            {
                "run": run.name, **_values(variant, settings), "seed": run.seed, "fingerprint": variant.fingerprint,
                "code": run.code, "dirty": run.dirty, "tested_step": run.origin.get("tested_step"),
                "selected_on": run.selected_on, **{name: run.cost.get(name) for name in costs},
                **{metric: run.metrics.get(metric) for metric in metrics},
            }
            for variant, run in runs
        ]
    )  # fmt: skip


def metrics_csv(variants: Sequence[Variant], settings: Sequence[VariedSetting]) -> str:
    """Return a CSV with one line per variant and metric: mean, standard deviation and confidence interval over seeds."""
    lines = []
    for variant in variants:
        for metric, summary in summarise_metrics(variant).items():
            low, high = summary.interval or (None, None)
            lines.append(
                {
                    **_values(variant, settings), "metric": metric, "seeds": summary.count, "mean": summary.mean,
                    "deviation": summary.deviation, "low": low, "high": high, "fingerprint": variant.fingerprint,
                    "selected_on": _selected_on(variant),
                }
            )  # fmt: skip
    return _csv(lines)


def summarise_metrics(variant: Variant) -> dict[str, Summary]:
    """Summarise over seeds each metric that all runs of a variant have."""
    common = sorted(set.intersection(*(set(run.metrics) for run in variant.runs)))
    return {metric: summarise([run.metrics[metric] for run in variant.runs]) for metric in common}


def code_versions(variant: Variant) -> list[str]:
    """Return the distinct code versions of a variant's runs."""
    return list(dict.fromkeys(run.code for run in variant.runs))


def markdown_table(rows: Sequence[Row], settings: Sequence[VariedSetting], metric: str, notes: Sequence[str]) -> str:
    """Return the results table as Markdown, with the notes as a list below it."""
    header = [
        *_setting_names(settings),
        "seeds",
        metric,
        "std",
        "95% CI",
        "difference",
        "95% CI of the difference",
        "p",
        "p (Holm)",
    ]
    aligned = ["---"] * len(_setting_names(settings)) + ["--:"] * 8
    lines = [list(map(escape, header)), aligned]
    for row in rows:
        *cells, p, corrected = _cells(row, settings)
        lines.append(
            [escape(text) for text in (*cells, format_difference_interval(row.difference_interval), p, corrected)]
        )
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return table + "\n\n" + "\n".join(f"- {paragraph(note)}" for note in notes) + "\n"


def latex_table(
    rows: Sequence[Row], settings: Sequence[VariedSetting], metric: str, baseline: Variant, notes: Sequence[str]
) -> str:
    r"""Return the results table as LaTeX, for \usepackage{booktabs}.

    The best mean is bold. The notes are comments above the table.
    """
    names = _setting_names(settings)
    header = [*map(escape_latex, [*names, "seeds", metric, "std", "95% CI", "difference"]), "$p$", "$p$ (Holm)"]
    best = max(row.summary.mean for row in rows)
    lines = []
    for row in rows:
        cells = [escape_latex(text) for text in _cells(row, settings)]
        if row.summary.mean == best:
            cells[len(names) + 1] = rf"\textbf{{{cells[len(names) + 1]}}}"
        lines.append("    " + " & ".join(cells) + r" \\")
    comments = [f"% {markdown_line(note)}" for note in notes]
    return "\n".join(
        [
            *comments,
            r"\begin{table}",
            r"  \centering",
            r"  \footnotesize",
            r"  \setlength{\tabcolsep}{3pt}",
            rf"  \begin{{tabular}}{{{'l' * len(names)}{'r' * 7}}}",
            r"    \toprule",
            "    " + " & ".join(header) + r" \\",
            r"    \midrule",
            *lines,
            r"    \bottomrule",
            r"  \end{tabular}",
            rf"  \caption{{{escape_latex(metric)}: mean over seeds with its 95\% confidence interval (Student's $t$), "
            rf"difference to {escape_latex(baseline.label)}, and $p$ of a paired randomisation test over queries.}}",
            r"\end{table}",
            "",
        ]
    )


def escape_latex(text: str) -> str:
    """Escape a text for LaTeX, so that it is typeset literally, on one line.

    Scripts other than Latin require XeLaTeX or LuaLaTeX and a font that has them.
    """
    return "".join(_LATEX.get(c, c) for c in re.sub("-(?=-)", "-\0", markdown_line(text))).replace("\0", "{}")


def format_p(p: float | None) -> str:
    """Format a p value with four decimals, the resolution of the test."""
    return MISSING if p is None else f"{p:.4f}"


def format_difference(value: float | None) -> str:
    """Format a difference with its sign."""
    return MISSING if value is None else f"{value:+.3f}".replace("-", "−")


def format_interval(interval: tuple[float, float] | None) -> str:
    """Format the ends of an interval."""
    return MISSING if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}".replace("-", "−")


def format_difference_interval(interval: tuple[float, float] | None) -> str:
    """Format the ends of a difference's interval, with their signs."""
    return MISSING if interval is None else f"{format_difference(interval[0])} to {format_difference(interval[1])}"


def _setting_names(settings: Sequence[VariedSetting]) -> list[str]:
    return [setting.name for setting in settings] or ["variant"]


def _cells(row: Row, settings: Sequence[VariedSetting]) -> list[str]:
    summary = row.summary
    return [
        *([row.variant.values[setting.name] for setting in settings] or [row.variant.label]),
        str(summary.count),
        f"{summary.mean:.3f}",
        MISSING if summary.deviation is None else f"{summary.deviation:.3f}",
        format_interval(summary.interval),
        format_difference(row.difference),
        format_p(row.p),
        format_p(row.p_corrected),
    ]


def _values(variant: Variant, settings: Sequence[VariedSetting]) -> dict[str, str]:
    return {setting.name: variant.values[setting.name] for setting in settings}


def _selected_on(variant: Variant) -> str:
    return "; ".join(dict.fromkeys(run.selected_on for run in variant.runs))


def _csv(lines: Sequence[Mapping[str, object]]) -> str:
    # dtype=object keeps whole numbers whole in columns with missing values.
    return pd.DataFrame(lines, dtype=object).to_csv(index=False, lineterminator="\n")
