"""Several processes under torchrun: the same weights as one, and a killed one is no loss."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

import prunecli
from prunecli.errors import InputError
from prunecli.methods.hook import Hook
from prunecli.recipe.schema import Train
from prunecli.train.data import open_data
from prunecli.train.loop import Trainer
from prunecli.train.split import uniform

ZEROS = "block1.conv1.weight"
DIGITS = Path(__file__).parents[2] / "recipes" / "digits.safetensors"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network in float64, with some zeros."""
    path = tmp_path_factory.mktemp("model") / "double.pt"
    state = prunecli.load(DIGITS).double().state_dict()
    state[ZEROS][::2] = 0
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def alone(double: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What one process makes of it."""
    output = tmp_path_factory.mktemp("alone") / "one.safetensors"
    return train(double, output, "--data", "digits", "--set", "train.batch_size=128")


def train(
    checkpoint: Path, output: Path, *flags: str, launcher: tuple[str, ...] = (sys.executable,)
) -> dict[str, Tensor]:
    fixed = ["--arch", "digits_net", "--epochs", "1", "--json", "-q", "-o", str(output)]
    settings = [part for text in ("train.validation=0", "train.lr=0.05") for part in ("--set", text)]
    command = [*launcher, "-m", "prunecli", "finetune", str(checkpoint), *fixed, *settings, *flags]
    json.loads(run(*command))  # one document, from the first process alone
    return load_file(output)


def run(*command: str) -> str:
    """What it says, once it has ended well and in time."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("shard", ["false", "true"])
def test_two_processes_give_what_one_gives_with_the_doubled_batch(
    shard: str, double: Path, alone: dict[str, Tensor], tmp_path: Path
) -> None:
    """Shuffling, augmentation, gradients and batch norm are those of one process, and zeros stay."""
    flags = ("--data", "digits", "--set", "train.batch_size=64", "--set", f"train.shard={shard}")
    both = train(double, tmp_path / "two.safetensors", *flags, launcher=tuple(TORCHRUN))
    start = load_file(DIGITS)
    for name, tensor in alone.items():
        torch.testing.assert_close(both[name], tensor, atol=1e-10, rtol=0)
    moved = max(float((tensor - start[name]).abs().max()) for name, tensor in alone.items() if "weight" in name)
    assert moved > 1e-3
    assert not both[ZEROS][::2].any()
    assert both[ZEROS][1::2].all()


SUICIDAL = """
import os, signal, torch, prunecli
from pathlib import Path
from prunecli.train.data import open_data

class Mortal(torch.utils.data.Dataset):
    def __init__(self, split, lives):
        self.split, self.lives, self.seen = split, lives, 0
    def __len__(self):
        return min(len(self.split), 640)
    def __getitem__(self, index):
        self.seen += 1
        mark = Path({mark!r})
        if self.lives and os.environ.get("RANK") == "1" and self.seen == 200 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        image = next(iter(self.split.batches([torch.tensor([index])])))[0]
        return image, int(self.split.labels[index])

def build():
    data = open_data("digits", (1, 8, 8), 10)
    return Mortal(data.train, True), Mortal(data.test, False)
"""


def test_a_mistake_is_one_message(tmp_path: Path) -> None:
    mistaken = ("finetune", str(DIGITS), "--data", "nonsense", "-o", str(tmp_path / "none.safetensors"))
    done = subprocess.run([*TORCHRUN, "-m", "prunecli", *mistaken], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("unknown data 'nonsense'") == 1


@pytest.mark.parametrize("shard", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_killed_process_is_restarted_and_nothing_is_lost(shard: str, tmp_path: Path) -> None:
    states = []
    for name in ("calm", "killed"):
        mark = tmp_path / f"{name}.mark"
        if name == "calm":
            mark.touch()  # nobody dies
        data = tmp_path / f"{name}.py"
        data.write_text(SUICIDAL.replace("{mark!r}", repr(str(mark))))
        launcher = (*TORCHRUN, "--max-restarts", "2")
        settings = ("train.save_seconds=0", "train.batch_size=64", f"train.shard={shard}")
        flags = ["--data", f"{data}:build", *(part for text in settings for part in ("--set", text))]
        output = tmp_path / f"{name}.safetensors"
        states.append(train(DIGITS, output, *flags, launcher=launcher))
        assert mark.exists()
        assert not list(tmp_path.glob("*.resume"))
    calm, killed = states
    assert all(torch.equal(tensor, killed[name]) for name, tensor in calm.items())


LATE = """
import os, signal, time, torch
from prunecli.ranks import rank, restarted
from prunecli.collectives import together, total

if restarted() and rank() == 1:
    time.sleep(2)
together()
print(f"sum {total(rank() + 1)}", flush=True)
if not restarted():
    time.sleep(60 * (1 - rank()))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nobody_is_called_where_it_died(tmp_path: Path) -> None:
    """torchrun keeps the addresses of an earlier attempt; whoever comes first must not take one for that of another."""
    script = tmp_path / "late.py"
    script.write_text(LATE)
    assert run(*TORCHRUN, "--max-restarts", "1", str(script)).count("sum 3.0") == 4


ONE_KNOWS = """
import sys, time, torch
from pathlib import Path
from torch import nn
from prunecli.collectives import first_alone, of_first
from prunecli.cost.latency import turns
from prunecli.errors import InputError
from prunecli.ranks import rank
from prunecli.recipe.schema import Train
from prunecli.train.data import open_data
from prunecli.train.loop import Trainer
from prunecli.train.state import Saver

shared = Path(sys.argv[1])
digits, settings = open_data("digits", (1, 8, 8), 10), Train(epochs=2)

def fit(path, resume, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return Trainer(digits, settings, saver=Saver(path, "it", resume, seconds=0), **options).fit(net)

def stop(tick):
    if tick.step == 9:
        raise KeyboardInterrupt

whole = fit(shared / "whole", resume=False)
try:
    fit(shared / "state", resume=False, report=stop)
except KeyboardInterrupt:
    pass
steps, losses = [], []
again = fit(
    shared / "state", resume=rank() == 1, report=lambda tick: (steps.append(tick.step), losses.append(tick.loss))
)
same = all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), again.module.parameters(), strict=True))
print(f"[{again.continued} {same} {steps[0]}]", flush=True)
try:
    fit(shared / ("state" if rank() else "elsewhere"), resume=True)
except InputError as error:
    print(f"[{error.problem[-27:]}]", flush=True)
came = shared / "came"

def come():
    time.sleep(1 - rank())
    came.write_text((came.read_text() if came.exists() else "") + str(rank()))

first_alone(come)
print(f"[{of_first(rank)} {losses} {turns([rank], torch.device('cpu'), 0.0).sum()}]", flush=True)
"""


def test_all_continue_where_one_knows_of_a_restart(tmp_path: Path) -> None:
    """On other machines than that which failed, torchrun counts no restart. All know as well what one has measured."""
    script = tmp_path / "one_knows.py"
    script.write_text(ONE_KNOWS)
    said = run(*TORCHRUN, str(script), str(tmp_path))
    assert said.count("[True True 9]") == 2
    assert said.count("[is seen by 1 of 2 processes]") == 2
    first, second = re.findall(r"\[0 \[.*?\] .*?\]", said)  # both may stand in one line
    assert first == second
    assert (tmp_path / "came").read_text() == "01"


INSTANCES = """
import sys, torch
from torch import nn
from prunecli.methods.pretext import Instance
from prunecli.ranks import rank
from prunecli.recipe.schema import Train
from prunecli.train.data import open_data
from prunecli.train.loop import Trainer

def instances(batch_size):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).double()
    settings = Train(epochs=2, batch_size=batch_size, validation=0.0)
    return Trainer(open_data("digits", (1, 8, 8), 10), settings, hooks=[Instance()]).fit(net).module.state_dict()

if __name__ == "__main__":
    torch.save(instances(50), sys.argv[1 + rank()])
"""


def test_a_memory_bank_is_that_of_all_processes(tmp_path: Path) -> None:
    script, outputs, alone = tmp_path / "instances.py", [tmp_path / "0.pt", tmp_path / "1.pt"], dict[str, Any]()
    script.write_text(INSTANCES)
    run(*TORCHRUN, str(script), *map(str, outputs))
    exec(INSTANCES, alone)
    both = [torch.load(output) for output in outputs]
    for name, tensor in alone["instances"](100).items():
        assert torch.equal(both[0][name], both[1][name])
        torch.testing.assert_close(both[0][name], tensor, atol=1e-7, rtol=0)  # embeddings are in float32


@pytest.mark.parametrize("other", ["ema", "channels_last"])
def test_shards_do_not_go_together_with_everything(other: str) -> None:
    with pytest.raises(ValidationError, match=f"shard does not go together with {other}"):
        Train.model_validate({"shard": True, other: 0.9 if other == "ema" else True})


def test_a_method_that_needs_whole_weights_refuses_shards() -> None:
    trainer = Trainer(open_data("digits", (1, 8, 8), 10), Train(epochs=1, shard=True), hooks=[Hook()])
    with pytest.raises(InputError, match="needs whole weights"):
        trainer.fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


def test_gradients_of_several_passes_are_one_step_of_their_images() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)).double()
    data = open_data("digits", (1, 8, 8), 10)
    whole = Trainer(data, Train(epochs=1, batch_size=120)).fit(module).module
    parts = Trainer(data, Train(epochs=1, batch_size=40, accumulate=3)).fit(module).module
    for first, second in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(first, second, atol=1e-12, rtol=0)


def test_what_an_image_looks_like_does_not_depend_on_its_batch() -> None:
    split = open_data("digits", (1, 8, 8), 10).train
    together = next(iter(split.batches([torch.arange(20)], 7)))
    apart = torch.cat(list(split.batches([torch.tensor([n]) for n in range(20)], 7)))
    assert torch.equal(together, apart)
    draws = uniform(3, torch.arange(20_000), 3)
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    torch.testing.assert_close(draws.mean(0), torch.full((3,), 0.5, dtype=torch.float64), atol=0.01, rtol=0)
    correlation = torch.corrcoef(draws.T).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 0.03
