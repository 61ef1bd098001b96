"""Names for a sweep and for its jobs: what varies, short, each job's its own, and in a useful order when sorted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

JOINT = "+"  # between settings: safe in file names and shells, no separator of Hydra's

_LONGEST_VALUE = 32  # characters
_LONG_NUMBER = re.compile(r"-?\d*\.\d{6,}(e[+-]?\d+)?")  # as samplers draw them
_POSITIVE_EXPONENT = re.compile(r"(?<=[\d.]e)\+(?=\d)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![^,])-?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|nan)(?![^,])", re.IGNORECASE)  # of a list
_UNSAFE = re.compile(r"[^\w.=,@%-]+")


def sweep_name(keys: Sequence[str], experiment: str | None = None) -> str:
    """What a sweep over these keys is called, `demo+gate+seed`.

    Args:
        keys: of the config, those that vary.
        experiment: the option of the group `experiment`, which comes first.
    """
    return JOINT.join([*([_clean(experiment)] if experiment else []), *_short(keys).values()]) or "sweep"


def job_names(jobs: Sequence[Mapping[str, str]]) -> list[str]:
    """What each job of a sweep is called, `gate=lstm+seed=02`.

    Whole numbers are filled with zeros to the length of the longest value of their key, so that names sort as numbers do.
    Long values are cut; where that makes two names equal, each carries a few digits that tell them apart.

    Args:
        jobs: of each, the keys that vary and their values as on a command line.
    """
    short = _short(list(dict.fromkeys(key for job in jobs for key in job)))
    widths = {
        key: max(len(job[key]) for job in jobs if key in job)
        for key in short
        if all(job.get(key, "0").isdigit() for job in jobs)
    }
    names = [
        JOINT.join(f"{short[key]}={_value(value).rjust(widths.get(key, 0), '0')}" for key, value in job.items())
        or "run"
        for job in jobs
    ]
    return [f"{name}-{_digits(job)}" if names.count(name) > 1 else name for name, job in zip(names, jobs, strict=True)]


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Each key by as many of its last parts as tell it from the others."""
    plain = {key: key.lstrip("+~").partition("@")[0].replace("/", ".").split(".") for key in keys}
    short = {}
    for key, parts in plain.items():
        length = 1
        while length < len(parts) and any(
            other[-length:] == parts[-length:] for them, other in plain.items() if them != key
        ):
            length += 1
        short[key] = ".".join(parts[-length:])
    return short


def _value(text: str) -> str:
    if _LONG_NUMBER.fullmatch(text):
        text = f"{float(text):.6g}"
    cleaned = _clean(text.strip("'\""))
    start = max(0, len(cleaned) - _LONGEST_VALUE)
    for number in _NUMBER.finditer(cleaned):
        if number.start() < start < number.end():  # the rest of a number would be another number
            start = number.end()
    return _stripped(cleaned[start:], ".,-") if start else cleaned


def _clean(text: str) -> str:
    """Without what is special in paths and shells: `[a,b]` is `a,b`, `models/a b` is `models-a-b`, `1e+35` is `1e35`."""
    text = re.sub(r"[\[\]{}\"']", "", text)
    text = _POSITIVE_EXPONENT.sub("", text)  # as a dash, it would be the exponent's sign
    return _stripped(_UNSAFE.sub("-", text), "-.").rstrip("-.")


def _stripped(text: str, characters: str) -> str:
    """Without these characters at the beginning, except the sign and the point of a number."""
    while text and text[0] in characters and not _NUMBER.match(text):
        text = text[1:]
    return text


def _digits(job: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(job.items())).encode()).hexdigest()[:6]
