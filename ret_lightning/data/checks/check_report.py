"""Report of a corpus check: a table and lists of findings on the console, or JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ret_lightning.data.bad_rows import MAX_REPORTED, BadRow, Tally
from ret_lightning.data.checks.row_scan import SideCounts
from ret_lightning.data.readers.source_location import resolve_lines

if TYPE_CHECKING:
    from rich.console import Console

SAMPLE_SIZE = 1000  # texts per subset and side that the fraction of truncated texts is estimated from


@dataclass
class Finding:
    """All findings of one kind in one part of the data.

    Attributes:
        kind: `DataError.kind`, or a kind of this check.
        where: part of the data: `training`, `test/okvqa queries`, `images`, ...
        count: number of occurrences.
        first: messages of the first `MAX_REPORTED` occurrences, with file and line.
        summary: text that is printed after the count.
    """

    kind: str
    where: str
    count: int
    first: list[str]
    summary: str = ""


@dataclass
class SideRow:
    """A row of the table of subsets.

    Attributes:
        part: part of the data.
        subset: name of the subset.
        rows: number of valid rows.
        with_text: number of rows with a text.
        with_image: number of rows with an image.
        mean_characters: mean length of the texts, in characters; None without texts.
        cut: fraction of the sampled texts that the tokenizer truncates, in [0, 1]; None if unknown.
    """

    part: str
    subset: str
    rows: int
    with_text: int
    with_image: int
    mean_characters: float | None
    cut: float | None


@dataclass
class CheckReport:
    """Result of a corpus check.

    Attributes:
        problems: findings that make training or evaluation fail or skip data.
        notes: other findings.
        table: one row per subset and side.
        rows: number of rows read.
        images: number of distinct images checked.
        seconds: duration of the check.
    """

    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    table: list[SideRow] = field(default_factory=list)
    rows: int = 0
    images: int = 0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 without problems, otherwise 1."""
        return int(bool(self.problems))

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain containers, ready for JSON."""
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
        """Add a finding to `problems` or `notes`, unless its count is 0.

        Args:
            findings: the list to add to.
            where: part of the data.
            kind: kind of the finding.
            messages: messages of the occurrences; at least the first `MAX_REPORTED`.
            count: number of occurrences; None: the number of messages.
            summary: text that is printed after the count.
        """
        count = len(messages) if count is None else count
        if count:
            findings.append(Finding(kind, where, count, list(messages[:MAX_REPORTED]), summary))

    def add_tally(self, findings: list[Finding], where: str, tally: Tally) -> None:
        """Add one finding per kind of bad row.

        Args:
            findings: the list to add to.
            where: part of the data.
            tally: counts of bad rows.
        """
        for kind, count in sorted(tally.kinds.items()):
            self.add(findings, where, kind, resolve_messages(tally.first.get(kind, [])), count)

    def add_side(
        self, part: str, subset: str, counts: SideCounts, truncated_fraction: Callable[[list[str]], float] | None
    ) -> None:
        """Add a row to the table.

        Args:
            part: part of the data.
            subset: name of the subset.
            counts: counts of one side of the subset.
            truncated_fraction: computes the fraction of texts that the tokenizer truncates; None: unknown.
        """
        mean = round(counts.characters / counts.with_text, 1) if counts.with_text else None
        cut = round(truncated_fraction(counts.sample), 4) if truncated_fraction and counts.sample else None
        self.table.append(SideRow(part, subset, counts.rows, counts.with_text, counts.with_image, mean, cut))

    def print(self, console: Console) -> None:
        """Print the table, the notes and then the problems."""
        from rich.table import Table

        table = Table(title="Valid rows")
        for name in ("part", "subset", "rows", "with text", "with image", "characters per text", "truncated texts"):
            table.add_column(name, justify="left" if name in ("part", "subset") else "right")
        for row in self.table:
            mean = "" if row.mean_characters is None else f"{row.mean_characters:.0f}"
            cut = "" if row.cut is None else f"{row.cut:.0%}"
            table.add_row(row.part, row.subset, str(row.rows), str(row.with_text), str(row.with_image), mean, cut)
        console.print(table)
        for title, findings in (("Notes", self.notes), ("Problems", self.problems)):
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
        verdict = f"{count} problem{'s' * (count > 1)}" if count else "no problems"
        console.print(
            f"\n{self.rows} rows and {self.images} images in {self.seconds:.1f} s: {verdict}",
            markup=False,
            highlight=False,
        )


def resolve_messages(rows: Iterable[BadRow]) -> list[str]:
    """Return the messages of bad rows with their lines; each file is read at most once to count lines.

    Args:
        rows: bad rows, whose source locations may be byte offsets.
    """
    rows = list(rows)
    locations = resolve_lines([row.location for row in rows])
    return [row._replace(location=location).message for row, location in zip(rows, locations, strict=True)]
