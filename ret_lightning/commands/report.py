"""ret-report: compares the runs below a folder."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.schema import ReportConfig


def main() -> None:
    """The console script."""
    sys.argv[1:] = [_quoted(argument) for argument in sys.argv[1:]]
    run(_report, config_name="report", schema=ReportConfig, prog="ret-report")


def _quoted(argument: str) -> str:
    """`baseline=gate=lstm` with its value in quotes: Hydra takes no second `=`, and shells take quotes away."""
    key, _, value = argument.partition("=")
    if key != "baseline" or "=" not in value or value[0] in "'\"":
        return argument
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"baseline='{escaped}'"


def _report(config: DictConfig) -> None:
    # Imported here: --help and a misspelt option answer without torch.
    from ret_lightning.report.report import write_report

    write_report(config.runs, config.output, config.metric, config.baseline, config.gallery, config.overwrite)


if __name__ == "__main__":
    main()
