"""Networks of transformers: what a configuration names, from installed code only."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from prunecli.arch.hugging_face_inputs import inputs_of
from prunecli.checkpoint.folder import weight_files
from prunecli.errors import ArchError, summary
from prunecli.inputs import Inputs


def is_configured(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of transformers."""
    return "architectures" in config or "model_type" in config


@dataclass(frozen=True)
class Configured:
    """A network that a configuration of transformers describes.

    Attributes:
        path: the file or folder that holds the configuration.
        config: what is in it.
    """

    path: Path
    config: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.path} as {self._kind.__name__}"

    @cached_property
    def _kind(self) -> Any:
        try:
            import transformers
        except ImportError:
            raise ArchError("transformers is not installed", hint="pip install 'prunecli[hf]'") from None
        names = self.config.get("architectures")
        name = names[0] if isinstance(names, list) and names else None
        kind = getattr(transformers, name, None) if isinstance(name, str) else None
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            raise ArchError(f"{self.path}: transformers has no class {name!r}")
        transformers.utils.logging.disable_progress_bar()
        return kind

    def _configuration(self) -> Any:
        return self._kind.config_class.from_dict(dict(self.config))

    def build(self) -> nn.Module:
        """The network with random weights.

        Raises:
            ArchError: transformers is missing, has no such class or does not accept the configuration.
        """
        kind = self._kind
        try:  # in the dtype that the configuration names, as `from_pretrained` does
            module: nn.Module = kind._from_config(self._configuration())
        except Exception as error:  # transformers has no common base for its errors
            raise ArchError(f"{self}: {error}") from error
        return _without_cache(module)

    def filled(self) -> nn.Module:
        """The network with the weights of the folder: it may keep other names on disk than in memory.

        Raises:
            ArchError: as `build`, or weights are missing, which transformers would fill with random numbers.
        """
        kind = self._kind
        safetensors = any(file.suffix == ".safetensors" for file in weight_files(self.path))
        try:
            module, found = kind.from_pretrained(
                str(self.path),
                use_safetensors=safetensors,
                weights_only=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise ArchError(f"{self}: {error}") from error
        if missing := sorted(found["missing_keys"]):
            raise ArchError(f"{self}: {len(missing)} tensors are missing: {', '.join(missing[:3])}")
        return _without_cache(module)

    def inputs(self) -> Inputs:
        """What the forward pass takes.

        Raises:
            ArchError: the configuration does not tell.
        """
        kind = self._kind
        names = list(inspect.signature(kind.forward).parameters)[1:]
        try:
            return inputs_of(self._configuration(), kind.main_input_name, names)
        except Exception as error:  # whatever a configuration holds
            raise ArchError(
                f"what input does {self} take? its configuration does not tell: {summary(error)}",
                hint="say it: --input 1x3x224x224",
            ) from error


def _without_cache(module: nn.Module) -> nn.Module:
    """What a decoder remembers of earlier words is no output that keeps its widths; `generate` turns it on again."""
    for part in module.modules():  # some decoders have a configuration of their own
        if getattr(getattr(part, "config", None), "use_cache", False):
            part.config.use_cache = False  # type: ignore[union-attr]
    return module
