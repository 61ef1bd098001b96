"""Run folders as written by ret-train, made without training: composed configs, and rankings of a chosen quality."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from ret_lightning.config import resolvers
from ret_lightning.retrieval import Ranking, write_qrels, write_run
from tests.support.m2kr_folder import PASSAGES, query

SUBSETS = ("okvqa", "infoseek")
CLEAN = {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False}


@functools.cache
def resolved(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the resolved config of ret-train with output_dir=/made/here, and the options of the config groups."""
    resolvers.register_resolvers()
    with initialize_config_module("ret_lightning.conf", version_base="1.3"):
        config = compose("train", overrides=["output_dir=/made/here", *overrides], return_hydra_config=True)
    choices = OmegaConf.to_container(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return OmegaConf.to_container(config, resolve=True), choices


def positives(subset: str, i: int) -> list[str]:
    wanted = query(subset, i)["passage_id"]
    return [str(p) for p in (wanted if isinstance(wanted, list) else [wanted])]


def make_run(
    folder: Path,
    *overrides: str,
    seed: int = 1,
    root: Path | str = "/no/such/corpus",
    skill: float = 0.5,
    subsets: Sequence[str] = SUBSETS,
    finished: bool = True,
    code: Sequence[dict[str, Any]] = (CLEAN,),
) -> dict[str, list[int]]:
    """Write a run folder.

    Args:
        folder: to create.
        overrides: in addition to data=m2kr, the root and the subsets.
        seed: of the run, and of its rankings.
        root: `data.root`.
        skill: probability that the relevant passage is ranked first; a larger value also moves it up otherwise.
        subsets: of the test split.
        finished: whether to write rankings, logs and metrics.
        code: code versions in `origin.json`.

    Returns:
        Subset to the rank of each query's relevant passage, from 1.
    """
    listed = f"data.subsets=[{','.join(subsets)}]"
    config, choices = resolved(("data=m2kr", f"data.root={root}", listed, "logger=csv", f"seed={seed}", *overrides))
    folder.mkdir(parents=True)
    text = yaml.safe_dump(config, sort_keys=False).replace("/made/here", str(folder))
    (folder / "config.yaml").write_text(text)
    (folder / ".hydra").mkdir()
    (folder / ".hydra/config.yaml").write_text(text)
    (folder / ".hydra/hydra.yaml").write_text(yaml.safe_dump({"hydra": {"runtime": {"choices": choices}}}))
    ranks = {subset: _ranks(skill, seed, i) for i, subset in enumerate(subsets)}
    if not finished:
        return ranks
    for subset in subsets:
        _write_rankings(folder / "rankings", subset, ranks[subset])
    _write_log(folder, seed, skill)
    cost = {
        "training_seconds": 10.0 * seed,
        "test_seconds": 1.5,
        "parameters": 1_500_000,
        "trained_parameters": 500_000,
    }
    cost |= {"resident_bytes": 2**30, "cuda_bytes": None, "ranks": 1, "device": "cpu"}
    (folder / "cost.json").write_text(json.dumps(cost))
    (folder / "origin.json").write_text(json.dumps({"version": "0.1.0", "tested_step": 20, "code": list(code)}))
    (folder / "metrics.json").write_text(json.dumps(metrics(ranks)))
    return ranks


def metrics(ranks: dict[str, list[int]]) -> dict[str, float]:
    """Return the metrics of ret-train, computed by the plain formulas."""
    found = {}
    for subset, own in ranks.items():
        for k in (1, 5):
            found[f"{subset}/recall@{k}"] = sum(rank <= k for rank in own) / len(own)
        found[f"{subset}/mrr@10"] = sum(1 / rank if rank <= 10 else 0 for rank in own) / len(own)
    for name in ("recall@1", "recall@5", "mrr@10"):
        found[f"mean/{name}"] = sum(found[f"{subset}/{name}"] for subset in ranks) / len(ranks)
    found["mean/main_recall"] = found["mean/recall@5"]
    return found


def _ranks(skill: float, seed: int, salt: int) -> list[int]:
    random = np.random.default_rng((seed, salt))
    return [1 + math.floor(max(0.0, number - skill) * PASSAGES) for number in random.random(PASSAGES)]


def _write_rankings(folder: Path, subset: str, ranks: list[int]) -> None:
    pool = [positives(subset, i)[0] for i in range(PASSAGES)]
    rows = []
    for i, rank in enumerate(ranks):
        others = [j for j in range(PASSAGES) if j != i]
        rows.append([*others[: rank - 1], i, *others[rank - 1 :]])
    scores = torch.linspace(5, 1, PASSAGES).repeat(len(ranks), 1)
    ids = [str(query(subset, i)["data_id"]) for i in range(len(ranks))]
    write_run(folder / f"{subset}.trec", ids, Ranking(torch.tensor(rows), scores), pool)
    write_qrels(folder / f"{subset}.qrels", ids, [positives(subset, i) for i in range(len(ranks))])


def _write_log(folder: Path, seed: int, skill: float) -> None:
    lines = ["step,gate/query/text/step_00,gate/query/image/step_00,gate/passage/forget/step_01,val/mean/recall@5,"
             "train/samples_per_second,train/loss"]  # fmt: skip
    for step in range(20):
        validated = f"{skill * step / 20:.4f}" if step % 5 == 4 else ""
        lines.append(f"{step},{step / 20},nan,0.25,{validated},{100 + seed},{2 - skill * step / 20:.4f}")
    (folder / "csv").mkdir()
    (folder / "csv/metrics.csv").write_text("\n".join(lines) + "\n")
