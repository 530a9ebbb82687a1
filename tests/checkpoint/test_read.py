"""All formats come to the same names and numbers; nothing is executed."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import pickle
import struct
import types
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.parametrizations import weight_norm

import prunecli
from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.checkpoint.read import read, sha256
from prunecli.checkpoint.values import LeftOut, left_out
from prunecli.errors import ArchError, CheckpointError, UnsafeFileError
from prunecli.inputs import Argument
from prunecli.model import Opening, open_model
from prunecli.recipe.load import validate

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return dict(build(parse("digits_net")).state_dict())


def save_zip(state: State, path: Path) -> None:
    torch.save(state, path)


def save_legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_safetensors(state: State, path: Path) -> None:
    safetensors.torch.save_file({n: t.clone() for n, t in state.items()}, path)


def nested(key: str, prefix: str = "") -> Callable[[State, Path], None]:
    def save(state: State, path: Path) -> None:
        payload = {"epoch": 3, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}}
        torch.save(payload | {key: {f"{prefix}{n}": t for n, t in state.items()}}, path)

    return save


FORMATS: dict[str, Callable[[State, Path], None]] = {
    "zip": save_zip,
    "legacy": save_legacy,
    "safetensors": save_safetensors,
    "state_dict": nested("state_dict"),
    "model": nested("model"),
    "model_state_dict": nested("model_state_dict"),
    "ema": nested("ema"),
    "model_ema": nested("model_ema"),
    "state_dict_ema": nested("state_dict_ema"),
    "data-parallel": nested("state_dict", "module."),
    "compiled": nested("model", "_orig_mod."),
    "lightning": nested("state_dict", "model."),
    "both": nested("model", "_orig_mod.module."),
    "unusual-key": nested("student"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_tensors(name: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"  # the suffix says nothing
    FORMATS[name](state, path)
    found = read(path).state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[n], state[n]) for n in state)


SPARSE: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": Tensor.to_sparse,
    "csr": Tensor.to_sparse_csr,
    "bsr": lambda tensor: tensor.to_sparse_bsr((2, 2)),
    "negative view": lambda tensor: torch._neg_view(-tensor),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", SPARSE)
def test_sparse_weights_are_made_dense(layout: str, state: State, tmp_path: Path) -> None:
    head = state["head.weight"].where(state["head.weight"] > 0, 0)
    torch.save(state | {"head.weight": SPARSE[layout](head)}, tmp_path / "sparse.pt")
    found = open_model(str(tmp_path / "sparse.pt"), Opening("digits_net")).module
    assert torch.equal(found.get_parameter("head.weight"), head)


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (torch.zeros(10, 64, device="meta"), "was saved from the meta device"),
        (torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (2**40, 2**20), check_invariants=False), "no dense"),
    ],
)
def test_tensors_without_numbers_are_named(tensor: Tensor, problem: str, state: State, tmp_path: Path) -> None:
    torch.save(state | {"head.weight": tensor}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=rf"head\.weight .*{problem}"):
        read(tmp_path / "odd.pt")


def test_packed_numbers_are_named(tmp_path: Path) -> None:
    header = b'{"a.weight":{"dtype":"F4","shape":[8,8],"data_offsets":[0,32]}}'
    (tmp_path / "packed.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))
    with pytest.raises(CheckpointError, match=r"a\.weight packs|Dtype not understood|unknown variant"):
        read(tmp_path / "packed.safetensors")


def test_places_outside_of_a_sparse_tensor_are_not_written(state: State, tmp_path: Path) -> None:
    far = torch.sparse_coo_tensor(torch.full((2, 1), 2**40), torch.ones(1), (10, 64), check_invariants=False)
    torch.save(state | {"head.weight": far}, tmp_path / "hostile.pt")
    with pytest.raises(CheckpointError, match="is damaged"):
        read(tmp_path / "hostile.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_that_do_not_run_together_become_the_widest(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    torch.save(state | {"head.weight": state["head.weight"].to(dtype)}, tmp_path / "mixed.pt")
    found = open_model(str(tmp_path / "mixed.pt"), Opening("digits_net"))
    assert {p.dtype for p in found.module.parameters()} == {torch.promote_types(dtype, torch.float32)}
    assert "do not run together" in found.notes[-1]
    recipe = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.6}})
    prunecli.prune(recipe, str(tmp_path / "mixed.pt"), tmp_path / "small.safetensors", Opening("digits_net"))
    again = open_model(str(tmp_path / "small.safetensors"))
    assert not again.notes


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint16, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_numbers_of_another_kind_are_refused(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    safetensors.torch.save_file(state | {"head.weight": state["head.weight"].to(dtype)}, tmp_path / "odd.safetensors")
    with pytest.raises(ArchError, match=f"it holds {str(dtype)[6:]} where the architecture has float32: head.weight"):
        open_model(str(tmp_path / "odd.safetensors"), Opening("digits_net"))
    facts = prunecli.analyze(str(tmp_path / "odd.safetensors"))  # without an architecture: bare tensors
    assert facts.arch is None
    assert facts.nonzero > 0


def test_the_trained_weights_win_over_their_average_and_key_forces(state: State, tmp_path: Path) -> None:
    averaged = {n: t + 1 for n, t in state.items()}
    torch.save({"ema": averaged, "state_dict": state}, tmp_path / "m.pt")
    plain, forced = read(tmp_path / "m.pt"), read(tmp_path / "m.pt", key="ema")
    assert torch.equal(plain.state["head.weight"], state["head.weight"])
    assert torch.equal(forced.state["head.weight"], averaged["head.weight"])
    assert any("'ema'" in note and "--key" in note for note in plain.notes)


def test_masks_of_torch_prune_are_folded(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    torch_prune.ln_structured(net[0], "weight", 0.5, n=2, dim=0)
    torch_prune.l1_unstructured(net[1], "bias", 1)
    torch.save(net.state_dict(), tmp_path / "masked.pt")
    found = read(tmp_path / "masked.pt").state
    assert found.keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert torch.equal(found["0.weight"], net[0].weight)
    assert torch.equal(found["1.bias"], net[1].bias)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_parametrized_weights_are_folded(dim: int | None, tmp_path: Path) -> None:
    net = nn.Sequential(weight_norm(nn.Linear(3, 4), dim=dim))
    torch.save(net.state_dict(), tmp_path / "norm.pt")
    found = read(tmp_path / "norm.pt").state
    assert found.keys() == {"0.weight", "0.bias"}
    torch.testing.assert_close(found["0.weight"], net[0].weight.detach())


@pytest.mark.parametrize(
    ("magnitude", "direction"),
    [(torch.zeros(0), torch.ones(4, 5)), (torch.ones(2, 3), torch.ones(7)), (torch.ones(5, 1), torch.ones(4, 5)),
     (torch.ones(4, 1, dtype=torch.int64), torch.ones(4, 5, dtype=torch.int64))],
)  # fmt: skip
def test_parts_that_do_not_fit_stay_as_they_are(magnitude: Tensor, direction: Tensor, tmp_path: Path) -> None:
    """Torch's own kernel reads past the end of such a magnitude."""
    parts = {"a.weight_g": magnitude, "a.weight_v": direction, "b.weight_orig": direction, "b.weight_mask": magnitude}
    torch.save(parts, tmp_path / "odd.pt")
    assert read(tmp_path / "odd.pt").state.keys() == parts.keys()


WRAPPING = """
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = weight_norm(nn.Conv2d(3, 4, 3)), nn.Linear(4, 2)
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))

class Wrapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Inner()
    def forward(self, x):
        return self.model(x)
"""


@pytest.mark.parametrize(
    ("arch", "prefix", "note"),
    [
        ("Wrapping", "", ""),
        ("Wrapping", "module.", "prefix 'module.' taken off"),
        ("Inner", "module._orig_mod.", "prefix 'module._orig_mod.' taken off"),
    ],
)
def test_names_that_are_the_models_own_stay(arch: str, prefix: str, note: str, tmp_path: Path) -> None:
    """A prefix may be a wrapper's or the model's; weight norm may be left over or in use."""
    (tmp_path / "net.py").write_text(WRAPPING)
    opening = Opening(arch=f"{tmp_path / 'net.py'}:{arch}", inputs=(Argument((1, 3, 8, 8)),))
    fresh = open_model(opening.arch, Opening(inputs=(Argument((1, 3, 8, 8)),))).module
    path = tmp_path / "weights.pt"
    torch.save({f"{prefix}{name}": t for name, t in fresh.state_dict().items()}, path)
    opened = open_model(str(path), opening)
    assert all(torch.equal(t, opened.module.state_dict()[name]) for name, t in fresh.state_dict().items())
    assert opened.notes == ([note] if note else [])


def test_shared_tensors_stay_shared(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

    torch.save(Tied().state_dict(), tmp_path / "tied.pt")
    found = read(tmp_path / "tied.pt").state
    assert found["a.weight"].data_ptr() == found["b.weight"].data_ptr()


CODE: dict[str, Callable[[Path], None]] = {
    "module": lambda path: torch.save(nn.Linear(2, 3), path),
    "legacy-module": lambda path: torch.save(nn.Linear(2, 3), path, _use_new_zipfile_serialization=False),
    "torchscript": lambda path: torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2)).save(str(path)),
    "pt2": lambda path: torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.zeros(1, 2),)), path),
}


@pytest.mark.parametrize("name", CODE)
def test_code_is_refused_and_read_with_trust(name: str, tmp_path: Path) -> None:
    path = tmp_path / ("m.pt2" if name == "pt2" else "m.pt")
    CODE[name](path)
    with pytest.raises(UnsafeFileError, match=r"execut|import"):
        read(path)
    assert read(path, trust=True).state["weight"].shape == (3, 2)


@pytest.mark.parametrize("key", [None, "model", "runs.best"])
def test_a_module_beside_other_values_is_its_own_architecture(key: str | None, tmp_path: Path) -> None:
    """As ultralytics saves it."""
    small, large = nn.Linear(2, 3), nn.Linear(2, 5)
    torch.save({"epoch": 1, "ema": None, "model": small, "runs": {"best": large}}, tmp_path / "m.pt")
    with pytest.raises(UnsafeFileError, match="would import"):
        read(tmp_path / "m.pt")
    opened = open_model(str(tmp_path / "m.pt"), Opening(key=key, trust=True, inputs=(Argument((1, 2)),)))
    assert opened.module(torch.ones(1, 2)).equal((large if key == "runs.best" else small)(torch.ones(1, 2)))


VALUES: dict[str, object] = {
    "arguments": argparse.Namespace(lr=0.1, out=Path("runs"), dims=[1, 2]),
    "simple namespace": types.SimpleNamespace(a=1),
    "paths": [Path("a"), PureWindowsPath("b")],
    "dates": [datetime.now(UTC), timedelta(1)],
    "numbers of numpy": {
        "best": np.float64(0.9),
        "epoch": np.int64(3),
        "scores": np.arange(3.0),
        "kind": np.dtype("<f4"),
    },
    "containers": [defaultdict(list, {"loss": [0.1]}), deque([1, 2], maxlen=3), Counter("aab"), {1, 2}, b"bytes"],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_values_beside_the_weights_need_no_trust(name: str, legacy: bool, state: State, tmp_path: Path) -> None:
    payload = {"args": VALUES[name], "state_dict": state, "after": VALUES[name]}
    torch.save(payload, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    found = read(tmp_path / "m.pt").state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[n], state[n]) for n in state)


def test_nothing_is_imported_or_made_of_the_values(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "date": datetime.now(UTC), "path": Path("a")}, tmp_path / "m.pt")
    with left_out():
        payload = torch.load(tmp_path / "m.pt", weights_only=True)
    assert {type(payload[key]) for key in ("date", "path")} == {LeftOut}
    assert vars(payload["date"]) == {}
    with pytest.raises(pickle.UnpicklingError):  # only while it lasts
        torch.load(tmp_path / "m.pt", weights_only=True)


def test_only_what_is_dangerous_is_named(state: State, tmp_path: Path) -> None:
    payload = {"args": argparse.Namespace(a=1), "state_dict": state, "extra": Exploit(tmp_path / "executed")}
    torch.save(payload, tmp_path / "m.pt")
    with pytest.raises(UnsafeFileError, match=r"would import posix\.mkdir\n"):
        read(tmp_path / "m.pt")
    assert not (tmp_path / "executed").exists()


class Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_is_not_executed(legacy: bool, state: State, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    payload = {"state_dict": state, "extra": Exploit(marker)}
    torch.save(payload, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeFileError, match="mkdir"):
        read(tmp_path / "m.pt")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused_at_every_length(name: str, state: State, tmp_path: Path) -> None:
    FORMATS[name](state, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for tenth in range(10):
        torn = tmp_path / "torn"
        torn.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(CheckpointError):
            read(torn)


def test_flipped_bytes_never_crash(state: State, tmp_path: Path) -> None:
    """A damaged file is read or refused; nothing else happens."""
    torch.save(state, tmp_path / "whole")
    whole = bytearray((tmp_path / "whole").read_bytes())
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        damaged = copy.copy(whole)
        for position in torch.randint(0, len(whole), (20,), generator=generator).tolist():
            damaged[position] ^= 0xFF
        (tmp_path / "damaged").write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            read(tmp_path / "damaged")


@pytest.mark.parametrize(("save", "suffix"), [(save_safetensors, ".safetensors"), (torch.save, ".bin")])
def test_a_hugging_face_folder(save: Callable[[State, Path], None], suffix: str, tmp_path: Path, state: State) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["ResNetForImageClassification"]}')
    half = len(state) // 2
    for number, names in enumerate((list(state)[:half], list(state)[half:])):
        save({n: state[n] for n in names}, tmp_path / f"pytorch_model-{number}{suffix}")
    found = read(tmp_path)
    assert found.state.keys() == state.keys()
    assert found.config == {"architectures": ["ResNetForImageClassification"]}


def sharded(state: State, folder: Path, **moved: str) -> Path:
    """Two files and their index."""
    names = {n: f"model-{number % 2}.safetensors" for number, n in enumerate(state)}
    for file in set(names.values()):
        save_safetensors({n: t for n, t in state.items() if names[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names | moved}))
    save_safetensors({"other": torch.ones(2)}, folder / "optimizer.safetensors")
    return folder


def test_a_folder_without_configuration(state: State, tmp_path: Path) -> None:
    found = prunecli.analyze(str(sharded(state, tmp_path)))
    assert found.params == sum(t.numel() for n, t in state.items() if "running" not in n and "num_batches" not in n)
    with pytest.raises(CheckpointError, match="no checkpoint") as caught:
        read(tmp_path / "model.safetensors.index.json")
    assert caught.value.hint == "an index? give the folder that it lies in"
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-1\.safetensors \(1 of 2 files\)"):
        read(tmp_path)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {"a": 3}}', "{", '{"weight_map": {"a": "/etc/passwd"}}'])
def test_a_hostile_index(index: str, state: State, tmp_path: Path) -> None:
    (sharded(state, tmp_path) / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"is no index|is not JSON|holds no JSON object"):
        read(tmp_path)


def test_an_index_stays_in_its_folder(state: State, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    save_safetensors(state, tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="is no index"):
        read(sharded(state, tmp_path / "inside", more="../outside.safetensors"))


@pytest.mark.parametrize(
    ("head", "hint"),
    [(b"version https://git-lfs.github.com/spec/v1", "git lfs pull"), (b"<!DOCTYPE html>", "web page"),
     (b"\x1f\x8b\x08", "gzip"), (b"\x89HDF\r\n", "Keras"), (b"GGUF\x03\x00", "llama.cpp"), (b"these are", "known:")],
)  # fmt: skip
def test_what_lies_where_a_checkpoint_should_is_told(head: bytes, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(head + bytes(64))
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert hint in caught.value.hint


def test_a_folder_of_another_kind_names_files_that_may_be_meant(state: State, tmp_path: Path) -> None:
    (tmp_path / "step").mkdir()
    save_zip(state, tmp_path / "step" / "weights.pt")
    with pytest.raises(CheckpointError, match="without weights") as caught:
        read(tmp_path)
    assert caught.value.hint.endswith("weights.pt")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_of_torch_distributed_wants_trust(state: State, tmp_path: Path) -> None:
    dcp.save({"model": state}, checkpoint_id=str(tmp_path / "dcp"))
    with pytest.raises(UnsafeFileError, match="executes code"):
        read(tmp_path / "dcp")
    found = read(tmp_path / "dcp", trust=True)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in state.items())
    assert sha256(tmp_path / "dcp") != sha256(tmp_path)


def test_a_pickle_that_torch_did_not_write(state: State, tmp_path: Path) -> None:
    (tmp_path / "arrays.pkl").write_bytes(pickle.dumps({n: t.numpy() for n, t in state.items()}))
    with pytest.raises(UnsafeFileError, match="torch did not write"):
        read(tmp_path / "arrays.pkl")


def test_a_hugging_face_folder_that_executes_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"weight": torch.ones(2), "more": Exploit(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="would import"):
        read(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("pickled", [False, True])
def test_a_hugging_face_folder_is_a_model(pickled: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    from prunecli.model import open_model

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    saved = transformers.ViTForImageClassification(config).eval()
    saved.save_pretrained(tmp_path)
    if pickled:
        (tmp_path / "model.safetensors").unlink()
        torch.save(saved.state_dict(), tmp_path / "pytorch_model.bin")
    opened = open_model(str(tmp_path))
    assert opened.inputs == (Argument((1, 3, 32, 32)),)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(opened.module(images).logits, saved(images).logits)


class Shifted(nn.Module):
    """Adds a table that is computed, not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("table", torch.arange(16) / 16, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu() + self.table)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_buffers_that_are_not_stored_follow_the_dtype_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from checkpoint.test_read import Shifted\n")
    torch.manual_seed(0)
    torch.save(Shifted().to(dtype).state_dict(), tmp_path / "m.pt")
    arch = f"{tmp_path / 'net.py'}:Shifted"
    fields = {"version": 1, "arch": arch, "input": "1x8", "method": {"name": "magnitude"}, "budget": {"flops": 0.6}}
    prunecli.prune(validate(fields), str(tmp_path / "m.pt"), tmp_path / "o.safetensors")
    assert prunecli.load(tmp_path / "o.safetensors", arch=arch)(torch.ones(2, 8, dtype=dtype)).dtype is dtype


def test_a_folder_of_timm_says_what_it_holds(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="the timm extra is not installed")
    made = {"img_size": 64, "in_chans": 1}
    saved = timm.create_model("vit_tiny_patch16_224", num_classes=5, **made).eval()
    save_safetensors(saved.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": made}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_model(str(tmp_path))
    assert opened.inputs == (Argument((1, 1, 64, 64)),)
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(opened.module(images), saved(images))
    assert open_model(str(tmp_path), Opening(arch="timm:vit_tiny_patch16_224?img_size=64&in_chans=1&num_classes=5"))
