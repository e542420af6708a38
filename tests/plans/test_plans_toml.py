"""A plan as a value and as TOML: both ways, what is refused, what a reader sees."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

import frostline as fl
from frostline.plans.showing import plan_table
from frostline.recipe import config_errors

SELECTORS = st.sampled_from(
    ["all", "stage:-2..-1", "kind:norm | head", "glob:'a b'", 're:"x\\d"', "~body"]
)
POSITIVE = st.floats(1e-300, 1e300)
UNTIL = st.builds(
    fl.Until,
    monitor=st.none() | st.just("loss"),
    patience=st.integers(1, 10**6),
    min_change=st.floats(0, 1e300),
    target=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    minutes=st.none() | POSITIVE,
)
PHASE = st.builds(
    fl.Phase,
    name=st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20),
    train=st.none() | SELECTORS,
    norm=st.sampled_from(["hold", "adapt"]),
    epochs=st.integers(1, 10**6),
    steps=st.none() | st.integers(1, 10**6),
    until=st.none() | UNTIL,
    lr=st.none() | POSITIVE,
    layer_decay=st.none() | st.floats(1e-9, 1),
    weight_decay=st.none() | st.floats(0, 1e300),
    schedule=st.none() | st.sampled_from(["cosine", "constant"]),
    warmup=st.none() | st.floats(0, 1e300),
    lr_mult=st.dictionaries(SELECTORS, POSITIVE),
    start=st.sampled_from(["best", "last"]),
    state=st.sampled_from(["keep", "fresh"]),
)
PLAN = st.lists(PHASE, min_size=1, max_size=3).map(fl.Plan)

TWO = fl.Plan([fl.Phase(name="head", train="stage:-1", epochs=5), fl.Phase(steps=7)])


# A value


def test_a_plan_is_a_row_of_phases() -> None:
    assert len(TWO) == 2
    assert list(TWO) == [TWO[0], TWO[-1]] == list(TWO.phases)
    assert TWO[1].steps == 7


def test_equal_plans_are_equal() -> None:
    assert fl.Plan(iter(TWO)) == TWO == fl.Plan(phases=TWO.phases)
    assert fl.Plan(TWO.phases[:1]) != TWO


def test_repr_reads_back_as_code() -> None:
    expected = "fl.Plan([fl.Phase(name='head', train='stage:-1', epochs=5), fl.Phase(steps=7)])"
    assert repr(TWO) == expected
    assert eval(repr(TWO)) == TWO


@given(plan=PLAN)
def test_every_plan_survives_toml_code_and_a_settings_file(plan: fl.Plan) -> None:
    assert fl.Plan.loads(plan.dumps()) == plan
    assert eval(repr(plan)) == plan
    assert fl.Plan(**plan.as_dict()) == plan
    assert fl.Plan.model_validate(plan.model_dump(mode="json", exclude_none=True)) == plan


def test_phases_may_be_given_as_mappings() -> None:
    assert fl.Plan([{"steps": 7}])[0] == fl.Phase(steps=7)


def test_a_plan_without_phases_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"^phases=\[\]: a plan has at least one phase, as "):
        fl.Plan([])


@pytest.mark.parametrize("given_", [fl.Phase(epochs=1), 3, "head", {"epochs": 1}])
def test_what_is_no_list_of_phases_is_refused(given_: object) -> None:
    with pytest.raises(fl.ConfigError, match=r"^phases=.*: a plan is a list of phases, as fl.Plan"):
        fl.Plan(given_)  # type: ignore[arg-type]  # that is what is tested


def test_a_phase_that_is_wrong_is_named_by_its_place() -> None:
    with pytest.raises(fl.ConfigError, match=r"^phases\.1\.epochs=0: input should be greater"):
        fl.Plan([fl.Phase(epochs=1), {"epochs": 0}])
    with pytest.raises(fl.ConfigError, match=r"^phases\.0=3: input should be a valid dictionary"):
        fl.Plan([3])  # type: ignore[list-item]  # that is what is tested


def test_in_a_settings_file_the_field_at_fault_is_named_by_its_path() -> None:
    with pytest.raises(fl.ConfigError, match=r"^phases\.0\.until\.patience=0: "), config_errors():
        fl.Plan.model_validate({"phases": [{"until": {"patience": 0}}]})


# TOML


def test_toml_holds_only_what_differs_from_the_defaults() -> None:
    plan = fl.Plan(
        [
            fl.Phase(
                name="tune",
                freeze="stem",
                norm="hold",
                until={"patience": 3},
                lr_mult={"stage:-1": 10},
            )
        ]
    )
    assert plan.dumps() == (
        "[[phase]]\n"
        'name = "tune"\n'
        'freeze = "stem"\n'
        "until = { patience = 3 }\n"
        'lr_mult = { "stage:-1" = 10.0 }\n'
    )


def test_a_saved_plan_is_read_back(tmp_path: Path) -> None:
    TWO.save(tmp_path / "new" / "plan.toml")
    assert fl.Plan.load(str(tmp_path / "new" / "plan.toml")) == TWO
    assert tomllib.loads(TWO.dumps())["phase"] == TWO.as_dict()["phases"]


def test_a_plan_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(fl.OutputError, match="file"):
        TWO.save(tmp_path / "file" / "plan.toml")


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("epochs", "^the plan is no TOML: .*Fix it there"),
        ("", r"^the plan has no phase. Begin one with \[\[phase\]\], as Plan\.save writes"),
        ("phase = []", "^the plan has no phase"),
        ("phase = 3", r"^each phase is a table under \[\[phase\]\], with two pairs of brackets"),
        ("[phase]\nepochs = 1", "^each phase is a table under"),
        ("[[phases]]\nepochs = 1", r"^there is no option 'phases'. Did you mean phase\?$"),
        (
            "[[phase]]\nepochs = 1\n[[phase]]\nname = 'tune'\nepoch = 1",
            r"^phase 2 \(tune\): there is no option 'epoch'. Did you mean epochs\?$",
        ),
        ("[[phase]]\nzzz = 1", "^phase 1: there is no option 'zzz'. Known: name, train, freeze, "),
        (
            "[[phase]]\nuntil = { patiense = 1 }",
            r"^phase 1: there is no option 'until.patiense'. Did you mean until.patience\?$",
        ),
        ("[[phase]]\nepochs = 0", "^phase 1: epochs=0: input should be greater than or equal"),
        ("[[phase]]\ntrain = 'all'", "^phase 1: the phase has no length; give epochs"),
        ("[[phase]]\nname = 3\nepochs = 1", "^phase 1: name=3: input should be a valid string"),
    ],
)
def test_toml_that_is_no_plan_says_what_to_mend(toml: str, told: str) -> None:
    with pytest.raises(fl.ConfigError, match=told):
        fl.Plan.loads(toml)


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("[[phase]]\nepochs = 0")
    with pytest.raises(fl.ConfigError, match=r"plan\.toml: phase 1: epochs=0: "):
        fl.Plan.load(path)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    TWO.save(tmp_path / "plan.toml")
    told = r"^there is no plan at .*plna\.toml\. Nearest: .*plan\.toml\. fl\.Plan\(\["
    with pytest.raises(fl.ConfigError, match=told):
        fl.Plan.load(tmp_path / "plna.toml")


def test_a_missing_folder_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(fl.ConfigError, match=r"^there is no plan at .*plan\.toml\. fl\.Plan\(\["):
        fl.Plan.load(tmp_path / "none" / "plan.toml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(fl.ConfigError, match=r"plan\.toml cannot be read: .*Give a plan's TOML"):
        fl.Plan.load(tmp_path / "plan.toml")


# The table


def test_the_table_shows_what_trains_for_how_long_and_how() -> None:
    plan = fl.Plan(
        [
            fl.Phase(name="head", train="stage:-1", until=fl.Until(patience=1, min_change=0.01)),
            fl.Phase(freeze="stem", epochs=1, steps=9, lr=1e-4, norm="adapt", start="best"),
            fl.Phase(epochs=3, until={"target": 0.9, "minutes": 2}, state="fresh", warmup=0),
            fl.Phase(steps=1, lr_mult={"head": 10}, layer_decay=0.5),
        ]
    )
    assert [row[:2] for row in plan_table(plan.phases).rows] == [
        ("head", "stage:-1"),
        ("phase 2", "all but stem"),
        ("phase 3", "what trains already"),
        ("phase 4", "what trains already"),
    ]
    assert [row[2] for row in plan_table(plan.phases).rows] == [
        "until 1 epoch without a better metric by 0.01",
        "1 epoch or 9 steps",
        "until the metric 0.9 or 2 min, at most 3 epochs",
        "1 step",
    ]
    assert [row[3:] for row in plan_table(plan.phases).rows] == [
        ("default", ""),
        ("0.0001", "from the best epoch, norms adapt"),
        ("default", "fresh optimizer state, warmup 0.0"),
        ("default", "layer_decay 0.5, lr x 10 for head"),
    ]


@given(plan=PLAN)
def test_no_line_of_the_table_is_wider_than_80_columns(plan: fl.Plan) -> None:
    assert max(map(cell_len, str(plan).splitlines())) <= 80


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[[phase]]\nepochs = true", "phase 1: epochs=True: true and false are no numbers"),
        ("[[phase]]\nepochs = 1\nlr = true", "lr=True: true and false are no numbers"),
        ("[[phase]]\nepochs = 1\nlr_mult = {all = true}", "true and false are no numbers"),
        ("[[phase]]\nuntil = {patience = true}", "until.patience=True: true and false"),
        ("[[phase]]\nepochs = " + "9" * 10_000, "no TOML: Exceeds the limit"),
        ("[[phase]]\nsteps = " + "9" * 4_000, "less than or equal to 1000000000"),
        ("[[phase]]\nepochs = 1\nname = '" + "x" * 10**6 + "'", "at most 200 characters"),
        ("[[phase]]\n" + "x" * 10**6 + " = 1", r"no option 'x{80}\.\.\. \(1,000,000 char"),
        ("a = " + "[" * 3_000 + "]" * 3_000, "nested too deep"),
        ("a = " + "{a = " * 3_000 + "1" + "}" * 3_000, "nested too deep"),
        ("[[phase]]\nepochs = 1\n" * 3_000, "at most 1,000 phases, and this one has 3,000"),
    ],
    ids=lambda text: text[:40],
)
def test_what_has_no_bound_is_refused_in_a_short_message(toml: str, told: str) -> None:
    with pytest.raises(fl.ConfigError, match=told) as error:
        fl.Plan.loads(toml)
    assert len(str(error.value)) < 400


def test_a_number_that_python_does_not_write_out_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"epochs=<a number of 33,220 bits>: .* 1000000000"):
        fl.Phase(epochs=10**10_000)
