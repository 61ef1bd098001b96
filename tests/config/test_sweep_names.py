"""What sweeps and their jobs are called."""

from __future__ import annotations

import random
import re

import pytest

from ret_lightning.config.sweep_names import job_names, sweep_name


def test_keys_are_short_while_they_can_be_told_apart() -> None:
    assert sweep_name(["gate", "model.num_tokens", "seed"]) == "gate+num_tokens+seed"
    assert sweep_name(["backbone.text.hidden_size", "backbone.vision.hidden_size"]) == (
        "text.hidden_size+vision.hidden_size"
    )
    assert sweep_name(["+model.new", "seed"], experiment="demo") == "demo+new+seed"
    assert sweep_name(["gate@model.gate"]) == "gate"
    assert (sweep_name([]), job_names([{}])) == ("sweep", ["run"])


def test_names_sort_as_numbers_do() -> None:
    names = job_names([{"gate": gate, "seed": seed} for gate in ("lstm", "none") for seed in ("2", "10", "1")])
    assert sorted(names) == [f"gate={gate}+seed={seed}" for gate in ("lstm", "none") for seed in ("01", "02", "10")]


def test_values_that_no_file_name_may_hold() -> None:
    (name,) = job_names([{"data.subsets": "[okvqa,wit]", "init_from": "'/a b/run'", "optimizer.lr": "1.0e-3"}])
    assert name == "subsets=okvqa,wit+init_from=a-b-run+lr=1.0e-3"


def test_long_values_keep_their_end_and_stay_different() -> None:
    jobs = [{"init_from": f"/data/{letter * 50}/the-same-end-of-a-path-that-is-long"} for letter in "ab"]
    names = job_names(jobs)
    assert len(set(names)) == 2
    assert all(len(name) < 60 and "end-of-a-path" in name for name in names)
    assert names == job_names(jobs)


@pytest.mark.parametrize("seed", range(20))
def test_names_are_unique_and_fit_for_a_folder(seed: int) -> None:
    draw = random.Random(seed)
    letters = "ab/[]{}'\" .,=+:*é" + "x" * draw.choice([0, 40])
    values = {"".join(draw.choices(letters, k=draw.randint(1, 60))) for _ in range(30)}
    names = job_names([{"key": value} for value in values])
    assert len(set(names)) == len(values)
    assert all(len(name) < 80 and not re.search(r"[\s/'\"\[\]{}:*]", name) for name in names)


def test_drawn_numbers_are_rounded() -> None:
    assert job_names([{"lr": "0.0016080027893567786"}]) == ["lr=0.001608"]
