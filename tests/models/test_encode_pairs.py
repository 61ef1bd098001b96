"""Lists of pairs to vectors: against the tower row by row, what may be given, what is refused, and what is left alone."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ret_lightning.errors import ConfigError, DataError, UserError
from ret_lightning.models import EncoderInput, LSTMGate, RetRetriever, RetTower, build_retriever, encode_pairs
from ret_lightning.models.backbones.clip_transformers import clip_backbone
from ret_lightning.models.exchangeable_parts import subclasses
from ret_lightning.models.gate_activations import ActivationMeans
from ret_lightning.models.gates import Gate
from ret_lightning.ops.onednn_linear import choose_backend

NARROW = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
TEXTS = [f"{'a very ' * (i % 5)}small picture, number {i}" for i in range(11)]


def build(**options) -> RetRetriever:
    torch.manual_seed(0)
    text = {**NARROW, "vocab_size": 49408, "num_hidden_layers": 3}
    vision = {**NARROW, "num_hidden_layers": 4, "image_size": 16, "patch_size": 8}
    options = {"gate": LSTMGate, "num_tokens": 4, "hidden_size": 32, "num_heads": 2, "output_size": 8, **options}
    return build_retriever(clip_backbone(text=text, vision=vision), **options)


@pytest.fixture
def retriever() -> RetRetriever:
    return build()


def picture(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mixed_pairs(count: int = 11) -> list[tuple[str | None, Image.Image | None]]:
    """Texts of many lengths; every third pair lacks a text and every fourth an image, so that row 8 lacks both."""
    return [
        (None if i % 3 == 2 else TEXTS[i % 11], None if i % 4 == 0 else picture(i, 16 + i, 40 - i))
        for i in range(count)
    ]


def by_hand(tower: RetTower, text: str | None, image: Image.Image | None) -> Tensor:
    """(k, d): one row through the tower, what is missing as the published code feeds it, normalised by hand."""
    ids, mask = tower.tokenizer([text or ""])
    pixels = tower.image_transform(image or Image.new("RGB", (16, 16)))[None]
    inputs = EncoderInput.dense(ids, mask, pixels, torch.tensor([bool(text)]), torch.tensor([image is not None]))
    with torch.no_grad():
        vectors = tower.eval()(inputs)[0]
    return vectors / vectors.square().sum(dim=-1, keepdim=True).sqrt()


def encode_calls(retriever: RetRetriever, before: Callable[[int], None]) -> None:
    """Has `before` called with the number of rows ahead of each batch that reaches the model."""
    encode = retriever.encode

    def watched(side: str, inputs: EncoderInput) -> Tensor:
        before(len(inputs))
        return encode(side, inputs)

    retriever.encode = watched


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
@pytest.mark.parametrize("side", ["query", "passage"])
def test_each_row_is_what_the_tower_gives_for_it_alone(retriever, side: str, batch_size: int) -> None:
    pairs = mixed_pairs()
    assert pairs[8] == (None, None)
    encode = {"query": retriever.encode_queries, "passage": retriever.encode_passages}[side]
    sizes = []
    encode_calls(retriever, sizes.append)
    vectors = encode(pairs, batch_size=batch_size)
    assert sizes == {1: [1] * 11, 4: [4, 4, 3], 11: [11], 100: [11]}[batch_size]
    assert (vectors.shape, vectors.dtype, vectors.device.type) == ((11, 4, 8), torch.float32, "cpu")
    tower = {"query": retriever.query_tower, "passage": retriever.passage_tower}[side]
    expected = torch.stack([by_hand(tower, *pair) for pair in pairs])
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2  # rows are told apart


@pytest.mark.skipif(choose_backend() != "onednn", reason="needs a processor with AVX-512")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("side", ["query", "passage"])
def test_a_row_is_the_same_to_the_last_bit_whatever_batch_it_is_in(retriever, side: str, threads: int) -> None:
    pairs = [(text and text * (1 + i % 9), image) for i, (text, image) in enumerate(mixed_pairs(40))]
    lengths = {retriever.query_tower.tokenizer([text])[0].shape[1] for text, _ in pairs if text}
    assert len(lengths) > 10
    assert max(lengths) == 77
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = encode_pairs.encode_pairs(retriever, side, pairs, batch_size=40)
        for batch_size in (1, 2, 3, 7, 16):
            assert torch.equal(encode_pairs.encode_pairs(retriever, side, pairs, batch_size=batch_size), together)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("num_workers", [1, 5, 20])
def test_the_number_of_threads_changes_no_bit(retriever, num_workers: int) -> None:
    pairs = mixed_pairs(30)
    alone = retriever.encode_queries(pairs, batch_size=4, num_workers=0)
    assert torch.equal(retriever.encode_queries(pairs, batch_size=4, num_workers=num_workers), alone)


def test_an_empty_text_is_no_text(retriever) -> None:
    vectors = retriever.encode_queries([("", picture(0)), (None, picture(0)), ("", None), (None, None)])
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[2], vectors[3])


@pytest.mark.parametrize(("options", "k", "d"), [({}, 4, 8), ({"pooled": True}, 1, 8), ({"output_size": 0}, 4, 32)])
def test_shapes_also_of_nothing(options: dict, k: int, d: int) -> None:
    retriever = build(**options)
    for pairs in ([], (), iter([])):
        assert retriever.encode_queries(pairs).shape == (0, k, d)
    vectors = retriever.encode_queries(mixed_pairs(3), batch_size=2)
    assert vectors.shape == (3, k, d)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3, k))
    expected = by_hand(retriever.query_tower, *mixed_pairs(3)[1]).view(k, d)
    torch.testing.assert_close(vectors[1], expected, rtol=0, atol=1e-5)


class Lazy:
    """A sequence in the way of torch's data sets: a length, rows by number, and no more."""

    def __init__(self, rows: Sequence) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        return self.rows[index]


@pytest.mark.parametrize("kind", [tuple, iter, Lazy, lambda pairs: [list(pair) for pair in pairs]])
def test_any_iterable_of_pairs(retriever, kind: Callable) -> None:
    pairs = mixed_pairs(9)
    expected = retriever.encode_queries(pairs, batch_size=2)
    vectors = retriever.encode_queries(kind(pairs), batch_size=2)
    assert torch.equal(vectors, expected)
    assert vectors.untyped_storage().nbytes() == 9 * 4 * 8 * 4


def in_modes() -> dict[str, Image.Image]:
    deep = np.random.default_rng(1).integers(0, 65536, (20, 24), dtype=np.uint16)
    palette = picture(2).quantize(16)
    see_through = palette.copy()
    see_through.info["transparency"] = 3
    alpha = picture(3).convert("RGBA")
    alpha.putalpha(picture(4).convert("L"))
    turned = picture(5)
    turned.getexif()[0x0112] = 6
    return {
        "colour": picture(0),
        "grey": picture(1).convert("L"),
        "black and white": picture(1).convert("1"),
        "palette": palette,
        "palette with a transparent colour": see_through,
        "transparent": alpha,
        "transparent grey": alpha.convert("LA"),
        "16 bits": Image.fromarray(deep),
        "turned by EXIF": turned,
    }


@pytest.mark.parametrize("mode", in_modes())
def test_a_path_as_string_or_path_and_the_picture_in_memory_give_the_same(retriever, tmp_path: Path, mode: str) -> None:
    image = in_modes()[mode]
    image.save(tmp_path / "image.png", exif=image.getexif())
    pairs = [("what is it?", form) for form in (str(tmp_path / "image.png"), tmp_path / "image.png", image)]
    with Image.open(tmp_path / "image.png") as opened:
        vectors = retriever.encode_queries([*pairs, ("what is it?", opened)])
    assert torch.equal(vectors, vectors[:1].expand_as(vectors))
    by_mode = {"turned by EXIF": picture(5).transpose(Image.Transpose.ROTATE_270), "colour": picture(0)}
    if mode in by_mode:
        expected = by_hand(retriever.query_tower, "what is it?", by_mode[mode])
        torch.testing.assert_close(vectors[0], expected, rtol=0, atol=1e-5)


def test_an_opened_picture_in_many_pairs_is_decoded_by_one_thread_at_a_time(retriever, tmp_path: Path) -> None:
    picture(0, 400, 300).save(tmp_path / "image.png")
    alone = retriever.encode_passages([(None, tmp_path / "image.png")])
    with Image.open(tmp_path / "image.png") as opened:
        vectors = retriever.encode_passages([(None, opened)] * 32, num_workers=8)
    torch.testing.assert_close(vectors, alone.expand_as(vectors), rtol=0, atol=1e-5)


GOOD = ("a cat", None)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("a cat", r"queries are of type str; wanted a list of pairs, \[\(text or None, image or None\), \.\.\.\]"),
        (None, r"queries are of type NoneType; wanted a list of pairs"),
        ({"a cat": "cat.jpg"}, r"queries are of type dict; wanted a list of pairs"),
        (("a cat", "cat.jpg"), r"queries are a single pair; wanted a list of pairs"),
        (("a cat", None), r"queries are a single pair"),
        ((None, Image.new("RGB", (4, 4))), r"queries are a single pair"),
        ([GOOD, "ab"], r"queries\[1\] is of type str; wanted a pair \(text or None, image or None\)"),
        ([GOOD, GOOD, ("a cat",)], r"queries\[2\] has length 1; wanted 2, \(text or None, image or None\)"),
        ([("a", None, "b")], r"queries\[0\] has length 3; wanted 2"),
        ([(7, None)], r"queries\[0\]: its text is of type int; wanted a string or None, before the image"),
        ([(Path("cat.jpg"), "a cat")], r"queries\[0\]: its text is of type \w*Path; wanted a string or None, before"),
        ([GOOD, ("a", np.zeros((4, 4, 3)))], r"queries\[1\]: its image is of type ndarray; .*\(PIL\.Image\.fromarray"),
        ([("a", b"bytes")], r"queries\[0\]: its image is of type bytes; wanted a path, a PIL image"),
        ([("a", "http://a.b/c.jpg")], r"queries\[0\]: its image is the URL http://a\.b/c\.jpg; .* fetch it first"),
        ([("a", "")], r"queries\[0\]: its image is an empty string; wanted a path, a PIL image or None"),
        ([("a\ud83d", None)], r"queries\[0\]: its text has half of a surrogate pair at 1"),
        ([GOOD, ("a", "none.jpg")], r"queries\[1\]: image none\.jpg does not exist"),
        ([GOOD, ("a", Path("none.jpg"))], r"queries\[1\]: image none\.jpg does not exist"),
        ([("a", Image.new("RGB", (0, 3)))], r"queries\[0\]: image cannot be decoded: it is 0 by 3 pixels"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_no_pair_is_told_by_its_position(retriever, pairs, message: str, num_workers: int) -> None:
    with pytest.raises(DataError, match=message) as error:
        retriever.encode_queries(pairs, num_workers=num_workers)
    assert "\n" not in str(error.value)


def test_a_wrong_pair_in_a_list_is_told_before_anything_is_encoded(retriever) -> None:
    encode_calls(retriever, lambda rows: pytest.fail("encoded"))
    with pytest.raises(DataError, match=r"passages\[40\] has length 1"):
        retriever.encode_passages([GOOD] * 40 + [("a",)], batch_size=2)


def test_a_wrong_pair_of_a_generator_is_told_as_well(retriever) -> None:
    with pytest.raises(DataError, match=r"passages\[40\] has length 1"):
        retriever.encode_passages(iter([GOOD] * 40 + [("a",)]), batch_size=2)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_broken_image_is_told_by_position_and_file_the_first_of_them(retriever, tmp_path, num_workers: int) -> None:
    picture(0).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    pairs = [(None, tmp_path / "whole.png")] * 5 + [(None, tmp_path / "torn.png"), (None, "none.png")]
    with pytest.raises(DataError, match=r"queries\[5\]: image .*torn\.png cannot be decoded"):
        retriever.encode_queries(pairs, num_workers=num_workers)
    with Image.open(tmp_path / "torn.png") as opened:
        pairs[5] = (None, opened)
        with pytest.raises(DataError, match=r"queries\[5\]: image .*torn\.png cannot be decoded"):
            retriever.encode_queries(pairs, num_workers=num_workers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, r"dtype=int8 is unknown; choices: .*float32.*bfloat16"),
        (
            {"dtype": "float64"},
            r"dtype=float64 does not go with weights in float32: .* retriever\.to\(torch\.float64\)",
        ),
        ({"device": "gpu"}, r"device=gpu cannot be used"),
        ({"batch_size": 0}, r"batch_size=0 must be a whole number, 1 or more"),
        ({"batch_size": 1.5}, r"batch_size=1\.5 must be a whole number"),
        ({"num_workers": -1}, r"num_workers=-1 must be a whole number, 0 or more"),
    ],
)
def test_options_that_cannot_be_served(retriever, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        retriever.encode_queries([GOOD], **options)
    assert "\n" not in str(error.value)


def test_a_vocabulary_that_is_too_small_for_the_tokenizer(make_retriever) -> None:
    retriever = make_retriever()
    message = (
        r"retriever\.passage_tower\.tokenizer .*token id 49407.* 100 entries; set retriever\.passage_tower\.tokenizer"
    )
    with pytest.raises(UserError, match=message):
        retriever.encode_passages([GOOD])
    assert retriever.encode_passages([(None, picture(0)), (None, None)]).shape == (2, 4, 8)
    retriever.passage_tower.tokenizer = lambda texts: (
        torch.ones(len(texts), 50).long(),
        torch.ones(len(texts), 50) > 0,
    )
    with pytest.raises(
        UserError, match=r"texts of 50 tokens, but the text backbone has 20 positions; set retriever\.pass"
    ):
        retriever.encode_passages([GOOD])


def test_a_missing_tokenizer_or_transform_matters_where_it_is_needed(retriever) -> None:
    image_only, text_only = (None, picture(0)), ("a cat", None)
    expected = retriever.encode_queries([image_only]), retriever.encode_passages([text_only])
    retriever.query_tower.tokenizer = None
    retriever.passage_tower.image_transform = None
    assert torch.equal(retriever.encode_queries([image_only]), expected[0])
    assert torch.equal(retriever.encode_passages([text_only]), expected[1])
    with pytest.raises(
        UserError, match=r"retriever\.query_tower\.tokenizer is not set, and queries\[1\] has a text; set"
    ):
        retriever.encode_queries([image_only, text_only])
    with pytest.raises(
        UserError, match=r"passage_tower\.image_transform is not set, and passages\[1\] has an image; set"
    ):
        retriever.encode_passages([text_only, image_only])


def state_of(retriever: RetRetriever) -> tuple:
    tensors = [*retriever.named_parameters(), *retriever.named_buffers()]
    return (
        {name: module.training for name, module in retriever.named_modules()},
        [(n, id(t), t.data_ptr(), t.dtype, t.device, t.requires_grad, t.is_inference()) for n, t in tensors],
    )


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_model_stays_as_it_was(dtype: str | None) -> None:
    retriever = build(dropout=0.5, attention_dropout=0.5, train_text=True).train()
    retriever.query_tower.cells[0].mlp.eval()
    before, random = state_of(retriever), torch.get_rng_state()
    assert len(set(before[0].values())) == 2
    calls: list[bool] = []
    encode_calls(retriever, lambda rows: calls.append(any(m.training for m in retriever.query_tower.modules())))
    vectors = retriever.encode_queries(mixed_pairs(), dtype=dtype)
    assert calls == [False]
    assert torch.equal(retriever.encode_queries(mixed_pairs(), dtype=dtype), vectors)  # no dropout
    assert state_of(retriever) == before
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_an_exception_comes_as_it_is_and_leaves_the_model_and_no_thread(
    retriever, monkeypatch, num_workers: int
) -> None:
    class OutOfPaint(Exception):
        pass

    def no_paint(image: Image.Image) -> Image.Image:
        raise OutOfPaint("blue")

    before, threads = state_of(retriever.train()), threading.active_count()
    monkeypatch.setattr(encode_pairs, "rgb_image", no_paint)
    with pytest.raises(OutOfPaint, match=r"^blue$"):
        retriever.encode_queries(mixed_pairs(), num_workers=num_workers, batch_size=2)
    encode_calls(retriever, lambda rows: (_ for _ in ()).throw(OutOfPaint("red")))
    with pytest.raises(OutOfPaint, match=r"^red$"):
        retriever.encode_queries([GOOD] * 20, num_workers=num_workers, batch_size=2)
    assert state_of(retriever) == before
    assert threading.active_count() == threads


def test_vectors_can_go_into_autograd_whatever_mode_the_caller_is_in(retriever) -> None:
    with torch.inference_mode():
        inside = retriever.encode_queries(iter(mixed_pairs(3)), batch_size=2)
    for vectors in (inside, retriever.encode_queries(mixed_pairs(3))):
        weight = torch.ones(8, requires_grad=True)
        (vectors * weight).square().sum().backward()
        torch.testing.assert_close(weight.grad, 2 * vectors.square().sum(dim=(0, 1)))


def test_vectors_are_float32_whatever_the_callers_default_is(retriever) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        vectors = (
            retriever.encode_queries(iter([("a", None)] * 3), batch_size=2),
            retriever.encode_queries([("a", None)]),
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert {v.dtype for v in vectors} == {torch.float32}


@pytest.mark.parametrize("raises", [False, True])
def test_the_tower_moves_to_the_device_and_back(retriever, monkeypatch, raises: bool) -> None:
    went: list[str] = []
    monkeypatch.setattr(encode_pairs, "device_named", torch.device)
    monkeypatch.setattr(RetTower, "to", lambda self, device: went.append(str(device)))
    encode_calls(retriever, lambda rows: went.append("encodes"))
    if raises:
        monkeypatch.setattr(RetTower, "forward", lambda self, inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retriever.encode_queries([GOOD], device="cuda:7")
    else:
        retriever.encode_queries([GOOD], device="cuda:7")
    assert went == ["cuda:7", "encodes", "cpu"]
    monkeypatch.undo()
    for device in ("meta", "banana", "cuda:99"):
        with pytest.raises(ConfigError, match=rf"device={device} (holds no numbers|cannot be used)"):
            retriever.encode_queries([GOOD], device=device)
    assert {str(p.device) for p in retriever.parameters()} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_and_back(retriever) -> None:
    pairs = mixed_pairs()
    expected = retriever.encode_queries(pairs)
    vectors = retriever.encode_queries(pairs, device="cuda")
    assert (vectors.device.type, retriever.query_tower.start.device.type) == ("cpu", "cpu")
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-3)  # TF32, where it is on
    assert (
        torch.cosine_similarity(retriever.encode_queries(pairs, device="cuda", dtype="bf16"), expected, -1).min() > 0.99
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "bf16", torch.float16, "float16", "fp16"])
def test_lower_precision_is_near_and_gives_float32(retriever, dtype) -> None:
    pairs = mixed_pairs()
    full, low = retriever.encode_queries(pairs), retriever.encode_queries(pairs, dtype=dtype)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.norm(dim=-1), torch.ones(11, 4), rtol=0, atol=1e-5)
    assert torch.cosine_similarity(low, full, dim=-1).min() > 0.99
    assert (low - full).abs().max() > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, "float32", "fp32"])
def test_float32_is_full_precision_also_within_autocast(retriever, dtype) -> None:
    full = retriever.encode_queries(mixed_pairs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(retriever.encode_queries(mixed_pairs(), dtype=dtype), full)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision(retriever, dtype: torch.dtype) -> None:
    pairs = mixed_pairs()
    full = retriever.encode_queries(pairs)
    retriever.to(dtype)
    low = retriever.encode_queries(pairs)
    assert low.dtype == torch.float32
    assert torch.cosine_similarity(low, full, dim=-1).min() > 0.99
    assert torch.equal(retriever.encode_queries(pairs, dtype=dtype), low)
    with pytest.raises(ConfigError, match=r"dtype=fp32 does not go with weights in .*retriever\.to\(torch\.float32\)"):
        retriever.encode_queries(pairs, dtype="fp32")


def test_a_bar_for_long_lists_and_when_asked_for(retriever, capsys, monkeypatch) -> None:
    """On a terminal; elsewhere the log has a line every half minute."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def shown(count: int, **options) -> str:
        retriever.encode_passages([(None, None)] * count, batch_size=2, **options)
        out, err = capsys.readouterr()
        assert out == ""
        return err

    assert shown(40) == ""
    bar = shown(41)
    assert "encoding passages: 100%" in bar
    assert "41/41" in bar
    assert shown(41, progress=False) == ""
    assert "3/3" in shown(3, progress=True)


@pytest.fixture
def opened(monkeypatch) -> list[threading.Thread]:
    """The thread of each image that gets opened."""
    threads: list[threading.Thread] = []
    open_image = encode_pairs.open_image

    def noted(path: Path, *options) -> Image.Image:
        threads.append(threading.current_thread())
        return open_image(path, *options)

    monkeypatch.setattr(encode_pairs, "open_image", noted)
    return threads


@pytest.mark.parametrize(("batch_size", "num_workers", "ahead"), [(2, 3, 6), (4, 1, 8), (1, 5, 6)])
def test_threads_are_a_few_batches_ahead_and_no_more(
    retriever, opened, tmp_path: Path, batch_size: int, num_workers: int, ahead: int
) -> None:
    picture(0).save(tmp_path / "image.png")
    at_batch: list[int] = []

    def wait(rows: int) -> None:
        # The first batch stays in the model until the threads have come as far as they may, and then a while longer.
        deadline = time.monotonic() + 20
        while not at_batch and len(opened) < batch_size + ahead and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0 if at_batch else 0.2)
        at_batch.append(len(opened))

    encode_calls(retriever, wait)
    pairs = [(None, tmp_path / "image.png")] * 24
    retriever.encode_queries(pairs, batch_size=batch_size, num_workers=num_workers)
    # One batch more than gives every thread an image, so that the model does not wait for the last of them.
    assert at_batch[0] == batch_size + ahead
    assert len(opened) == 24
    assert threading.main_thread() not in opened


def test_without_threads_each_batch_is_prepared_when_it_is_needed(retriever, opened, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "image.png")
    at_batch: list[int] = []
    encode_calls(retriever, lambda rows: at_batch.append(len(opened)))
    retriever.encode_queries([(None, tmp_path / "image.png")] * 5, batch_size=2, num_workers=0)
    assert at_batch == [2, 4, 5]
    assert set(opened) == {threading.main_thread()}


def test_score_is_the_sum_over_query_vectors_of_the_best_passage_vector(retriever) -> None:
    queries, passages = mixed_pairs(3), mixed_pairs(7)[2:]
    scores = retriever.score(queries, passages, batch_size=2)
    query = torch.stack([by_hand(retriever.query_tower, *pair) for pair in queries])
    passage = torch.stack([by_hand(retriever.passage_tower, *pair) for pair in passages])
    assert scores.shape == (3, 5)
    for i in range(3):
        for j in range(5):
            expected = sum(max(float(q @ p) for p in passage[j]) for q in query[i])
            assert scores[i, j].item() == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(retriever.score(query, passages), scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(retriever.score(queries, passage), scores, rtol=0, atol=1e-4)
    pooled = build(pooled=True)
    cosine = pooled.encode_queries(queries)[:, 0] @ pooled.encode_passages(passages)[:, 0].T
    torch.testing.assert_close(pooled.score(queries, passages), cosine)


@pytest.mark.parametrize(
    "gate", [gate for gate in subclasses(Gate) if gate.__module__ == Gate.__module__], ids=lambda gate: gate.name
)
def test_gate_activations_are_those_that_the_means_are_of(gate: type[Gate]) -> None:
    retriever = build(gate=gate).train()
    pairs = [("a text", picture(0)), ("another text", None), (None, picture(1))]
    activations = retriever.gate_activations("query", pairs)
    assert retriever.training
    assert {name: tuple(own.shape) for name, own in activations.items()} == dict.fromkeys(
        ("forget", "text", "image"), (3, retriever.query_tower.plan.steps, 4)
    )
    assert all(((own >= 0) & (own <= 1)).all() for own in activations.values())
    assert (activations["text"][2] == 0).all()
    assert (activations["image"][1] == 0).all()
    preparation, means = encode_pairs._Preparation(retriever.query_tower, "query"), ActivationMeans()
    with torch.no_grad():
        inputs = preparation.inputs([preparation.item(i, pair) for i, pair in enumerate(pairs)])
        retriever.eval().query_tower(inputs, means)
    rows = {"forget": [0, 1, 2], "text": [0, 1], "image": [0, 2]}
    for (step, name), mean in means.means().items():
        torch.testing.assert_close(activations[name][rows[name], step].mean(), mean)
    with pytest.warns(FutureWarning, match="use gate_activations"):
        earlier = retriever.gate_openings("query", pairs)
    assert all(torch.equal(own, activations[name]) for name, own in earlier.items())
