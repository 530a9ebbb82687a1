"""Images in tar files, as WebDataset writes them: ``0001.jpg`` with its class in ``0001.cls``.

The archives are indexed once and then read at random places, so that shuffling, sharding over processes and resuming
are those of every other data set.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunecli.errors import DataError


@dataclass(frozen=True)
class Member:
    """A file inside an archive that is not compressed."""

    archive: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"

    def open(self) -> io.BytesIO:
        """Its bytes."""
        with Path(self.archive).open("rb") as stream:
            stream.seek(self.offset)
            return io.BytesIO(stream.read(self.size))


def indexed(archives: Iterable[Path], formats: Sequence[str]) -> list[tuple[Member, int | None]]:
    """Images with their classes, None where an image has none, in the order of the archives.

    Raises:
        DataError: an archive is damaged, or a class is no number.
    """
    found: list[tuple[Member, int | None]] = []
    for archive in archives:
        images, classes = _members(archive, formats)
        found += [(member, classes.get(key)) for key, member in images.items()]
    return found


def _members(archive: Path, formats: Sequence[str]) -> tuple[dict[str, Member], dict[str, int]]:
    """By key, which is the name up to its first dot."""
    images: dict[str, Member] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for entry in tar:
                folder, slash, name = entry.name.rpartition("/")
                key, dot, suffix = name.partition(".")
                key, member = f"{folder}{slash}{key}", Member(str(archive), entry.name, entry.offset_data, entry.size)
                if entry.isfile() and f"{dot}{suffix.lower()}" in formats:
                    images[key] = member
                elif entry.isfile() and suffix == "cls":
                    classes[key] = int(member.open().read())
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(
            f"{archive} is no archive of images: {error}", hint="tar files as WebDataset writes them"
        ) from error
    return images, classes
