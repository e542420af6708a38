"""The user's own file: what it may return, how it is imported, and each way in which it fails."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from PIL import Image

from frostline.errors import ConfigError, ModelError
from frostline.models import LoadedModel, build, load_model
from frostline.models.spec import ModelSpec
from frostline.preprocessing import Preprocessing

NET = """
    from __future__ import annotations
    from dataclasses import dataclass
    import torch
    from torch import nn
    from frostline.preprocessing import Preprocessing

    @dataclass
    class Options:
        width: int = 4

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, Options().width)
            self.fc = nn.Linear(4, 2)
        def forward(self, x):
            return self.fc(self.body(x))

    def build():
        return Net()

    def with_preprocessing():
        return Net(), Preprocessing(resize=40, crop=(32, 32))

    def like_timm():
        net = Net()
        net.pretrained_cfg = {"input_size": (3, 96, 96), "crop_pct": 1.0}
        net.default_cfg = {"input_size": (4, 96, 96)}  # which is overridden, and never read
        return net
"""


def write(folder: Path, text: str, name: str = "net.py") -> Path:
    (folder / name).write_text(dedent(text))
    return folder / name


def made(path: Path, function: str = "build", **options: int) -> LoadedModel:
    return build(ModelSpec.parse(f"{path}:{function}"), weights="DEFAULT", **options)


def refusal(path: Path, function: str = "build") -> str:
    with pytest.raises(ModelError) as caught:
        made(path, function)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_function_gives_its_model_with_imagenet_s_preprocessing(tmp_path: Path) -> None:
    built = made(write(tmp_path, NET))
    assert type(built.model).__name__ == "Net"
    assert built.preprocessing == Preprocessing()
    assert str(built.weights) == "weights as net.py:build made them"


def test_a_class_can_stand_for_a_function(tmp_path: Path) -> None:
    assert type(made(write(tmp_path, NET), "Net").model).__name__ == "Net"


def test_a_function_may_return_its_own_preprocessing(tmp_path: Path) -> None:
    built = made(write(tmp_path, NET), "with_preprocessing")
    assert built.preprocessing == Preprocessing(resize=40, crop=(32, 32))


def test_a_model_that_describes_itself_as_timm_s_do_is_understood(tmp_path: Path) -> None:
    preprocessing = made(write(tmp_path, NET), "like_timm").preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (96, (96, 96))


def test_the_model_s_random_values_depend_on_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path, NET)
    first, second = (made(path, seed=3).model.get_parameter("fc.weight") for _ in range(2))
    assert torch.equal(first, second)


def test_the_whole_way_to_a_model_with_a_head(tmp_path: Path) -> None:
    loaded = load_model(f"{write(tmp_path, NET)}:build", weights="none", classes=5, hidden=(6,))
    assert loaded.head == "fc"
    assert loaded.model(torch.ones(1, 3)).shape == (1, 5)


def test_the_model_can_be_copied_pickled_and_saved_whole(tmp_path: Path) -> None:
    model = made(write(tmp_path, NET)).model
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    twins = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(saved, weights_only=False),
    ]
    assert all(type(twin) is type(model) for twin in twins)


def test_a_file_named_like_a_package_hides_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, NET, "json.py")
    before = sys.modules.get("json")
    made(path)
    assert sys.modules.get("json") is before


def test_importing_leaves_the_path_and_the_folder_as_they_were(tmp_path: Path) -> None:
    path = write(tmp_path, dedent(NET) + "\nimport sys\nsys.path.insert(0, 'elsewhere')\n")
    before = list(sys.path)
    made(path)
    assert sys.path == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.py"]


def test_the_same_file_keeps_its_classes_and_an_edited_one_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path, NET)
    first, second = made(path).model, made(path).model
    edited = made(write(tmp_path, NET.replace("width: int = 4", "width: int = 4 + 0"))).model
    assert type(first) is type(second)
    assert type(edited) is not type(first)


def test_neighbours_can_be_imported_but_shadow_no_package(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 2", "frostline_test_neighbour.py")
    write(tmp_path, "raise RuntimeError('shadowed')", "colorsys.py")
    text = """
        import colorsys
        from torch import nn
        def build():
            from frostline_test_neighbour import WIDTH
            return nn.Sequential(nn.Linear(2, WIDTH))
    """
    try:
        made(write(tmp_path, text))
    finally:
        sys.modules.pop("frostline_test_neighbour", None)


def test_a_missing_file_is_told_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, NET)
    assert "Nearest in that folder: net.py." in refusal(tmp_path / "nte.py")
    assert "Check the path." in refusal(tmp_path / "nowhere" / "net.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nimport no_such_package_here\n", "(line 2): ModuleNotFoundError: No module named"),
        ("def build(:\n", "(line 1): SyntaxError"),
        ("import sys\nsys.exit('bye')\n", "(line 2): SystemExit: bye"),
        ("raise ValueError('a\\nb')\n", "(line 1): ValueError: a b"),
    ],
)
def test_a_file_that_fails_to_import_is_quoted(tmp_path: Path, text: str, said: str) -> None:
    before = set(sys.modules)
    message = refusal(write(tmp_path, text))
    assert message.startswith("cannot import net.py")
    assert said in message
    assert not [name for name in set(sys.modules) - before if "net" in name]


def test_a_missing_function_is_told_with_the_nearest(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, NET), "biuld")
    assert "the file has no function 'biuld'. Nearest: build" in message
    assert "It defines no function." in refusal(write(tmp_path, "x = 1"))


def test_a_module_in_place_of_a_function_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "from torch import nn\nbuild = nn.Linear(1, 1)\nfive = 5")
    assert "build is a Linear, not a function. Write a function" in refusal(path)
    assert "five is an int, not a function" in refusal(path, "five")


def test_a_function_that_needs_arguments_is_refused_with_the_name(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "def build(width, *, depth=1): ..."))
    assert "build(width, *, depth=1) cannot be called without arguments" in message
    assert "missing a required argument: 'width'" in message


def test_a_function_that_fails_is_quoted_with_its_line(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "def build():\n    return 1 / 0\n"))
    assert "the function failed (line 2): ZeroDivisionError: division by zero" in message


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", "returned None. Return a torch.nn.Module"),
        ("5", "returned an int"),
        ("(5, 6)", "returned a tuple of int, int"),
        ("()", "returned a tuple of nothing"),
    ],
)
def test_what_is_no_model_is_described(tmp_path: Path, returned: str, said: str) -> None:
    assert said in refusal(write(tmp_path, f"def build():\n    return {returned}\n"))


def test_an_entry_s_name_is_refused_as_weights(tmp_path: Path) -> None:
    path = write(tmp_path, NET)
    with pytest.raises(ModelError, match="has no weights 'IMAGENET1K_V1': it brings its own"):
        build(ModelSpec.parse(f"{path}:build"), weights="IMAGENET1K_V1")


GREY = """
    from torch import nn
    import timm
    from frostline.preprocessing import Preprocessing

    def plain():
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def stated():
        return plain(), Preprocessing(resize=8, crop=(8, 8), mean=(0.5,), std=(0.25,))

    def of_timm():
        return timm.create_model("test_resnet", in_chans=1)

    def two_means():
        return plain(), Preprocessing(mean=(0.5,), std=(0.25, 0.2, 0.1))
"""


@pytest.mark.parametrize("function", ["plain", "stated", "of_timm"])
def test_a_network_of_one_channel_gets_grey_pictures(tmp_path: Path, function: str) -> None:
    (tmp_path / "grey.py").write_text(dedent(GREY))
    loaded = build(ModelSpec.parse(f"{tmp_path}/grey.py:{function}"), weights="none")
    preprocessing = loaded.preprocessing
    assert preprocessing.channels == 1
    picture = Image.new("RGB", (40, 40), (77, 77, 77))
    pixels = preprocessing(picture)
    assert pixels.shape == (1, *preprocessing.crop)
    (mean,), (std,) = preprocessing.mean, preprocessing.std
    assert torch.allclose(pixels, torch.tensor((77 / 255 - mean) / std))
    loaded.model.eval()(pixels[None])


def test_grey_comes_out_as_it_was_stored_and_colour_as_pillow_weighs_it() -> None:
    bare = Preprocessing(resize=16, crop=(16, 16), mean=(0.0,), std=(1.0,))
    levels = Image.frombytes("L", (16, 16), bytes(range(256)))
    assert torch.equal(bare(levels.convert("RGB")) * 255, torch.arange(256.0).view(1, 16, 16))
    assert torch.equal(bare.to_tensor(levels), bare.to_tensor(levels.convert("RGB")))
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    assert round(bare(red)[0, 0, 0].item() * 255) == red.convert("L").getpixel((0, 0))


def test_means_and_deviations_for_other_numbers_of_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"for 2 and 2 channels\. Give three .* or one each for"):
        Preprocessing(mean=(0.5, 0.5), std=(0.2, 0.2))
    (tmp_path / "grey.py").write_text(dedent(GREY))
    with pytest.raises(ModelError, match=r"two_means: the function failed .*for 1 and 3 channels"):
        build(ModelSpec.parse(f"{tmp_path}/grey.py:two_means"), weights="none")
