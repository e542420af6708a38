"""Options that several verbs share, and a recipe's fields as options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, final, get_args

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from frostline.choices import HeadPlace, NormPolicy, TaskChoice
from frostline.errors import ConfigError, SelectorError
from frostline.recipe import Recipe, config_errors
from frostline.units import parse_bytes

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

_Function = TypeVar("_Function", bound=Callable[..., None])

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def _device(text: str) -> str:
    """Refuse what names no device on any machine; whether it is here, a run finds out."""
    if text != "auto":
        from torch import device

        try:
            device(text)
        except RuntimeError:
            raise typer.BadParameter(
                f"'{text}' names no device. Use auto, cpu, cuda, cuda:1, mps, ..."
            ) from None
    return text


def _selector(text: str | None) -> str | None:
    """Refuse what cannot be read; whether it matches, the model says."""
    if text is not None:
        from frostline.selectors.grammar import parse

        with usage_errors():
            parse(text)
    return text


def _augment(text: str) -> str:
    if text != "none":
        from frostline.data import Augment

        with usage_errors():
            Augment.parse(text)
    return text


def as_number(text: str, option: str | None = None) -> float:
    """Refuse what is no number, and say so of a decimal comma.

    Args:
        option: to be named where typer does not do so.
    """
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(_no_number(text), param_hint=option) from None


def _no_number(text: str) -> str:
    point = text.replace(",", ".")
    hint = f"; write the decimal point, {point}" if re.fullmatch(r"\d*,\d+", text) else ""
    return f"'{text}' is no number{hint}."


def number(description: str) -> Any:
    """An option that takes a number."""
    return typer.Option(help=description, parser=as_number, metavar="NUMBER")


@final
class Verbs(TyperGroup):
    """Has what typer found wrong with an option said in plain words, not in pydantic's."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if isinstance(error.__cause__, ValidationError):
                error.message = _plain(error.__cause__.errors(include_url=False)[0])
            raise


def _plain(problem: ErrorDetails) -> str:
    given = str(problem["input"])
    match problem["type"]:
        case "int_parsing" | "int_from_float":
            return f"'{given}' is no whole number."
        case "float_parsing":
            return _no_number(given)
    text = problem["msg"].removeprefix("Value error, ")
    return text.replace("Input should be", f"{given} should be").removesuffix(".") + "."


Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...", callback=_device)]
Augment = Annotated[str, typer.Option(help="none, views:K or live.", callback=_augment)]
_MODELS = "alexnet, torchvision:NAME, timm:NAME, hf:FOLDER or file.py:function."
Model = Annotated[str, typer.Option("--model", help=_MODELS)]
ModelName = Annotated[str, typer.Argument(help=_MODELS, metavar="MODEL")]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan", help="Phases to train in, as `frostline plan` writes them.", metavar="FILE"
    ),
]
BatchSize = Annotated[int, typer.Option(help="Samples in a step.", min=1)]
Data = Annotated[
    Path,
    typer.Argument(
        help="Class folders (or train/ and val/), a CSV or TSV; of texts also JSONL or Parquet.",
        metavar="DATA",
    ),
]
FileColumn = Annotated[str, typer.Option(help="A table's column of pictures.", metavar="NAME")]
TextColumn = Annotated[
    str,
    typer.Option(
        "--text-column",
        "--text",
        help="A table's column of texts, or the two of a pair as premise+hypothesis.",
        metavar="NAME",
    ),
]
LabelColumn = Annotated[
    str,
    typer.Option(
        "--label-column",
        "--label",
        help="A table's column of classes or other targets; several with commas between.",
        metavar="NAME",
    ),
]
SplitColumn = Annotated[
    str,
    typer.Option(
        help="A table's column of train, val and test; by default split or is_valid, if there.",
        metavar="NAME",
    ),
]
TaskKind = Annotated[
    TaskChoice, typer.Option("--task", help="What is learnt; auto looks at the targets.")
]
Classes = Annotated[int, typer.Option("--classes", help="How many, without --data.", min=1)]
Weights = Annotated[
    str, typer.Option(help="DEFAULT, none, or a FILE of weights.", metavar="WEIGHTS")
]
Freeze = Annotated[
    str | None,
    typer.Option(
        "--freeze", help="Freeze what this selector matches.", metavar="SEL", callback=_selector
    ),
]
Train = Annotated[
    str | None,
    typer.Option(
        "--train",
        help="Train what this selector matches, freeze the rest.",
        metavar="SEL",
        callback=_selector,
    ),
]
Norm = Annotated[
    NormPolicy,
    typer.Option(help="Frozen norms: hold their statistics, or let them adapt to the data."),
]
On = Annotated[
    HeadPlace, typer.Option(help="Replace the classifier, stack a head on its logits, or keep it.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Write over a file that Frostline did not write.")
]
Head = Annotated[
    str, typer.Option("--head", help="Hidden widths of the new head, as 100 or 256,64.")
]
Dropout = Annotated[
    float | None,
    number("Probability of all dropout that trains, also behind hidden layers of the new head."),
]
Run = Annotated[Path, typer.Argument(help="A folder that `frostline train` wrote.", metavar="RUN")]

RunWeights = Annotated[
    Path | None,
    typer.Option("--weights", help="The base's weights, if they were moved.", metavar="FILE"),
]


def hidden_widths(text: str, *, on: HeadPlace) -> tuple[int, ...]:
    """`"256,64"` -> `(256, 64)`; wrong usage where these are no widths, or no new head is put."""
    from frostline.models import check_head

    try:
        widths = tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is no list of widths such as 100 or 256,64.", param_hint="--head"
        ) from None
    with usage_errors():
        check_head(classes=2, hidden=widths, on=on)
    return widths


def size_in_bytes(text: str, option: str) -> int:
    """`"4GiB"` -> bytes; wrong usage of `option` where it is no size."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


@contextmanager
def usage_errors() -> Iterator[None]:
    """Option values that cannot be read or are out of range are wrong usage: exit status 2."""
    try:
        with config_errors():
            yield
    except (ConfigError, SelectorError) as error:
        raise typer.BadParameter(str(error)) from error


def with_recipe(function: _Function) -> _Function:
    """Give a verb an option for each field of `Recipe` that it lacks, in place of `**recipe`."""
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[field.annotation, _option(field)],
        )
        for name, field in Recipe.model_fields.items()
        if name not in signature.parameters
    ]
    parameters = [*own, *options]
    function.__dict__["__signature__"] = signature.replace(parameters=parameters)
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


def _option(field: FieldInfo) -> Any:
    is_number = float in (field.annotation, *get_args(field.annotation))
    text = str(field.description)
    return number(text) if is_number else typer.Option(help=text)
