"""Networks of other libraries: every group halved, then a random cut, each compared with the masked model.

pip install ultralytics diffusers segmentation-models-pytorch monai vit-pytorch
python benchmarks/libraries.py [NAME ...]

A library that is not installed is left out.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.errors import summary
from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example
from prunecli.graph.tensors import home
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.plan import repair
from prunecli.surgery.probe import halves, settle, survey
from prunecli.surgery.verify import TOLERANCE, compare, widest

Call = Callable[..., Any]
HEADER = "| network | params | left after halving | largest error | |\n| --- | --- | --- | --- | --- |"


class Called(nn.Module):
    """A network whose forward pass takes more than tensors in a row."""

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: Tensor) -> Any:
        """Whatever the network gives."""
        return self.call(self.network, *inputs)


def plainly(network: nn.Module, *inputs: Tensor) -> Any:
    """What diffusers takes in a row, without its classes around the outputs."""
    return network(*inputs, return_dict=False)


STEP = torch.tensor([3])


@dataclass(frozen=True)
class Diffuser:
    """A class of diffusers in a small configuration."""

    inputs: tuple[Tensor, ...]
    config: dict[str, Any]
    call: Call = plainly


UNET = {
    "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
    "cross_attention_dim": 24, "attention_head_dim": 4,
}  # fmt: skip
CODER = {
    "block_out_channels": (16, 32), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4,
}  # fmt: skip
HEADS = {"num_attention_heads": 4, "attention_head_dim": 8}
IMAGE, LATENT, TEXT = torch.randn(1, 3, 32, 32), torch.randn(1, 4, 8, 8), torch.randn(1, 5, 24)
VIDEO = torch.randn(1, 4, 2, 8, 8)

DIFFUSERS: dict[str, Diffuser] = {
    "UNet2DModel": Diffuser(
        (torch.randn(1, 3, 16, 16), STEP),
        {
            **{k: v for k, v in UNET.items() if k != "cross_attention_dim"},
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "UNet2DConditionModel": Diffuser(
        (torch.randn(1, 4, 16, 16), STEP, TEXT),
        {
            **UNET,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
    ),
    "UNet3DConditionModel": Diffuser(
        (torch.randn(1, 4, 2, 16, 16), STEP, TEXT),
        {
            **UNET,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
    ),
    "AutoencoderKL": Diffuser((IMAGE,), {**CODER, "latent_channels": 4, "sample_size": 32}),
    "VQModel": Diffuser((IMAGE,), {**CODER, "latent_channels": 3}),
    "AutoencoderTiny": Diffuser(
        (IMAGE,),
        {
            "encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1),
        },
    ),
    "AutoencoderOobleck": Diffuser(
        (torch.randn(1, 1, 64),),
        {
            "encoder_hidden_size": 8, "downsampling_ratios": [2, 2], "decoder_channels": 8,
            "decoder_input_channels": 4, "audio_channels": 1, "channel_multiples": [2, 4],
        },
        lambda network, x: network.decode(network.encode(x).latent_dist.mode()).sample,
    ),
    "DiTTransformer2DModel": Diffuser(
        (LATENT,),
        {**HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 10},
        lambda network, x: network(x, timestep=STEP, class_labels=torch.tensor([1])).sample,
    ),
    "PixArtTransformer2DModel": Diffuser(
        (LATENT, TEXT),
        {
            **HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 8,
            "cross_attention_dim": 32, "caption_channels": 24,
        },
        lambda network, x, text: network(
            x, encoder_hidden_states=text, timestep=STEP,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample,
    ),
    "SD3Transformer2DModel": Diffuser(
        (LATENT, TEXT, torch.randn(1, 16), STEP),
        {
            **HEADS, "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "joint_attention_dim": 24,
            "caption_projection_dim": 32, "pooled_projection_dim": 16, "out_channels": 4,
        },
    ),
    "FluxTransformer2DModel": Diffuser(
        (torch.randn(1, 16, 4), TEXT, torch.randn(1, 16)),
        {
            "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 4, 8),
        },
        lambda network, x, text, pooled: network(
            x, encoder_hidden_states=text, pooled_projections=pooled, timestep=x.new_ones(1),
            img_ids=x.new_zeros(16, 3), txt_ids=x.new_zeros(5, 3),
        ).sample,
    ),
    "SanaTransformer2DModel": Diffuser(
        (LATENT, TEXT),
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16,
            "caption_channels": 24, "sample_size": 8,
        },
        lambda network, x, text: network(x, encoder_hidden_states=text, timestep=STEP).sample,
    ),
    "CogVideoXTransformer3DModel": Diffuser(
        (torch.randn(1, 3, 4, 8, 8), TEXT),
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 16, "text_embed_dim": 24, "num_layers": 1,
            "sample_width": 8, "sample_height": 8, "sample_frames": 9, "max_text_seq_length": 5,
        },
        lambda network, x, text: network(x, text, STEP).sample,
    ),
    "PriorTransformer": Diffuser(
        (torch.randn(1, 16), torch.randn(1, 16), torch.randn(1, 5, 16)),
        {**HEADS, "num_layers": 2, "embedding_dim": 16, "num_embeddings": 5, "additional_embeddings": 4},
        lambda network, x, image, text: network(x, STEP, image, encoder_hidden_states=text, return_dict=False),
    ),
    "LatteTransformer3DModel": Diffuser(
        (VIDEO, TEXT),
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "sample_size": 8, "patch_size": 2,
            "cross_attention_dim": 32, "caption_channels": 24, "attention_bias": True, "norm_type": "ada_norm_single",
            "video_length": 2,
        },
        lambda network, x, text: network(x, timestep=STEP, encoder_hidden_states=text).sample,
    ),
    "AuraFlowTransformer2DModel": Diffuser(
        (LATENT, TEXT, STEP),
        {
            **HEADS, "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1,
            "num_single_dit_layers": 1, "joint_attention_dim": 24, "caption_projection_dim": 32, "out_channels": 4,
            "pos_embed_max_size": 64,
        },
    ),
    "WanTransformer3DModel": Diffuser(
        (VIDEO, STEP, TEXT),
        {
            "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
            "out_channels": 4, "text_dim": 24, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2,
        },
    ),
    "LTXVideoTransformer3DModel": Diffuser(
        (torch.randn(1, 16, 4), TEXT),
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
            "cross_attention_dim": 16, "num_layers": 1, "caption_channels": 24,
        },
        lambda network, x, text: network(x, text, STEP, torch.ones(1, 5), num_frames=1, height=4, width=4).sample,
    ),
}  # fmt: skip
YOLO = (
    "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-seg", "yolov8n-cls", "yolov8n-pose", "yolov8n-obb",
    "yolov8n-ghost", "yolov8n-p2", "yolov9t", "yolov10n", "yolo11n", "yolo11n-cls", "yolo12n", "yolo26n", "rtdetr-l",
    "rtdetr-resnet50", "yolov8-rtdetr",
)  # fmt: skip


TASKS = {"-seg": "Segmentation", "-cls": "Classification", "-pose": "Pose", "-obb": "OBB", "rtdetr": "RTDETRDetection"}


def yolo(name: str) -> nn.Module:
    """A network of ultralytics from the description that comes with it, random weights."""
    from ultralytics.nn import tasks

    task = next((task for part, task in TASKS.items() if part in name), "Detection")
    network: nn.Module = getattr(tasks, f"{task}Model")(f"{name}.yaml", verbose=False)
    return network


SEGMENTATION = (
    *((decoder, "resnet18") for decoder in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "DeepLabV3",
                                            "DeepLabV3Plus", "PAN", "UPerNet", "Segformer")),
    *(("Unet", encoder) for encoder in ("mobilenet_v2", "efficientnet-b0", "timm-regnetx_002", "mit_b0", "densenet121",
                                        "vgg11_bn", "se_resnet50", "dpn68", "xception", "inceptionv4", "mobileone_s0")),
)  # fmt: skip

PLACES = {"spatial_dims": 3, "in_channels": 1}
LEVELS = {"out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2)}
BASIC = {"out_channels": 2, "features": (8, 8, 16, 32, 64, 8)}
PATCHES = {"img_size": (32, 32), "hidden_size": 48, "mlp_dim": 96, "num_heads": 4}
MONAI: dict[str, tuple[dict[str, Any], int]] = {  # and how many dims of places
    "UNet": ({**PLACES, **LEVELS, "num_res_units": 2}, 3),
    "AttentionUnet": ({**PLACES, **LEVELS}, 3),
    "BasicUNet": ({**PLACES, **BASIC}, 3),
    "BasicUNetPlusPlus": ({**PLACES, **BASIC, "spatial_dims": 2}, 2),
    "DynUNet": (
        {
            **PLACES, "out_channels": 2, "kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "filters": [8, 16, 32, 32],
            "upsample_kernel_size": [2] * 3, "deep_supervision": True, "res_block": True,
        },
        3,
    ),
    "SegResNet": ({"init_filters": 8}, 3),
    "SegResNetVAE": ({"input_image_size": (32,) * 3, "init_filters": 8}, 3),
    "SegResNetDS": ({"init_filters": 8}, 3),
    "VNet": ({"out_channels": 2}, 3),
    "HighResNet": ({**PLACES, "out_channels": 2}, 3),
    "UNETR": ({**PATCHES, "in_channels": 1, "out_channels": 2, "img_size": (32,) * 3, "feature_size": 8}, 3),
    "DenseNet121": ({**PLACES, "out_channels": 2}, 3),
    "SEResNet50": ({"spatial_dims": 2, "in_channels": 1, "num_classes": 3}, 2),
    "AutoEncoder": ({**LEVELS, "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "strides": (2, 2, 2)}, 2),
    "VarAutoEncoder": (
        {
            "spatial_dims": 2, "in_shape": (1, 32, 32), "out_channels": 1, "latent_size": 8, "channels": (8, 16),
            "strides": (2, 2),
        },
        2,
    ),
    "ViT": ({**PATCHES, "in_channels": 1, "patch_size": (8, 8), "num_layers": 2, "spatial_dims": 2}, 2),
    "Discriminator": ({"in_shape": (1, 32, 32), "channels": (8, 16, 32), "strides": (2, 2, 2)}, 2),
    "Quicknat": ({"num_classes": 3, "num_channels": 1, "num_filters": 8}, 2),
}  # fmt: skip

VIT = {"image_size": 64, "patch_size": 16, "num_classes": 5, "dim": 48, "depth": 2, "heads": 4, "mlp_dim": 96}
FOUR = {"num_classes": 5, "dim": (16, 32, 48, 64), "depth": (1, 1, 1, 1)}
VITS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "vit.ViT", "simple_vit.SimpleViT", "deepvit.DeepViT", "parallel_vit.ViT", "learnable_memory_vit.ViT",
            "rvt.RvT", "vit_for_small_dataset.ViT", "simple_flash_attn_vit.SimpleViT", "normalized_vit.nViT",
            "simple_vit_with_qk_norm.SimpleViT", "simple_vit_with_register_tokens.SimpleViT",
            "simple_vit_with_value_residual.SimpleViT",
        ),
        VIT,
    ),
    "cait.CaiT": {**VIT, "cls_depth": 1},
    "xcit.XCiT": {**VIT, "cls_depth": 1, "local_patch_kernel_size": 3},
    "ats_vit.ViT": {**VIT, "max_tokens_per_depth": (8, 4)},
    "pit.PiT": {**VIT, "patch_size": 8, "depth": (1, 1)},
    "levit.LeViT": {
        "image_size": 64, "num_classes": 5, "stages": 2, "dim": (48, 64), "depth": 1, "heads": (2, 4), "mlp_mult": 2,
    },
    "nest.NesT": {
        "image_size": 64, "patch_size": 4, "dim": 16, "heads": 2, "num_hierarchies": 3, "block_repeats": (1, 1, 1),
        "num_classes": 5,
    },
    "mobile_vit.MobileViT": {
        "image_size": (64, 64), "dims": [16, 24, 32], "channels": [8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 32],
        "num_classes": 5, "depths": (1, 1, 1),
    },
    "max_vit.MaxViT": {
        "num_classes": 5, "dim_conv_stem": 16, "dim": 16, "dim_head": 8, "depth": (1, 1), "window_size": 4,
        "mbconv_expansion_rate": 2, "mbconv_shrinkage_rate": 0.25,
    },
    "regionvit.RegionViT": {**FOUR, "window_size": 2},
    "scalable_vit.ScalableViT": {
        **FOUR, "dim": 16, "heads": (2,) * 4, "ssa_dim_key": (8,) * 4, "reduction_factor": (4, 2, 2, 1),
        "window_size": (8, 4, None, None),
    },
}  # fmt: skip

Found = Iterator[tuple[str, Callable[[], nn.Module], tuple[Tensor, ...]]]


def of_ultralytics() -> Found:
    """Detection, segmentation, classification, poses, rotated boxes."""
    for name in YOLO:
        yield name, partial(yolo, name), (torch.randn(1, 3, 160, 160),)


def of_diffusers() -> Found:
    """Networks and autoencoders that images are made with."""
    library = import_module("diffusers")
    for name, known in DIFFUSERS.items():
        yield name, lambda n=name, k=known: Called(getattr(library, n)(**k.config), k.call), known.inputs  # type: ignore[misc]


def of_segmentation_models() -> Found:
    """Every decoder on one encoder, and encoders of many families under one decoder."""
    library = import_module("segmentation_models_pytorch")
    for decoder, encoder in SEGMENTATION:
        build = partial(getattr(library, decoder), encoder, encoder_weights=None, classes=2)
        yield f"{decoder} {encoder}", build, (torch.randn(1, 3, 128, 128),)


def of_monai() -> Found:
    """Medical images, most of them volumes."""
    library = import_module("monai.networks.nets")
    for name, (options, places) in MONAI.items():
        yield name, partial(getattr(library, name), **options), (torch.randn(1, 1, *[32] * places),)


def of_vit_pytorch() -> Found:
    """Vision transformers of many papers."""
    for name, options in VITS.items():
        module, _, kind = name.partition(".")
        build = partial(getattr(import_module(f"vit_pytorch.{module}"), kind), **options)
        yield name, build, (torch.randn(1, 3, 64, 64),)


LIBRARIES: dict[str, Callable[[], Found]] = {
    "ultralytics": of_ultralytics,
    "diffusers": of_diffusers,
    "segmentation-models-pytorch": of_segmentation_models,
    "monai": of_monai,
    "vit-pytorch": of_vit_pytorch,
}


def installed(library: str) -> str:
    """Its version, empty where it is not there."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def check(module: nn.Module, example: Example) -> tuple[float, float]:
    """Share of the parameters left after halving, and the largest relative error of that and of a random cut."""
    dtype = next(module.parameters()).dtype
    channels = survey(module, example)
    removed = halves(channels)
    smaller, _ = cut(module, channels, removed)
    test = random_example(example, 0, batch=1)
    error = compare(masked(module, channels, removed), smaller, [test], dtype).max_rel_error
    wish = repair(channels, np.random.default_rng(1).random(channels.count) < 0.4)
    channels = settle(module, example, channels, wish)
    wish = repair(channels, wish)
    odd, _ = cut(module, channels, wish)
    error = max(error, compare(masked(module, channels, wish), odd, [test], dtype).max_rel_error)
    params = [sum(p.numel() for p in m.parameters()) for m in (smaller, module)]
    return params[0] / params[1], error


def judged(name: str, module: nn.Module, example: Example) -> tuple[bool, str]:
    """Whether both cuts of a network equal the masked model, and a row that says so."""
    params, dtype = sum(p.numel() for p in module.parameters()), home(module).dtype
    try:
        left, error = check(module, example)
        state = f"{'ok' if error <= TOLERANCE[dtype] else 'differs'}, {dtype}"
        figures = f"{left:.0%} | {error:.0e}"
    except Exception as problem:
        state, figures = summary(problem), " | "
    return state.startswith("ok"), f"| {name} | {params / 1e6:.2f} M | {figures} | {state} |"


def main() -> None:
    """A row for each network, then the totals."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="parts of names")
    names = parser.parse_args().names
    warnings.simplefilter("ignore")
    there = {library: installed(library) for library in ("prunecli", "torch", *LIBRARIES)}
    print(", ".join(f"{library} {known or 'is not installed'}" for library, known in there.items()))
    print(HEADER)
    passed = {library: rows(library, names) for library in LIBRARIES if there[library]}
    for library, found in passed.items():
        if found:
            print(f"{library}: {sum(found)} of {len(found)}")


def rows(library: str, parts: list[str]) -> list[bool]:
    """Print what becomes of the networks of a library whose names hold some of these parts; which of them pass."""
    passed = []
    for name, build, inputs in LIBRARIES[library]():
        if parts and not any(part in f"{library} {name}" for part in parts):
            continue
        torch.manual_seed(0)
        same, row = judged(f"{library} {name}", *widest(build().eval(), Example(inputs)))
        passed.append(same)
        print(row, flush=True)
    return passed


if __name__ == "__main__":
    main()
