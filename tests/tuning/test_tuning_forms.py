"""A form as text and back, and the lines people read."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from frostline.choices import DecodingName, FloatName
from frostline.errors import ConfigError
from frostline.tuning import DecodingTrial, Form, Tuned

SWITCHES = (False, True)
DECODINGS = get_args(DecodingName)
ALL = [Form(*f) for f in product(get_args(FloatName), SWITCHES, SWITCHES, SWITCHES, DECODINGS)]


@pytest.mark.parametrize("form", ALL, ids=str)
def test_a_form_reads_back_from_its_words(form: Form) -> None:
    assert Form.parse(str(form)) == form


def test_a_form_says_what_it_does() -> None:
    assert str(Form()) == "float32"
    assert str(Form("bfloat16", True, True)) == "bfloat16 channels-last folded"


@pytest.mark.parametrize(
    "text",
    [
        *("", "int8", "folded", "float32 fast", "float32 folded folded"),
        *("float32 full", "float32 jpeg-4x folded", "float32 jpeg-crop jpeg-4x", "jpeg-4x"),
    ],
)
def test_unknown_words_are_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no form of a prefix\. Write one of float32"):
        Form.parse(text)


def test_a_form_of_an_unknown_dtype_cannot_be_made() -> None:
    with pytest.raises(ConfigError, match="dtype is one of float32, bfloat16, float16; got 'int8'"):
        Form("int8")  # type: ignore[arg-type] # what is tested


def test_a_form_of_an_unknown_decoding_cannot_be_made() -> None:
    with pytest.raises(ConfigError, match=r"decoding is one of full, jpeg-crop, .*; got 'jpeg-9x'"):
        Form(decoding="jpeg-9x")  # type: ignore[arg-type] # what is tested


def test_a_result_says_what_was_tried_of_decoding() -> None:
    trial = DecodingTrial("jpeg-4x", 2.23, 0.0126, 0.0192)
    fast = Tuned(Form("bfloat16", decoding="jpeg-4x"), 0.0192, 32, (), 1, 2, (trial,))
    assert str(fast) == (
        "bfloat16, 2.0 times the speed of plain float32; pictures decoded jpeg-4x 2.2 times as "
        "fast, relative error 1.3 %, of the worst picture tried 1.9 %"
    )
    plain = replace(fast, form=Form(decoding="jpeg-4x"))
    assert str(plain).startswith("float32; pictures decoded jpeg-4x 2.2 times as fast, ")
    assert plain.speedup == 1


def test_a_result_is_one_line_with_speed_and_error() -> None:
    tuned = Tuned(Form("bfloat16", True), 0.003, 32, (), 0.01, 0.064)
    assert str(tuned) == (
        "bfloat16 channels-last, 6.4 times the speed of plain float32, relative error 0.3 %"
    )


def test_tiny_errors_are_not_rounded_to_nothing() -> None:
    assert str(Tuned(Form("float32", True), 3.2e-7, 32, (), 1, 2)).endswith("error 3.2e-07")


def test_plain_float32_claims_no_speed() -> None:
    assert str(Tuned(Form(), 0.0, 32)) == "float32, exactly as in the model"
    assert Tuned(Form(), 0.0, 32).speedup == 1
