"""What is frozen, where, and in which mode: the model as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from torch import Tensor, nn

from frostline.freezing.modes import adapts, held_though_trainable, is_held
from frostline.freezing.rows import held_numel
from frostline.selectors.inventory import inventory
from frostline.tables import Displayed, Table, columns
from frostline.units import format_bytes, format_count, some_of
from frostline.wrapped import stored_bytes
from frostline.wrappers import unwrap

State = Literal["frozen", "trainable", "partly frozen", "no parameters"]
Mode = Literal["eval, held", "eval", "train", "mixed", "none"]


@dataclass(frozen=True, slots=True)
class Row:
    """One module, or one parameter that a module holds itself, beside its modules.

    Attributes:
        path: dotted path; `""` is the model.
        type: class name; `Parameter` for a parameter.
        parameters: numbers in the parameters at and below it, a tied one once.
        trainable: how many of these want a gradient and are in no frozen row.
        nbytes: bytes of these parameters and of the buffers.
        state: by the gradients switch.
        mode: by the mode switch; "held" is kept in eval by Frostline; a parameter has none.
    """

    path: str
    type: str
    parameters: int
    trainable: int
    nbytes: int
    state: State
    mode: Mode


@dataclass(frozen=True, slots=True)
class Summary(Displayed):
    """The model's modules down to a depth, and the whole in the first row.

    Attributes:
        held_though_trainable: modules that something unfroze behind the freeze; they train with
            dropout and statistics off.
    """

    rows: tuple[Row, ...]
    held_though_trainable: tuple[str, ...] = ()

    @property
    def total(self) -> Row:
        """The whole model."""
        return self.rows[0]

    def table(self) -> Table:
        """The rows as a table, the totals under it."""
        total = self.total
        share = total.trainable / total.parameters if total.parameters else 0.0
        held = some_of([name or "(model)" for name in self.held_though_trainable], most=5)
        return Table(
            columns("module", "type", "parameters", "gradients", "mode", left=2, right=1),
            rows=tuple(map(_cells, self.rows)),
            notes=(
                f"{format_count(total.trainable)} of {format_count(total.parameters)} parameters "
                f"trainable ({share:.2%}), {format_bytes(total.nbytes)} in all",
                *(
                    [f"held in eval though trainable: {held}; unfreeze with fl.thaw"]
                    if held
                    else []
                ),
            ),
        )

    def as_dict(self) -> dict[str, list[dict[str, str | int]]]:
        """Plain data for JSON."""
        return {"modules": [asdict(row) for row in self.rows]}

    def _parts(self) -> tuple[Table]:
        return (self.table(),)

    def __str__(self) -> str:
        return str(self.table())


def summary(model: nn.Module, *, depth: int = 2) -> Summary:
    """The model as a tree of modules, `depth` levels deep: parameters, frozen or not, mode, bytes.

    Modules without parameters are left out, except where they hold buffers. A parameter that a
    module with modules in it holds itself, such as a class token, has a row before theirs.

    Raises:
        SelectorError: `model` is no module, or is lazy and has not seen a batch.

    Example:
        >>> print(fl.summary(model, depth=1))
        module       type         parameters   gradients       mode
        ─────────────────────────────────────────────────────────────────
        (model)      Sequential          258   partly frozen   train
          backbone   Sequential          240   frozen          eval, held
          head       Sequential           18   trainable       train
        18 of 258 parameters trainable (6.98%), 1.1 KB in all
    """
    root = inventory(model).model
    held = tuple(path for path, _ in held_though_trainable(root))
    return Summary(tuple(_rows(root, "", depth)), held)


def _rows(module: nn.Module, path: str, depth: int) -> Iterator[Row]:
    yield _row(path, module)
    children = [(name, unwrap(child)) for name, child in module.named_children()]
    children = [
        (name, child) for name, child in children if [*child.parameters(), *child.buffers()]
    ]
    if depth == 0 or not children:
        return
    prefix = f"{path}." if path else ""
    for name, parameter in module.named_parameters(recurse=False):
        yield _row(prefix + name, parameter)
    for name, child in children:
        yield from _rows(child, prefix + name, depth - 1)


def _row(path: str, thing: nn.Module | nn.Parameter) -> Row:
    mode: Mode = "none"
    if isinstance(thing, nn.Parameter):
        kind, parameters, buffers = "Parameter", [thing], list[Tensor]()
    else:
        kind, mode = type(thing).__name__, _mode(thing)
        parameters, buffers = list(thing.parameters()), list(thing.buffers())
    count = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() - held_numel(p) for p in parameters if p.requires_grad)
    nbytes = sum(map(stored_bytes, (*parameters, *buffers)))
    return Row(path, kind, count, trainable, nbytes, _state(count, trainable), mode)


def _state(count: int, trainable: int) -> State:
    if trainable == 0:
        return "frozen" if count else "no parameters"
    return "trainable" if trainable == count else "partly frozen"


def _mode(module: nn.Module) -> Mode:
    if is_held(module) and not any(m.training or adapts(m) for m in module.modules()):
        return "eval, held"
    modes = {m.training for m in module.modules() if m.training or not is_held(m)}
    if len(modes) == 2 or (is_held(module) and True in modes):
        return "mixed"
    return "train" if module.training else "eval"


def _cells(row: Row) -> tuple[str, ...]:
    level = row.path.count(".") + 1 if row.path else 0
    name = "  " * level + row.path.rpartition(".")[2] if row.path else "(model)"
    mode = "" if row.mode == "none" else row.mode
    return name, row.type, format_count(row.parameters), row.state, mode
