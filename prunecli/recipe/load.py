"""Load a recipe: from a path or by the name of a shipped one, with overrides. No torch here.

All problems come in one report, each with its line, the value, what was expected and the nearest known key.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from prunecli.errors import RecipeError
from prunecli.methods.table import method_class, method_names
from prunecli.recipe.schema import Recipe

Lines = dict[tuple[str, ...], int]


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def locate(text: str) -> Path:
    """The file of a recipe given by path or by name.

    Raises:
        RecipeError: neither a file nor a shipped recipe.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return path
    name = path.stem if path.suffix in (".yaml", ".yml") else text
    known = shipped()
    if name in known and path.parent in (Path(), Path("recipes")):
        return known[name]
    near = difflib.get_close_matches(name, known, 2)
    hint = f"did you mean {', '.join(near)}?" if near else f"shipped: {', '.join(known)}"
    raise RecipeError(f"no such recipe: {text}", hint=hint)


def load(text: str, overrides: Sequence[str] = (), fields: Mapping[str, Any] | None = None) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        text: a path, or the name of a shipped recipe.
        overrides: ``KEY=VALUE`` with dots in the key, values as in YAML.
        fields: {key: value} that win over all; None leaves a key as it is.

    Raises:
        RecipeError: with every problem.
    """
    path = locate(text)
    try:
        source = path.read_text()
        data, lines = yaml.safe_load(source), _lines(source, path.name)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise RecipeError(
            f"{path} is not YAML: {_yaml_problem(error)}", hint="compare: prunecli recipes show magnitude-flops50"
        ) from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds no recipe", hint="prunecli recipes show magnitude-flops50")
    _find_model(data, path.parent)
    for override in overrides:
        _set(data, *_parsed(override))
    for key, value in (fields or {}).items():
        if value is not None:
            _set(data, key, value)
    return validate(data, path.name, lines)


def _find_model(data: dict[str, Any], folder: Path) -> None:
    """A relative `model` lies beside the recipe, or where the command was given."""
    beside = folder / str(data.get("model"))
    if isinstance(data.get("model"), str) and beside.exists():
        data["model"] = str(beside)


def validate(data: Mapping[str, Any], where: str = "recipe", lines: Lines | None = None) -> Recipe:
    """Check plain data against the schema and the method's own fields."""
    problems: list[tuple[tuple[str, ...], str]] = []
    method = _method(data.get("method"), problems)
    recipe = None
    try:
        recipe = Recipe.model_validate({**data, "method": method})
    except ValidationError as error:
        problems += [_problem(Recipe, e, ()) for e in error.errors()]
    if recipe is None or problems:
        raise RecipeError(_report(problems, where, data, lines or {}), hint="prunecli recipes show magnitude-flops50")
    _cross_check(recipe, where)
    _check_recover(recipe, where)
    return recipe


def _method(data: Any, problems: list[tuple[tuple[str, ...], str]]) -> BaseModel | None:
    if data is None:
        return None
    if not isinstance(data, Mapping) or "name" not in data:
        problems.append((("method",), f"expected {{name: ..., fields}}; names: {', '.join(method_names())}"))
        return None
    name = data["name"]
    if name not in method_names():
        near = difflib.get_close_matches(str(name), method_names(), 1)
        tip = f'; did you mean "{near[0]}"?' if near else ""
        problems.append((("method", "name"), f"unknown method{tip}  (known: {', '.join(method_names())})"))
        return None
    kind = method_class(name)
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        problems += [_problem(kind, e, ("method",)) for e in error.errors()]
        return None


def _cross_check(recipe: Recipe, where: str) -> None:
    wants = getattr(recipe.method, "budget_units", None)
    if recipe.method is None or wants is None:
        return
    units = [unit for unit in wants if unit != "none"]
    if not units and recipe.budget is not None:
        raise RecipeError(f"{where}: method {recipe.method.name} takes no budget", hint="remove the budget")
    if wants and "none" not in wants and recipe.budget is None:
        raise RecipeError(f"{where}: method {recipe.method.name} needs a budget", hint="budget: {flops: 0.5}")
    if wants and recipe.budget is not None and recipe.budget.unit not in wants:
        raise RecipeError(
            f"{where}: this method cannot meet a {recipe.budget.unit} budget (it can meet {', '.join(units)})",
            hint="single weights make no FLOPs go away; use structure: channel" if "flops" not in units else "",
        )


def _check_recover(recipe: Recipe, where: str) -> None:
    if recipe.recover is None:
        return
    if getattr(recipe.method, "structure", "channel") != "channel":
        raise RecipeError(f"{where}: recover is for cuts of channels", hint="method.structure: channel")


def _problem(kind: type[BaseModel], error: Any, prefix: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    place = tuple(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(kind, place[:-1])
        near = difflib.get_close_matches(place[-1], known, 1) or [k for k in known if place[-1].startswith(f"{k}_")]
        tip = f'; did you mean "{near[0]}"?' if near else ""
        owner = ".".join(prefix + place[:-1]) or "a recipe"
        return prefix + place, f"unknown key{tip}  ({owner} takes: {', '.join(known)})"
    message = error["msg"].removeprefix("Value error, ")
    return prefix + place, f"{message[:1].lower()}{message[1:]}"


def _fields_at(kind: type[BaseModel], place: Sequence[str]) -> list[str]:
    for part in place:
        field = kind.model_fields.get(part)
        inner = [a for a in _annotations(field.annotation) if isinstance(a, type)] if field else []
        models = [a for a in inner if issubclass(a, BaseModel)]
        if not models:
            return []
        kind = models[0]
    return list(kind.model_fields)


def _annotations(annotation: Any) -> list[Any]:
    return [annotation, *getattr(annotation, "__args__", ())]


def _report(problems: list[tuple[tuple[str, ...], str]], where: str, data: Mapping[str, Any], lines: Lines) -> str:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    rows = [f"recipe has {count}"]
    for place, message in problems:
        line = next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), 1)
        value = _value_at(data, place)
        shown = "" if value is None or isinstance(value, dict | list) else f" = {value!r}"
        rows.append(f"  {where}:{line}  {'.'.join(place)}{shown}  {message}")
    return "\n".join(rows)


def _value_at(data: Any, place: Sequence[str]) -> Any:
    for part in place:
        if not isinstance(data, Mapping) or part not in data:
            return None
        data = data[part]
    return data


def _parsed(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r} is not KEY=VALUE", hint="--set method.p=1")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not YAML: {_yaml_problem(error)}") from error


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        inner = data.get(part)
        data[part] = data = dict(inner) if isinstance(inner, dict) else {}
    data[last] = value


def _lines(source: str, where: str) -> Lines:
    """The line of every key, by its path; what an alias repeats stands where it was first.

    Raises:
        RecipeError: a key is given twice, of which YAML would take the last.
    """
    found: Lines = {}
    seen: set[int] = set()

    def visit(node: yaml.Node | None, place: tuple[str, ...]) -> None:
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            return
        seen.add(id(node))
        for key, value in node.value:
            inner, line = (*place, str(key.value)), key.start_mark.line + 1
            if inner in found:
                twice = f"{where}:{line}  {'.'.join(inner)} is given twice, first in line {found[inner]}"
                raise RecipeError(twice, hint="keep one of them")
            found[inner] = line
            visit(value, inner)

    visit(yaml.compose(source, Loader=yaml.SafeLoader), ())
    return found


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    return f"{line}{getattr(error, 'problem', None) or error}"
