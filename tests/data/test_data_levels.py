"""Pictures of more than 8 bits or of odd layouts: read as a library of the field reads them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLossless

from frostline.data import (
    Audit,
    ImageDataset,
    ImageSet,
    Levels,
    Sample,
    audit,
    check_image,
    levels_of,
    open_data,
    open_image,
    read_files,
    read_splits,
    run_notes,
)
from frostline.data.levels import Seen, common_levels
from frostline.errors import ImageError
from frostline.preprocessing import Preprocessing
from frostline.runs import open_run
from small_world import call, without_sum, write_net

Array = NDArray[Any]
SIDE = 12
DRAW = np.random.default_rng(0)
GREY = DRAW.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
GREY[0, :2] = 0, 255
COLOURS = DRAW.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def pixels(path: Path, levels: Levels | None = None) -> Array:
    check_image(path, levels)
    return np.asarray(open_image(path, levels))


def as_grey(grey: Array) -> Array:
    return np.repeat(grey[..., None], 3, axis=2)


def in_bytes(values: Array, levels: Levels) -> Array:
    """What a person would write: black to white in equal steps."""
    low, high = levels
    return np.round(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)


def refusal(path: Path, levels: Levels | None = None) -> str:
    with pytest.raises(ImageError) as opening:
        open_image(path, levels)
    with pytest.raises(ImageError) as checking:
        check_image(path, levels)
    assert str(opening.value) == str(checking.value)
    return str(opening.value)


def values_of(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Noise over the whole range of a type."""
    if dtype.kind == "f":
        return DRAW.random(shape).astype(dtype)
    ends = np.iinfo(dtype)
    return DRAW.integers(ends.min, ends.max, shape, dtype=dtype, endpoint=True)


TYPES = [np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4)]
TYPES += [np.dtype("u8"), *(np.dtype(f"f{size}") for size in (2, 4, 8))]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_tiff_of_any_layout_has_the_values_that_tifffile_reads(
    tmp_path: Path, dtype: np.dtype[Any], bands: int
) -> None:
    path = tmp_path / "layout.tif"
    layouts = itertools.product(
        ("minisblack", "miniswhite", "rgb") if bands > 1 else ("minisblack", "miniswhite"),
        ("contig", "separate") if bands > 1 else (None,),
        "<>",
        (None, "zlib"),
    )
    for photometric, planar, order, compression in layouts:
        shape = (bands, SIDE, SIDE) if planar == "separate" else (SIDE, SIDE, bands)
        extras = bands - (3 if photometric == "rgb" else 1)
        tifffile.imwrite(
            path,
            values_of(dtype, shape if bands > 1 else (SIDE, SIDE)),
            photometric=photometric,
            planarconfig=planar,
            byteorder=order,
            compression=compression,
            extrasamples=["unspecified"] * extras,
        )
        stored = tifffile.imread(path)
        if planar == "separate":
            stored = np.moveaxis(stored, 0, -1)
        levels = levels_of([path])
        expected = in_bytes(stored[..., :3] if bands > 1 else as_grey(stored), levels or (0, 255))
        if photometric == "miniswhite":
            expected = 255 - expected
        found = pixels(path, levels)
        # Colours of 16 bits lose their low byte in Pillow, which is rounding down.
        step = 1 if dtype == np.uint16 and bands > 1 else 0
        about = f"{photometric} {planar} {order} {compression}"
        assert np.abs(found - expected).max() <= step, about


def test_a_fourth_band_of_which_nothing_is_said_is_no_transparency(tmp_path: Path) -> None:
    path = tmp_path / "near-infrared.tif"
    tifffile.imwrite(path, np.dstack([COLOURS, GREY]), photometric="rgb")
    with tifffile.TiffFile(path) as tiff:
        extra = tiff.pages.first.tags["ExtraSamples"].offset
    content = bytearray(path.read_bytes())
    content[extra : extra + 2] = (65000).to_bytes(2, "little")  # a tag that nobody knows
    path.write_bytes(content)
    assert np.array_equal(pixels(path), COLOURS)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_transparency_that_a_tiff_states_is_put_on_white(
    tmp_path: Path, kind: str, planar: str
) -> None:
    path = tmp_path / "clear.tif"
    alpha = np.where(GREY > 127, 255, 0).astype(np.uint8)
    shown = COLOURS * (alpha[..., None] > 0)
    stored = np.dstack([shown if kind == "assocalpha" else COLOURS, alpha])
    stored = stored if planar == "contig" else np.moveaxis(stored, -1, 0)
    tifffile.imwrite(
        path, stored, photometric="rgb", planarconfig=planar, extrasamples=[kind], metadata=None
    )
    assert np.array_equal(pixels(path), np.where(alpha[..., None] > 0, COLOURS, 255))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_inks_in_planes_are_left_to_pillow(tmp_path: Path, planar: str) -> None:
    path = tmp_path / "inks.tif"
    inks = np.dstack([COLOURS, GREY])
    stored = inks if planar == "contig" else np.moveaxis(inks, -1, 0)
    tifffile.imwrite(path, stored, photometric="separated", planarconfig=planar)
    assert np.array_equal(pixels(path), np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")))


@pytest.mark.parametrize("bands", [2, 6, 13])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_bands_that_are_no_picture_are_refused_by_their_number(
    tmp_path: Path, bands: int, planar: str
) -> None:
    path = tmp_path / "bands.tif"
    shape = (bands, SIDE, SIDE) if planar == "separate" else (SIDE, SIDE, bands)
    stored = values_of(np.dtype("u2"), shape)
    tifffile.imwrite(path, stored, photometric="minisblack", planarconfig=planar)
    assert f"it has {bands} bands, and frostline takes 1, 3 or 4: write the" in refusal(path)


def test_values_that_are_no_picture_are_refused_by_their_true_reason(tmp_path: Path) -> None:
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.complex64))
    assert "its values are neither integers nor floats" in refusal(path)
    tifffile.imwrite(path, np.zeros((8, 8, 4), np.uint16), photometric="cielab", metadata=None)
    assert "its colours are stored as LAB in 16 bits; save it as RGB" in refusal(path)
    volume = np.zeros((5, 16, 16), np.float16)
    tifffile.imwrite(path, volume, photometric="minisblack", volumetric=True, metadata=None)
    assert "it is a volume of 5 layers" in refusal(path)


@pytest.mark.parametrize(("value", "place"), [(3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_a_tiff_that_pillow_cannot_read_is_turned_upright(
    tmp_path: Path, value: int, place: tuple[int, int]
) -> None:
    stored = np.zeros((6, 9))
    stored[0, 0] = 1.0
    path = tmp_path / "turned.tif"
    tifffile.imwrite(path, stored, extratags=[(274, 3, 1, value, True)])
    found = pixels(path)
    assert found.shape[:2] == ((6, 9) if value == 3 else (9, 6))
    assert found[place].tolist() == [255] * 3
    assert found.sum() == 3 * 255


def test_grey_deeper_than_its_values_gives_the_tensors_of_8_bits(tmp_path: Path) -> None:
    ways: dict[str, Array] = {
        "8 in 16": GREY.astype(np.uint16),
        "12 in 16": np.round(GREY * (4095 / 255)).astype(np.uint16),
        "int32": np.round(GREY * (4095 / 255)).astype(np.int32),
        "16": GREY.astype(np.uint16) * 257,
        "float 0..1": (GREY / 255).astype(np.float32),
        "float 0..3000": GREY.astype(np.float64) * (3000 / 255),
        "float 0..255": GREY.astype(np.float16),
        "colours 8 in 16": np.dstack([GREY] * 3).astype(np.uint16),
    }
    plain = tmp_path / "8.tif"
    Image.fromarray(GREY).save(plain)
    preprocessing = Preprocessing(resize=SIDE, crop=(SIDE, SIDE))

    def tensor(path: Path, levels: Levels | None) -> torch.Tensor:
        images = ImageSet(("grey",), (Sample(path, 0),))
        return ImageDataset(images, preprocessing, levels=levels)[0][0]

    expected = tensor(plain, levels_of([plain]))
    for name, values in ways.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, values)
        levels = levels_of([path, plain])
        if name == "float 0..3000":
            assert levels == (0, 4095)  # one of the usual ranges, in which it is a bit darker
            levels = (0, 3000)
        assert torch.equal(tensor(path, levels), expected), name
        assert torch.equal(tensor(plain, levels), expected)


def test_a_colour_png_of_narrow_16_bits_keeps_its_values(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    deep = np.round(COLOURS * (4095 / 255)).astype(np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(imagecodecs.png_encode(deep))
    levels = levels_of([path])
    assert levels == (0, 4095)
    assert np.array_equal(pixels(path, levels), COLOURS)
    clear = np.dstack([deep, np.where(GREY > 127, 65535, 0).astype(np.uint16)])
    path.write_bytes(imagecodecs.png_encode(clear))
    assert np.array_equal(pixels(path, levels), np.where(GREY[..., None] > 127, COLOURS, 255))


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("integer", 0, 255, (0, 255)),
        ("integer", 0, 256, (0, 1023)),
        ("integer", 7, 4095, (0, 4095)),
        ("integer", 0, 4096, (0, 16383)),
        ("integer", 0, 65535, (0, 65535)),
        ("integer", 0, 70_000, (0, 70_000)),
        ("integer", -1024, 3071, (-1024, 3071)),
        ("integer", 0, 0, (0, 255)),
        ("float", 0, 1, (0, 1)),
        ("float", -0.02, 1.02, (0, 1)),
        ("float", -0.05, 0.05, (-0.05, 0.05)),
        ("float", 0, 0.05, (0, 0.05)),
        ("float", 0.2, 1.5, (0, 1.5)),
        ("float", 0, 270, (0, 255)),
        ("float", 0, 3000, (0, 4095)),
        ("float", 0, 65535, (0, 65535)),
        ("float", 0, 1e6, (0, 1e6)),
        ("float", 0, 0, (0, 1)),
        ("float", -3, -3, (-3, -2)),
    ],
)
def test_the_range_of_a_set_is_a_usual_one_that_its_pictures_fill(
    kind: Any, low: float, high: float, expected: Levels
) -> None:
    narrow = Seen(kind, (low + high) / 2, (low + high) / 2)
    assert common_levels([Seen(), Seen(kind, low, high), narrow]) == expected


def test_pictures_of_8_bits_have_no_range() -> None:
    assert common_levels([Seen(), Seen()]) is None


def test_not_a_number_and_the_infinite_do_not_make_the_range(tmp_path: Path) -> None:
    path = tmp_path / "holes.tif"
    values = np.array([[0, 100, np.nan], [200, np.inf, -np.inf]], np.float32)
    tifffile.imwrite(path, values)
    levels = levels_of([path])
    assert levels == (0, 255)
    assert pixels(path, levels)[..., 0].tolist() == [[0, 100, 0], [200, 255, 0]]


def test_without_levels_values_beyond_the_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "far.tif"
    tifffile.imwrite(path, np.array([[0, 3000]], np.float32))
    message = "its values lie in 0..3000, beyond the 0..1 that floats have by default"
    assert message in refusal(path)
    assert "give levels, or save it in 8 bits" in refusal(path)
    tifffile.imwrite(path, np.array([[-5, 2**30]], np.int32))
    assert "beyond the 0..65535 that integers have by default" in refusal(path)
    assert pixels(path, (0, 2**30))[..., 0].tolist() == [[0, 255]]


def write_dicom(
    path: Path, array: Array, photometric: str, syntax: UID = ExplicitVRLittleEndian, **tags: Any
) -> None:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    image.Rows, image.Columns = array.shape[:2]
    image.SamplesPerPixel = 1 if array.ndim == 2 else 3
    image.BitsAllocated = image.BitsStored = 8 * array.itemsize
    image.HighBit, image.PixelRepresentation = 8 * array.itemsize - 1, array.dtype.kind == "i"
    image.PhotometricInterpretation = photometric
    image.PlanarConfiguration = 0
    image.PixelData = array.tobytes()
    for name, value in tags.items():
        setattr(image, name, value)
    pydicom.dcmwrite(path, image, enforce_file_format=True)


def test_dicom_has_the_values_that_pydicom_reads(tmp_path: Path) -> None:
    path = tmp_path / "scan.dcm"
    scan = values_of(np.dtype("u2"), (SIDE, SIDE)) >> 4
    write_dicom(path, scan, "MONOCHROME2", RescaleSlope=2, RescaleIntercept=-1024)
    units = pydicom.dcmread(path).pixel_array * 2.0 - 1024
    levels = levels_of([path])
    assert levels == (units.min(), units.max())
    assert np.array_equal(pixels(path, levels), as_grey(in_bytes(units, levels)))
    write_dicom(path, scan, "MONOCHROME1")
    assert levels_of([path]) == (0, 4095)
    assert np.array_equal(pixels(path, (0, 4095)), as_grey(255 - in_bytes(scan, (0, 4095))))
    write_dicom(path, COLOURS, "RGB")
    assert levels_of([path]) is None
    assert np.array_equal(pixels(path), COLOURS)


def test_dicom_that_holds_no_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.dcm"
    write_dicom(path, GREY, "MONOCHROME2")
    image = pydicom.dcmread(path)
    del image.PixelData
    pydicom.dcmwrite(path, image)
    assert "it is DICOM without a picture" in refusal(path)
    frames = encapsulate([GREY.tobytes()])
    write_dicom(path, GREY, "MONOCHROME2", PixelData=frames, syntax=JPEGLossless)
    assert "pydicom cannot decode its JPEG Lossless, Non-Hierarchical (Process 14)" in refusal(path)
    write_dicom(path, GREY, "MONOCHROME2", Rows=40_000, Columns=40_000)
    assert "40000 x 40000 pixels, more than 178,956,970" in refusal(path)


def test_numpy_arrays_are_read_by_their_type(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    for array, expected in (
        (GREY, as_grey(GREY)),
        (GREY > 127, as_grey(np.where(GREY > 127, 255, 0))),
        (COLOURS, COLOURS),
        (GREY[..., None].astype(np.uint16) * 257, as_grey(GREY)),
    ):
        np.save(path, array)
        assert np.array_equal(pixels(path), expected)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([{"a": 1}], dtype=object), "NumPy file that holds no array of numbers"),
        (np.zeros((3, 4, 5, 6)), "NumPy array of float64, 3 x 4 x 5 x 6, and a picture is"),
        (np.array(["text"]), "NumPy array of <U4, 1, and a picture is"),
        (np.zeros((4, 5, 7)), "it has 7 bands"),
    ],
)
def test_numpy_arrays_that_are_no_picture_are_refused(
    tmp_path: Path, array: Array, reason: str
) -> None:
    path = tmp_path / "array.npy"
    np.save(path, array, allow_pickle=True)
    assert reason in refusal(path)


def test_a_heif_photo_is_read_and_turned_once(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    stored = Image.new("RGB", (64, 32), "black")
    stored.paste((255, 255, 255), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.heic"
    pillow_heif.from_pillow(stored).save(path, quality=95, exif=exif.tobytes())
    found = pixels(path)
    assert found.shape == (64, 32, 3)
    assert found[:28].min() > 200
    assert found[36:].max() < 50


@pytest.mark.parametrize(
    ("name", "package", "reason"),
    [
        ("planes.tif", "tifffile", "it is a TIFF of 3 x 16 bits, in planes, which needs tifffile"),
        ("scan.dcm", "pydicom", "it is a DICOM image, which needs pydicom"),
        ("phone.heic", "pillow_heif", "it is a HEIF photo, which needs pillow_heif"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, reason: str
) -> None:
    path = tmp_path / name
    planes = np.zeros((3, SIDE, SIDE), np.uint16)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    write_dicom(tmp_path / "scan.dcm", GREY, "MONOCHROME2")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    for module in (package, f"{package}.pixels"):
        monkeypatch.setitem(sys.modules, module, None)
    message = refusal(path)
    assert reason in message
    extra = {"tifffile": "tiff", "pydicom": "dicom", "pillow_heif": "heif"}[package]
    assert f"pip install 'frostline[{extra}]'" in message


MakeSet = Callable[[Callable[[int], Array]], Path]


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """Dark and light pictures, 6 and 2 of each; how they are stored is the caller's."""

    def write(stored: Callable[[int], Array]) -> Path:
        for part, count in (("train", 6), ("val", 2)):
            for name, level in (("dark", 60), ("light", 180)):
                folder = tmp_path / "set" / part / name
                folder.mkdir(parents=True)
                for number in range(count):
                    tifffile.imwrite(folder / f"{number}.tif", stored(level + number))
        return tmp_path / "set"

    return write


def deep(level: int) -> Array:
    return np.full((18, 18), level * 16, np.uint16)


def notes(found: Audit) -> dict[str, str]:
    return {one.code: one.message for one in found.findings if one.level == "note"}


def test_the_audit_says_what_range_the_pictures_have(make_set: MakeSet) -> None:
    folder = make_set(deep)
    tifffile.imwrite(folder / "val" / "dark" / "1.tif", np.full((18, 18), 9999, np.uint16))
    found = audit(read_splits(folder), bad_images="error")
    assert found.levels == (0, 4095)
    assert notes(found) == {
        "value-range": "16 pictures have more than 8 bits, with values in 960..9999: 0..4095 "
        "becomes 0..255 in every one. 1 picture has values beyond that, which are clipped."
    }


def test_the_audit_warns_of_integers_beside_floats(make_set: MakeSet) -> None:
    folder = make_set(deep)
    tifffile.imwrite(folder / "train" / "dark" / "1.tif", np.full((18, 18), 0.5, np.float32))
    found = audit(read_splits(folder), bad_images="error")
    assert "Integers and floats share this" in notes(found)["value-range"]


def test_the_audit_names_files_of_several_pages_but_no_smaller_copies(make_set: MakeSet) -> None:
    folder = make_set(lambda level: np.full((18, 18), level, np.uint8))
    stack, pyramid = folder / "train" / "dark" / "1.tif", folder / "val" / "dark" / "1.tif"
    tifffile.imwrite(stack, np.zeros((3, 18, 18), np.uint8), photometric="minisblack")
    with tifffile.TiffWriter(pyramid) as tiff:
        tiff.write(np.zeros((32, 32), np.uint8))
        tiff.write(np.zeros((16, 16), np.uint8), subfiletype=1)
    found = audit(read_splits(folder), bad_images="error")
    assert found.levels is None
    assert notes(found) == {
        "more-pages": f"1 file has more than one page, of which the first is used: {stack}."
    }


def test_the_audit_warns_of_transparency_that_looks_like_a_band(make_set: MakeSet) -> None:
    folder = make_set(lambda level: np.full((18, 18), level, np.uint8))
    odd = folder / "train" / "dark" / "1.tif"
    tifffile.imwrite(odd, np.full((18, 18, 4), 99, np.uint8), photometric="rgb")
    findings = audit(read_splits(folder), bad_images="error").findings
    (finding,) = [one for one in findings if one.code == "odd-transparency"]
    assert f"looks like a picture: {odd}. Write files without it" in finding.message


def test_colours_that_need_a_package_for_their_range_name_it_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    for part, name in itertools.product(("train", "val"), ("dark", "light")):
        path = tmp_path / "set" / part / name / "0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(imagecodecs.png_encode(COLOURS.astype(np.uint16) * 16))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(
        ImageError, match=r"which needs imagecodecs: pip install 'frostline\[tiff\]'"
    ):
        audit(read_splits(tmp_path / "set"), bad_images="skip")


def test_files_are_checked_by_the_range_of_the_run(make_set: MakeSet) -> None:
    folder = make_set(lambda level: np.full((18, 18), level, np.float32))
    files = sorted(folder.rglob("*.tif"))
    assert len(read_files(files).broken) == len(files)
    assert not read_files(files, levels=(0, 255)).broken


def test_what_is_odd_for_a_run_is_said() -> None:
    pictures = [Seen(), Seen("integer", 0, 200), Seen("integer", 0, 250)]
    assert run_notes([Seen()], None) == run_notes([Seen()], (0, 4095)) == []
    assert run_notes(pictures, (0, 1023)) == []
    (unknown,) = run_notes(pictures, None)
    assert "2 pictures have more than 8 bits, with values up to 250, and the run was" in unknown
    (dark,) = run_notes(pictures, (0, 65535))
    assert "2 pictures have no value above 250 of 0..65535, which the run was trained" in dark
    (clipped,) = run_notes([*pictures, Seen("integer", 0, 999)], (0, 255))
    assert clipped.startswith("1 picture has values beyond 0..255, which the run was trained on")


def test_stored_features_are_kept_apart_by_the_range_and_no_others(make_set: MakeSet) -> None:
    folder = make_set(deep)
    files = tuple(Sample(path, 0) for path in sorted(folder.rglob("*.tif")))

    def key(levels: Levels | None) -> tuple[str, list[bytes]]:
        samples = open_data(ImageDataset(ImageSet(("all",), files), Preprocessing(), levels=levels))
        return samples.transform, samples.ids(range(len(samples)))

    before = key(None)
    assert key((0, 65535)) == before
    assert key((0, 4095))[0] == f"{before[0]}, levels [0.0, 4095.0]"
    assert key((0.0, 4095.0)) == key((0, 4095))  # as a run's settings give them back


@pytest.mark.parametrize(
    "stored",
    [
        {"photometric": "rgb", "planarconfig": "separate"},
        {"photometric": "miniswhite", "metadata": None},
    ],
)
def test_stored_features_of_what_was_read_wrongly_are_not_taken(
    tmp_path: Path, stored: dict[str, Any]
) -> None:
    path = tmp_path / "planes.tif"
    tifffile.imwrite(path, np.zeros((3, SIDE, SIDE), np.uint16), **stored)
    digests = read_files([path]).digests
    images = ImageSet(("all",), (Sample(path, 0),))
    plain = tmp_path / "planes.bin"
    path.rename(plain)
    path.write_bytes(plain.read_bytes())
    other = ImageSet(("all",), (Sample(plain, 0),))
    found = open_data(ImageDataset(images, Preprocessing(), digests=digests)).ids([0])
    assert found == open_data(ImageDataset(images, Preprocessing())).ids([0])
    assert found != open_data(ImageDataset(other, Preprocessing())).ids([0])


def test_a_run_keeps_the_range_for_predict_evaluate_and_resume(
    make_set: MakeSet, tmp_path: Path
) -> None:
    folder, model, run = make_set(deep), write_net(tmp_path), tmp_path / "run"
    options = ("--weights", "none", "--epochs", 2, "--features", "off", "--out", run)
    trained = call("train", folder, "--model", model, *options)
    assert trained.status == 0, trained.err
    assert "Note: 16 pictures have more than 8 bits" in trained.err
    assert open_run(run).settings.data.levels == (0, 4095)
    picture = folder / "val" / "light" / "0.tif"
    plain = tmp_path / "plain.png"
    Image.fromarray(np.round(deep(180) * (255 / 4095)).astype(np.uint8)).save(plain)
    dark = tmp_path / "dark.tif"
    tifffile.imwrite(dark, np.full((18, 18), 180, np.uint16))
    found = call("predict", run, picture, plain, "--json")
    assert found.err == ""
    assert found.json[0]["probability"] == found.json[1]["probability"]
    assert "Warning: 1 picture has no value above 180 of 0..4095" in call("predict", run, dark).err
    assert call("evaluate", run, folder).status == 0
    resumed = call("train", "--resume", run)
    assert "0..4095 becomes 0..255" in resumed.err


def test_a_run_of_before_goes_on_with_the_range_of_the_type(
    make_set: MakeSet, tmp_path: Path
) -> None:
    folder, model, run = make_set(deep), write_net(tmp_path), tmp_path / "run"
    options = ("--weights", "none", "--epochs", 2, "--features", "off", "--out", run)
    assert call("train", folder, "--model", model, *options).status == 0
    settings = run / "run.toml"
    content = without_sum(settings.read_text())
    settings.write_text(content.replace("levels = [\n    0.0,\n    4095.0,\n]\n", ""))
    assert open_run(run).settings.data.levels is None
    resumed = call("train", "--resume", run)
    assert resumed.status == 0, resumed.err
    assert "0..255" not in resumed.err
    assert "trained on none: 0..65535 becomes 0..255" in call("evaluate", run, folder).err
