"""The phrases that the project no longer uses, and where a file still has one; `make lint` runs this file.

    python tests/support/retired_phrases.py

Words that are also ordinary English or field terms (sample, codes, links, pool, product) are left to the reader.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".pyi", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".html", ".js", ".css", ".cff"}
# This file, and those that define or test what is accepted under an earlier name.
EXCEPTIONS = (
    "tests/support/retired_phrases.py",
    "tests/test_language.py",
    "tests/assets/",
    "tests/commands/test_renamed_keys.py",
    "tests/config/targets/test_renamed_keys.py",
    "ret_lightning/config/targets/renamed_keys.py",
    "CHANGELOG.md",
)
# The line of an earlier name that is still accepted ends in this.
MARK = "earlier name"

RETIRED = {
    r"\b(go|goes|going|gone|went) on\b": "resume, continue",
    r"\b(is|are|was|were|be|been|being) told\b": "is reported, gets",
    r"\btold apart\b": "distinguished",
    r"\btells? (of|that|why|how|which|whether|where)\b": "reports, states",
    r"\bsays? what is wrong\b": "the error message states",
    r"\bstands? (in|beside|there|here|for itself|at|on|under)\b": "is stored in, is in",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bbeside\b": "next to",
    r"\blikewise\b": "repeat the statement",
    r"\bas there(?=[.;,)]|$)": "repeat the statement",
    r"\bgate openings?\b|\bmean opening\b": "gate activations",
    r"\bstretch(es)?\b": "span, chunk, shard",
    r"\bmeeting\b": "barrier, rendezvous",
    r"\bjudg(e|es|ed|ing)\b": "evaluate",
    r"\bheadline\b": "main metric, published results",
    r"\bmistakes?\b": "config errors, problems",
    r"\byardstick\b": "reference",
    r"\bsurviving\b": "checkpointing and fault tolerance",
    r"\bagreement@": "ann_recall@",
    r"\brecall_cost\b": "recall loss",
    r"\bis no number\b": "is not a number, is not finite",
    r"\bby hand\b": "manually",
    r"\bretrieval\.(cells|probes|codes|bits|links|sample)=": "nlist, nprobe, m, nbits, M, training_points",
}
_PATTERN = re.compile("|".join(f"(?:{pattern})" for pattern in RETIRED), re.IGNORECASE)


def tracked_files() -> list[Path]:
    """Return the text files that git tracks and this check covers."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.splitlines() if not name.startswith(EXCEPTIONS)]
    return [ROOT / name for name in names if Path(name).suffix in SUFFIXES or name == "Makefile"]


def retired_in(text: str) -> list[tuple[int, str, str]]:
    """Return line number, phrase and replacement of each retired phrase in a text."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for match in _PATTERN.finditer(line):
            if MARK not in line:
                found.append((number, match[0], _replacement(match[0])))
    return found


def _replacement(phrase: str) -> str:
    return next(use for pattern, use in RETIRED.items() if re.fullmatch(pattern, phrase, re.IGNORECASE))


def main() -> int:
    """Print each retired phrase with its location; return 1 if there is one."""
    lines = []
    for file in tracked_files():
        for number, phrase, use in retired_in(file.read_text(encoding="utf-8")):
            lines.append(f"{file.relative_to(ROOT)}:{number}: {phrase!r} is retired; use: {use}")
    print("\n".join(lines) or "no retired phrase")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
