"""The user's own model: a function in a Python file that need not be installed anywhere."""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import xxhash
from torch import nn

from frostline.errors import ModelError, a_type, nearest, one_line
from frostline.models._built import LoadedModel
from frostline.models.spec import ModelSpec, WeightsChoice
from frostline.models.transforms import from_timm, in_grey
from frostline.models.weights import WeightsReport
from frostline.preprocessing import Preprocessing


def build_from_file(spec: ModelSpec, weights: WeightsChoice) -> LoadedModel:
    """Call the function; it returns `model` or `(model, Preprocessing)`. See `Source`.

    The weights are those that the function gives its model, for `DEFAULT` and for `none`.
    While the file and the function run, the file's folder is at the end of `sys.path`, so it can
    import its neighbours but shadow nothing. The file's module stays in `sys.modules`, under a
    name made of its path and content, so that its classes can be pickled.
    """
    if weights.name not in ("DEFAULT", "none"):
        raise ModelError(
            f"{spec} has no weights {weights.name!r}: it brings its own. "
            "Use DEFAULT, none or a file."
        )
    path = _existing(spec)
    # Standard output is for results, and may be read as JSON.
    with _neighbours_importable(path), redirect_stdout(sys.stderr):
        function = _function(_load(path, spec), spec)
        try:
            returned = function()
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"{spec}: the function failed{line_in(path, error)}: {one_line(error)}. Fix it "
                "there."
            ) from error
    model, preprocessing = _model_and_preprocessing(returned, spec)
    report = WeightsReport(source=f"{path.name}:{spec.name}", loaded=0)
    return LoadedModel(model, preprocessing or _own_preprocessing(model), report, spec)


def _existing(spec: ModelSpec) -> Path:
    path = Path(spec.path).expanduser()
    if path.is_file():
        return path.resolve()
    folder = path.parent
    files = [entry.name for entry in folder.glob("*.py")] if folder.is_dir() else []
    close = nearest(path.name, files)
    found = f"Nearest in that folder: {', '.join(close)}." if close else "Check the path."
    raise ModelError(f"{spec}: there is no file {spec.path} (seen from {Path.cwd()}). {found}")


@contextmanager
def _neighbours_importable(path: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.append(str(path.parent))
    try:
        yield
    finally:
        sys.path[:] = before


def _load(path: Path, spec: ModelSpec) -> ModuleType:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{spec}: cannot read {path}: {one_line(error)}.") from error
    stem = re.sub(r"\W", "_", path.stem)
    name = f"_frostline_{stem}_{xxhash.xxh3_64_hexdigest(os.fsencode(path) + bytes(1) + source)}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    # There before it runs: dataclasses look their module up while they are made.
    sys.modules[name] = module
    try:
        # Compiled here, not by a loader, which leaves a cache beside the user's file and can
        # take a stale one when the file is edited within a second.
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ModelError(
            f"cannot import {path.name}{line_in(path, error)}: {one_line(error)}. "
            f"Fix the file; python {path.name} shows more."
        ) from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def line_in(path: Path, error: BaseException) -> str:
    """` (line 3)` where the error passed through the file."""
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})" if error.filename == str(path) else ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f" (line {lines[-1]})" if lines else ""


def _function(module: ModuleType, spec: ModelSpec) -> Callable[[], object]:
    names: dict[str, object] = vars(module)
    function = names.get(spec.name)
    if function is None:
        own = [
            name
            for name, value in names.items()
            if (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__ == module.__name__
        ]
        close = nearest(spec.name, own) or own[:3]
        found = f"Nearest: {', '.join(close)}." if close else "It defines no function."
        raise ModelError(f"{spec}: the file has no function {spec.name!r}. {found}")
    if not callable(function) or isinstance(function, nn.Module):
        raise ModelError(
            f"{spec}: {spec.name} is {a_type(function)}, not a function. "
            "Write a function without arguments that returns the model."
        )
    with suppress(ValueError):  # some built-in callables have none; calling it will tell
        signature = inspect.signature(function)
        try:
            signature.bind()
        except TypeError as error:
            raise ModelError(
                f"{spec}: {spec.name}{signature} cannot be called without arguments ({error}). "
                "Give its arguments defaults, or write a function that passes them."
            ) from error
    return function


def _model_and_preprocessing(
    returned: object, spec: ModelSpec
) -> tuple[nn.Module, Preprocessing | None]:
    if isinstance(returned, nn.Module):
        return returned, None
    if isinstance(returned, tuple) and len(returned) == 2:
        model, preprocessing = returned
        if isinstance(model, nn.Module) and isinstance(preprocessing, Preprocessing):
            return model, preprocessing
    raise ModelError(
        f"{spec}: the function returned {_described(returned)}. "
        "Return a torch.nn.Module, or (module, frostline.preprocessing.Preprocessing)."
    )


def _described(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return "None" if value is None else a_type(value)


def _own_preprocessing(model: nn.Module) -> Preprocessing:
    """From the attribute that timm's models and their imitators carry, else ImageNet's.

    For one grey channel where the first convolution takes one.
    """
    configs: list[Any] = [getattr(model, name, None) for name in ("pretrained_cfg", "default_cfg")]
    config = next((c for c in configs if isinstance(c, Mapping) and "input_size" in c), None)
    found = Preprocessing() if config is None else from_timm(config)
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    return in_grey(found) if first is not None and first.in_channels == 1 else found
