"""Networks of ultralytics and diffusers: every group halved, then a random cut, each compared with the masked model.

pip install ultralytics diffusers && python benchmarks/libraries.py [NAME ...]
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.errors import summary
from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.plan import repair
from prunecli.surgery.probe import halves, settle, survey
from prunecli.surgery.verify import TOLERANCE, compare, widest

Call = Callable[..., Any]


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


def networks() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[Tensor, ...]]]:
    """Name, how to build it, and one input."""
    import diffusers

    for name in YOLO:
        yield f"ultralytics {name}", lambda name=name: yolo(name), (torch.randn(1, 3, 160, 160),)  # type: ignore[misc]
    for name, known in DIFFUSERS.items():
        build = lambda n=name, k=known: Called(getattr(diffusers, n)(**k.config), k.call)  # noqa: E731
        yield f"diffusers {name}", build, known.inputs


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


def main() -> None:
    """A row for each network, then the totals."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="parts of names")
    names = parser.parse_args().names
    warnings.simplefilter("ignore")
    versions = ", ".join(f"{name} {version(name)}" for name in ("prunecli", "torch", "ultralytics", "diffusers"))
    print(f"{versions}\n| network | params | left after halving | largest error | |\n| --- | --- | --- | --- | --- |")
    passed: dict[str, list[bool]] = {}
    for name, build, inputs in networks():
        if names and not any(part in name for part in names):
            continue
        torch.manual_seed(0)
        module, example = widest(build().eval(), Example(inputs))
        params, dtype = sum(p.numel() for p in module.parameters()), next(module.parameters()).dtype
        try:
            left, error = check(module, example)
            state = f"{'ok' if error <= TOLERANCE[dtype] else 'differs'}, {dtype}"
            figures = f"{left:.0%} | {error:.0e}"
        except Exception as problem:
            state, figures = summary(problem), " | "
        passed.setdefault(name.partition(" ")[0], []).append(state.startswith("ok"))
        print(f"| {name} | {params / 1e6:.2f} M | {figures} | {state} |", flush=True)
    for library, found in passed.items():
        print(f"{library}: {sum(found)} of {len(found)}")


if __name__ == "__main__":
    main()
