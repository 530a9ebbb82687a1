"""The fields of a recipe. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    field_validator,
    model_validator,
)

from prunecli.inputs import Inputs, parse_inputs
from prunecli.units import parse_amount


class Closed(BaseModel):
    """Frozen, and no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _amount(value: Any) -> Any:
    return parse_amount(value) if isinstance(value, str) else value


def _nanoseconds(value: Any) -> Any:
    """A time as ``5ms``; a bare number is a share, as everywhere."""
    if not isinstance(value, str) or not value.strip().endswith("s"):
        return _amount(value)
    return parse_amount(value) * 1e9


def _positive(value: float) -> float:
    if not value > 0:
        raise ValueError('must be a share in (0, 1] or an amount such as "1.2G"')
    if 1 < value < 100:
        raise ValueError('must be a share in (0, 1] or an amount such as "1.2G"')
    return value


Amount = Annotated[float, BeforeValidator(_amount), AfterValidator(_positive)]
Latency = Annotated[float, BeforeValidator(_nanoseconds), AfterValidator(_positive)]
Share = Annotated[float, BeforeValidator(_amount), Field(gt=0, lt=1)]


class Iterative(Closed):
    """The budget is approached in steps; after each one scores are computed anew and a part of the training is done.

    `cubic` takes most at the start (Zhu and Gupta 2017, arXiv 1710.01878, equation 1).
    """

    steps: int = Field(5, ge=2, le=1000)
    schedule: Literal["linear", "cubic"] = "linear"

    def shares(self) -> list[float]:
        """How much of the way is gone after each step; the last is 1."""
        power = {"linear": 1, "cubic": 3}[self.schedule]
        return [1 - (1 - step / self.steps) ** power for step in range(1, self.steps + 1)]


UNITS = ("flops", "params", "sparsity", "size", "latency")


class Budget(Closed):
    """One limit, and how it is shared among the layers.

    Attributes:
        flops, params, size, latency: the fraction that is kept, or an absolute amount (operations, elements,
            bytes of the written file, time of one forward pass such as 5ms, kept in nanoseconds).
        sparsity: share of zeros.
        per_layer: ``global`` compares scores of all layers; ``uniform``, ``erk``, ``lamp``; or a file, a CSV with
            the columns ``layer,keep`` or an earlier result, which may also stand alone.
        iterative: reach the limit in steps.
        runtime, device: where latency is measured.
    """

    flops: Amount | None = None
    params: Amount | None = None
    sparsity: Share | None = None
    size: Amount | None = None
    latency: Latency | None = None
    per_layer: str = "global"
    iterative: Iterative | None = None
    runtime: Literal["torch", "onnxruntime"] = "torch"
    device: str = "cpu"

    @model_validator(mode="after")
    def _one(self) -> Budget:
        alone = self.per_layer not in ("global", "uniform", "erk", "lamp")
        if len(self.given) > 1 or not (self.given or alone):
            raise ValueError(f"give exactly one of {', '.join(UNITS)}")
        if self.runtime == "onnxruntime" and self.device != "cpu":
            raise ValueError("onnxruntime is measured on the cpu")
        if self.iterative is not None and not self.given:
            raise ValueError(f"iterative needs one of {', '.join(UNITS)}")
        return self

    @property
    def given(self) -> dict[str, float]:
        """The limits that are set."""
        values = {unit: getattr(self, unit) for unit in UNITS}
        return {unit: value for unit, value in values.items() if value is not None}

    @property
    def unit(self) -> str:
        """Name of the one limit; ``layers`` where a file gives the share of every layer."""
        return next(iter(self.given), "layers")

    @property
    def amount(self) -> float:
        """Value of the one limit."""
        return next(iter(self.given.values()), 1.0)

    @property
    def progress(self) -> list[float]:
        """How much of the way is gone after each step: just 1 where the budget is met at once."""
        return [1.0] if self.iterative is None else self.iterative.shares()


class Distill(Closed):
    """Knowledge distillation (Hinton et al. 2015): loss = (1 - weight) * task + weight * T^2 * KL."""

    weight: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(4.0, gt=0)


class Train(Closed):
    """Training or fine-tuning. Epochs may be a fraction, and 0: then nothing is trained."""

    epochs: FiniteFloat = Field(10, ge=0)
    batch_size: int = Field(128, ge=1, description="images of one forward pass, on each process")
    accumulate: int = Field(1, ge=1, description="forward passes of one optimizer step")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: list[float] = Field(default=[0.5, 0.75], description="shares of the run, for schedule: step")
    gamma: float = Field(0.1, gt=0, le=1)
    warmup_epochs: float = Field(0.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    ema: float | None = Field(None, gt=0, lt=1, description="the largest decay of an average of the weights")
    distill: Distill | None = Field(None, description="prune: from the model before; finetune: from --teacher")
    augment: bool = True
    validation: float = Field(0.05, ge=0, lt=1, description="share of the training images held out")
    device: str = "auto"
    bf16: bool = False
    compile: bool = False
    shard: bool = Field(False, description="under torchrun, each process holds a part of each weight (FSDP2)")
    channels_last: bool = False
    save_seconds: float = Field(  # which changes no result: a run may be resumed with another
        60.0, ge=0, exclude=True, description="how often a resumable state is written"
    )

    @field_validator("milestones")
    @classmethod
    def _shares(cls, value: list[float]) -> list[float]:
        if not all(0 < share < 1 for share in value):
            raise ValueError("must be shares of the run in (0, 1), not epochs: [0.5, 0.75]")
        return value

    @model_validator(mode="after")
    def _sharded(self) -> Train:
        for other in ("ema", "channels_last"):
            if self.shard and getattr(self, other):
                raise ValueError(f"shard does not go together with {other}")
        return self


def _off(value: Any) -> Any:
    return "off" if value is False else value  # YAML reads a bare off as false


class Strip(Closed):
    """What happens to the tensors.

    Attributes:
        round_to: widths become multiples of this where the budget can still be met within 1 %; ``auto`` times
            which multiple the device likes.
        expand: a layer may compute only the channels that vary and fill in the others, where a stream keeps them:
            ``auto`` where that saves time, ``always``, or ``off``. Unless ``off``, a bias for each tap of a kernel
            stands for constant channels under padding.
        fold_batchnorm: at the very end batch norms go into the layers before them, exact in eval.
    """

    round_to: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    expand: Annotated[Literal["auto", "off", "always"], BeforeValidator(_off)] = "auto"
    fold_batchnorm: bool = False


class Recover(Closed):
    """Win accuracy back after a cut of channels without training: images only, no labels.

    Attributes:
        by: ``least_squares`` fits the layers that read removed channels to what they gave before the cut;
            ``batchnorm`` only takes new statistics.
        images: how many training images are looked at.
        augment: shifted and mirrored as in training; better for ``batchnorm``, worse for ``least_squares``.
    """

    by: Literal["least_squares", "batchnorm"] = "least_squares"
    images: int = Field(1024, ge=1)
    augment: bool = False


class Extra(Closed):
    """More figures for the report.

    Attributes:
        overlap_with: an earlier result of the same network; how far its zeros and the new ones overlap.
        linear_probe: what a linear classifier makes of the features.
        layers: a CSV of what is kept of each layer, with its threshold where a method has one; another recipe can
            take it as `budget.per_layer`.
    """

    overlap_with: str | None = None
    linear_probe: bool = False
    layers: str | None = None


class Recipe(Closed):
    """Everything one run needs. `method` is validated by the class that its name stands for."""

    version: Literal[1]
    model: str | None = None
    arch: str | None = None
    input: str | None = Field(None, description="shape, batch included: 1x3x224x224; several: 1x16:int64,1x4")
    data: str | None = None
    method: Any = None
    budget: Budget | None = None
    recover: Recover | None = None
    train: Train | None = None
    strip: Strip = Strip()
    report: Extra = Extra()
    output: str | None = None
    seed: int = 0

    @field_validator("input")
    @classmethod
    def _valid_shape(cls, value: str | None) -> str | None:
        if value is not None:
            parse_inputs(value)
        return value

    @property
    def inputs(self) -> Inputs | None:
        """`input`, read."""
        return None if self.input is None else parse_inputs(self.input)

    @property
    def device(self) -> str:
        """Where whole data sets are looked at: as in `train`, trained or not."""
        return "auto" if self.train is None else self.train.device

    def resolved(self) -> dict[str, Any]:
        """With all defaults, for the file's metadata; paths are left out, so equal runs give equal bytes."""
        data = self.model_dump(exclude={"model", "output", "data", "method", "report"})
        data["method"] = self.method.model_dump() if isinstance(self.method, BaseModel) else self.method
        return data
