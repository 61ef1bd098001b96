"""Encoding of (text, image) pairs into vectors, in batches, with images prepared by threads ahead of the model.

Shape legend: N pairs, k vectors of width d per pair, S steps of the recurrence, H hidden size.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from itertools import islice
from numbers import Integral
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ret_lightning.errors import ConfigError, DataError, TokenError, UserError
from ret_lightning.inputs import EncoderInput, Item, collate_items, open_image, to_rgb
from ret_lightning.inputs.items import PLURAL, Side
from ret_lightning.models.backbones.base import check_token_ids
from ret_lightning.models.gate_activations import RowActivations
from ret_lightning.models.precision import device_named, dtype_named
from ret_lightning.runtime.progress import progress_bar

if TYPE_CHECKING:
    from ret_lightning.models.tower import RetTower
    from ret_lightning.models.two_towers import TwoTowers

Pair = tuple[str | None, str | Path | Image.Image | None]

# By default, a progress bar is displayed for more batches than this.
LONG = 20

# An unpaired surrogate, which JSON can represent but no tokenizer accepts.
SURROGATE = re.compile("[\ud800-\udfff]")


def encode_pairs(
    retriever: TwoTowers,
    side: Side,
    pairs: Iterable[Pair],
    batch_size: int = 32,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    progress: bool | None = None,
    num_workers: int = 8,
) -> Tensor:
    """Encode pairs with one tower, in eval mode and without gradients. The mode and device of the model are restored.

    Memory use is that of the result and a few batches of pixels. Encoding decodes a lazily opened PIL image, which then stays
    in memory as long as the caller keeps it; pass paths for long lists.

    Args:
        retriever: The retriever whose tower encodes.
        side: Which tower, `query` or `passage`.
        pairs: N pairs (text or None, image or None), in a list or any other iterable. An image is a path or a PIL image of
            any mode. An empty text counts as no text; a pair may lack both. Lists and tuples are validated completely
            before encoding starts, other iterables while they are read.
        batch_size: Pairs per forward pass. The vectors depend on it only by rounding, and not at all in float32 on a CPU
            with AVX-512.
        device: Device to encode on; None uses the device of the model. The tower is moved to another device and back; for
            many calls, move the retriever with `.to` instead.
        dtype: Autocast dtype for a model with float32 weights: `torch.bfloat16`, `torch.float16`, `torch.float32` or the
            name of one. None uses the dtype of the weights.
        progress: Whether to display a progress bar on standard error. None displays it for more than 20 batches, if the
            number of pairs is known.
        num_workers: Threads that decode and transform images while the model runs; 0 uses the calling thread. The vectors
            do not depend on it.

    Returns:
        (N, k, d) float32 on the CPU, L2-normalised along the last axis, in the order of the pairs; (N, 1, d) if the tower is
        pooled.

    Raises:
        DataError: If a pair is invalid, or its image is missing or cannot be decoded. The error reports its position.
        ConfigError: If an option is invalid or not supported by the model.
        UserError: If the tokenizer or image transform of the tower is missing or does not fit its backbone.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if not isinstance(value, Integral) or value < least:
            raise ConfigError(
                f"{name}={value!r}: expected an integer of at least {least}",
                code="encoding-option-too-small",
                key=name,
                found=value,
                least=least,
            )
    _check_all(side, pairs)
    tower: RetTower = getattr(retriever, f"{side}_tower")
    preparation = _Preparation(tower, side)
    count = len(pairs) if isinstance(pairs, Sized) else None
    if progress is None:
        progress = count is not None and count > LONG * batch_size
    done = 0
    # In a caller's inference mode, the result and a moved model would become tensors that autograd cannot use.
    with (
        torch.inference_mode(False),
        _moved(tower, device),
        _eval_mode(tower),
        _autocast(tower, dtype),
        closing(_in_batches(pairs, preparation.item, batch_size, num_workers)) as batches,
        progress_bar(total=count, desc=f"encoding {PLURAL[side]}", unit="row", disable=not progress) as bar,
    ):
        result = torch.empty(count or 0, *tower.row_shape, dtype=torch.float32)
        for items in batches:
            inputs = preparation.inputs(items).to(tower.start.device)
            with torch.inference_mode():
                vectors = retriever.encode(side, inputs)
            if done + len(items) > len(result):  # an iterable without a length
                result = torch.cat([result, result.new_empty(done + len(items), *result.shape[1:])])
            result[done : done + len(items)] = vectors
            done += len(items)
            bar.update(len(items))
        return result if done == len(result) else result[:done].clone()


def gate_activations(retriever: TwoTowers, side: Side, pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Return the gate activations of one tower for each pair, in eval mode and without gradients.

    All pairs are encoded in one forward pass, so pass tens of them, not thousands.

    Args:
        retriever: The retriever whose tower encodes.
        side: Which tower, `query` or `passage`.
        pairs: N pairs (text or None, image or None). An image is a path or a PIL image of any mode.

    Returns:
        Mapping of `forget`, `text` and `image` to (N, S, k) float32 in [0, 1] on the CPU, the mean over the H channels for
        each step and vector. `forget` is the fraction of the state that is kept, `text` and `image` the fraction of the
        cross-attention output that enters the state. `text` and `image` are 0 for pairs without the modality; the
        activation of a gate that a variant lacks is 1.

    Raises:
        DataError: If a pair is invalid, or its image is missing or cannot be decoded. The error reports its position.
        UserError: If the tokenizer or image transform of the tower is missing or does not fit its backbone.
    """
    _check_all(side, pairs)
    tower: RetTower = getattr(retriever, f"{side}_tower")
    preparation, activations = _Preparation(tower, side), RowActivations()
    inputs = preparation.inputs([preparation.item(i, pair) for i, pair in enumerate(pairs)])
    with torch.inference_mode(False), _eval_mode(tower), torch.no_grad():
        tower(inputs.to(tower.start.device), activations)
    return {name: activation.cpu() for name, activation in activations.stacked(tower.start.shape[1]).items()}


class _Preparation:
    """Converts pairs into the inputs of a tower, with the tokenizer and image transform of the tower.

    Args:
        tower: The tower that encodes.
        side: Name of its side, for messages.
    """

    def __init__(self, tower: RetTower, side: Side) -> None:
        self.tower = tower
        self.side = side
        try:
            sizes = tower.text_backbone.layout_config()
        except ConfigError:  # a backbone that cannot be stored has no sizes here, and must check its token ids itself
            sizes = {}
        self._vocabulary = sizes.get("vocab_size", math.inf)
        self._positions = sizes.get("max_position_embeddings", math.inf)
        # Several pairs may share one PIL image, which two threads must not decode at the same time.
        self._lock = Lock()

    def item(self, position: int, pair: Pair) -> Item:
        """Validate a pair, and decode and transform its image. Thread-safe."""
        _check_pair(self.side, position, pair)
        text, image = pair
        if text and self.tower.tokenizer is None:
            raise self._not_set("tokenizer", position, "a text")
        return Item(text or None, None if image is None else self._pixels(position, image))

    def inputs(self, items: Sequence[Item]) -> EncoderInput:
        """Collate a batch on the CPU and check its token ids, because an invalid id on a GPU aborts the process."""
        # Other libraries' transforms may lack a size, which only determines the shape of a batch without images.
        size = getattr(self.tower.image_transform, "size", 1)
        inputs = collate_items(items, self.tower.tokenizer, size, batch_invariant=True)
        try:
            check_token_ids(inputs.input_ids[inputs.text_rows], self._vocabulary, self._positions)
        except TokenError as error:
            message = self._with_remedy("tokenizer", f"does not fit the checkpoint: {error.message}")
            raise UserError(message, code=error.code, **error.values) from error
        return inputs

    def _pixels(self, position: int, image: str | Path | Image.Image) -> Tensor:
        if self.tower.image_transform is None:
            raise self._not_set("image_transform", position, "an image")
        try:
            if isinstance(image, Image.Image):
                with self._lock:
                    picture = to_rgb(image)
            else:
                picture = open_image(image, getattr(self.tower.image_transform, "least_side", None))
        except DataError as error:
            message = f"{PLURAL[self.side]}[{position}]: {error.message}"
            values = {**error.values, "position": position}
            raise DataError(message, error.kind, code=error.code, **values) from error
        return self.tower.image_transform(picture)

    def _not_set(self, attribute: str, position: int, part: str) -> UserError:
        message = self._with_remedy(attribute, f"is not set, but {PLURAL[self.side]}[{position}] has {part}")
        return UserError(message, code="tower-attribute-not-set", attribute=attribute, position=position)

    def _with_remedy(self, attribute: str, fact: str) -> str:
        name = f"retriever.{self.side}_tower.{attribute}"
        return f"{name} {fact}; set {name} to the one that the checkpoint was trained with"


def _in_batches(
    pairs: Iterable[Pair], prepare: Callable[[int, Pair], Item], batch_size: int, num_workers: int
) -> Generator[list[Item], None, None]:
    """Yield batches of prepared pairs in order. Threads prepare two batches ahead, or more if the batches are small."""
    numbered = enumerate(pairs)
    if num_workers == 0:
        while batch := list(islice(numbered, batch_size)):
            yield [prepare(*pair) for pair in batch]
        return
    ahead = 1 + math.ceil(num_workers / batch_size)
    waiting: deque[list[Future[Item]]] = deque()
    threads = ThreadPoolExecutor(num_workers, thread_name_prefix="images")
    try:
        while batch := list(islice(numbered, batch_size)):
            waiting.append([threads.submit(prepare, *pair) for pair in batch])
            if len(waiting) > ahead:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        threads.shutdown(cancel_futures=True)


def _check_all(side: Side, pairs: Any) -> None:
    """Raise DataError if this is not an iterable of pairs. The pairs of a list or tuple are checked as well."""
    expected = f"{PLURAL[side]}: expected a list of pairs [(text or None, image or None), ...], got"
    try:
        iter(pairs)
        refused = isinstance(pairs, (str, bytes, Mapping))
    except TypeError:
        refused = True
    if refused:
        found = type(pairs).__name__
        raise DataError(f"{expected} {found}", code="pairs-not-a-list", found=found)
    if isinstance(pairs, (list, tuple)):
        if len(pairs) == 2 and all(part is None or isinstance(part, (str, Path, Image.Image)) for part in pairs):
            raise DataError(f"{expected} a single pair", code="pairs-single-pair")
        for position, pair in enumerate(pairs):
            _check_pair(side, position, pair)


def _check_pair(side: Side, position: int, pair: object) -> None:
    """Raise DataError if this is not a valid pair. The image is not opened."""
    where = f"{PLURAL[side]}[{position}]"
    if not isinstance(pair, (list, tuple)):
        raise DataError(
            f"{where}: expected a pair (text or None, image or None), got {type(pair).__name__}",
            code="pair-of-wrong-type",
            position=position,
            found=type(pair).__name__,
        )
    if len(pair) != 2:
        raise DataError(
            f"{where}: expected a pair (text or None, image or None), got {len(pair)} elements",
            code="pair-of-wrong-length",
            position=position,
            found=len(pair),
        )
    text, image = pair
    if text is not None and not isinstance(text, str):
        raise DataError(
            f"{where}: expected the text, a string or None, before the image, got {type(text).__name__}",
            code="pair-text-type",
            position=position,
            found=type(text).__name__,
        )
    if text is not None and (half := SURROGATE.search(text)):
        raise DataError(
            f"{where}: the text has an unpaired surrogate at character {half.start()}; remove or replace it",
            code="pair-text-surrogate",
            position=position,
            character=half.start(),
        )
    if image is None or isinstance(image, (Path, Image.Image)):
        return
    if not isinstance(image, str):
        raise DataError(
            f"{where}: expected the image as a path, a PIL image or None, got {type(image).__name__}; convert an array with "
            "PIL.Image.fromarray",
            code="pair-image-type",
            position=position,
            found=type(image).__name__,
        )
    if not image:
        raise DataError(
            f"{where}: expected the image as a path, a PIL image or None, got an empty string",
            code="pair-image-empty",
            position=position,
        )
    if "://" in image:
        raise DataError(
            f"{where}: expected the image as a path, a PIL image or None, got the URL {image}; download it first",
            code="pair-image-url",
            position=position,
            found=image,
        )


@contextmanager
def _moved(tower: RetTower, device: torch.device | str | None) -> Iterator[None]:
    """Move the tower to another device for the duration of the block."""
    if device is None:
        yield
        return
    original, target = tower.start.device, device_named(device)
    try:
        tower.to(target)
        yield
    finally:
        tower.to(original)


@contextmanager
def _eval_mode(tower: RetTower) -> Iterator[None]:
    """Set eval mode for the duration of the block, then restore the mode of each module, which may differ."""
    training = [module for module in tower.modules() if module.training]
    tower.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _autocast(tower: RetTower, dtype: torch.dtype | str | None) -> AbstractContextManager[Any]:
    """Return the autocast context in which the tower computes in a dtype on its current device."""
    if dtype is None:
        return nullcontext()
    target, own = dtype_named(dtype), tower.start.dtype
    if target == own:
        return torch.autocast(tower.start.device.type, enabled=False)
    if own == torch.float32 and target in (torch.bfloat16, torch.float16):
        return torch.autocast(tower.start.device.type, dtype=target)
    raise ConfigError(
        f"dtype={dtype} is not supported for {str(own).removeprefix('torch.')} weights: expected float32, bfloat16 or float16 "
        f"for float32 weights, or else the dtype of the weights; omit dtype or convert with retriever.to({target})",
        code="encoding-dtype-unsuitable",
        found=str(dtype),
        weights=str(own),
    )
