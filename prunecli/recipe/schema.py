"""The fields of a recipe. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from prunecli.units import parse_amount, parse_shape


class Closed(BaseModel):
    """Frozen, and no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _amount(value: Any) -> Any:
    return parse_amount(value) if isinstance(value, str) else value


def _positive(value: float) -> float:
    if not value > 0:
        raise ValueError('must be a share in (0, 1] or an amount such as "1.2G"')
    if 1 < value < 100:
        raise ValueError('must be a share in (0, 1] or an amount such as "1.2G"')
    return value


Amount = Annotated[float, BeforeValidator(_amount), AfterValidator(_positive)]
Share = Annotated[float, BeforeValidator(_amount), Field(gt=0, lt=1)]


class Budget(Closed):
    """Exactly one limit. `flops` and `params`: the fraction that is kept, or an absolute amount."""

    flops: Amount | None = None
    params: Amount | None = None
    sparsity: Share | None = None

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if len(self.given) != 1:
            raise ValueError("give exactly one of flops, params, sparsity")
        return self

    @property
    def given(self) -> dict[str, float]:
        """The limits that are set."""
        values = {"flops": self.flops, "params": self.params, "sparsity": self.sparsity}
        return {unit: value for unit, value in values.items() if value is not None}

    @property
    def unit(self) -> str:
        """Name of the one limit."""
        return next(iter(self.given))

    @property
    def amount(self) -> float:
        """Value of the one limit."""
        return next(iter(self.given.values()))


class Distill(Closed):
    """Knowledge distillation (Hinton et al. 2015): loss = (1 - weight) * task + weight * T^2 * KL."""

    weight: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(4.0, gt=0)


class Train(Closed):
    """Training or fine-tuning. Epochs may be 0: then nothing is trained."""

    epochs: int = Field(10, ge=0)
    batch_size: int = Field(128, ge=1)
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
    ema: float | None = Field(None, gt=0, lt=1)
    distill: Distill | None = Field(None, description="prune: from the model before; finetune: from --teacher")
    augment: bool = True
    validation: float = Field(0.05, ge=0, lt=1, description="share of the training images held out")
    device: str = "auto"
    bf16: bool = False
    channels_last: bool = False
    save_seconds: float = Field(60.0, ge=0, description="how often a resumable state is written")


class Strip(Closed):
    """`round_to`: widths become multiples of this where the budget can still be met within 1 %."""

    round_to: int = Field(8, ge=1)


class Recipe(Closed):
    """Everything one run needs. `method` is validated by the class that its name stands for."""

    version: Literal[1]
    model: str | None = None
    arch: str | None = None
    input: str | None = Field(None, description="shape of one input, batch included: 1x3x224x224")
    data: str | None = None
    method: Any = None
    budget: Budget | None = None
    train: Train | None = None
    strip: Strip = Strip()
    output: str | None = None
    seed: int = 0

    @field_validator("input")
    @classmethod
    def _valid_shape(cls, value: str | None) -> str | None:
        if value is not None:
            parse_shape(value)
        return value

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """`input` as numbers."""
        return None if self.input is None else parse_shape(self.input)

    def resolved(self) -> dict[str, Any]:
        """With all defaults, for the file's metadata; paths are left out, so equal runs give equal bytes."""
        data = self.model_dump(exclude={"model", "output", "data", "method"})
        data["method"] = self.method.model_dump() if isinstance(self.method, BaseModel) else self.method
        return data
