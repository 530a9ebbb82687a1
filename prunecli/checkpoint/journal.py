"""The journal of a cut: which indices of which tensors were kept, and which attributes changed. No torch here.

It travels in the file; replaying it on a freshly built module gives the module the tensors belong to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

TAPS = "bias_taps"  # what the border of a convolution is called
_MOST = 2**24  # no dim of a tensor is longer; a file that says so is damaged or hostile
Kept = Mapping[tuple[str, int], tuple[int, ...]]
Attributes = Mapping[str, Mapping[str, int | list[int]]]


@dataclass(frozen=True)
class Expansion:
    """Layers that compute only the `kept` of `width` channels; the last fills in constants for the others."""

    layers: tuple[str, ...]
    kept: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class Gate:
    """A convolution with its batch norm (empty where it has none) that computes only what its head asks for.

    `readers` are convolutions that skip channels which are zero.
    """

    conv: str
    norm: str
    readers: tuple[str, ...] = ()
    depthwise: bool = False

    def head_kept(self, kept: Kept) -> dict[tuple[str, int], tuple[int, ...]]:
        """What a head has that is put on a convolution which was cut before: it reads and writes what that does."""
        reads, writes = (
            kept.get((f"{self.conv}.weight", 0 if self.depthwise else 1)),
            kept.get((f"{self.conv}.weight", 0)),
        )
        head = f"{self.conv}.head"
        places = {(f"{head}.weight", 0): writes, (f"{head}.bias", 0): writes, (f"{head}.weight", 1): reads}
        return {place: indices for place, indices in places.items() if indices is not None}


@dataclass(frozen=True)
class Journal:
    """What was done to a freshly built module, in this order.

    Attributes:
        gates, ranks: put in first, the latter by the name of a weight that became two factors; tensors and modules go
            by the names that they have then.
        kept: indices by (tensor name, dim).
        attributes: integers by module path.
        bordered: paths of convolutions that got a bias for each tap; its rows are those of the weight.
        expansions: by the path of the layer that fills in constants.
        folded: paths of batch norms that went into the layer before.
    """

    kept: Kept = field(default_factory=dict)
    attributes: Attributes = field(default_factory=dict)
    expansions: Mapping[str, Expansion] = field(default_factory=dict)
    folded: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    bordered: tuple[str, ...] = ()

    @property
    def filled_in(self) -> int:
        """How many channels are constants that no layer computes."""
        return sum(expansion.width - len(expansion.kept) for expansion in self.expansions.values())

    def then(self, later: Journal) -> Journal:
        """This cut followed by another one, as one cut of the original.

        Raises:
            ValueError: channels are cut after an expansion, which has to be undone first.
        """
        if self.expansions and later.kept:
            raise ValueError("channels cannot be cut after an expansion")
        if later.gates or later.ranks:
            return self._behind(later).then(replace(later, gates=(), ranks={}))
        kept = dict(self.kept)
        for key, indices in later.kept.items():
            first = kept.get(key)
            kept[key] = indices if first is None else tuple(first[i] for i in indices)
        attributes = {module: dict(values) for module, values in self.attributes.items()}
        for module, values in later.attributes.items():
            attributes.setdefault(module, {}).update(values)
        bordered = tuple(sorted({*self.bordered, *later.bordered}))
        kept |= {(f"{b}.{TAPS}", 0): kept[f"{b}.weight", 0] for b in bordered if (f"{b}.weight", 0) in kept}
        expansions, folded = {**self.expansions, **later.expansions}, {*self.folded, *later.folded}
        left = {module: values for module, values in attributes.items() if module not in folded}
        return Journal(kept, left, expansions, tuple(sorted(folded)), self.gates, self.ranks, bordered)

    def name_of(self, tensor: str) -> str:
        """What a tensor is called now; gates take layers inside, and of two factors the last is meant."""
        return self._place_of(tensor, 0)[0]

    def _place_of(self, tensor: str, dim: int) -> tuple[str, int]:
        owner, dot, attribute = tensor.rpartition(".")
        if tensor in self.ranks:
            return factors_of(tensor)[0 if dim else 1], dim
        if f"{owner}.weight" in self.ranks:
            return f"{owner}.1.{attribute}", dim
        return f"{self._moved.get(owner, owner)}{dot}{attribute}", dim

    @property
    def _moved(self) -> dict[str, str]:
        """Where modules have gone."""
        moved = {gate.conv: f"{gate.conv}.conv" for gate in self.gates}
        return moved | {gate.norm: f"{gate.conv}.norm" for gate in self.gates if gate.norm}

    def _behind(self, later: Journal) -> Journal:
        """The same cut of a model that has more gates and factors."""
        new = Journal(gates=later.gates, ranks=later.ranks)
        kept = {new._place_of(name, dim): indices for (name, dim), indices in self.kept.items()}
        for gate in later.gates:
            kept |= gate.head_kept(self.kept)
        attributes: dict[str, Mapping[str, int | list[int]]] = {}
        for path, values in self.attributes.items():
            if f"{path}.weight" in later.ranks:
                attributes |= _of_factors(path, values)
            else:
                attributes[new._moved.get(path, path)] = values
        gates, ranks = (*self.gates, *later.gates), {**self.ranks, **later.ranks}
        return replace(self, kept=kept, attributes=attributes, gates=gates, ranks=ranks)

    def to_json(self) -> dict[str, Any]:
        """Index lists as ranges, each with all the tensors it applies to."""
        by_indices: dict[tuple[int, ...], list[str]] = {}
        for (name, dim), indices in sorted(self.kept.items()):
            by_indices.setdefault(indices, []).append(f"{name}:{dim}")
        cuts = [{"kept": ranges(indices), "in": places} for indices, places in by_indices.items()]
        expansions = [
            {"in": list(e.layers), "kept": ranges(e.kept), "width": e.width} for _, e in sorted(self.expansions.items())
        ]
        return {
            "cuts": cuts,
            "attributes": {m: dict(v) for m, v in sorted(self.attributes.items())},
            "expansions": expansions,
            "folded": list(self.folded),
            "gates": [asdict(gate) for gate in self.gates],
            "ranks": dict(sorted(self.ranks.items())),
            "bordered": list(self.bordered),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Journal:
        """The inverse of `to_json`."""
        kept = {}
        for cut in data["cuts"]:
            indices = indices_of(cut["kept"])
            for place in cut["in"]:
                name, _, dim = place.rpartition(":")
                kept[name, int(dim)] = indices
        return Journal(
            kept,
            data["attributes"],
            {found.layers[-1]: found for found in map(_expansion, data.get("expansions", []))},
            tuple(data.get("folded", [])),
            tuple(map(_gate, data.get("gates", []))),
            {weight: _rank(rank) for weight, rank in data.get("ranks", {}).items()},
            tuple(data.get("bordered", [])),
        )


def factors_of(weight: str) -> tuple[str, str]:
    """What the factors of a weight are called, that which meets the input first: two linear layers, or a
    parametrization of a recurrent one.
    """
    owner, _, attribute = weight.rpartition(".")
    if attribute == "weight":
        return f"{owner}.0.weight", f"{owner}.1.weight"
    below = f"{owner}.parametrizations.{attribute}.original"
    return f"{below}0", f"{below}1"


def _of_factors(path: str, values: Mapping[str, int | list[int]]) -> dict[str, Mapping[str, int | list[int]]]:
    """The first factor reads what the layer read, the second writes what it wrote."""
    first = {name: value for name, value in values.items() if name == "in_features"}
    second = {name: value for name, value in values.items() if name != "in_features"}
    return {f"{path}.{number}": part for number, part in enumerate((first, second)) if part}


def _rank(value: Any) -> int:
    if type(value) is not int or not 0 < value < _MOST:
        raise ValueError(f"a rank of {value!r}")
    return value


def _gate(entry: Mapping[str, Any]) -> Gate:
    """One gate; it names modules.

    Raises:
        ValueError: it does not.
    """
    names = [entry["conv"], entry["norm"], *entry["readers"]]
    if not entry["conv"] or not all(type(name) is str for name in names):
        raise ValueError(f"a gate on {entry['conv']!r}")
    return Gate(entry["conv"], entry["norm"], tuple(entry["readers"]), bool(entry["depthwise"]))


def _expansion(entry: Mapping[str, Any]) -> Expansion:
    """One expansion; it names layers, and its indices are within the width and rise.

    Raises:
        ValueError: they do not.
    """
    layers, kept, width = tuple(entry["in"]), indices_of(entry["kept"]), entry["width"]
    if (
        not layers
        or type(width) is not int
        or not kept
        or width > _MOST
        or kept[-1] >= width
        or list(kept) != sorted(set(kept))
    ):
        raise ValueError(f"an expansion to {width!r} channels")
    return Expansion(layers, kept, width)


def ranges(indices: Iterable[int]) -> str:
    """Indices as text, runs as ranges.

    >>> ranges([0, 1, 2, 5, 8, 9])
    '0-2,5,8-9'
    """
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def indices_of(text: str) -> tuple[int, ...]:
    """The inverse of `ranges`.

    >>> indices_of('0-2,5,8-9')
    (0, 1, 2, 5, 8, 9)
    """
    found: list[int] = []
    for run in text.split(",") if text else []:
        first, _, last = run.partition("-")
        indices = range(int(first), int(last or first) + 1)
        if len(found) + len(indices) > _MOST:
            raise ValueError(f"more than {_MOST} indices")
        found.extend(indices)
    return tuple(found)
