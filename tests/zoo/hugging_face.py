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


# Further families, of which the configuration says all sizes by names like these.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "d_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("hidden_dim", "ffn_hidden_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "vocab_size"), 99),
    **dict.fromkeys(("state_size", "time_step_rank", "conv_kernel"), 4),
    "num_key_value_heads": 2, "head_dim": 8, "embedding_size": 16, "true_hidden_size": 32, "intra_bottleneck_size": 32,
    "image_size": 32, "patch_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TEXT_FAMILIES = (
    "Albert", "Bart", "BigBird", "Bloom", "CTRL", "Camembert", "Cohere", "ConvBert", "Deberta", "DebertaV2",
    "DistilBert", "Electra", "Ernie", "FNet", "Falcon", "Flaubert", "GPTBigCode", "GPTNeoX", "Gemma", "Gemma2", "Glm",
    "Granite", "LongT5", "MBart", "MT5", "Mamba", "Marian", "Mistral", "MobileBert", "ModernBert", "Mpt",
    "Nystromformer", "OPT", "Olmo", "Olmo2", "OpenAIGPT", "Pegasus", "Phi", "Phi3", "Qwen3", "RoFormer", "Roberta",
    "Rwkv", "SmolLM3", "StableLm", "Starcoder2", "XLM", "XLNet",
)  # fmt: skip
IMAGE_FAMILIES = (
    "Beit", "CLIPVision", "DPT", "Data2VecVision", "Dinov2", "Dinov2WithRegisters", "FocalNet", "GLPN", "IJepa",
    "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer", "Pvt", "PvtV2", "RegNet", "ResNet", "SiglipVision",
    "ViTMSN", "VitDet",
)  # fmt: skip


def _tiny(family: str, inputs: dict[str, Any]) -> Network:
    kind, config = getattr(hf, f"{family}Model"), getattr(hf, f"{family}Config")
    given = config().to_dict()
    sizes = {name: size for name, size in SIZES.items() if type(given.get(name, "")) in {int, type(None)}}
    return lambda: kind(config(**sizes, attn_implementation="eager")), inputs


def families() -> dict[str, Network]:
    """Tiny networks of further families."""
    texts = {name: _tiny(name, TEXTS) for name in TEXT_FAMILIES}
    for name, (_, inputs) in texts.items():
        if getattr(hf, f"{name}Config")().is_encoder_decoder:
            texts[name] = _tiny(name, {**inputs, "decoder_input_ids": TOKENS.flip(1)})
    return texts | {name: _tiny(name, {"pixel_values": PICTURES}) for name in IMAGE_FAMILIES}


FAMILIES = families()


def network(name: str) -> tuple[nn.Module, Example]:
    """A network in eval mode with caches off, and its input."""
    factory, inputs = (NETWORKS | FAMILIES)[name]
    torch.manual_seed(0)
    module = factory().eval()
    module.config.use_cache = False
    for part in module.modules():
        if getattr(getattr(part, "config", None), "use_cache", False):
            part.config.use_cache = False
    return module, Example((), dict(inputs))
