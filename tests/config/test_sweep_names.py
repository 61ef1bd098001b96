"""Names of sweeps and jobs."""

from __future__ import annotations

import random
import re

import pytest

from ret_lightning.config.sweep_names import job_names, sweep_name


def test_keys_are_shortened_to_unique_suffixes() -> None:
    assert sweep_name(["gate", "model.num_tokens", "seed"]) == "gate+num_tokens+seed"
    assert sweep_name(["backbone.text.hidden_size", "backbone.vision.hidden_size"]) == (
        "text.hidden_size+vision.hidden_size"
    )
    assert sweep_name(["+model.new", "seed"], experiment="demo") == "demo+new+seed"
    assert sweep_name(["gate@model.gate"]) == "gate"
    assert (sweep_name([]), job_names([{}])) == ("sweep", ["run"])


def test_names_sort_numerically() -> None:
    names = job_names([{"gate": gate, "seed": seed} for gate in ("lstm", "none") for seed in ("2", "10", "1")])
    assert sorted(names) == [f"gate={gate}+seed={seed}" for gate in ("lstm", "none") for seed in ("01", "02", "10")]


def test_special_characters_are_removed() -> None:
    (name,) = job_names([{"data.subsets": "[okvqa,wit]", "init_from": "'/a b/run'", "optimizer.lr": "1.0e-3"}])
    assert name == "subsets=okvqa,wit+init_from=a-b-run+lr=1.0e-3"


def test_long_values_are_truncated_to_unique_names() -> None:
    jobs = [{"init_from": f"/data/{letter * 50}/the-same-end-of-a-path-that-is-long"} for letter in "ab"]
    names = job_names(jobs)
    assert len(set(names)) == 2
    assert all(len(name) < 60 and "end-of-a-path" in name for name in names)
    assert names == job_names(jobs)


@pytest.mark.parametrize("seed", range(20))
def test_names_are_unique_and_valid_folders(seed: int) -> None:
    generator = random.Random(seed)
    letters = "ab/[]{}'\" .,=+:*é" + "x" * generator.choice([0, 40])
    values = {"".join(generator.choices(letters, k=generator.randint(1, 60))) for _ in range(30)}
    names = job_names([{"key": value} for value in values])
    assert len(set(names)) == len(values)
    assert all(len(name) < 80 and not re.search(r"[\s/'\"\[\]{}:*]", name) for name in names)


def test_sampled_numbers_are_rounded() -> None:
    assert job_names([{"lr": "0.0016080027893567786"}]) == ["lr=0.001608"]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("1e+35", "1e35"),
        ("1e-35", "1e-35"),
        ("1.5E+20", "1.5E20"),
        ("-1", "-1"),
        ("-0.25", "-0.25"),
        (".5", ".5"),
        ("-inf", "-inf"),
        ("[-1,1e+20,-1e-20]", "-1,1e20,-1e-20"),
        ("{a:-1e+20}", "a--1e20"),
        ("-2345678.12345678", "-2.34568e06"),
        (f"[{'1234567890,' * 3}1.5e+20]", "1234567890,1234567890,1.5e20"),
        (f"[{'1234567890,' * 2}-234567890,5]", "1234567890,-234567890,5"),
        ("/runs/lr=1e+20/-5", "runs-lr=1e20--5"),
    ],
)
def test_numbers_keep_their_value(value: str, name: str) -> None:
    assert job_names([{"key": value}]) == [f"key={name}"]


def test_different_numbers_have_different_names() -> None:
    values = ["1e-20", "1e+20", "-1e-20", "-1e+20", "[1e+20]", "[-1e+20,1]", "[1e+20,1]"]
    names = [name.removeprefix("key=") for name in job_names([{"key": value} for value in values])]
    assert names[1:4] == ["1e20-" + names[1][5:], "-1e-20", "-1e20"]
    assert names[0] == "1e-20"
    assert names[5:] == ["-1e20,1", "1e20,1"]
