"""Encoding of pairs: agreement with the tower, accepted inputs, errors, and the restored state of the model."""

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
    """Return texts of several lengths; every third pair lacks a text and every fourth an image, so row 8 lacks both."""
    return [
        (None if i % 3 == 2 else TEXTS[i % 11], None if i % 4 == 0 else picture(i, 16 + i, 40 - i))
        for i in range(count)
    ]


def encode_row(tower: RetTower, text: str | None, image: Image.Image | None) -> Tensor:
    """Encode one row, (k, d), with a missing modality replaced as in the published code."""
    ids, mask = tower.tokenizer([text or ""])
    pixels = tower.image_transform(image or Image.new("RGB", (16, 16)))[None]
    inputs = EncoderInput.dense(ids, mask, pixels, torch.tensor([bool(text)]), torch.tensor([image is not None]))
    with torch.no_grad():
        vectors = tower.eval()(inputs)[0]
    return vectors / vectors.square().sum(dim=-1, keepdim=True).sqrt()


def on_encode(retriever: RetRetriever, before: Callable[[int], None]) -> None:
    """Call `before` with the number of rows of each batch before the model encodes it."""
    encode = retriever.encode

    def watched(side: str, inputs: EncoderInput) -> Tensor:
        before(len(inputs))
        return encode(side, inputs)

    retriever.encode = watched


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
@pytest.mark.parametrize("side", ["query", "passage"])
def test_rows_match_the_tower(retriever, side: str, batch_size: int) -> None:
    pairs = mixed_pairs()
    assert pairs[8] == (None, None)
    encode = {"query": retriever.encode_queries, "passage": retriever.encode_passages}[side]
    sizes = []
    on_encode(retriever, sizes.append)
    vectors = encode(pairs, batch_size=batch_size)
    assert sizes == {1: [1] * 11, 4: [4, 4, 3], 11: [11], 100: [11]}[batch_size]
    assert (vectors.shape, vectors.dtype, vectors.device.type) == ((11, 4, 8), torch.float32, "cpu")
    tower = {"query": retriever.query_tower, "passage": retriever.passage_tower}[side]
    expected = torch.stack([encode_row(tower, *pair) for pair in pairs])
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2  # rows differ


@pytest.mark.skipif(choose_backend() != "onednn", reason="needs a processor with AVX-512")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("side", ["query", "passage"])
def test_row_is_identical_in_any_batch(retriever, side: str, threads: int) -> None:
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
def test_vectors_are_independent_of_threads(retriever, num_workers: int) -> None:
    pairs = mixed_pairs(30)
    alone = retriever.encode_queries(pairs, batch_size=4, num_workers=0)
    assert torch.equal(retriever.encode_queries(pairs, batch_size=4, num_workers=num_workers), alone)


def test_empty_text_counts_as_no_text(retriever) -> None:
    vectors = retriever.encode_queries([("", picture(0)), (None, picture(0)), ("", None), (None, None)])
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[2], vectors[3])


@pytest.mark.parametrize(("options", "k", "d"), [({}, 4, 8), ({"pooled": True}, 1, 8), ({"output_size": 0}, 4, 32)])
def test_shapes_of_vectors(options: dict, k: int, d: int) -> None:
    retriever = build(**options)
    for pairs in ([], (), iter([])):
        assert retriever.encode_queries(pairs).shape == (0, k, d)
    vectors = retriever.encode_queries(mixed_pairs(3), batch_size=2)
    assert vectors.shape == (3, k, d)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3, k))
    expected = encode_row(retriever.query_tower, *mixed_pairs(3)[1]).view(k, d)
    torch.testing.assert_close(vectors[1], expected, rtol=0, atol=1e-5)


class Lazy:
    """A sequence like a PyTorch dataset, with only `__len__` and `__getitem__`."""

    def __init__(self, rows: Sequence) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        return self.rows[index]


@pytest.mark.parametrize("kind", [tuple, iter, Lazy, lambda pairs: [list(pair) for pair in pairs]])
def test_iterables_of_pairs_are_accepted(retriever, kind: Callable) -> None:
    pairs = mixed_pairs(9)
    expected = retriever.encode_queries(pairs, batch_size=2)
    vectors = retriever.encode_queries(kind(pairs), batch_size=2)
    assert torch.equal(vectors, expected)
    assert vectors.untyped_storage().nbytes() == 9 * 4 * 8 * 4


def images_by_mode() -> dict[str, Image.Image]:
    deep = np.random.default_rng(1).integers(0, 65536, (20, 24), dtype=np.uint16)
    palette = picture(2).quantize(16)
    transparent = palette.copy()
    transparent.info["transparency"] = 3
    alpha = picture(3).convert("RGBA")
    alpha.putalpha(picture(4).convert("L"))
    turned = picture(5)
    turned.getexif()[0x0112] = 6
    return {
        "colour": picture(0),
        "grey": picture(1).convert("L"),
        "black and white": picture(1).convert("1"),
        "palette": palette,
        "palette with a transparent colour": transparent,
        "transparent": alpha,
        "transparent grey": alpha.convert("LA"),
        "16 bits": Image.fromarray(deep),
        "turned by EXIF": turned,
    }


@pytest.mark.parametrize("mode", images_by_mode())
def test_image_forms_produce_same_vectors(retriever, tmp_path: Path, mode: str) -> None:
    image = images_by_mode()[mode]
    image.save(tmp_path / "image.png", exif=image.getexif())
    pairs = [("what is it?", form) for form in (str(tmp_path / "image.png"), tmp_path / "image.png", image)]
    with Image.open(tmp_path / "image.png") as opened:
        vectors = retriever.encode_queries([*pairs, ("what is it?", opened)])
    assert torch.equal(vectors, vectors[:1].expand_as(vectors))
    by_mode = {"turned by EXIF": picture(5).transpose(Image.Transpose.ROTATE_270), "colour": picture(0)}
    if mode in by_mode:
        expected = encode_row(retriever.query_tower, "what is it?", by_mode[mode])
        torch.testing.assert_close(vectors[0], expected, rtol=0, atol=1e-5)


def test_shared_lazy_image_is_decoded_safely(retriever, tmp_path: Path) -> None:
    picture(0, 400, 300).save(tmp_path / "image.png")
    alone = retriever.encode_passages([(None, tmp_path / "image.png")])
    with Image.open(tmp_path / "image.png") as opened:
        vectors = retriever.encode_passages([(None, opened)] * 32, num_workers=8)
    torch.testing.assert_close(vectors, alone.expand_as(vectors), rtol=0, atol=1e-5)


GOOD = ("a cat", None)


@pytest.mark.parametrize(
    ("pairs", "code", "values"),
    [
        ("a cat", "pairs-not-a-list", {"found": "str"}),
        (None, "pairs-not-a-list", {"found": "NoneType"}),
        ({"a cat": "cat.jpg"}, "pairs-not-a-list", {"found": "dict"}),
        (("a cat", "cat.jpg"), "pairs-single-pair", {}),
        (("a cat", None), "pairs-single-pair", {}),
        ((None, Image.new("RGB", (4, 4))), "pairs-single-pair", {}),
        ([GOOD, "ab"], "pair-of-wrong-type", {"position": 1, "found": "str"}),
        ([GOOD, GOOD, ("a cat",)], "pair-of-wrong-length", {"position": 2, "found": 1}),
        ([("a", None, "b")], "pair-of-wrong-length", {"position": 0, "found": 3}),
        ([(7, None)], "pair-text-type", {"position": 0, "found": "int"}),
        ([(Path("cat.jpg"), "a cat")], "pair-text-type", {"position": 0, "found": type(Path()).__name__}),
        ([GOOD, ("a", np.zeros((4, 4, 3)))], "pair-image-type", {"position": 1, "found": "ndarray"}),
        ([("a", b"bytes")], "pair-image-type", {"position": 0, "found": "bytes"}),
        ([("a", "http://a.b/c.jpg")], "pair-image-url", {"position": 0, "found": "http://a.b/c.jpg"}),
        ([("a", "")], "pair-image-empty", {"position": 0}),
        ([("a\ud83d", None)], "pair-text-surrogate", {"position": 0, "character": 1}),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_invalid_pair_is_reported_by_position(retriever, pairs, code: str, values: dict, num_workers: int) -> None:
    with pytest.raises(DataError) as error:
        retriever.encode_queries(pairs, num_workers=num_workers)
    assert (error.value.code, error.value.values) == (code, values)
    where = f"queries[{values['position']}]: " if "position" in values else "queries: "
    assert error.value.message.startswith(where)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([GOOD, ("a", "none.jpg")], "queries[1]: image none.jpg does not exist"),
        ([GOOD, ("a", Path("none.jpg"))], "queries[1]: image none.jpg does not exist"),
        ([("a", Image.new("RGB", (0, 3)))], "queries[0]: image"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_image_is_reported_by_position(retriever, pairs, message: str, num_workers: int) -> None:
    with pytest.raises(DataError) as error:
        retriever.encode_queries(pairs, num_workers=num_workers)
    assert error.value.message.startswith(message)
    assert error.value.position == len(pairs) - 1
    assert "\n" not in str(error.value)


def test_invalid_pair_in_list_is_reported_before_encoding(retriever) -> None:
    on_encode(retriever, lambda rows: pytest.fail("encoded"))
    with pytest.raises(DataError) as error:
        retriever.encode_passages([GOOD] * 40 + [("a",)], batch_size=2)
    assert (error.value.code, error.value.position, error.value.found) == ("pair-of-wrong-length", 40, 1)


def test_invalid_pair_of_generator_is_reported(retriever) -> None:
    with pytest.raises(DataError) as error:
        retriever.encode_passages(iter([GOOD] * 40 + [("a",)]), batch_size=2)
    assert (error.value.code, error.value.position, error.value.found) == ("pair-of-wrong-length", 40, 1)
    assert error.value.message.startswith("passages[40]: ")


@pytest.mark.parametrize("num_workers", [0, 3])
def test_first_broken_image_is_reported(retriever, tmp_path, num_workers: int) -> None:
    picture(0).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    pairs = [(None, tmp_path / "whole.png")] * 5 + [(None, tmp_path / "torn.png"), (None, "none.png")]

    def assert_reported() -> None:
        with pytest.raises(DataError) as error:
            retriever.encode_queries(pairs, num_workers=num_workers)
        assert error.value.position == 5
        assert error.value.message.startswith("queries[5]: image ")
        assert "torn.png" in error.value.message

    assert_reported()
    with Image.open(tmp_path / "torn.png") as opened:
        pairs[5] = (None, opened)
        assert_reported()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"dtype": "int8"}, "dtype-unknown"),
        ({"dtype": "float64"}, "encoding-dtype-unsuitable"),
        ({"device": "gpu"}, "device-unusable"),
        ({"batch_size": 0}, "encoding-option-too-small"),
        ({"batch_size": 1.5}, "encoding-option-too-small"),
        ({"num_workers": -1}, "encoding-option-too-small"),
    ],
)
def test_unsupported_options_are_refused(retriever, options: dict, code: str) -> None:
    with pytest.raises(ConfigError) as error:
        retriever.encode_queries([GOOD], **options)
    ((name, value),) = options.items()
    assert (error.value.code, error.value.found) == (code, value)
    assert error.value.message.startswith(f"{name}={value}")
    assert "\n" not in str(error.value)


def test_tokenizer_that_does_not_fit_is_reported(make_retriever) -> None:
    retriever = make_retriever()
    with pytest.raises(UserError) as error:
        retriever.encode_passages([GOOD])
    assert (error.value.code, error.value.found, error.value.entries) == ("token-id-out-of-vocabulary", 49407, 100)
    assert error.value.message.startswith("retriever.passage_tower.tokenizer ")
    assert "; set retriever.passage_tower.tokenizer to" in error.value.message
    assert retriever.encode_passages([(None, picture(0)), (None, None)]).shape == (2, 4, 8)
    retriever.passage_tower.tokenizer = lambda texts: (
        torch.ones(len(texts), 50).long(),
        torch.ones(len(texts), 50) > 0,
    )
    with pytest.raises(UserError) as error:
        retriever.encode_passages([GOOD])
    assert (error.value.code, error.value.found, error.value.most) == ("text-longer-than-positions", 50, 20)
    assert "; set retriever.passage_tower.tokenizer to" in error.value.message


def test_missing_preprocessor_is_reported_if_needed(retriever) -> None:
    image_only, text_only = (None, picture(0)), ("a cat", None)
    expected = retriever.encode_queries([image_only]), retriever.encode_passages([text_only])
    retriever.query_tower.tokenizer = None
    retriever.passage_tower.image_transform = None
    assert torch.equal(retriever.encode_queries([image_only]), expected[0])
    assert torch.equal(retriever.encode_passages([text_only]), expected[1])
    for attribute, encode, pairs in (
        ("query_tower.tokenizer", retriever.encode_queries, [image_only, text_only]),
        ("passage_tower.image_transform", retriever.encode_passages, [text_only, image_only]),
    ):
        with pytest.raises(UserError) as error:
            encode(pairs)
        assert (error.value.code, error.value.position) == ("tower-attribute-not-set", 1)
        assert error.value.attribute == attribute.partition(".")[2]
        assert error.value.message.startswith(f"retriever.{attribute} is not set")


def state_of(retriever: RetRetriever) -> tuple:
    tensors = [*retriever.named_parameters(), *retriever.named_buffers()]
    return (
        {name: module.training for name, module in retriever.named_modules()},
        [(n, id(t), t.data_ptr(), t.dtype, t.device, t.requires_grad, t.is_inference()) for n, t in tensors],
    )


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_state_of_model_is_restored(dtype: str | None) -> None:
    retriever = build(dropout=0.5, attention_dropout=0.5, train_text=True).train()
    retriever.query_tower.cells[0].mlp.eval()
    before, random = state_of(retriever), torch.get_rng_state()
    assert len(set(before[0].values())) == 2
    calls: list[bool] = []
    on_encode(retriever, lambda rows: calls.append(any(m.training for m in retriever.query_tower.modules())))
    vectors = retriever.encode_queries(mixed_pairs(), dtype=dtype)
    assert calls == [False]
    assert torch.equal(retriever.encode_queries(mixed_pairs(), dtype=dtype), vectors)  # no dropout
    assert state_of(retriever) == before
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_exception_restores_model_and_stops_threads(retriever, monkeypatch, num_workers: int) -> None:
    class OutOfPaint(Exception):
        pass

    def no_paint(image: Image.Image) -> Image.Image:
        raise OutOfPaint("blue")

    before, threads = state_of(retriever.train()), threading.active_count()
    monkeypatch.setattr(encode_pairs, "to_rgb", no_paint)
    with pytest.raises(OutOfPaint, match=r"^blue$"):
        retriever.encode_queries(mixed_pairs(), num_workers=num_workers, batch_size=2)
    on_encode(retriever, lambda rows: (_ for _ in ()).throw(OutOfPaint("red")))
    with pytest.raises(OutOfPaint, match=r"^red$"):
        retriever.encode_queries([GOOD] * 20, num_workers=num_workers, batch_size=2)
    assert state_of(retriever) == before
    assert threading.active_count() == threads


def test_vectors_from_inference_mode_support_autograd(retriever) -> None:
    with torch.inference_mode():
        inside = retriever.encode_queries(iter(mixed_pairs(3)), batch_size=2)
    for vectors in (inside, retriever.encode_queries(mixed_pairs(3))):
        weight = torch.ones(8, requires_grad=True)
        (vectors * weight).square().sum().backward()
        torch.testing.assert_close(weight.grad, 2 * vectors.square().sum(dim=(0, 1)))


def test_vectors_are_float32_for_any_default_dtype(retriever) -> None:
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
def test_tower_is_moved_to_device_and_back(retriever, monkeypatch, raises: bool) -> None:
    events: list[str] = []
    monkeypatch.setattr(encode_pairs, "device_named", torch.device)
    monkeypatch.setattr(RetTower, "to", lambda self, device: events.append(str(device)))
    on_encode(retriever, lambda rows: events.append("encodes"))
    if raises:
        monkeypatch.setattr(RetTower, "forward", lambda self, inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retriever.encode_queries([GOOD], device="cuda:7")
    else:
        retriever.encode_queries([GOOD], device="cuda:7")
    assert events == ["cuda:7", "encodes", "cpu"]
    monkeypatch.undo()
    for device in ("meta", "banana", "cuda:99"):
        with pytest.raises(ConfigError) as error:
            retriever.encode_queries([GOOD], device=device)
        assert error.value.code == ("device-without-numbers" if device == "meta" else "device-unusable")
        assert error.value.found == device
    assert {str(p.device) for p in retriever.parameters()} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_encoding_on_gpu(retriever) -> None:
    pairs = mixed_pairs()
    expected = retriever.encode_queries(pairs)
    vectors = retriever.encode_queries(pairs, device="cuda")
    assert (vectors.device.type, retriever.query_tower.start.device.type) == ("cpu", "cpu")
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-3)  # TF32 may be enabled
    assert (
        torch.cosine_similarity(retriever.encode_queries(pairs, device="cuda", dtype="bf16"), expected, -1).min() > 0.99
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "bf16", torch.float16, "float16", "fp16"])
def test_half_precision_is_close_and_returns_float32(retriever, dtype) -> None:
    pairs = mixed_pairs()
    full, low = retriever.encode_queries(pairs), retriever.encode_queries(pairs, dtype=dtype)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.norm(dim=-1), torch.ones(11, 4), rtol=0, atol=1e-5)
    assert torch.cosine_similarity(low, full, dim=-1).min() > 0.99
    assert (low - full).abs().max() > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, "float32", "fp32"])
def test_float32_disables_autocast(retriever, dtype) -> None:
    full = retriever.encode_queries(mixed_pairs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(retriever.encode_queries(mixed_pairs(), dtype=dtype), full)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_in_other_dtypes(retriever, dtype: torch.dtype) -> None:
    pairs = mixed_pairs()
    full = retriever.encode_queries(pairs)
    retriever.to(dtype)
    low = retriever.encode_queries(pairs)
    assert low.dtype == torch.float32
    assert torch.cosine_similarity(low, full, dim=-1).min() > 0.99
    assert torch.equal(retriever.encode_queries(pairs, dtype=dtype), low)
    with pytest.raises(ConfigError) as error:
        retriever.encode_queries(pairs, dtype="fp32")
    assert (error.value.code, error.value.found, error.value.weights) == (
        "encoding-dtype-unsuitable",
        "fp32",
        str(dtype),
    )
    assert "retriever.to(torch.float32)" in error.value.message


def test_progress_bar_for_long_lists(retriever, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def output(count: int, **options) -> str:
        retriever.encode_passages([(None, None)] * count, batch_size=2, **options)
        out, err = capsys.readouterr()
        assert out == ""
        return err

    assert output(40) == ""
    bar = output(41)
    assert "encoding passages: 100%" in bar
    assert "41/41" in bar
    assert output(41, progress=False) == ""
    assert "3/3" in output(3, progress=True)


@pytest.fixture
def opened(monkeypatch) -> list[threading.Thread]:
    """Return the list that collects the thread of each opened image."""
    threads: list[threading.Thread] = []
    open_image = encode_pairs.open_image

    def recorded(path: Path, *options) -> Image.Image:
        threads.append(threading.current_thread())
        return open_image(path, *options)

    monkeypatch.setattr(encode_pairs, "open_image", recorded)
    return threads


@pytest.mark.parametrize(("batch_size", "num_workers", "ahead"), [(2, 3, 6), (4, 1, 8), (1, 5, 6)])
def test_threads_prepare_few_batches_ahead(
    retriever, opened, tmp_path: Path, batch_size: int, num_workers: int, ahead: int
) -> None:
    picture(0).save(tmp_path / "image.png")
    at_batch: list[int] = []

    def wait(rows: int) -> None:
        # Block the first batch until the threads have reached their limit, and a little longer.
        deadline = time.monotonic() + 20
        while not at_batch and len(opened) < batch_size + ahead and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0 if at_batch else 0.2)
        at_batch.append(len(opened))

    on_encode(retriever, wait)
    pairs = [(None, tmp_path / "image.png")] * 24
    retriever.encode_queries(pairs, batch_size=batch_size, num_workers=num_workers)
    # One batch more than needed to occupy every thread, so that the model does not wait for the last image.
    assert at_batch[0] == batch_size + ahead
    assert len(opened) == 24
    assert threading.main_thread() not in opened


def test_batches_are_prepared_on_demand_without_threads(retriever, opened, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "image.png")
    at_batch: list[int] = []
    on_encode(retriever, lambda rows: at_batch.append(len(opened)))
    retriever.encode_queries([(None, tmp_path / "image.png")] * 5, batch_size=2, num_workers=0)
    assert at_batch == [2, 4, 5]
    assert set(opened) == {threading.main_thread()}


def test_score_matches_maxsim_formula(retriever) -> None:
    queries, passages = mixed_pairs(3), mixed_pairs(7)[2:]
    scores = retriever.score(queries, passages, batch_size=2)
    query = torch.stack([encode_row(retriever.query_tower, *pair) for pair in queries])
    passage = torch.stack([encode_row(retriever.passage_tower, *pair) for pair in passages])
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
def test_gate_activations_match_means(gate: type[Gate]) -> None:
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
