"""What networks of transformers take, told from their configuration and the names of their arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prunecli.inputs import Argument, Inputs, from_json, shown

_WORDS = Argument((1, 16), "int64")
_SECOND = 16_000  # samples of sound


def inputs_of(config: Any, main: str, names: list[str]) -> Inputs:
    """One input.

    Args:
        config: of the network.
        main: the argument that the network is about.
        names: of all arguments, in their order.

    Raises:
        KeyError: an argument that nothing is known of.
        TypeError, ValueError: sizes in the configuration are none.
    """
    needed = {main}
    if getattr(config, "is_encoder_decoder", False):
        needed.add("decoder_input_ids")
    if names[:2] == ["input_ids", "pixel_values"]:  # two towers
        needed.update(names[:2])
    last = max((names.index(name) for name in needed if name in names), default=-1)
    first = _ARGUMENTS[main](config)
    found = [_told(name, config, first) for name in names[: last + 1]] or [first]
    return from_json(shown(tuple(found)))  # no more than a file may ask for


def _told(name: str, config: Any, first: Argument) -> Argument:
    if name == "attention_mask":  # everything is looked at
        return Argument((1, first.shape[-1]), "int64", 1)
    return _ARGUMENTS[name](config)


def _words(config: Any) -> Argument:
    """Classifiers that have a decoder answer at the last end of the text, and want as many ends in every example."""
    classifies = any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ())
    ends = classifies and config.is_encoder_decoder and isinstance(config.eos_token_id, int)
    return replace(_WORDS, value=config.eos_token_id) if ends else _WORDS


def _image(config: Any) -> Argument:
    """(1, C, H, W); of a video (1, T, C, H, W)."""
    told = getattr(config, "vision_config", config)
    size = getattr(told, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    frames = [told.num_frames] if hasattr(told, "num_frames") else []
    return Argument((1, *frames, getattr(told, "num_channels", 3), height, width))


def _sound(config: Any) -> Argument:
    """(1, samples), or (1, T, bins) of a spectrogram."""
    return Argument((1, config.max_length, config.num_mel_bins) if hasattr(config, "num_mel_bins") else (1, _SECOND))


def _spectrogram(config: Any) -> Argument:
    """(1, bins, T), of which the first layers take every second."""
    return Argument((1, config.num_mel_bins, 2 * config.max_source_positions))


_ARGUMENTS: dict[str, Callable[[Any], Argument]] = {
    "input_ids": _words, "decoder_input_ids": _words, "pixel_values": _image, "input_values": _sound,
    "input_features": _spectrogram,
}  # fmt: skip
