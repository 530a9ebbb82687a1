"""Tiny transformers networks built from configurations, without download, each with an input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn

from prunecli.graph.tape import Example

TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
         "image_size": 32, "patch_size": 8}  # fmt: skip
TOKENS = torch.arange(14).reshape(2, 7) % 99
PICTURES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def _clip() -> nn.Module:
    text = {**TEXT, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 13}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=16))


def _whisper() -> nn.Module:
    config = hf.WhisperConfig(
        vocab_size=99, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=10,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return hf.WhisperModel(config)


def _detr() -> nn.Module:
    backbone = hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = hf.DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_queries=5, num_labels=7,
    )  # fmt: skip
    return hf.DetrForObjectDetection(config)


def _causal(kind: str) -> nn.Module:
    config = getattr(hf, f"{kind}Config")(**TEXT, num_key_value_heads=2, max_position_embeddings=64)
    return getattr(hf, f"{kind}ForCausalLM")(config)


def _segformer() -> nn.Module:
    config = hf.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], num_attention_heads=[2, 4],
        patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=32, num_labels=7,
    )  # fmt: skip
    return hf.SegformerForSemanticSegmentation(config)


def _swin() -> nn.Module:
    config = hf.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return hf.SwinForImageClassification(config)


def _t5() -> nn.Module:
    config = hf.T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )  # fmt: skip
    return hf.T5Model(config)


Network = tuple[Callable[[], nn.Module], dict[str, Any]]
TEXTS: dict[str, Any] = {"input_ids": TOKENS}
SPEECH: dict[str, Any] = {"input_features": torch.randn(1, 8, 20), "decoder_input_ids": TOKENS[:1]}
NETWORKS: dict[str, Network] = {
    "BERT": (lambda: hf.BertModel(hf.BertConfig(**TEXT)), TEXTS),
    "GPT-2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4)), TEXTS),
    "Llama": (lambda: _causal("Llama"), TEXTS),
    "Qwen2": (lambda: _causal("Qwen2"), TEXTS),
    "ViT": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**IMAGE)), {"pixel_values": PICTURES}),
    "Swin": (_swin, {"pixel_values": PICTURES}),
    "ConvNeXt": (
        lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2)
        ),
        {"pixel_values": PICTURES},
    ),
    "CLIP": (_clip, {"input_ids": TOKENS, "pixel_values": PICTURES}),
    "Whisper": (_whisper, SPEECH),
    "T5": (_t5, {"input_ids": TOKENS, "decoder_input_ids": TOKENS}),
    "Segformer": (_segformer, {"pixel_values": PICTURES}),
    "DETR": (_detr, {"pixel_values": PICTURES}),
}


def network(name: str) -> tuple[nn.Module, Example]:
    """A network in eval mode with caches off, and its input."""
    factory, inputs = NETWORKS[name]
    torch.manual_seed(0)
    module = factory().eval()
    module.config.use_cache = False
    for part in module.modules():
        if getattr(getattr(part, "config", None), "use_cache", False):
            part.config.use_cache = False
    return module, Example((), dict(inputs))
