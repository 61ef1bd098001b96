"""ret-report: compare the runs below a folder."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.schema import ReportConfig


def main() -> None:
    """Run the console script ret-report."""
    sys.argv[1:] = [_quote_baseline(argument) for argument in sys.argv[1:]]
    run(_report, config_name="report", schema=ReportConfig, prog="ret-report")


def _quote_baseline(argument: str) -> str:
    """Quote the value of `baseline=gate=lstm`: Hydra does not accept a second `=`, and shells remove quotes."""
    key, _, value = argument.partition("=")
    if key != "baseline" or "=" not in value or value[0] in "'\"":
        return argument
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"baseline='{escaped}'"


def _report(config: DictConfig) -> None:
    # Imported here so that --help and config problems do not load torch.
    from ret_lightning.report.report import write_report

    write_report(config.runs, config.output, config.metric, config.baseline, config.gallery, config.overwrite)


if __name__ == "__main__":
    main()
