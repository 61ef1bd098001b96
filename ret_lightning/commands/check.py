"""ret-check: check the rows and images of a corpus, and report what would fail in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from ret_lightning.commands.application import run
from ret_lightning.config.schema import CheckConfig

MIN_WIDTH = 100  # columns of the table

if TYPE_CHECKING:
    from ret_lightning.data.checks.check_report import CheckReport


def main() -> None:
    """Run the console script ret-check."""
    run(_check, config_name="check", schema=CheckConfig, prog="ret-check")


def _check(config: DictConfig) -> CheckReport:
    # Imported here so that --help and config problems do not load torch.
    import json

    from ret_lightning.config.build import build
    from ret_lightning.data.checks.corpus_check import CorpusCheck
    from ret_lightning.runtime.atomic_files import write_text
    from ret_lightning.runtime.console import console, printing

    data = build(config.data)
    data.layout.prepare()  # generates the corpus, if the layout does
    report = CorpusCheck(data, config.images, config.image_share, config.workers).run()
    if config.report is not None:
        write_text(config.report, json.dumps(report.as_json(), indent=1) + "\n")
    output = console()
    with printing():
        report.print(output if output.width >= MIN_WIDTH else console(width=MIN_WIDTH))
    return report


if __name__ == "__main__":
    main()
