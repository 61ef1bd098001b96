"""What a check of the data found, as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ret_lightning.data.bad_rows import SHOWN, BadRow, Tally
from ret_lightning.data.checks.row_scan import SideCounts
from ret_lightning.data.readers.source_location import numbered

if TYPE_CHECKING:
    from rich.console import Console

SAMPLE = 1000  # texts of a subset and side that the share of cut ones is computed on


@dataclass
class Finding:
    """One kind of thing in one part of the data.

    Attributes:
        kind: as of a `DataError`, or of what only the check looks for.
        where: the part: `training`, `test/okvqa queries`, `images`, ...
        count: how often.
        first: messages of the first few, with file and line.
        summary: what follows the count, to be printed.
    """

    kind: str
    where: str
    count: int
    first: list[str]
    summary: str = ""


@dataclass
class SideRow:
    """A row of the table of subsets; see `SideCounts`. `cut` is the share of sampled texts that the tokenizer cuts."""

    part: str
    subset: str
    rows: int
    with_text: int
    with_image: int
    mean_characters: float | None
    cut: float | None


@dataclass
class CheckReport:
    """What was found.

    Attributes:
        problems: what would go wrong.
        notes: what is worth knowing.
        table: a row a subset and side.
        rows: that were read.
        images: different ones that were looked at.
        seconds: that it took.
    """

    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    table: list[SideRow] = field(default_factory=list)
    rows: int = 0
    images: int = 0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 where nothing would go wrong, else 1."""
        return int(bool(self.problems))

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain containers."""
        return {"ok": not self.problems, **asdict(self)}

    def add(
        self,
        findings: list[Finding],
        where: str,
        kind: str,
        messages: Sequence[str],
        count: int | None = None,
        summary: str = "",
    ) -> None:
        """One more finding, if there is anything to it."""
        count = len(messages) if count is None else count
        if count:
            findings.append(Finding(kind, where, count, list(messages[:SHOWN]), summary))

    def add_tally(self, findings: list[Finding], where: str, tally: Tally) -> None:
        """A finding a kind."""
        for kind, count in sorted(tally.kinds.items()):
            self.add(findings, where, kind, row_messages(tally.first.get(kind, [])), count)

    def add_side(self, part: str, subset: str, counts: SideCounts, is_cut: Callable[[list[str]], float] | None) -> None:
        """One more row of the table."""
        mean = round(counts.characters / counts.with_text, 1) if counts.with_text else None
        cut = round(is_cut(counts.sample), 4) if is_cut and counts.sample else None
        self.table.append(SideRow(part, subset, counts.rows, counts.with_text, counts.with_image, mean, cut))

    def print(self, console: Console) -> None:
        """The table, the notes, and the problems last."""
        from rich.table import Table

        table = Table(title="Rows that can be used")
        for name in ("part", "subset", "rows", "with text", "with image", "characters a text", "texts cut"):
            table.add_column(name, justify="left" if name in ("part", "subset") else "right")
        for row in self.table:
            mean = "" if row.mean_characters is None else f"{row.mean_characters:.0f}"
            cut = "" if row.cut is None else f"{row.cut:.0%}"
            table.add_row(row.part, row.subset, str(row.rows), str(row.with_text), str(row.with_image), mean, cut)
        console.print(table)
        for title, findings in (("Worth knowing", self.notes), ("Would go wrong", self.problems)):
            if not findings:
                continue
            console.print(f"\n{title}:", markup=False, highlight=False)
            for finding in findings:
                head = f"  {finding.where}: {finding.kind}: {finding.count}{finding.summary}"
                console.print(head, markup=False, highlight=False, soft_wrap=True)
                more = [f"and {finding.count - len(finding.first)} more"] * (finding.count > len(finding.first) > 0)
                for message in [*finding.first, *more]:
                    console.print(f"      {message}", markup=False, highlight=False, soft_wrap=True)
        count = sum(finding.count for finding in self.problems)
        verdict = f"{count} {'thing' if count == 1 else 'things'} would go wrong" if count else "nothing would go wrong"
        console.print(
            f"\n{self.rows} rows and {self.images} images in {self.seconds:.1f} s: {verdict}",
            markup=False,
            highlight=False,
        )


def row_messages(rows: Iterable[BadRow]) -> list[str]:
    """Their messages, with lines; a file that several of them stand in is read once to count them."""
    rows = list(rows)
    return [
        row._replace(place=place).message for row, place in zip(rows, numbered([r.place for r in rows]), strict=True)
    ]
