"""Folders of transformers, from the folder to the smaller file, with nothing said but the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import prunecli
from prunecli.errors import ArchError
from prunecli.inputs import shown
from prunecli.model import open_model
from prunecli.recipe.load import validate

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")


def _vit(**more: object) -> dict[str, object]:
    return {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, **more}


def _coders(**more: object) -> dict[str, object]:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32}
    return {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 99, **sizes, **more}


_TEXT, _IMAGES = _vit(vocab_size=99, max_position_embeddings=32), _vit(image_size=32, patch_size=8)
FOLDERS: dict[str, tuple[dict[str, object], str]] = {
    "T5ForConditionalGeneration": (
        {
            "vocab_size": 99,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 1,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        "1x16:int64,1x16:int64=1,1x16:int64",
    ),
    "WhisperModel": (
        _coders(num_mel_bins=8, max_source_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        "1x8x64,1x64:int64=1,1x16:int64",
    ),
    "BartForSequenceClassification": (_coders(eos_token_id=2), "1x16:int64=2,1x16:int64=1,1x16:int64=2"),
    "PegasusModel": (_coders(), "1x16:int64,1x16:int64=1,1x16:int64"),
    "CLIPModel": ({"text_config": _TEXT, "vision_config": _IMAGES}, "1x16:int64,1x3x32x32"),
    "YolosModel": (_vit(image_size=[32, 48], patch_size=8, num_detection_tokens=4), "1x3x32x48"),
    "VideoMAEModel": (_vit(image_size=32, patch_size=8, num_frames=4), "1x4x3x32x32"),
    "ASTModel": (_vit(max_length=64, num_mel_bins=32), "1x64x32"),
    "GPT2LMHeadModel": ({"vocab_size": 99, "n_embd": 32, "n_layer": 1, "n_head": 4}, "1x16:int64"),
}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hugging_face_folder_needs_no_input(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    settings, takes = FOLDERS[kind]
    torch.manual_seed(0)
    network = getattr(transformers, kind)
    network(network.config_class(**settings)).to(dtype).save_pretrained(tmp_path / "folder")
    recipe = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"params": 0.9}})
    facts = prunecli.prune(recipe, str(tmp_path / "folder"), tmp_path / "o.safetensors")
    assert facts.budget.met <= 0.9
    smaller = open_model(str(tmp_path / "o.safetensors"))
    assert shown(smaller.inputs) == takes
    assert {p.dtype for p in smaller.module.parameters()} == {dtype}
    if kind.startswith(("GPT2", "T5")):
        words = smaller.module.generate(torch.ones(1, 4, dtype=torch.int64), max_new_tokens=3, do_sample=False)
        assert words.shape[0] == 1
    if kind == "GPT2LMHeadModel":  # what it remembers is no output, which would keep the heads as wide as they are
        groups = prunecli.analyze(str(tmp_path / "folder")).groups
        assert any("attn" in group.name and not group.frozen for group in groups)


def test_a_configuration_that_does_not_tell_the_input_asks_for_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(**_IMAGES)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_channels": "three"}))
    with pytest.raises(ArchError):
        open_model(str(tmp_path))
