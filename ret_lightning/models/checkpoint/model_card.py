"""The model card of a checkpoint: description, usage, results and origin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ret_lightning.models.checkpoint.config_writer import architecture, is_published_architecture, own_modules
from ret_lightning.models.two_towers import TwoTowers
from ret_lightning.runtime.markdown import escape, fenced, paragraph


def model_card(
    retriever: TwoTowers,
    name: str,
    results: Sequence[tuple[str, Mapping[str, float]]] = (),
    notes: Sequence[str] = (),
    origin: Mapping[str, object] | None = None,
    training_config: str | None = None,
) -> str:
    """Return a model card in Markdown, with the front matter that the hub reads.

    Args:
        retriever: The model.
        name: Folder or hub id of the checkpoint.
        results: Titles with flat metrics, `<subset>/<metric>` to value.
        notes: Paragraphs that follow the results.
        origin: Origin of the weights: run folder, step, seed, versions.
        training_config: Training config in YAML.
    """
    parts = [
        _front_matter(retriever),
        f"# {paragraph(name)}",
        _about(retriever),
        "## Loading",
        _loading(retriever, name),
    ]
    for title, metrics in results:
        if metrics:
            parts += [f"## {paragraph(title)}", _table(metrics)]
    parts += [*notes, "## Architecture", _facts(architecture(retriever))]
    if origin:
        parts += ["## Origin", _facts(origin)]
    if training_config is not None:
        parts += ["## Training configuration", fenced(training_config.strip(), "yaml")]
    return "\n\n".join(parts) + "\n"


def _front_matter(retriever: TwoTowers) -> str:
    tower = retriever.query_tower
    bases = sorted(
        {source for source in (tower.text_backbone.source, tower.vision_backbone.source) if _is_hub_id(source)}
    )
    lines = ["---", "library_name: ret_lightning", "pipeline_tag: feature-extraction"]
    lines += ["tags:", "- multimodal-retrieval", "- late-interaction", "- ret"]
    lines += ["base_model:", *(f"- {base}" for base in bases)] if bases else []
    return "\n".join([*lines, "---"])


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def _about(retriever: TwoTowers) -> str:
    tower = retriever.query_tower
    vectors = "one vector" if tower.pooled else f"{tower.cells[0].num_tokens} vectors"
    return (
        "A ReT retriever ([Recurrence-Enhanced Vision-and-Language Transformers for Robust Multimodal Document Retrieval]"
        "(https://arxiv.org/abs/2503.01980)). It encodes a query and a passage, each a text, an image or both, into "
        f"{vectors} of {tower.output_size} dimensions each, and scores them by late interaction (MaxSim)."
    )


def _loading(retriever: TwoTowers, name: str) -> str:
    code = f"""```python
from ret_lightning import RetRetriever

retriever = RetRetriever.from_pretrained({json.dumps(name, ensure_ascii=False)})
queries = retriever.encode_queries([("What is this?", "query.jpg")])
passages = retriever.encode_passages([("A text.", None), (None, "passage.jpg")])
scores = retriever.score(queries, passages)  # (1, 2)
```"""
    if is_published_architecture(retriever):
        note = "The folder has the layout of the published ReT checkpoints. The published code can load it as well."
    else:
        note = "The architecture differs from the published one. Only ret_lightning can load it."
    if own := own_modules(retriever):
        packages = ",".join(dict.fromkeys(module.partition(".")[0] for module in own))
        note += (
            f" It contains user-defined classes: import {', '.join(f'`{module}`' for module in own)} before loading it, or set "
            f"`RET_LIGHTNING_TARGETS={packages}`, which the commands require."
        )
    return f"{code}\n\n{note}"


def _table(metrics: Mapping[str, float]) -> str:
    """Format metrics as a table of subsets and metrics, followed by the metrics that only the mean over subsets has."""
    of_subsets = {key.partition("/")[2] for key in metrics if not key.startswith("mean/")}
    columns = sorted(of_subsets or {key.partition("/")[2] for key in metrics}, key=_by_name_and_k)
    subsets = sorted({key.partition("/")[0] for key in metrics}, key=lambda name: (name == "mean", name))
    lines = [f"| subset | {' | '.join(map(escape, columns))} |", f"|---|{'--:|' * len(columns)}"]
    for subset in subsets:
        values = [metrics.get(f"{subset}/{column}") for column in columns]
        lines.append(f"| {escape(subset)} | {' | '.join('' if v is None else f'{v:.4f}' for v in values)} |")
    others = [name for name in sorted(metrics) if name.partition("/")[2] not in columns]
    below = ["", ", ".join(f"{name.partition('/')[2].replace('_', ' ')}: {metrics[name]:.4f}" for name in others)]
    return "\n".join([*lines, *(below if others else [])])


def _by_name_and_k(metric: str) -> tuple[bool, str, int]:
    name, _, k = metric.partition("@")
    return name.startswith("pseudo"), name, int(k) if k.isdigit() else 0


def _facts(facts: Mapping[str, object]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {escape(key)} | {escape(str(value))} |" for key, value in facts.items())]
    )
