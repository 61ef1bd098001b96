"""The retriever: a query tower and a passage tower over shared backbones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ret_lightning.config.targets.renamed_keys import deprecation
from ret_lightning.errors import ConfigError
from ret_lightning.models.backbones.base import Backbone
from ret_lightning.models.cell import RetCell
from ret_lightning.models.checkpoint.files import load_checkpoint, save_checkpoint
from ret_lightning.models.checkpoint.hub import push
from ret_lightning.models.encode_pairs import Pair, encode_pairs, gate_activations
from ret_lightning.models.exchangeable_parts import call_with_copies, class_name
from ret_lightning.models.gates import Gate
from ret_lightning.models.layer_plans import LayerPlan, Published, Recurrence
from ret_lightning.models.tower import RetTower
from ret_lightning.models.two_towers import TwoTowers
from ret_lightning.ops.maxsim import maxsim

if TYPE_CHECKING:
    from typing_extensions import Self


class RetRetriever(TwoTowers):
    """Encodes queries and passages; scores are MaxSim of what it gives.

    Args:
        query_tower: for queries.
        passage_tower: for passages; the same object as `query_tower` for one tower on both sides.
    """

    def encode_queries(
        self,
        pairs: Iterable[Pair],
        batch_size: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        progress: bool | None = None,
        num_workers: int = 8,
    ) -> Tensor:
        """(N, k, d) float32 vectors of length 1, on the CPU, of N queries; (N, 1, d) where the tower pools.

        Args:
            pairs: N of (text or None, image or None); an image is a path or a PIL image. An empty text is no text.
            batch_size: pairs a pass of the model.
            device: where to encode; None: where the model is. The model stays where it was.
            dtype: what to compute in, `torch.bfloat16` or `"bfloat16"`, say; None: the model's own.
            progress: a bar on stderr; None: for long lists.
            num_workers: threads that decode images while the model runs.

        Raises:
            DataError: naming the pair, if it is none, or its image is missing or cannot be decoded.
            ConfigError: if an option cannot be served.
            UserError: if the tower's tokenizer or image transform does not fit its backbone.

        `models.encode_pairs.encode_pairs` has the details.
        """
        return encode_pairs(self, "query", pairs, batch_size, device, dtype, progress, num_workers)

    def encode_passages(
        self,
        pairs: Iterable[Pair],
        batch_size: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        progress: bool | None = None,
        num_workers: int = 8,
    ) -> Tensor:
        """As `encode_queries`, by the passage tower."""
        return encode_pairs(self, "passage", pairs, batch_size, device, dtype, progress, num_workers)

    def gate_activations(self, side: Literal["query", "passage"], pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """`forget`, `text` and `image` to (N, steps, k) activations in [0, 1] of N pairs, means over the channels.

        `models.encode_pairs.gate_activations` has the details.
        """
        return gate_activations(self, side, pairs)

    def gate_openings(self, side: Literal["query", "passage"], pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """The earlier name of `gate_activations`, until version 0.3."""
        warnings.warn(deprecation("gate_openings", "gate_activations"), FutureWarning, stacklevel=2)
        return self.gate_activations(side, pairs)

    def score(self, queries: Tensor | Iterable[Pair], passages: Tensor | Iterable[Pair], **options: Any) -> Tensor:
        """(Nq, Np) MaxSim scores of every query with every passage, each in [-k, k].

        Args:
            queries: (Nq, k, d) vectors as `encode_queries` gives them, or the pairs themselves.
            passages: (Np, k, d) likewise.
            options: of `encode_queries`, where pairs are given.
        """
        if not isinstance(queries, Tensor):
            queries = self.encode_queries(queries, **options)
        if not isinstance(passages, Tensor):
            passages = self.encode_passages(passages, **options)
        return maxsim(queries, passages)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
    ) -> Self:
        """A retriever from a checkpoint in the published layout or our extension of it, in eval mode.

        Args:
            source: a folder with `config.json` and `model.safetensors` (or its shards), or a hub id.
            device: where it goes; None: the CPU.
            dtype: of its weights, `torch.bfloat16` or `"bfloat16"`, say; None: as stored.
            revision: of a hub id: branch, tag or commit.

        Raises:
            UserError: if there is no such checkpoint, or its weights do not fit its config.
        """
        return load_checkpoint(cls, source, device=device, dtype=dtype, revision=revision)

    def save_pretrained(self, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Writes the published layout: the folder's `config.json` and `model.safetensors`, whole or not at all.

        What the published classes cannot express (another gate, another layer plan, ...) goes into a section of the
        config, and then only this project reads the checkpoint. The model itself stays as it is.

        Args:
            folder: made if it is not there; other files in it stay.
            max_shard_size: weights of more than this are split over several files; bytes, or a string like `"5GB"`.
        """
        save_checkpoint(self, folder, max_shard_size)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a ReT retriever",
        token: str | bool | None = None,
    ) -> str:
        """Uploads what `save_pretrained` writes to a hub repository, with a model card where it has none.

        Args:
            repo_id: `owner/name`; made if it is not there.
            private: of a new repository; None: the owner's default.
            revision: the branch to push to; None: the main one.
            commit_message: of the one commit that it makes.
            token: of the hub; None: the one of `hf auth login`.

        Returns:
            The commit's address.

        Raises:
            UserError: if the hub cannot be reached, or refuses.
        """
        return push(self, repo_id, private, revision, commit_message, token)


def build_retriever(
    backbone: Backbone,
    gate: Callable[[int], Gate],
    recurrence: Recurrence | None = None,
    num_tokens: int = 32,
    hidden_size: int = 1024,
    num_heads: int | None = None,
    intermediate_size: int | None = None,
    output_size: int = 128,
    pooled: bool = False,
    dropout: float = 0.05,
    attention_dropout: float = 0.05,
    activation: Literal["gelu", "relu"] = "gelu",
    share_towers: bool = False,
    share_cells: bool = False,
    cell_per_step: bool = False,
    train_text: bool | int = False,
    train_vision: bool | int = False,
) -> RetRetriever:
    """A retriever of new towers over a backbone.

    Args:
        backbone: shared by both towers.
        gate: makes a gate from a width H; called once a cell, with copies of the lists and mappings of a `functools.partial`.
        recurrence: which blocks feed which step; None: the plan published for the backbone.
        num_tokens: k, vectors a row.
        hidden_size: H, the width of the state.
        num_heads: of the attentions; None: one for each 64 of H.
        intermediate_size: of the MLP; None: 4 H.
        output_size: d; 0: no output map, d = H.
        pooled: one vector a row (the mean of the k) instead of k.
        dropout: in the MLP.
        attention_dropout: of the attention weights.
        activation: of the MLP.
        share_towers: one tower for queries and passages.
        share_cells: two towers with the same cell; start states, adapters and output maps are a tower's own.
        cell_per_step: a cell for each step instead of one for all of them.
        train_text: what of the text backbone is trained: False: nothing, True: all that is used, n: the last n blocks.
        train_vision: likewise.

    Raises:
        ConfigError: if the options do not fit each other or the backbone.
    """
    blocks = backbone.text.num_blocks, backbone.vision.num_blocks
    plan = (recurrence or Published()).plan(*blocks, backbone.published_plan)
    if not isinstance(plan, LayerPlan):
        raise ConfigError(
            f"recurrence: {class_name(recurrence)}.plan returned {plan!r:.100}; expected a LayerPlan",
            code="plan-of-wrong-type",
            recurrence=class_name(recurrence),
            found=type(plan).__name__,
        )
    plan.check(*blocks)
    for name, stack, trained, used in (
        ("train_text", backbone.text, train_text, plan.text),
        ("train_vision", backbone.vision, train_vision, plan.vision),
    ):
        try:
            stack.set_trained(trained, max(used))
        except ConfigError as error:
            message = f"model.{name}={trained}: {error.message}"
            raise ConfigError(message, code=error.code, **{**error.values, "key": f"model.{name}"}) from error
    if isinstance(gate, nn.Module) or not callable(gate):
        raise ConfigError(
            f"gate: got a {class_name(gate)}; expected a function that makes a gate from its width: in the group `gate`, set "
            "_partial_: true",
            code="gate-not-a-factory",
            found=class_name(gate),
        )
    if num_heads is None and hidden_size % 64:
        raise ConfigError(
            f"model.hidden_size={hidden_size} is not a multiple of 64, so the number of heads has no default: "
            f"set model.num_heads to a divisor of {hidden_size}",
            code="heads-without-default",
            found=hidden_size,
        )

    def cells() -> list[RetCell]:
        return [
            RetCell(
                gate=call_with_copies(gate, hidden_size),
                hidden_size=hidden_size,
                num_tokens=num_tokens,
                num_heads=num_heads or hidden_size // 64,
                intermediate_size=intermediate_size or 4 * hidden_size,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation=activation,
            )
            for _ in range(plan.steps if cell_per_step else 1)
        ]

    query_cells = cells()
    query_tower = RetTower(backbone, plan, query_cells, output_size, pooled)
    if share_towers:
        return RetRetriever(query_tower, query_tower)
    passage_cells = query_cells if share_cells else cells()
    return RetRetriever(query_tower, RetTower(backbone, plan, passage_cells, output_size, pooled))
