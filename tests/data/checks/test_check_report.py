"""Report of a corpus check on the console and as JSON."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from ret_lightning.data.bad_rows import MAX_REPORTED, BadRow, DeferredLocation, Tally
from ret_lightning.data.checks.check_report import CheckReport, resolve_messages
from ret_lightning.data.checks.row_scan import SideCounts
from ret_lightning.data.readers.source_location import ByteLocation, SourceLocation


def printed(report: CheckReport, width: int = 80) -> list[str]:
    out = StringIO()
    report.print(Console(file=out, width=width))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_exit_code_and_json_depend_on_problems() -> None:
    report = CheckReport(rows=3, images=1, seconds=0.5)
    report.add(report.notes, "training", "empty_text", ["a.jsonl:1: empty"])
    report.add(report.problems, "training", "bad_json", [])  # nothing found
    assert (report.exit_code, report.as_json()["ok"], report.problems) == (0, True, [])
    report.add(report.problems, "training", "bad_json", [f"a.jsonl:{i}" for i in range(MAX_REPORTED + 2)])
    assert report.exit_code == 1
    found = json.loads(json.dumps(report.as_json()))
    assert (found["ok"], found["rows"], found["seconds"]) == (False, 3, 0.5)
    (problem,) = found["problems"]
    assert (problem["kind"], problem["count"]) == ("bad_json", MAX_REPORTED + 2)
    assert problem["first"] == [f"a.jsonl:{i}" for i in range(MAX_REPORTED)]


def test_tally_adds_one_finding_per_kind() -> None:
    tally = Tally(10)
    for kind in ("wrong_type", "bad_json", "wrong_type"):
        tally.add(BadRow(kind, f"{kind} here", SourceLocation(Path("a.jsonl"), 4)))
    report = CheckReport()
    report.add_tally(report.problems, "training", tally)
    assert [(each.kind, each.count, each.first) for each in report.problems] == [
        ("bad_json", 1, ["bad_json here"]),
        ("wrong_type", 2, ["wrong_type here"]),
    ]


def test_table_row_has_text_statistics() -> None:
    report = CheckReport()
    counts = SideCounts(rows=5, with_text=3, with_image=2, characters=10, sample=["long", "a", "b"])
    report.add_side("training query", "wit", counts, lambda texts: sum(len(text) > 1 for text in texts) / len(texts))
    report.add_side("training query", "evqa", SideCounts(rows=2), lambda texts: 1.0)
    report.add_side("test queries", "wit", counts, None)
    assert [(row.rows, row.with_text, row.with_image, row.mean_characters, row.cut) for row in report.table] == [
        (5, 3, 2, 3.3, 0.3333),
        (2, 0, 0, None, None),
        (5, 3, 2, 3.3, None),
    ]
    line = next(line for line in printed(report, width=120) if "33%" in line)
    assert line.split() == [
        "│",
        "training",
        "query",
        "│",
        "wit",
        "│",
        "5",
        "│",
        "3",
        "│",
        "2",
        "│",
        "3",
        "│",
        "33%",
        "│",
    ]


def test_problems_are_printed_last_without_markup() -> None:
    report = CheckReport(rows=7, images=2, seconds=1.25)
    messages = [f"a.jsonl:{i}: [red]found[/red] {'x' * 100}" for i in range(MAX_REPORTED + 2)]
    report.add(report.problems, "training", "bad_json", messages)
    report.add(report.notes, "images", "one_colour_image", ["b.jsonl:1: black"], count=1, summary=" of 9 images")
    lines = printed(report)
    notes, problems = lines.index("Notes:"), lines.index("Problems:")
    assert notes < problems
    assert lines[notes + 1 : notes + 3] == ["  images: one_colour_image: 1 of 9 images", "      b.jsonl:1: black"]
    assert lines[problems + 1] == f"  training: bad_json: {MAX_REPORTED + 2}"
    assert lines[problems + 2] == f"      {messages[0]}"
    assert lines[problems + 2 + MAX_REPORTED] == "      and 2 more"
    assert lines[-1] == f"7 rows and 2 images in 1.2 s: {MAX_REPORTED + 2} problems"
    assert printed(CheckReport())[-1] == "0 rows and 0 images in 0.0 s: no problems"


def test_messages_resolve_byte_locations(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n{}\n\n{}\n")
    locations = [ByteLocation(file, 7), ByteLocation(file, 0), SourceLocation(Path("b.parquet"), 3)]
    rows = [BadRow("bad_json", f"{DeferredLocation(location)}: wrong", location) for location in locations]
    assert resolve_messages(rows) == [f"{file}:4: wrong", f"{file}:1: wrong", "b.parquet, row 3: wrong"]
