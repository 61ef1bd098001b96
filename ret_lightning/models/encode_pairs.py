"""From pairs of text and image to vectors: lists of any length, in batches, images prepared ahead of the model."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
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

# A list of more batches than this gets a progress bar.
LONG = 20

# Half of a character beyond U+FFFF: JSON can spell it, no tokenizer takes it.
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
    """Encodes pairs by one tower, in eval mode and without gradients; the model stays as it was.

    Memory is that of the result and of a few batches of pixels, however long the list. A PIL image that was only opened
    gets decoded and stays so in the caller's hands: for long lists, give paths.

    Args:
        retriever: whose tower encodes.
        side: which tower.
        pairs: N of (text or None, image or None), in a list or any other iterable. An image is a path or a PIL image of
            any mode. An empty text is no text; a pair may lack both. Lists and tuples are checked whole before anything
            is encoded, other iterables as they are read.
        batch_size: pairs a pass of the model. The vectors depend on it by rounding only; in float32 on a CPU with AVX-512
            not at all.
        device: where to encode; None: where the model is. From elsewhere the tower is moved there and back again: for
            many calls it is cheaper to move the retriever oneself with `.to`.
        dtype: what a model of float32 weights computes in (autocast): `torch.bfloat16`, `torch.float16`, `torch.float32`
            or the name of one. None: the model's own.
        progress: a bar on stderr; None: for lists of more than 20 batches, where their length is known.
        num_workers: threads that decode and transform images while the model runs; 0: the calling thread does it. The
            vectors do not depend on it.

    Returns:
        (N, k, d) float32 on the CPU, of length 1 along the last axis, in the order of the pairs; (N, 1, d) where the tower
        pools.

    Raises:
        DataError: naming the pair by its position, if it is none, or its image is missing or cannot be decoded.
        ConfigError: if an option cannot be served.
        UserError: if the tower's tokenizer or image transform is missing, or gives what its backbone cannot take.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if not isinstance(value, Integral) or value < least:
            raise ConfigError(
                f"{name}={value!r} must be a whole number, {least} or more",
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
    # Within a caller's inference mode the result, and a model that moves, would become tensors that autograd refuses.
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
            if done + len(items) > len(result):  # an iterable that did not tell its length
                result = torch.cat([result, result.new_empty(done + len(items), *result.shape[1:])])
            result[done : done + len(items)] = vectors
            done += len(items)
            bar.update(len(items))
        return result if done == len(result) else result[:done].clone()


def gate_activations(retriever: TwoTowers, side: Side, pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """How far the gates of one tower open for each pair, in eval mode and one pass; the model stays as it was.

    Args:
        retriever: whose tower is asked.
        side: which tower.
        pairs: N of (text or None, image or None), as for `encode_pairs`; tens, not thousands.

    Returns:
        `forget` (how much of the state is kept), `text` and `image` (how much of what was read from them goes in), each
        (N, steps, k) float32 on the CPU, in [0, 1]: the mean over the H channels for each step of the recurrence and each
        of the k vectors. `text` and `image` are 0 for pairs without one; a gate that a variant lacks is 1.

    Raises:
        DataError, UserError: as `encode_pairs`.
    """
    _check_all(side, pairs)
    tower: RetTower = getattr(retriever, f"{side}_tower")
    preparation, activations = _Preparation(tower, side), RowActivations()
    inputs = preparation.inputs([preparation.item(i, pair) for i, pair in enumerate(pairs)])
    with torch.inference_mode(False), _eval_mode(tower), torch.no_grad():
        tower(inputs.to(tower.start.device), activations)
    return {name: activation.cpu() for name, activation in activations.stacked(tower.start.shape[1]).items()}


class _Preparation:
    """From pairs to what a tower takes, by its own tokenizer and image transform.

    Args:
        tower: that will encode.
        side: its name, for messages.
    """

    def __init__(self, tower: RetTower, side: Side) -> None:
        self.tower = tower
        self.side = side
        try:
            sizes = tower.text_backbone.layout_config()
        except ConfigError:  # a backbone that cannot be stored does not tell; it has to check its token ids itself
            sizes = {}
        self._vocabulary = sizes.get("vocab_size", math.inf)
        self._positions = sizes.get("max_position_embeddings", math.inf)
        # One PIL image may stand in many pairs, and two threads must not decode it at once.
        self._lock = Lock()

    def item(self, position: int, pair: Pair) -> Item:
        """One pair, its image decoded and transformed; called from several threads."""
        _check_pair(self.side, position, pair)
        text, image = pair
        if text and self.tower.tokenizer is None:
            raise self._not_set("tokenizer", position, "a text")
        return Item(text or None, None if image is None else self._pixels(position, image))

    def inputs(self, items: Sequence[Item]) -> EncoderInput:
        """A batch of pairs, on the CPU, with its token ids checked: on a GPU a wrong id ends the process."""
        # A transform of another library need not tell its size; it matters for the shape of no pixels at all only.
        size = getattr(self.tower.image_transform, "size", 1)
        inputs = collate_items(items, self.tower.tokenizer, size, batch_invariant=True)
        try:
            check_token_ids(inputs.input_ids[inputs.text_rows], self._vocabulary, self._positions)
        except TokenError as error:
            message = self._mend("tokenizer", f"does not fit the checkpoint: {error.message}")
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
        message = self._mend(attribute, f"is not set, and {PLURAL[self.side]}[{position}] has {part}")
        return UserError(message, code="tower-attribute-not-set", attribute=attribute, position=position)

    def _mend(self, attribute: str, fact: str) -> str:
        name = f"retriever.{self.side}_tower.{attribute}"
        return f"{name} {fact}; set {name} to the one that the checkpoint was trained with"


def _in_batches(
    pairs: Iterable[Pair], prepare: Callable[[int, Pair], Item], batch_size: int, num_workers: int
) -> Iterator[list[Item]]:
    """Prepared pairs in their order, `batch_size` at a time; threads are ahead by two batches, or more if these are small."""
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
    """Raises DataError where this is no list of pairs; what is not in memory yet is left for later."""
    wanted = "wanted a list of pairs, [(text or None, image or None), ...]"
    try:
        iter(pairs)
        refused = isinstance(pairs, (str, bytes, Mapping))
    except TypeError:
        refused = True
    if refused:
        found = type(pairs).__name__
        raise DataError(f"{PLURAL[side]} are of type {found}; {wanted}", code="pairs-not-a-list", found=found)
    if isinstance(pairs, (list, tuple)):
        if len(pairs) == 2 and all(part is None or isinstance(part, (str, Path, Image.Image)) for part in pairs):
            raise DataError(f"{PLURAL[side]} are a single pair; {wanted}", code="pairs-single-pair")
        for position, pair in enumerate(pairs):
            _check_pair(side, position, pair)


def _check_pair(side: Side, position: int, pair: Any) -> None:
    """Raises DataError where this is no pair; whether an image can be read shows when it is."""
    where = f"{PLURAL[side]}[{position}]"
    if not isinstance(pair, (list, tuple)):
        raise DataError(
            f"{where} is of type {type(pair).__name__}; wanted a pair (text or None, image or None)",
            code="pair-of-wrong-type",
            position=position,
            found=type(pair).__name__,
        )
    if len(pair) != 2:
        raise DataError(
            f"{where} has length {len(pair)}; wanted 2, (text or None, image or None)",
            code="pair-of-wrong-length",
            position=position,
            found=len(pair),
        )
    text, image = pair
    if text is not None and not isinstance(text, str):
        raise DataError(
            f"{where}: its text is of type {type(text).__name__}; wanted a string or None, before the image",
            code="pair-text-type",
            position=position,
            found=type(text).__name__,
        )
    if text is not None and (half := SURROGATE.search(text)):
        raise DataError(
            f"{where}: its text has half of a surrogate pair at {half.start()}, which is no character",
            code="pair-text-surrogate",
            position=position,
            character=half.start(),
        )
    if image is None or isinstance(image, (Path, Image.Image)):
        return
    if not isinstance(image, str):
        raise DataError(
            f"{where}: its image is of type {type(image).__name__}; wanted a path, a PIL image (PIL.Image.fromarray makes one) "
            "or None",
            code="pair-image-type",
            position=position,
            found=type(image).__name__,
        )
    if not image:
        raise DataError(
            f"{where}: its image is an empty string; wanted a path, a PIL image or None",
            code="pair-image-empty",
            position=position,
        )
    if "://" in image:
        raise DataError(
            f"{where}: its image is the URL {image}; wanted a path, a PIL image or None: fetch it first",
            code="pair-image-url",
            position=position,
            found=image,
        )


@contextmanager
def _moved(tower: RetTower, device: torch.device | str | None) -> Iterator[None]:
    """The tower on another device for a while."""
    if device is None:
        yield
        return
    home, away = tower.start.device, device_named(device)
    try:
        tower.to(away)
        yield
    finally:
        tower.to(home)


@contextmanager
def _eval_mode(tower: RetTower) -> Iterator[None]:
    """Eval mode for a while; each module gets its own flag back, since a frozen part is in eval mode all the time."""
    training = [module for module in tower.modules() if module.training]
    tower.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _autocast(tower: RetTower, dtype: torch.dtype | str | None) -> AbstractContextManager:
    """What makes the tower compute in a dtype, on the device where it is."""
    if dtype is None:
        return nullcontext()
    wanted, own = dtype_named(dtype), tower.start.dtype
    if wanted == own:
        return torch.autocast(tower.start.device.type, enabled=False)
    if own == torch.float32 and wanted in (torch.bfloat16, torch.float16):
        return torch.autocast(tower.start.device.type, dtype=wanted)
    raise ConfigError(
        f"dtype={dtype} does not go with weights in {str(own).removeprefix('torch.')}: float32 weights can be computed with "
        f"in float32, bfloat16 or float16, others as they are; leave dtype out, or convert them by retriever.to({wanted})",
        code="encoding-dtype-unsuitable",
        found=str(dtype),
        weights=str(own),
    )
