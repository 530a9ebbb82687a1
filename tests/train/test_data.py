"""Data sets: each kind opens, fits or says why not, and gives the same pixels for the same seed."""

from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunecli.errors import DataError
from prunecli.train.data import open_data
from prunecli.train.dataset import DatasetSplit
from prunecli.train.split import GREY, ArraySplit, FileSplit, Normalisation, crop_and_flip, uniform


def folder(root: Path, size: int, names: tuple[str, str] = ("train", "test")) -> str:
    drawn = np.random.default_rng(0)
    for split in names:
        for number, label in enumerate(("cat", "dog")):
            (root / split / label).mkdir(parents=True)
            for i in range(6):
                pixels = drawn.integers(0, 100, (size, size, 3), dtype=np.uint8) + 100 * number
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / label / f"{i}.png")
    return f"folder:{root}"


def first(split: ArraySplit | DatasetSplit | FileSplit, seed: int | None = None) -> torch.Tensor:
    return next(iter(split.batches([torch.arange(4)], seed)))


def test_a_folder_without_its_kind_is_recognised(tmp_path: Path) -> None:
    folder(tmp_path, 32)
    with pytest.raises(DataError) as caught:
        open_data(str(tmp_path), (3, 32, 32), 2)
    assert caught.value.hint == f"folder:{tmp_path}"


@pytest.mark.parametrize("size", [32, 80])
@pytest.mark.parametrize("names", [("train", "test"), ("train", "val")])
def test_folder(size: int, names: tuple[str, str], tmp_path: Path) -> None:
    data = open_data(folder(tmp_path, size, names), (3, size, size), 2)
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6
    assert first(data.test).shape == (4, 3, size, size)
    assert torch.equal(first(data.train, 5), first(data.train, 5))
    assert not torch.equal(first(data.train, 5), first(data.train, 6))
    again = open_data(f"folder:{tmp_path}", (3, size, size), 2)  # from the cache where the images are small
    assert torch.equal(first(again.test), first(data.test))


def test_large_images_are_resized_to_the_models_input(tmp_path: Path) -> None:
    data = open_data(folder(tmp_path, 100), (3, 64, 64), 2)
    assert first(data.test).shape == first(data.train, 0).shape == (4, 3, 64, 64)


def test_normalisation_is_in_the_name(tmp_path: Path) -> None:
    text = folder(tmp_path, 32)
    plain = open_data(f"{text}?mean=0,0,0&std=1,1,1", (3, 32, 32), 2)
    pixels = np.asarray(Image.open(tmp_path / "test" / "cat" / "0.png")) / 255
    np.testing.assert_allclose(first(plain.test)[0].permute(1, 2, 0).numpy(), pixels, atol=1e-6)


@pytest.mark.parametrize("query", ["mean=1,2", "std=0,0,0", "mean=a,b,c", "scale=2"])
def test_bad_normalisation(query: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        open_data(f"{folder(tmp_path, 32)}?{query}", (3, 32, 32), 2)


def test_too_small_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images are 3x80x80, the model takes 3x224x224"):
        open_data(folder(tmp_path, 80), (3, 224, 224), 2)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    text = folder(tmp_path, 32)
    (tmp_path / "test" / "cat" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png"):
        open_data(text, (3, 32, 32), 2)


@pytest.mark.parametrize("batches", [1, 3])
def test_a_broken_large_image_is_named_when_it_is_met(batches: int, tmp_path: Path) -> None:
    """One batch is read here, several by workers."""
    data = open_data(folder(tmp_path, 80), (3, 80, 80), 2)
    (tmp_path / "train" / "dog" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png is no readable image") as caught:
        list(data.train.batches(list(torch.arange(12).chunk(batches))))
    assert "Traceback" not in str(caught.value)


def test_a_changed_image_is_read_again(tmp_path: Path) -> None:
    text, place = folder(tmp_path, 32), tmp_path / "train" / "cat" / "2.png"
    before = next(iter(open_data(text, (3, 32, 32), 2).train.batches([torch.tensor([2])])))
    Image.new("RGB", (32, 32), "white").save(place)
    after = next(iter(open_data(text, (3, 32, 32), 2).train.batches([torch.tensor([2])])))
    assert not torch.equal(before, after)


@pytest.mark.parametrize("size", [32, 80])
def test_reading_leaves_the_random_state_to_the_training(size: int, tmp_path: Path) -> None:
    data = open_data(folder(tmp_path, size), (3, size, size), 2)
    state = torch.get_rng_state()
    list(data.train.batches(list(torch.arange(12).split(4)), 1))
    assert torch.equal(state, torch.get_rng_state())


def test_different_classes_are_refused(tmp_path: Path) -> None:
    text = folder(tmp_path, 32)
    (tmp_path / "test" / "emu").mkdir()
    with pytest.raises(DataError, match="different classes"):
        open_data(text, (3, 32, 32), 2)


def test_digits() -> None:
    data = open_data("digits", (1, 8, 8), 10)
    assert (len(data.train.labels), len(data.test.labels)) == (1437, 360)
    assert set(data.train.labels.tolist()) == set(range(10))


def test_fake_is_the_same_every_time() -> None:
    first_time, second = (open_data("fake:3x16x16", (3, 16, 16), 5) for _ in range(2))
    assert torch.equal(first(first_time.train), first(second.train))
    assert int(first_time.train.labels.max()) == 4


def test_a_users_function(tmp_path: Path) -> None:
    place = tmp_path / "mine.py"
    place.write_text(
        "import torch\n"
        "def build():\n"
        "    images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 2\n"
        "    return (images, labels), [(i, int(l)) for i, l in zip(images, labels)]\n"
    )
    data = open_data(f"{place}:build", (1, 4, 4), 2)
    assert torch.equal(first(data.train), first(data.test))


USERS = """
import os
import random

import numpy as np
import torch

GOOD = torch.zeros(8, 1, 4, 4), torch.arange(8) % 2

def raises():
    raise ValueError("no such bucket")

def leaves():
    raise SystemExit(3)

def words():
    return (GOOD[0], ["a"] * 8), GOOD

def one_hot():
    return (GOOD[0], torch.eye(2)[GOOD[1]]), GOOD

def from_minus_one():
    return (GOOD[0], GOOD[1] - 1), GOOD

def empty():
    return (GOOD[0][:0], GOOD[1][:0]), GOOD

def no_items():
    return {}, GOOD

def items(image, label=1):
    return [(torch.rand(1, 4, 4), 0)] * 7 + [(image, label)], GOOD

def other_size():
    return items(torch.rand(1, 4, 5))

def no_image():
    return items("a.png")

def flat():
    return items(np.zeros(16))

def no_number():
    return items(torch.rand(1, 4, 4), torch.eye(2)[0])

class Draws(dict):
    def __getitem__(self, number):
        drawn = torch.rand(()), np.random.rand(), random.random()
        return torch.tensor([[drawn, (number, os.getpid(), 0)]]).double(), number % 2

def draws():
    return Draws.fromkeys(range(8)), Draws.fromkeys(range(8))

class Dies(dict):
    def __getitem__(self, number):
        if torch.utils.data.get_worker_info():
            os._exit(1)
        return torch.rand(1, 4, 4), number % 2

def dies():
    return Dies.fromkeys(range(8)), GOOD

class Gone(dict):
    def __getitem__(self, number):
        if number < 7:
            return torch.rand(1, 4, 4), number % 2
        raise OSError("the disk is gone")

def gone():
    return Gone(dict.fromkeys(range(8))), GOOD
"""


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "raises": "raises failed: ValueError: no such bucket",
        "leaves": "leaves failed: SystemExit: 3",
        "words": "images and labels are no numbers: ",
        "one_hot": r"expected images .N, C, H, W. and labels .N,., not .8, 1, 4, 4. and .8, 2.",
        "from_minus_one": "labels count from 0, the least is -1",
        "empty": "a split has no images",
        "no_items": "a split has no images",
        "other_size": r"item 7 of the data set is .1, 4, 5., item 0 is .1, 4, 4.",
        "no_image": "item 7 of the data set holds str, no image",
        "flat": r"item 7 of the data set holds ndarray of shape .16,., no image",
        "no_number": "the label of item 7 of the data set is no number: ",
        "gone": "item 7 of the data set cannot be read: OSError: the disk is gone",
    }.items(),
)
def test_a_users_mistake_is_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USERS)
    with pytest.raises(DataError, match=message):
        list(open_data(f"{tmp_path}/mine.py:{name}", (1, 4, 4), 2).train.batches([torch.arange(8)]))


def test_what_a_users_images_draw_follows_from_seed_and_index(tmp_path: Path) -> None:
    """Whoever reads them, in whatever batch; a resumed run and more processes see the same."""
    (tmp_path / "mine.py").write_text(USERS)

    def seen(workers: int, batches: list[list[int]], seed: int | None) -> torch.Tensor:
        found = torch.cat(list(splits[workers].batches([torch.tensor(batch) for batch in batches], seed)))
        assert ((found[:, 0, 1, 1] == os.getpid()) == (workers == 0)).all()
        return found[found[:, 0, 1, 0].argsort(), 0, 0]

    def states() -> list[object]:
        return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]

    before = states()
    splits = [open_data(f"{tmp_path}/mine.py:draws?workers={workers}", (1, 2, 3), 2).train for workers in range(3)]
    here = seen(0, [[0, 1, 2, 3], [4, 5, 6, 7]], 1)
    assert torch.equal(seen(2, [[5, 2, 4], [7, 0, 1, 3, 6]], 1), here)
    assert len(here.unique(dim=0)) == 8
    assert not torch.isin(here, seen(0, [[*range(8)]], 2)).any()
    assert torch.equal(seen(0, [[*range(8)]], None), seen(1, [[7, 6, 5, 4], [3, 2, 1, 0]], None))
    assert states() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("dies?workers=1", "the images cannot be read: "), ("gone?workers=2", "item 7 of the data set cannot be read"),
     ("draws?workers=many", "workers=many is no count"), ("draws?mean=0.5", "unknown option mean")],
)  # fmt: skip
def test_what_goes_wrong_with_workers_is_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USERS)
    with pytest.raises(DataError, match=message) as caught:
        list(open_data(f"{tmp_path}/mine.py:{text}", (1, 4, 4), 2).train.batches([torch.arange(4), torch.arange(4, 8)]))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("item", [torch.rand(3, 4, 4), (torch.rand(3, 4, 4), None), (torch.rand(3, 4, 4), "a.png")])
def test_items_without_labels(item: object) -> None:
    split = DatasetSplit([item] * 4)
    assert not split.labelled
    assert first(split).shape == (4, 3, 4, 4)
    with pytest.raises(DataError, match="the label of item 0 of the data set is no number"):
        split.labels  # noqa: B018


def test_images_of_bytes_are_normalised_wherever_they_are() -> None:
    images = torch.randint(0, 256, (4, 1, 2, 2), dtype=torch.uint8)
    held, items = ArraySplit(images, None, GREY), DatasetSplit([*images])
    assert torch.equal(first(held), first(items))


class Counting(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """100 images, of which reading is counted; what it tells may not be what it gives."""

    def __init__(self, told: object, given: int = 0) -> None:
        self.targets, self.given, self.reads = told, given, 0

    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        return torch.zeros(1, 2, 2), (i + self.given) % 7


TOLD = [i % 7 for i in range(100)]


@pytest.mark.parametrize("told", [TOLD, np.array(TOLD), torch.tensor(TOLD)], ids=["list", "numpy", "tensor"])
def test_labels_that_a_data_set_tells_are_not_read_with_every_image(told: object) -> None:
    dataset = Counting(told)
    assert DatasetSplit(dataset).labels.tolist() == TOLD
    assert dataset.reads < 12
    part = torch.utils.data.Subset(torch.utils.data.ConcatDataset([dataset, dataset]), [150, 3, 120])
    assert DatasetSplit(part).labels.tolist() == [50 % 7, 3, 20 % 7]
    assert dataset.reads < 16


@pytest.mark.parametrize(
    "dataset",
    [Counting(TOLD, 1), Counting(TOLD[:50]), Counting(None), Counting(["a"] * 100), Counting({"a": 1})],
    ids=["others", "fewer", "none", "words", "a table"],
)
def test_labels_that_are_told_otherwise_are_read(dataset: Counting) -> None:
    assert DatasetSplit(dataset).labels.tolist() == [(i + dataset.given) % 7 for i in range(100)]
    assert dataset.reads >= 100


def test_augmentation_moves_and_mirrors_whole_images() -> None:
    image = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(64, 1, 1, 1)
    moved = crop_and_flip(image, uniform(0, torch.arange(len(image)), 3), flip=True)
    seen = {tuple(m.flatten().tolist()) for m in moved}
    assert 8 < len(seen) <= 18  # nine shifts, mirrored or not
    assert tuple(image[0].flatten().tolist()) in seen
    assert tuple(image[0].flip(2).flatten().tolist()) in seen


def test_normalisation_closed_form() -> None:
    images = torch.full((1, 2, 1, 1), 51, dtype=torch.uint8)
    assert Normalisation((0.1, 0.2), (0.5, 1.0))(images).flatten().tolist() == pytest.approx([0.2, 0.0])


def shard(path: Path, count: int, size: int, *, labelled: bool = True) -> None:
    generator = np.random.default_rng(count)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            picture = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(picture, "png")
            files = {f"{path.stem}/{number:04}.png": picture.getvalue()}
            if labelled:
                files[f"{path.stem}/{number:04}.cls"] = str(number % 10).encode()
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("size", [32, 96])
def test_shards_are_read_as_folders_are(size: int, tmp_path: Path) -> None:
    for name, count in (("train-000", 7), ("train-001", 5), ("val-000", 4)):
        shard(tmp_path / f"{name}.tar", count, size)
    data = open_data(f"webdataset:{tmp_path}", (3, size, size), 7)
    assert (len(data.train), len(data.test)) == (12, 4)
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]
    together = next(iter(data.train.batches([torch.arange(12)], 3)))
    apart = torch.cat(list(data.train.batches([torch.tensor([n]) for n in range(12)], 3)))
    assert together.shape == (12, 3, size, size)
    assert torch.equal(together, apart)


def test_shards_without_labels_and_damaged_ones(tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", 3, 32, labelled=False)
    shard(tmp_path / "test.tar", 3, 32)
    assert open_data(f"webdataset:{tmp_path}", (3, 32, 32), 10).classes is None
    (tmp_path / "train.tar").write_bytes((tmp_path / "train.tar").read_bytes()[:700])
    with pytest.raises(DataError, match="no archive of images"):
        open_data(f"webdataset:{tmp_path}", (3, 32, 32), 10)
    with pytest.raises(DataError, match="has no train"):
        open_data(f"webdataset:{tmp_path}/nowhere", (3, 32, 32), 10)
