"""The retriever: a query tower and a passage tower over shared backbones.

Shape legend: N pairs, Nq queries, Np passages, k vectors of width d each, H hidden size, S steps of the recurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

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
from ret_lightning.runtime.deprecation import RenamedAttribute

if TYPE_CHECKING:
    from typing_extensions import Self


class RetRetriever(TwoTowers):
    """ReT, the recurrent multimodal late-interaction retriever (arXiv 2503.01980).

    It encodes queries and passages, each a pair of a text and an image of which either may be missing, into k L2-normalised
    vectors of width d. The score of a query and a passage is their MaxSim:

        score(Q, D) = sum_{q in Q} max_{p in D} <q, p>          in [-k, k]

    Create a new model with `build_retriever`, and load a published checkpoint with `from_pretrained`:

        retriever = RetRetriever.from_pretrained("aimagelab/ReT-CLIP-ViT-L-14")
        queries = retriever.encode_queries([("What is this?", "photo.jpg")])
        passages = retriever.encode_passages([("The Colosseum is an amphitheatre in Rome.", None)])
        scores = retriever.score(queries, passages)

    Args:
        query_tower: Encodes queries.
        passage_tower: Encodes passages. Pass the same object as `query_tower` to share one tower.
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
        """Encode queries with the query tower, in eval mode and without gradients.

        Args:
            pairs: N pairs (text or None, image or None). An image is a path or a PIL image. An empty text counts as no text.
            batch_size: Pairs per forward pass.
            device: Device to encode on; None uses the device of the model. The model is moved back afterwards.
            dtype: Autocast dtype, for example `torch.bfloat16` or `"bfloat16"`; None uses the dtype of the weights.
            progress: Whether to display a progress bar on standard error; None displays it for long lists.
            num_workers: Threads that decode and transform images while the model runs; 0 uses the calling thread.

        Returns:
            (N, k, d) float32 on the CPU, L2-normalised along the last axis; (N, 1, d) if the tower is pooled.

        Raises:
            DataError: If a pair is invalid, or its image is missing or cannot be decoded. The error reports its position.
            ConfigError: If an option is invalid or not supported by the model.
            UserError: If the tokenizer or image transform of the tower is missing or does not fit its backbone.
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
        """Encode passages with the passage tower, in eval mode and without gradients.

        Args:
            pairs: N pairs (text or None, image or None). An image is a path or a PIL image. An empty text counts as no text.
            batch_size: Pairs per forward pass.
            device: Device to encode on; None uses the device of the model. The model is moved back afterwards.
            dtype: Autocast dtype, for example `torch.bfloat16` or `"bfloat16"`; None uses the dtype of the weights.
            progress: Whether to display a progress bar on standard error; None displays it for long lists.
            num_workers: Threads that decode and transform images while the model runs; 0 uses the calling thread.

        Returns:
            (N, k, d) float32 on the CPU, L2-normalised along the last axis; (N, 1, d) if the tower is pooled.

        Raises:
            DataError: If a pair is invalid, or its image is missing or cannot be decoded. The error reports its position.
            ConfigError: If an option is invalid or not supported by the model.
            UserError: If the tokenizer or image transform of the tower is missing or does not fit its backbone.
        """
        return encode_pairs(self, "passage", pairs, batch_size, device, dtype, progress, num_workers)

    def gate_activations(self, side: Literal["query", "passage"], pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Return the gate activations of one tower for each pair, averaged over the H channels.

        All pairs are encoded in one forward pass, in eval mode and without gradients.

        Args:
            side: Which tower, `query` or `passage`.
            pairs: N pairs (text or None, image or None). An image is a path or a PIL image.

        Returns:
            Mapping of `forget`, `text` and `image` to (N, S, k) float32 in [0, 1] on the CPU. `text` and `image` are 0 for
            pairs without the modality.

        Raises:
            DataError: If a pair is invalid, or its image is missing or cannot be decoded. The error reports its position.
            UserError: If the tokenizer or image transform of the tower is missing or does not fit its backbone.
        """
        return gate_activations(self, side, pairs)

    gate_openings = RenamedAttribute("gate_activations")

    def score(self, queries: Tensor | Iterable[Pair], passages: Tensor | Iterable[Pair], **options: Any) -> Tensor:
        """Compute the MaxSim score of every query with every passage.

        Args:
            queries: (Nq, k, d) vectors from `encode_queries`, or pairs to encode.
            passages: (Np, k, d) vectors from `encode_passages`, or pairs to encode.
            options: Keyword arguments of `encode_queries` and `encode_passages`, used if pairs are passed.

        Returns:
            (Nq, Np) scores in [-k, k].
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
        """Load a retriever in eval mode from a checkpoint in the published layout or this project's extension of it.

        Args:
            source: Folder with `config.json` and `model.safetensors` (or its shards), or a hub id.
            device: Device of the model; None uses the CPU.
            dtype: Dtype of the weights, for example `torch.bfloat16` or `"bfloat16"`; None keeps the stored dtype.
            revision: Branch, tag or commit of a hub repository.

        Returns:
            The retriever.

        Raises:
            UserError: If the checkpoint does not exist or its weights do not fit its config.
        """
        return load_checkpoint(cls, source, device=device, dtype=dtype, revision=revision)

    def save_pretrained(self, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Save `config.json` and `model.safetensors` in the published layout, atomically.

        Settings that the published classes do not support (another gate, another layer plan, ...) are stored in an
        additional section of the config; only this project can load such a checkpoint.

        Args:
            folder: Target folder, created if needed. Other files in it are kept.
            max_shard_size: Maximum size of a weight file, in bytes or as a string such as `"5GB"`. Larger weights are split
                over several files.

        Raises:
            UserError: If the folder cannot be written.
            ConfigError: If a part of the model cannot be stored.
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
        """Upload the files of `save_pretrained` to a hub repository, with a model card if the repository has none.

        Args:
            repo_id: Repository, `owner/name`; created if needed.
            private: Visibility of a new repository; None uses the default of the owner.
            revision: Branch to push to; None uses the main branch.
            commit_message: Message of the commit.
            token: Access token of the hub; None uses the token of `hf auth login`.

        Returns:
            The URL of the commit.

        Raises:
            UserError: If the hub cannot be reached or refuses the upload.
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
    """Build a retriever with newly initialised towers over a backbone.

    The defaults are those of the published models (ReT, arXiv 2503.01980): two towers over shared, frozen backbones, one
    cell per tower that is shared by all steps, and k = 32 vectors of width d = 128.

    Args:
        backbone: Backbone of both towers.
        gate: Function that creates a gate from the width H, called once per cell. The lists and mappings of a
            `functools.partial` are copied for each call.
        recurrence: Rule for the blocks that each step reads; None uses the plan published for the backbone.
        num_tokens: k, vectors per row, 1 to H.
        hidden_size: H, width of the state.
        num_heads: Heads of each attention layer; None uses H / 64.
        intermediate_size: Width of the hidden layer of the MLP; None uses 4 H.
        output_size: d, width of the output vectors; 0 omits the output map, so that d = H.
        pooled: Whether to average the k vectors of a row into one.
        dropout: Dropout probability in the MLP, in [0, 1].
        attention_dropout: Dropout probability of the attention weights, in [0, 1].
        activation: Activation function of the MLP, `gelu` or `relu`.
        share_towers: Whether queries and passages share one tower.
        share_cells: Whether two towers share their cells; each has its own initial state, adapters and output map.
        cell_per_step: Whether each step has its own cell; otherwise all steps of a tower share one.
        train_text: Trained part of the text backbone: False for none, True for the embedding and all used blocks, n for the
            last n used blocks.
        train_vision: Trained part of the vision backbone: False for none, True for the embedding and all used blocks, n for
            the last n used blocks.

    Returns:
        The retriever, in training mode.

    Raises:
        ConfigError: If the options are inconsistent with each other or with the backbone.
    """
    blocks = backbone.text.num_blocks, backbone.vision.num_blocks
    plan = (recurrence or Published()).plan(*blocks, backbone.published_plan)
    if not isinstance(plan, LayerPlan):
        raise ConfigError(
            f"recurrence: expected {class_name(recurrence)}.plan to return a LayerPlan, got {plan!r:.100}",
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
            f"gate: expected a function that creates a gate from its width, got {class_name(gate)}; set _partial_: true in the "
            "config of the group `gate`",
            code="gate-not-a-factory",
            found=class_name(gate),
        )
    if num_heads is None and hidden_size % 64:
        raise ConfigError(
            f"model.hidden_size={hidden_size} is not a multiple of 64, so model.num_heads has no default; set it to a divisor "
            f"of {hidden_size}",
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
