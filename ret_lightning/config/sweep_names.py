"""Names of sweeps and of their jobs: short, unique, and sortable."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

JOINT = "+"  # separator of settings: safe in file names and shells, and not a separator of Hydra

_LONGEST_VALUE = 32  # characters
_LONG_NUMBER = re.compile(r"-?\d*\.\d{6,}(e[+-]?\d+)?")  # as random samplers produce
_POSITIVE_EXPONENT = re.compile(r"(?<=[\d.]e)\+(?=\d)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![^,])-?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|nan)(?![^,])", re.IGNORECASE)  # of a list
_UNSAFE = re.compile(r"[^\w.=,@%-]+")


def sweep_name(keys: Sequence[str], experiment: str | None = None) -> str:
    """Return the name of a sweep over some keys, `demo+gate+seed`.

    Args:
        keys: the config keys that vary.
        experiment: the option of the group `experiment`, the first part of the name; None: no such part.
    """
    return JOINT.join([*([_clean_name(experiment)] if experiment else []), *_shorten_keys(keys).values()]) or "sweep"


def job_names(jobs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the name of each job of a sweep, `gate=lstm+seed=02`.

    Integers are padded with zeros to the length of the longest value of their key, so that names sort numerically. Long
    values are truncated; names that are equal after truncation get a suffix of six hexadecimal digits.

    Args:
        jobs: for each job, the keys that vary and their values as on a command line.
    """
    short = _shorten_keys(list(dict.fromkeys(key for job in jobs for key in job)))
    widths = {
        key: max(len(job[key]) for job in jobs if key in job)
        for key in short
        if all(job.get(key, "0").isdigit() for job in jobs)
    }
    names = [
        JOINT.join(
            f"{short[key]}={_format_job_value(value).rjust(widths.get(key, 0), '0')}" for key, value in job.items()
        )
        or "run"
        for job in jobs
    ]
    return [
        f"{name}-{_hash_suffix(job)}" if names.count(name) > 1 else name for name, job in zip(names, jobs, strict=True)
    ]


def _shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """Map each key to the shortest suffix that differs from the suffixes of the other keys."""
    plain = {key: key.lstrip("+~").partition("@")[0].replace("/", ".").split(".") for key in keys}
    short = {}
    for key, parts in plain.items():
        length = 1
        while length < len(parts) and any(
            other[-length:] == parts[-length:] for other_key, other in plain.items() if other_key != key
        ):
            length += 1
        short[key] = ".".join(parts[-length:])
    return short


def _format_job_value(text: str) -> str:
    if _LONG_NUMBER.fullmatch(text):
        text = f"{float(text):.6g}"
    cleaned = _clean_name(text.strip("'\""))
    start = max(0, len(cleaned) - _LONGEST_VALUE)
    for number in _NUMBER.finditer(cleaned):
        if number.start() < start < number.end():  # a truncated number would read as another number
            start = number.end()
    return _strip_leading(cleaned[start:], ".,-") if start else cleaned


def _clean_name(text: str) -> str:
    """Remove characters that are special in paths and shells: `[a,b]` becomes `a,b`, `models/a b` becomes `models-a-b`."""
    text = re.sub(r"[\[\]{}\"']", "", text)
    text = _POSITIVE_EXPONENT.sub("", text)  # replaced by a dash, it would read as a negative exponent
    return _strip_leading(_UNSAFE.sub("-", text), "-.").rstrip("-.")


def _strip_leading(text: str, characters: str) -> str:
    """Remove leading characters, except the sign and the decimal point of a number."""
    while text and text[0] in characters and not _NUMBER.match(text):
        text = text[1:]
    return text


def _hash_suffix(job: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(job.items())).encode()).hexdigest()[:6]
