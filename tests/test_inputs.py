"""What a forward pass takes: text, JSON, several tensors on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import prunecli
from prunecli.cli.app import app
from prunecli.inputs import Argument, from_json, parse_inputs, shown, to_json
from prunecli.recipe.load import validate

TEXT = """
import torch
from torch import nn

class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(64, 16)
        self.wide, self.narrow, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, ids, weights):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = x + self.narrow(self.wide(x).relu())
        return self.head((x * weights[..., None]).sum(1))

def build():
    return Weighted()
"""


@pytest.mark.parametrize(
    "text",
    ["1x3x32x32", "1x16:int64", "1x16:int64,1x4", "2:float32,3x4:bool", "2x9:int64,2:int64=9", "1x5:bool=1",
     "2:float", "1x3x8x8,2:float", "1x3x8x8,:int64=7", ":float,1x3"],
)  # fmt: skip
def test_text_and_json_round_trips(text: str) -> None:
    inputs = parse_inputs(text)
    assert shown(inputs) == text
    assert from_json(json.loads(json.dumps(to_json(inputs)))) == inputs


def test_one_tensor_of_the_parameters_dtype_is_a_list_of_sizes() -> None:
    assert to_json((Argument((1, 3, 8, 8)),)) == [1, 3, 8, 8]
    assert to_json((Argument((1, 3), "int64"),)) == "1x3:int64"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1x",
        "3,32,32",
        "1x3,5",
        "1x3,",
        "0x3",
        "1x3:int63",
        "1x3:float32:x",
        "x=1x3",
        "3=5",
        "3:float32=1",
        "3:int8=128",
        "3:int64=-1",
        "3:int64=",
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a shape|unknown dtype|no value of"):
        parse_inputs(text)


@pytest.mark.parametrize("value", [[1, 3, 10**9], [0, 3], [-1, -3], "1x99999999999:int64", None, [[1]], ["a"]])
def test_what_a_damaged_file_says_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        from_json(value)


def test_several_tensors_from_prune_to_onnx(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(TEXT)
    arch, small = f"{tmp_path / 'net.py'}:build", tmp_path / "small.safetensors"
    asked = ["--recipe", "magnitude-flops50", "--set", "data=null", "--set", "train=null"]
    done = CliRunner().invoke(app, ["prune", arch, "--input", "1x12:int64,1x12", *asked, "-o", str(small), "--json"])
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert 0.45 < facts["budget"]["met"] <= 0.5
    assert facts["verified"]["max_rel_error"] < 1e-12
    told = CliRunner().invoke(app, ["analyze", str(small), "--arch", arch, "--json"])
    assert json.loads(told.stdout)["input"] == "1x12:int64,1x12"
    out = ["-o", str(tmp_path / "small.onnx"), "--json"]
    exported = CliRunner().invoke(app, ["export", str(small), "--arch", arch, *out])
    assert exported.exit_code == 0, exported.stderr


class Dosed(nn.Module):
    """Takes one number for each image, and one for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 3)

    def forward(self, images: torch.Tensor, doses: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.last(self.first(images).relu() * doses[:, None, None, None])) / (step + 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_numbers_beside_images(dtype: torch.dtype, tmp_path: Path) -> None:
    images, doses, step = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor(7, dtype=dtype)
    recipe = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}})
    facts = prunecli.prune(recipe, Dosed(), tmp_path / "small.safetensors", prunecli.Opening.like(images, doses, step))
    assert facts.verified is not None
    assert facts.verified.max_rel_error < 1e-12
    small = prunecli.load(tmp_path / "small.safetensors", into=Dosed())
    assert small(images, doses, step).shape == (2, 2, 4, 4)


def test_a_model_of_several_tensors_takes_no_images(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(TEXT)
    command = ["analyze", f"{tmp_path / 'net.py'}:build", "--input", "1x12:int64,1x12", "--data", "digits"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "the model takes 2 tensors" in done.stderr


def test_transformers_of_text_need_no_input_and_no_folder_afterwards(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    whole = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=100, **sizes)).eval()
    whole.save_pretrained(tmp_path / "bert")
    recipe = prunecli.load_recipe("magnitude-flops50", ["budget.flops=0.7", "data=null", "train=null"])
    facts = prunecli.prune(recipe, str(tmp_path / "bert"), tmp_path / "small.safetensors")
    assert facts.after.params < facts.before.params
    small = prunecli.load(tmp_path / "small.safetensors")
    assert type(small) is type(whole)
    ids = torch.randint(0, 100, (2, 9))
    assert small(ids).logits.shape == whole(ids).logits.shape
