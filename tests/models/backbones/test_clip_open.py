"""OpenCLIP backbones: states compared with open_clip and transformers, and loading of weights."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.pretrained import _PRETRAINED
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from ret_lightning.errors import ConfigError, TokenError, UserError
from ret_lightning.inputs import ClipTokenizer, EncoderInput, ImageTransform
from ret_lightning.models import Backbone, BlockStack, LSTMGate, RetRetriever, build_retriever
from ret_lightning.models.backbones.clip_open import OpenClipTextStack, OpenClipVisionStack, open_clip_backbone
from ret_lightning.models.backbones.clip_transformers import ClipTextStack, ClipVisionStack

TOLERANCE = 1e-5  # relative to the largest magnitude of the tensor
NAME, TAG, HUB_ID = "ViT-tiny-test", "made_here", "somebody/tiny"
H_ID = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

# Two plain CLIPs whose text and vision stacks have different sizes.
CONFIGS = {
    "gelu": {
        "embed_dim": 12,
        "vision_cfg": {
            "image_size": 16,
            "patch_size": 4,
            "width": 24,
            "head_width": 8,
            "layers": 5,
            "mlp_ratio": 4.9231,
        },
        "text_cfg": {"context_length": 20, "vocab_size": 99, "width": 16, "heads": 2, "layers": 4},
    },
    "quick_gelu": {
        "embed_dim": 20,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 21, "patch_size": 7, "width": 16, "head_width": 4, "layers": 2},
        "text_cfg": {"context_length": 11, "vocab_size": 50, "width": 36, "heads": 3, "layers": 3, "mlp_ratio": 2.0},
    },
}


def tiny_clip(kind: str = "gelu") -> open_clip.CLIP:
    """Build a CLIP with random weights, including norms and biases, so that lost or swapped tensors are detected."""
    clip = open_clip.CLIP(**deepcopy(CONFIGS[kind])).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.normal_(std=0.3)
    return clip


def stacks(clip: open_clip.CLIP) -> tuple[OpenClipTextStack, OpenClipVisionStack]:
    return OpenClipTextStack(clip).eval(), OpenClipVisionStack(clip).eval()


def token_ids(clip: open_clip.CLIP, length: int | None = None, rows: int = 3) -> Tensor:
    """Return texts of several lengths, padded on the right with 0 as by open_clip."""
    length = length or clip.context_length
    ids = torch.randint(1, clip.vocab_size, (rows, length))
    return ids * (torch.arange(length)[None] < torch.tensor([length, length - 2, 2])[:rows, None])


def pixels(clip: open_clip.CLIP, rows: int = 3) -> Tensor:
    return torch.randn(rows, 3, *clip.visual.image_size)


def all_states(stack: BlockStack, inputs: Tensor) -> list[Tensor]:
    return stack(inputs, range(stack.num_blocks))


def hooked_states(clip: open_clip.CLIP, ids: Tensor, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the output of each block while open_clip encodes texts of full length, and images."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for states, transformer in zip(found, (clip.transformer, clip.visual.transformer), strict=True):
        for block in transformer.resblocks:
            block.register_forward_hook(lambda _, __, out, states=states: states.append(out))
    with torch.no_grad():
        clip.encode_text(ids)
        clip.encode_image(images)
    return found


def assert_equal_states(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) > 1
    for block, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        assert (a - b).abs().max() < TOLERANCE * b.abs().max(), block


@pytest.mark.parametrize("kind", CONFIGS)
def test_states_match_open_clip(kind: str) -> None:
    clip = tiny_clip(kind)
    text, vision = stacks(deepcopy(clip))
    ids, images = token_ids(clip), pixels(clip)
    text_states, vision_states = hooked_states(clip, ids, images)
    assert (len(text_states), len(vision_states)) == (text.num_blocks, vision.num_blocks)
    assert_equal_states(all_states(text, ids), text_states)
    assert_equal_states(all_states(vision, images), vision_states)
    # A batch of shorter texts is not padded to the full length and has the same states.
    short = 6
    cut = torch.where(torch.arange(clip.context_length)[None] < short, ids, 0)
    text_states, _ = hooked_states(deepcopy(clip), cut, images)
    assert_equal_states(all_states(text, cut[:, :short]), [states[:, :short] for states in text_states])


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("from_transformers", [False, True])
def test_states_match_transformers(kind: str, from_transformers: bool) -> None:
    clip = tiny_clip(kind)
    inputs = ((token_ids(clip), token_ids(clip, length=7)), (pixels(clip),))
    for ours, kind_of_theirs, several in zip(stacks(clip), (ClipTextStack, ClipVisionStack), inputs, strict=True):
        theirs = kind_of_theirs.from_layout_config(ours.layout_config()).eval()
        if from_transformers:
            with torch.no_grad():
                for parameter in theirs.parameters():
                    parameter.normal_(std=0.3)
            before = all_states(ours, several[0])
            ours.load_layout_state(theirs.layout_state())
            assert not torch.equal(all_states(ours, several[0])[0], before[0])
        else:
            theirs.load_layout_state(ours.layout_state())
        for batch in several:
            assert_equal_states(all_states(ours, batch), all_states(theirs, batch))


@pytest.mark.parametrize("kind", CONFIGS)
def test_layout_matches_transformers(kind: str) -> None:
    for ours, theirs in zip(stacks(tiny_clip(kind)), (ClipTextStack, ClipVisionStack), strict=True):
        reference = theirs.from_layout_config(ours.layout_config())
        assert ours.layout_config() == reference.layout_config()
        shapes = {name: tensor.shape for name, tensor in reference.layout_state().items()}
        assert {name: tensor.shape for name, tensor in ours.layout_state().items()} == shapes
        counts = [sum(p.numel() for p in stack.parameters()) for stack in (ours, reference)]
        assert counts[0] == counts[1]


def test_layout_config_fields() -> None:
    text, vision = stacks(tiny_clip("gelu"))
    vision.source = HUB_ID
    common = {"layer_norm_eps": 1e-5, "attention_dropout": 0.0, "initializer_range": 0.02, "initializer_factor": 1.0}
    assert text.layout_config() == {
        **common,
        "model_type": "clip_text_model",
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
        "projection_dim": 12,
        "vocab_size": 99,
        "max_position_embeddings": 20,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    }
    assert vision.layout_config() == {
        **common,
        "model_type": "clip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 118,  # int(24 * 4.9231)
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "hidden_act": "gelu",
        "projection_dim": 12,
        "image_size": 16,
        "patch_size": 4,
        "num_channels": 3,
    }
    assert stacks(tiny_clip("quick_gelu"))[0].layout_config()["hidden_act"] == "quick_gelu"


def test_layout_state_round_trip() -> None:
    for ours, kind in zip(stacks(tiny_clip()), (OpenClipTextStack, OpenClipVisionStack), strict=True):
        state = ours.layout_state()
        own = {tensor.untyped_storage().data_ptr() for tensor in ours.state_dict().values()}
        assert {tensor.untyped_storage().data_ptr() for tensor in state.values()} == own
        with torch.device("meta"):
            empty = kind(open_clip.CLIP(**CONFIGS["gelu"]))
        empty.load_layout_state({name: tensor.half() for name, tensor in state.items()})
        assert {(p.dtype, p.device.type) for p in empty.parameters()} == {(torch.float16, "cpu")}
        back = empty.layout_state()
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], tensor.half()) for name, tensor in state.items())
        last, _ = state.popitem()
        with pytest.raises(RuntimeError, match=rf"missing or unexpected tensors: {last}$"):
            empty.load_layout_state(state)


def test_stack_from_meta_device_runs_with_weights() -> None:
    clip = tiny_clip()
    with torch.device("meta"):
        empty = (
            OpenClipTextStack(open_clip.CLIP(**CONFIGS["gelu"])),
            OpenClipVisionStack(open_clip.CLIP(**CONFIGS["gelu"])),
        )
    for ours, full, inputs in zip(empty, stacks(clip), (token_ids(clip), pixels(clip)), strict=True):
        ours.eval().load_layout_state(full.layout_state())
        assert_equal_states(all_states(ours, inputs), all_states(full, inputs))


@pytest.mark.parametrize("trained", [False, 1, 2, True])
def test_gradients_and_modes_of_trained_blocks(trained: bool | int) -> None:
    clip = tiny_clip()
    embeddings = (
        {"token_embedding.weight", "positional_embedding"},
        {"conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight", "ln_pre.bias"},
    )
    for stack, inputs, embedding in zip(stacks(clip), (token_ids(clip), pixels(clip)), embeddings, strict=True):
        stack.set_trained(trained, last_used_block=2)
        stack.train()
        first = 3 - trained if trained is not True else 0
        expected = {
            n
            for n, _ in stack.named_parameters()
            if n.startswith(tuple(f"transformer.resblocks.{i}." for i in range(first, 3)))
        }
        if trained is True:
            expected |= embedding
        states = stack(inputs, [0, 2])
        assert [s.requires_grad for s in states] == [trained is True, bool(trained)]
        if trained:
            states[1].square().sum().backward()
        assert {n for n, p in stack.named_parameters() if p.grad is not None} == expected
        assert {n for n, p in stack.named_parameters() if p.requires_grad} == expected
        modes = [stack.block(i).training for i in range(stack.num_blocks)]
        assert modes[:3] == [i >= first for i in range(3)]
        if trained is not True:
            assert not any(modes[3:])
        # An empty batch has empty states, but the trained parameters get a zero gradient.
        stack.zero_grad(set_to_none=True)
        empty = stack(inputs[:0], [0, 2])
        assert [s.shape for s in empty] == [(0, 1, stack.width)] * 2
        if trained:
            sum(s.sum() for s in empty).backward()
        assert {n for n, p in stack.named_parameters() if p.grad is not None} == expected
        assert not any(p.grad.any() for p in stack.parameters() if p.grad is not None)


def test_patch_dropout_is_ignored_and_bfloat16_runs() -> None:
    config = deepcopy(CONFIGS["gelu"])
    config["vision_cfg"]["patch_dropout"] = 0.5
    clip = open_clip.CLIP(**config)
    text, vision = OpenClipTextStack(clip).train(), OpenClipVisionStack(clip).train()
    for stack, inputs in ((text, token_ids(clip)), (vision, pixels(clip))):
        exact = all_states(stack, inputs)[-1]
        assert exact.shape[1] == (20 if stack is text else 4 * 4 + 1)
        assert torch.equal(exact, all_states(stack, inputs)[-1])
        with torch.autocast("cpu", torch.bfloat16):
            mixed = all_states(stack, inputs)[-1]
        low = all_states(deepcopy(stack).bfloat16(), inputs)[-1]
        assert low.dtype == torch.bfloat16
        for rough in (mixed, low):
            assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_inputs_of_wrong_size_are_refused() -> None:
    clip = tiny_clip()
    text, vision = stacks(clip)
    with pytest.raises(TokenError) as error:
        text(torch.ones(1, 21, dtype=torch.int64), [0])
    assert (error.value.code, error.value.found, error.value.most) == ("text-longer-than-positions", 21, 20)
    with pytest.raises(TokenError) as error:
        text(torch.full((1, 3), 99), [0])
    assert (error.value.code, error.value.found, error.value.entries) == ("token-id-out-of-vocabulary", 99, 99)
    with pytest.raises(ValueError, match=r"expected images of 16 x 16 pixels .*, got \(16, 20\)"):
        vision(torch.zeros(1, 3, 16, 20), [0])


def test_saved_retriever_is_loaded_with_transformers(tmp_path: Path) -> None:
    clip = tiny_clip()
    text, vision = stacks(clip)
    backbone = Backbone(text, vision, ClipTokenizer(20), ImageTransform(16))
    retriever = build_retriever(
        backbone, gate=LSTMGate, num_tokens=4, hidden_size=32, num_heads=2, output_size=8
    ).eval()
    retriever.save_pretrained(tmp_path)
    again = RetRetriever.from_pretrained(tmp_path)
    assert isinstance(again.query_tower.text_backbone, ClipTextStack)
    ids = token_ids(clip, length=9)
    rows = EncoderInput.dense(ids, ids > 0, pixels(clip), torch.tensor([1, 1, 0]), torch.tensor([1, 0, 1]))
    for side in ("query", "passage"):
        torch.testing.assert_close(again.encode(side, rows), retriever.encode(side, rows), rtol=0, atol=TOLERANCE)


@pytest.fixture
def tiny_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Register a tiny architecture and tag with open_clip, with an empty hub cache; return the name."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, CONFIGS["gelu"])
    entry = {"hf_hub": f"{HUB_ID}/", "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "quick_gelu": False}
    monkeypatch.setitem(_PRETRAINED, NAME, {TAG: entry, "quick": {**entry, "quick_gelu": True}})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return NAME


@pytest.mark.parametrize("file_name", ["weights.safetensors", "weights.pt", "ddp.pt"])
def test_weights_from_file_match_open_clip(tiny_name: str, tmp_path: Path, file_name: str) -> None:
    file = tmp_path / file_name
    state = {name: tensor.half() for name, tensor in tiny_clip().state_dict().items()}
    if file.suffix == ".safetensors":
        save_file(state, file)
    elif file.stem == "ddp":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    else:
        torch.save(state, file)
    backbone = open_clip_backbone(tiny_name, pretrained=str(file))
    assert {(p.dtype, p.device.type) for s in (backbone.text, backbone.vision) for p in s.parameters()} == {
        (torch.float32, "cpu")
    }
    assert backbone.text.source == backbone.vision.source == ""
    theirs = open_clip.create_model(tiny_name, pretrained=str(file)).eval()
    ids, images = token_ids(theirs), pixels(theirs)
    text_states, vision_states = hooked_states(theirs, ids, images)
    assert_equal_states(all_states(backbone.text.eval(), ids), text_states)
    assert_equal_states(all_states(backbone.vision.eval(), images), vision_states)


def test_tag_is_loaded_from_hub_cache(tiny_name: str, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--somebody--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    clip = tiny_clip()
    save_file(clip.state_dict(), snapshot / "open_clip_model.safetensors")
    backbone = open_clip_backbone(tiny_name, pretrained=TAG)
    assert backbone.text.source == backbone.vision.source == HUB_ID
    assert (backbone.image_transform.size, backbone.image_transform.mean) == (16, (0.5, 0.5, 0.5))
    assert backbone.tokenizer.max_length == 20
    ids = token_ids(clip)
    assert_equal_states(all_states(backbone.text.eval(), ids), all_states(OpenClipTextStack(clip), ids))


def test_copy_for_transformers(tiny_name: str, tmp_path: Path) -> None:
    text, vision = stacks(tiny_clip())
    model = CLIPModel(CLIPConfig(text_config=text.layout_config(), vision_config=vision.layout_config())).eval()
    model.save_pretrained(tmp_path / "copy")
    backbone = open_clip_backbone(tiny_name, pretrained=TAG, library="transformers", copy=str(tmp_path / "copy"))
    assert backbone.text.source == str(tmp_path / "copy")
    assert isinstance(backbone.text, ClipTextStack)
    assert isinstance(backbone.vision, ClipVisionStack)
    weights = {f"text_model.{n}": t for n, t in model.text_model.state_dict().items()}
    for name, tensor in backbone.text.layout_state().items():
        assert torch.equal(tensor, weights[name])
    other = OpenClipTextStack(open_clip.CLIP(**CONFIGS["quick_gelu"])).layout_config()
    CLIPModel(CLIPConfig(text_config=other, vision_config=vision.layout_config())).save_pretrained(tmp_path / "other")

    def error_of(folder: str) -> UserError:
        with pytest.raises(UserError) as error:
            open_clip_backbone(tiny_name, pretrained=TAG, library="transformers", copy=str(tmp_path / folder))
        assert error.value.message.startswith(f"backbone.copy={tmp_path / folder}: ")
        return error.value

    error = error_of("other")
    assert (error.code, error.key, error.found, error.expected) == ("backbone-copy-differs", "hidden_size", 36, 16)
    # A missing tensor must not be initialised randomly.
    state = model.state_dict()
    del state["vision_model.embeddings.class_embedding"]
    save_file(state, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    error = error_of("copy")
    assert (error.code, error.missing) == ("backbone-weights-missing", ("embeddings.class_embedding",))
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"torn")
    assert error_of("copy").code == "weights-not-in-folder"
    assert error_of("nowhere").code == "weights-folder-missing"


def test_random_weights_have_same_sizes_in_both_libraries(tiny_name: str) -> None:
    ours, theirs = (open_clip_backbone(tiny_name, library=library) for library in ("open_clip", "transformers"))
    for a, b in ((ours.text, theirs.text), (ours.vision, theirs.vision)):
        assert type(a) is not type(b)
        assert a.layout_config() == b.layout_config()
        assert a.source == b.source == ""
    ids = torch.randint(1, 99, (2, 20))
    assert torch.isfinite(all_states(ours.text, ids)[-1]).all()
    torch.manual_seed(5)
    one = open_clip_backbone(tiny_name).text.token_embedding.weight
    torch.manual_seed(5)
    assert torch.equal(open_clip_backbone(tiny_name).text.token_embedding.weight, one)


def test_missing_weights_are_reported_with_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for library, option in (("open_clip", "pretrained=laion2b_s32b_b79k"), ("transformers", f"copy={H_ID}")):
        with pytest.raises(UserError) as caught:
            open_clip_backbone("ViT-H-14", pretrained="laion2b_s32b_b79k", library=library)
        message = str(caught.value)
        assert (caught.value.code, caught.value.found) == ("weights-not-downloaded", H_ID)
        assert "\n" not in message
        assert message.startswith(f"backbone.{option}: the weights of {H_ID} are not in {tmp_path / 'hub'}")
        assert f"`hf download {H_ID}`" in message
        assert "backbone.pretrained=null for random weights" in message


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_files_of_other_weights_are_refused(tiny_name: str, tmp_path: Path) -> None:
    def refused(file: Path) -> UserError:
        with pytest.raises(UserError) as caught:
            open_clip_backbone(tiny_name, pretrained=str(file))
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"backbone.pretrained={file}: ")
        return caught.value

    torch.save({"state_dict": Payload(tmp_path / "executed")}, tmp_path / "hostile.pt")
    assert refused(tmp_path / "hostile.pt").code == "backbone-weights-hold-code"
    assert not (tmp_path / "executed").exists()
    state = tiny_clip().state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    assert refused(tmp_path / "torn.safetensors").code == "backbone-weights-unreadable"
    save_file(tiny_clip("quick_gelu").state_dict(), tmp_path / "other.safetensors")
    assert refused(tmp_path / "other.safetensors").code == "backbone-weights-differ"
    missing = {name: tensor for name, tensor in state.items() if name != "visual.ln_post.bias"}
    save_file(missing, tmp_path / "missing.safetensors")
    error = refused(tmp_path / "missing.safetensors")
    assert (error.key, error.found, error.expected) == ("visual.ln_post.bias", "nothing", (24,))
    deeper = {**state, "transformer.resblocks.4.ln_1.bias": torch.zeros(16)}
    save_file(deeper, tmp_path / "deeper.safetensors")
    error = refused(tmp_path / "deeper.safetensors")
    assert (error.key, error.found, error.expected) == ("transformer.resblocks.4.ln_1.bias", (16,), "nothing")
    torch.save([1, 2], tmp_path / "list.pt")
    assert refused(tmp_path / "list.pt").code == "backbone-weights-differ"


@pytest.mark.parametrize(
    ("options", "code", "values"),
    [
        ({"name": "ViT-H14"}, "backbone-name-unknown", {"found": "ViT-H14"}),
        ({"name": "qqqqqqq"}, "backbone-name-unknown", {"found": "qqqqqqq"}),
        ({"pretrained": "laion"}, "backbone-tag-unknown", {"found": "laion", "allowed": (TAG, "quick")}),
        ({"pretrained": "quick"}, "backbone-activation-differs", {"expected": "ViT-tiny-test-quickgelu"}),
        ({"library": "timm"}, "backbone-library-unknown", {"found": "timm"}),
        ({"pretrained": __file__, "library": "transformers"}, "backbone-file-of-open-clip", {"found": __file__}),
        (
            {"image_transform": ImageTransform(32)},
            "backbone-image-transform-differs",
            {"key": "backbone.image_transform.size", "found": 32, "expected": 16},
        ),
    ],
)
def test_invalid_options_are_refused(tiny_name: str, options: dict, code: str, values: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        open_clip_backbone(**{"name": tiny_name, **options})
    assert caught.value.code == code
    assert caught.value.values.items() >= values.items()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("RN50", "vision_cfg.layers=[3, 4, 6, 3]"),
        ("convnext_base", "vision_cfg.timm_"),
        ("coca_ViT-B-32", "custom_text"),
        ("roberta-ViT-B-32", "text_cfg.hf_model_name=roberta-base"),
        ("ViT-B-16-SigLIP", "custom_text"),
        ("ViT-H-14-CLIPA", "vision_cfg.final_ln_after_pool=True"),
    ],
)
def test_architectures_other_than_clip_are_refused(name: str, setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_clip_backbone(name)
    assert (caught.value.code, caught.value.found) == ("backbone-name-not-plain", name)
    assert caught.value.settings[0].startswith(setting)
    assert caught.value.settings[0] in str(caught.value)


def test_other_normalisation_than_tag_is_refused(tiny_name: str, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    text, vision = (stack.layout_config() for stack in stacks(tiny_clip()))
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    options = {"pretrained": TAG, "library": "transformers", "copy": str(folder)}
    with pytest.raises(ConfigError) as error:
        open_clip_backbone(tiny_name, **options, image_transform=ImageTransform(16))
    assert (error.value.code, error.value.key) == (
        "backbone-image-transform-differs",
        "backbone.image_transform.mean",
    )
    assert error.value.expected == (0.5, 0.5, 0.5)
    given = ImageTransform(16, mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2])
    assert open_clip_backbone(tiny_name, **options, image_transform=given).image_transform is given


@pytest.mark.slow
def test_open_clip_is_imported_lazily() -> None:
    code = "import sys, ret_lightning.models; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
