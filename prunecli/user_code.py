"""Code of the user's own: functions in files and modules, found as Python would find them where the user stands."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from prunecli.errors import ArchError, InputError, summary


@contextlib.contextmanager
def importing_from(*folders: Path) -> Iterator[None]:
    """Imports look into these folders first, and leave no bytecode there; what is imported later looks there last."""
    names = [str(folder) for folder in folders]
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path[:0] = names
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        for name in names:
            if name in sys.path:  # what was imported may have changed the list itself
                sys.path.remove(name)
        sys.path += [name for name in names if name not in sys.path]


def user_function(place: str, name: str, error: type[InputError] = ArchError) -> Callable[..., Any]:
    """A function in a user's file (``path/to/net.py``) or module.

    A file in a package is imported as a part of it; one that stands alone sees the files beside it. Both see what
    can be imported from the working directory.

    Raises:
        InputError: of the given type, where the place cannot be imported or has no such function.
    """
    try:
        module = _of_file(place, error) if place.endswith(".py") else _of_module(place, Path.cwd())
    except InputError:
        raise
    except (Exception, SystemExit) as problem:  # the user's code may raise anything
        raise error(
            f"cannot import {place}: {summary(problem)}",
            hint="FILE.py:FUNCTION, or MODULE:FUNCTION in the folder that its imports start from",
        ) from problem
    found = getattr(module, name, None)
    if not callable(found):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise error(f"{place} has no function {name!r}", hint=f"it has: {', '.join(names[:8]) or 'none'}")
    function: Callable[..., Any] = found
    return function


def _of_module(name: str, *folders: Path) -> ModuleType:
    with importing_from(*folders):
        return importlib.import_module(name)


def _of_file(place: str, error: type[InputError]) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise error(f"no such file: {place}")
    if not (path.parent / "__init__.py").is_file():
        return _alone(path)
    try:
        return _in_package(path, error)
    except ImportError:
        with contextlib.suppress(ImportError):  # what its package wants and has not, it may not need
            return _alone(path)
        raise


def _alone(path: Path) -> ModuleType:
    """A file that is in no package; executed once, as modules are, unless it has changed."""
    name, source = f"prunecli_user_{path.stem}", path.read_bytes()
    known = sys.modules.get(name)
    if known is not None and (known.__file__, vars(known).get("__source__")) == (str(path), source):
        return known
    module = sys.modules[name] = ModuleType(name)  # dataclasses and pickles look themselves up there
    module.__file__ = str(path)
    with importing_from(path.parent, Path.cwd()):
        exec(compile(source, str(path), "exec"), module.__dict__)
    vars(module)["__source__"] = source  # once it has run to its end
    return module


def _in_package(path: Path, error: type[InputError]) -> ModuleType:
    """A file beside an ``__init__.py``, by its name in the outermost package that it is in."""
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    module = _of_module(name, root, Path.cwd(), path.parent)
    if module.__file__ is None or Path(module.__file__).resolve() != path:
        raise error(f"{path} is {name} in its package, a name that {module.__file__} has", hint="rename one of them")
    return module
