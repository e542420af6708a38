"""The model as a table: what it counts, how it names states and modes, how wide it is."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torchvision import models

import frostline as fl
from frostline.freezing.tree import Row
from frostline.tables import Column, Table


def row(model: nn.Module, path: str, *, depth: int = 2) -> Row:
    return next(r for r in fl.summary(model, depth=depth).rows if r.path == path)


def net() -> nn.Sequential:
    body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    return nn.Sequential(body, nn.Linear(2, 2))


def nested(depth: int, name: str) -> nn.Module:
    inner: nn.Module = nn.Linear(1000, 1000)
    for _level in range(depth):
        inner = nn.ModuleDict({name: inner})
    return inner


def test_a_tied_parameter_is_counted_once() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embed"].weight
    total = fl.summary(model).total
    assert (total.parameters, total.trainable, total.nbytes) == (6, 6, 24)


def test_buffers_count_in_bytes_but_not_as_parameters() -> None:
    found = row(nn.Sequential(nn.BatchNorm1d(2)), "0")
    counter_bytes = 8
    assert (found.parameters, found.nbytes) == (4, 4 * 4 + 2 * 2 * 4 + counter_bytes)


@pytest.mark.parametrize(
    ("frozen", "state"), [("none", "trainable"), ("0.0", "partly frozen"), ("0", "frozen")]
)
def test_the_state_goes_by_the_gradients_switch(frozen: str, state: str) -> None:
    model = net()
    fl.freeze(model, frozen)
    assert row(model, "0").state == state


def test_statistics_without_parameters_have_a_row_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
    assert row(model, "1").state == "no parameters"


def test_a_layer_without_tensors_has_no_row() -> None:
    assert "0.2" not in {r.path for r in fl.summary(net()).rows}


class WithToken(nn.Module):
    """A parameter of the model's own, beside its modules, one of which has one too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = net()
        self.layers.register_parameter("scale", nn.Parameter(torch.ones(3)))
        self.token = nn.Parameter(torch.zeros(1, 7))


def test_a_parameter_that_a_module_holds_itself_has_a_row() -> None:
    model = WithToken()
    fl.freeze(model, "token")
    paths = [r.path for r in fl.summary(model).rows]
    assert paths == ["", "token", "layers", "layers.scale", "layers.0", "layers.1"]
    assert row(model, "token") == Row("token", "Parameter", 7, 0, 28, "frozen", "none")
    assert row(model, "layers.scale").state == "trainable"
    assert sum(r.parameters for r in fl.summary(model, depth=1).rows[1:]) == 7 + 16 + 3
    assert "\n  token" in str(fl.summary(model))


def test_a_layer_without_modules_in_it_has_one_row() -> None:
    assert [r.path for r in fl.summary(nn.Linear(2, 2)).rows] == [""]


def test_a_held_part_says_so() -> None:
    model = net()
    fl.freeze(model, "0")
    assert row(model, "0").mode == "eval, held"


def test_a_part_in_eval_of_itself_is_not_called_held() -> None:
    assert row(net().eval(), "0").mode == "eval"


def test_a_part_of_both_modes_is_mixed() -> None:
    model = net()
    model[0][1].eval()
    assert row(model, "0").mode == "mixed"


def test_a_frozen_part_whose_norm_adapts_is_mixed() -> None:
    model = net()
    fl.freeze(model, "0", norm="adapt")
    assert row(model.train(), "0").mode == "mixed"


def test_a_held_part_put_in_train_mode_behind_the_freeze_is_not_called_held() -> None:
    model = net()
    fl.freeze(model, "0")
    model[0][2].training = True
    assert row(model, "0").mode == "mixed"


@pytest.mark.parametrize(("depth", "count"), [(0, 1), (1, 3), (2, 5), (9, 5)])
def test_the_table_goes_down_to_the_depth_asked(depth: int, count: int) -> None:
    assert len(fl.summary(net(), depth=depth).rows) == count


def test_a_wrapped_part_is_shown_as_its_inside() -> None:
    model = net()
    model[0] = torch.compile(model[0], backend="eager")
    assert [r.path for r in fl.summary(model).rows] == ["", "0", "0.0", "0.1", "1"]


def test_the_summary_is_plain_data_for_json() -> None:
    rows = json.loads(json.dumps(fl.summary(net()).as_dict()))["modules"]
    assert rows[0]["path"] == ""
    assert rows[0]["parameters"] == 16


def test_the_note_says_how_much_is_trainable() -> None:
    model = net()
    fl.freeze(model, "0")
    assert "6 of 16 parameters trainable (37.50%)" in str(fl.summary(model))


def test_a_model_without_parameters_has_a_table() -> None:
    assert "0 of 0 parameters trainable" in str(fl.summary(nn.ReLU()))


@pytest.mark.parametrize(
    "model",
    [
        nested(12, "block"),
        nested(30, "layer"),
        nested(3, "a_name_of_a_module_that_is_very_long_indeed_as_generated_ones_may_be"),
        models.swin_t(weights=None),
    ],
    ids=["deep", "very deep", "long names", "swin"],
)
def test_no_line_is_wider_than_80_columns(model: nn.Module) -> None:
    text = str(fl.summary(model, depth=40))
    assert max(map(len, text.splitlines())) <= 80


def lines(model: nn.Module, width: int) -> list[str]:
    return fl.summary(model, depth=2).table().render(width=width).splitlines()


def test_a_narrow_table_is_broken_between_words_before_anything_else() -> None:
    model = models.resnet18(weights=None)
    fl.freeze(model, "stage:0..-2")
    text = "\n".join(lines(model, 60))
    assert max(map(len, lines(model, 60))) <= 60
    assert all(word in text for word in ("BatchNorm2d", "gradients", "11,689,512", "partly"))


def test_a_narrower_table_is_broken_within_names_before_anywhere() -> None:
    model = models.resnet18(weights=None)
    fl.freeze(model, "stage:0..-2")
    text = "\n".join(lines(model, 54))
    assert max(map(len, lines(model, 54))) <= 54
    assert all(part in text for part in ("Batch ", " Norm2d", "gradients", "11,689,512"))


def test_a_dotted_name_is_broken_behind_a_dot() -> None:
    report = fl.select(models.alexnet(weights=None), "all").report().render(width=40)
    cells = {line.partition(" ")[0] for line in report.splitlines()[3:-2]}
    stages = {f"features.{n}." for n in (0, 3, 6, 8, 10)} | {f"classifier.{n}." for n in (1, 4, 6)}
    assert cells == stages | {"weight", "bias"}
    assert max(map(len, report.splitlines())) <= 40


@pytest.mark.parametrize("width", [20, 30, 45])
def test_a_figure_is_broken_last_of_all(width: int) -> None:
    table = Table((Column("name"), Column("count", "right")), (("averylongname" * 5, "1,234,567"),))
    assert "1,234,567" in table.render(width=width)
    assert max(map(len, table.render(width=width).splitlines())) <= width


def test_a_cell_in_lines_keeps_its_indentation() -> None:
    table = Table((Column("name"),), (("    one_name of_two",),))
    assert table.render(width=12).splitlines()[2:] == ["    one_name", "    of_two"]


def test_wide_characters_are_measured_as_they_are_shown() -> None:
    table = Table((Column("name"),), (("蚂蚁" * 10,),))
    assert table.render(width=20).splitlines()[2:] == ["蚂蚁" * 5, "蚂蚁" * 5]


def test_a_long_name_is_folded_and_not_cut() -> None:
    name = "abcdefghij" * 9
    text = str(fl.select(nn.ModuleDict({name: nn.Linear(1, 1)}), "all"))
    folded = "".join(line.partition(" ")[0] for line in text.splitlines())
    assert f"{name}.weight" in folded


def test_a_table_does_not_read_markup_in_its_cells() -> None:
    table = Table(columns=(Column("name"),), rows=(("[bold]x[/bold] :smile:",),), title="[red]t")
    assert "[bold]x[/bold] :smile:" in str(table)
    assert "[red]t" in str(table)


def test_a_table_is_text_even_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "Linear" in str(fl.summary(nn.Linear(1, 1)))


def test_a_lazy_model_says_what_to_do() -> None:
    with pytest.raises(fl.SelectorError, match="Run one batch through the model"):
        fl.summary(nn.Sequential(nn.LazyLinear(2)))


def test_a_part_held_though_trainable_is_named_under_the_table() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2))
    fl.freeze(net, "0")
    assert "held in eval though" not in str(fl.summary(net))
    net[0].requires_grad_(True)
    assert fl.summary(net).held_though_trainable == ("0",)
    assert "held in eval though trainable: 0; unfreeze with fl.thaw" in str(fl.summary(net))
