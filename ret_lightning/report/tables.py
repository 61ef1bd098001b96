"""The table as CSV, Markdown and LaTeX, and all metrics of all runs as CSV."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from ret_lightning.report.comparison import Row
from ret_lightning.report.statistics import Summary, summarise
from ret_lightning.report.variants import Variant, VariedSetting
from ret_lightning.runtime.markdown import escape, markdown_line, paragraph

NONE = "–"  # where one seed gives no deviation, and the baseline no difference

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "`": r"\textasciigrave{}", "'": r"\textquotesingle{}", '"': r"\char34{}", "\u2013": "--", "\u2212": "$-$",
    # At the start of a row, these would be arguments of the line break before them.
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip


def results_csv(rows: Sequence[Row], settings: Sequence[VariedSetting], metric: str) -> str:
    """One line per variant, at full precision."""
    lines = []
    for row in rows:
        of, variant = row.summary, row.variant
        low, high = of.interval or (None, None)
        difference_low, difference_high = row.difference_interval or (None, None)
        lines.append(
            {
                **_values(variant, settings), "metric": metric, "seeds": " ".join(str(run.seed) for run in variant.runs),
                "mean": of.mean, "deviation": of.deviation, "low": low, "high": high, "difference": row.difference,
                "difference_low": difference_low, "difference_high": difference_high, "p": row.p,
                "p_holm": row.p_corrected, "untested": row.untested, "fingerprint": variant.fingerprint,
                "runs": "; ".join(run.name for run in variant.runs), "code": "; ".join(codes(variant)),
                "selected_on": _selected_on(variant),
            }
        )  # fmt: skip
    return _csv(lines)


def runs_csv(variants: Sequence[Variant], settings: Sequence[VariedSetting]) -> str:
    """One line per run: where it comes from, what it cost, all its metrics."""
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
    """One line per variant and metric: its mean over seeds, and how sure that is."""
    lines = []
    for variant in variants:
        for metric, of in summaries(variant).items():
            low, high = of.interval or (None, None)
            lines.append(
                {
                    **_values(variant, settings), "metric": metric, "seeds": of.count, "mean": of.mean,
                    "deviation": of.deviation, "low": low, "high": high, "fingerprint": variant.fingerprint,
                    "selected_on": _selected_on(variant),
                }
            )  # fmt: skip
    return _csv(lines)


def summaries(variant: Variant) -> dict[str, Summary]:
    """Each metric that all runs of a variant have, over its seeds."""
    common = sorted(set.intersection(*(set(run.metrics) for run in variant.runs)))
    return {metric: summarise([run.metrics[metric] for run in variant.runs]) for metric in common}


def codes(variant: Variant) -> list[str]:
    """The code versions of a variant's runs, each once."""
    return list(dict.fromkeys(run.code for run in variant.runs))


def markdown(rows: Sequence[Row], settings: Sequence[VariedSetting], metric: str, notes: Sequence[str]) -> str:
    """A table with the notes below it."""

    header = [
        *_names(settings),
        "seeds",
        metric,
        "deviation",
        "95 % interval",
        "difference",
        "its 95 % interval over seeds",
        "p over queries",
        "p (Holm)",
    ]
    aligned = ["---"] * len(_names(settings)) + ["--:"] * 8
    lines = [list(map(escape, header)), aligned]
    for row in rows:
        *cells, p, corrected = _cells(row, settings)
        lines.append([escape(text) for text in (*cells, signed_span(row.difference_interval), p, corrected)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return table + "\n\n" + "\n".join(f"- {paragraph(note)}" for note in notes) + "\n"


def latex(
    rows: Sequence[Row], settings: Sequence[VariedSetting], metric: str, baseline: Variant, notes: Sequence[str]
) -> str:
    """A `table` environment that needs \\usepackage{booktabs}; the best mean is bold, the notes are comments."""
    names = _names(settings)
    header = [*map(tex, [*names, "seeds", metric, "deviation", "95 % interval", "difference"]), "$p$", "$p$ (Holm)"]
    best = max(row.summary.mean for row in rows)
    lines = []
    for row in rows:
        cells = [tex(text) for text in _cells(row, settings)]
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
            rf"  \caption{{{tex(metric)}: mean over seeds with its 95\,\% interval (Student's $t$ over seeds), difference to "
            rf"{tex(baseline.label)}, and $p$ of a paired randomisation test over queries.}}",
            r"\end{table}",
            "",
        ]
    )


def tex(text: str) -> str:
    """Escape a text for LaTeX, so that it is printed as it is, on one line.

    The result is valid in any text font. Scripts other than Latin need a font that has them, with XeLaTeX or LuaLaTeX.
    """
    return "".join(_LATEX.get(c, c) for c in re.sub("-(?=-)", "-\0", markdown_line(text))).replace("\0", "{}")


def probability(p: float | None) -> str:
    """A p value to four digits, which is what as many resamples tell."""
    return NONE if p is None else f"{p:.4f}"


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return NONE if value is None else f"{value:+.3f}".replace("-", "−")


def span(interval: tuple[float, float] | None) -> str:
    """An interval's ends."""
    return NONE if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}".replace("-", "−")


def signed_span(interval: tuple[float, float] | None) -> str:
    """The ends of a difference's interval."""
    return NONE if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"


def _names(settings: Sequence[VariedSetting]) -> list[str]:
    return [setting.name for setting in settings] or ["variant"]


def _cells(row: Row, settings: Sequence[VariedSetting]) -> list[str]:
    of = row.summary
    return [
        *([row.variant.values[setting.name] for setting in settings] or [row.variant.label]),
        str(of.count),
        f"{of.mean:.3f}",
        NONE if of.deviation is None else f"{of.deviation:.3f}",
        span(of.interval),
        signed(row.difference),
        probability(row.p),
        probability(row.p_corrected),
    ]


def _values(variant: Variant, settings: Sequence[VariedSetting]) -> dict[str, str]:
    return {setting.name: variant.values[setting.name] for setting in settings}


def _selected_on(variant: Variant) -> str:
    return "; ".join(dict.fromkeys(run.selected_on for run in variant.runs))


def _csv(lines: Sequence[Mapping[str, object]]) -> str:
    # As objects: whole numbers stay whole next to missing ones.
    return pd.DataFrame(lines, dtype=object).to_csv(index=False, lineterminator="\n")
