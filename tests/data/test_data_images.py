from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from frostline.data import IMAGE_SUFFIXES, check_image, open_image
from frostline.data.pixels import to_rgb
from frostline.errors import ImageError

RED, GREEN, WHITE = (200, 30, 60), (20, 180, 90), (255, 255, 255)


def two_colours() -> Image.Image:
    """32 x 16 pixels: left half RED, right half GREEN."""
    image = Image.new("RGB", (32, 16), RED)
    image.paste(GREEN, (16, 0, 32, 16))
    return image


def halves(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The colours in the middle of the left and of the right half."""
    pixels = np.asarray(image)
    return tuple(pixels[8, 8].tolist()), tuple(pixels[8, 24].tolist())


def near(found: tuple[int, ...], expected: tuple[int, ...], tolerance: int) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, expected, strict=True))


def grey(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    level = Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))
    assert isinstance(level, int)
    return (level, level, level)


@pytest.mark.parametrize(
    ("suffix", "tolerance", "options"),
    [
        ("png", 0, {}),
        ("bmp", 0, {}),
        ("ppm", 0, {}),
        ("tiff", 0, {}),
        ("tiff", 0, {"compression": "tiff_lzw"}),
        ("webp", 0, {"lossless": True}),
        ("gif", 0, {}),
        ("jp2", 0, {}),
        ("ico", 0, {"sizes": [(32, 16)]}),
        ("jpg", 3, {"quality": 95}),
        ("jpg", 3, {"quality": 95, "progressive": True}),
        ("JPEG", 3, {"quality": 95, "subsampling": 0}),
    ],
)
def test_every_format_gives_the_colours_that_were_saved(
    tmp_path: Path, suffix: str, tolerance: int, options: dict[str, Any]
) -> None:
    path = tmp_path / f"picture.{suffix}"
    two_colours().save(path, **options)
    found = open_image(path)
    assert (found.mode, found.size) == ("RGB", (32, 16))
    left, right = halves(found)
    assert near(left, RED, tolerance)
    assert near(right, GREEN, tolerance)
    assert path.suffix.lower() in IMAGE_SUFFIXES


def half_clear(mode: str) -> Image.Image:
    """`two_colours` with the right half fully transparent."""
    image = two_colours().convert("RGBA")
    image.paste((0, 0, 0, 0), (16, 0, 32, 16))
    return image.convert(mode)


def clear_palette() -> Image.Image:
    image = Image.new("P", (32, 16), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (16, 0, 32, 16))
    return image


def grey16(low: float, high: float, kind: type[np.generic]) -> Image.Image:
    values = np.full((16, 32), low, dtype=kind)
    values[:, 16:] = high
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("l.png", two_colours().convert("L"), {}, (grey(RED), grey(GREEN))),
        ("l.jpg", two_colours().convert("L"), {}, (grey(RED), grey(GREEN))),
        ("1.png", grey16(0, 255, np.uint8).convert("1"), {}, ((0, 0, 0), WHITE)),
        ("p.png", clear_palette(), {}, (RED, GREEN)),
        ("p.gif", clear_palette(), {}, (RED, GREEN)),
        ("p-clear.png", clear_palette(), {"transparency": 1}, (RED, WHITE)),
        ("p-clear.gif", clear_palette(), {"transparency": 1}, (RED, WHITE)),
        ("p-bytes.png", clear_palette(), {"transparency": b"\xff\x00"}, (RED, WHITE)),
        ("rgb-clear.png", two_colours(), {"transparency": GREEN}, (RED, WHITE)),
        ("rgba.png", half_clear("RGBA"), {}, (RED, WHITE)),
        ("rgba.webp", half_clear("RGBA"), {"lossless": True}, (RED, WHITE)),
        ("rgba.tiff", half_clear("RGBA"), {}, (RED, WHITE)),
        ("la.png", half_clear("LA"), {}, (grey(RED), WHITE)),
        ("cmyk.jpg", two_colours().convert("CMYK"), {"quality": 95}, (RED, GREEN)),
        ("cmyk.tiff", two_colours().convert("CMYK"), {}, (RED, GREEN)),
        ("i16.png", grey16(0x8000, 0xFFFF, np.uint16), {}, ((128,) * 3, WHITE)),
        ("i16.tiff", grey16(257 * 7, 257 * 250, np.uint16), {}, ((7,) * 3, (250,) * 3)),
        ("i16b.tiff", grey16(257 * 7, 257 * 250, np.dtype(">u2").type), {}, ((7,) * 3, (250,) * 3)),
        ("i16.pgm", grey16(0x8000, 0xFFFF, np.int32), {}, ((128,) * 3, WHITE)),
        ("i-16.tiff", grey16(0, 257 * 99, np.int32), {}, ((0,) * 3, (99,) * 3)),
        ("f-1.tiff", grey16(0, 1, np.float32), {}, ((0,) * 3, WHITE)),
        ("f-part.tiff", grey16(0.2, 0.6, np.float32), {}, ((51,) * 3, (153,) * 3)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_pixel_mode_becomes_the_rgb_that_people_see(
    tmp_path: Path,
    name: str,
    image: Image.Image,
    options: dict[str, Any],
    expected: tuple[tuple[int, int, int], tuple[int, int, int]],
) -> None:
    path = tmp_path / name
    image.save(path, **options)
    found = open_image(path)
    assert found.mode == "RGB"
    for colour, wanted in zip(halves(found), expected, strict=True):
        assert near(colour, wanted, 3), f"{halves(found)} for {expected}"
    check_image(path)


@pytest.mark.parametrize("mode", ["RGBX", "YCbCr", "HSV", "CMYK", "RGBa", "La", "PA"])
def test_modes_that_only_readers_make_become_rgb(mode: str) -> None:
    image = two_colours()
    if mode == "PA":
        image = clear_palette()
    elif mode in ("RGBa", "La"):
        image = image.convert(mode.upper())
    expected = (grey(RED), grey(GREEN)) if mode == "La" else (RED, GREEN)
    found = to_rgb(image.convert(mode))
    assert found.mode == "RGB"
    assert all(near(a, b, 4) for a, b in zip(halves(found), expected, strict=True))


def test_floats_that_are_not_numbers_become_black(tmp_path: Path) -> None:
    path = tmp_path / "nan.tiff"
    grey16(np.nan, 1.0, np.float32).save(path)
    assert halves(open_image(path)) == ((0, 0, 0), WHITE)


def test_half_transparent_red_is_mixed_with_white(tmp_path: Path) -> None:
    path = tmp_path / "mixed.png"
    Image.new("RGBA", (32, 16), (200, 0, 0, 128)).save(path)
    assert near(halves(open_image(path))[0], (227, 127, 127), 1)


def write_png16(path: Path, *, colour_type: int, pixel: bytes, clear: bytes | None) -> None:
    """A PNG of 16 bits a channel, 32 x 16 pixels of one value; Pillow cannot write these."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 32, 16, 16, colour_type, 0, 0, 0)
    rows = (b"\0" + pixel * 32) * 16
    parts = [chunk(b"IHDR", header), chunk(b"tRNS", clear) if clear else b""]
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(
    ("colour_type", "pixel", "clear", "expected"),
    [
        (2, (0x1234, 0x8000, 0xFFFF), None, (0x12, 0x80, 0xFF)),
        (2, (0x1234, 0x8000, 0xFFFF), (0x1234, 0x8000, 0xFFFF), WHITE),
        (2, (0x1234, 0x8000, 0xFFFF), (0, 0, 0x8000), (0x12, 0x80, 0xFF)),
        (0, (0x1234,), None, (0x12, 0x12, 0x12)),
        (0, (0x1234,), (0x1234,), WHITE),
        (0, (0x1234,), (0x1235,), (0x12, 0x12, 0x12)),
    ],
)
def test_sixteen_bit_png_keeps_its_colours_and_its_transparent_one(
    tmp_path: Path,
    colour_type: int,
    pixel: tuple[int, ...],
    clear: tuple[int, ...] | None,
    expected: tuple[int, int, int],
) -> None:
    path = tmp_path / "deep.png"
    packed = struct.pack(f">{len(pixel)}H", *pixel)
    hidden = struct.pack(f">{len(clear)}H", *clear) if clear else None
    write_png16(path, colour_type=colour_type, pixel=packed, clear=hidden)
    assert halves(open_image(path))[0] == expected


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, value: int) -> None:
    stored = two_colours().resize((64, 40))
    stored.paste((0, 0, 250), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = value
    path = tmp_path / f"turned.{suffix}"
    stored.save(path, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    found = open_image(path)
    assert found.size == expected.size == ((64, 40) if value < 5 else (40, 64))
    assert found.tobytes() == expected.tobytes()


def test_orientation_is_read_from_xmp_where_exif_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "xmp.jpg"
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    stored = io.BytesIO()
    two_colours().save(stored, "JPEG")
    marker = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    path.write_bytes(stored.getvalue()[:2] + marker + stored.getvalue()[2:])
    assert open_image(path).size == (16, 32)


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x1a\0\x05",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
        b"Exif\0\0no directory at all",
    ],
)
def test_damaged_exif_neither_warns_nor_turns_the_picture(tmp_path: Path, block: bytes) -> None:
    path = tmp_path / "damaged.jpg"
    two_colours().save(path, exif=block)
    assert open_image(path).size == (32, 16)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    for suffix in ("gif", "png", "webp", "tiff"):
        path = tmp_path / f"animated.{suffix}"
        frames = [Image.new("RGB", (32, 16), colour) for colour in (RED, GREEN)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert near(halves(open_image(path))[0], RED, 3), suffix


def test_two_pictures_in_one_jpeg_give_the_first(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    first, second = Image.new("RGB", (32, 16), RED), Image.new("RGB", (32, 16), GREEN)
    first.save(path, "MPO", save_all=True, append_images=[second])
    assert near(halves(open_image(path))[0], RED, 3)


def refusal(path: Path) -> str:
    """The message of both functions, which must be the same."""
    with pytest.raises(ImageError) as opening:
        open_image(path)
    with pytest.raises(ImageError) as checking:
        check_image(path)
    assert str(opening.value) == str(checking.value)
    assert str(path) in str(opening.value)
    return str(opening.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has zero bytes"),
        (b"just some text", "it is not an image in a format that Pillow can read"),
        (b"\n <!DOCTYPE html><html>", "it is not an image but HTML, XML or SVG text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        (b"\0\0\0\x18ftypqt  \0\0\0\0", "it is a video; extract the pictures to be used"),
        (b"\0\0\0\x18ftypavif\0\0\0\0" + bytes(9), "its AVIF header|pip install -U Pillow"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is not an image"),
        (b"\xff\xd8\xff\xe0", "broken|truncated"),
        (b"\x89PNG\r\n\x1a\n", "broken|truncated"),
    ],
)
def test_refusal_gives_file_and_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    message = refusal(path)
    with pytest.raises(ImageError, match=reason):
        check_image(path)
    assert message.endswith("Replace or remove the file.")


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "gone.jpg")
    assert "it is a folder" in refusal(tmp_path)


def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "it is no regular file" in refusal(tmp_path / "pipe.jpg")


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.png"
    two_colours().save(path)

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", locked)
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tiff"])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    message = refusal(path)
    assert "truncated" in message or "broken" in message


def test_lab_colours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lab.tiff"
    Image.new("LAB", (8, 8)).save(path)
    assert "its pixels are stored as LAB; save it as RGB" in refusal(path)


def test_decompression_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    content = io.BytesIO()
    two_colours().save(content, "PNG")
    header = struct.pack(">4sII", b"IHDR", 20_000, 20_000) + content.getvalue()[24:29]
    path.write_bytes(
        content.getvalue()[:12]
        + header
        + struct.pack(">I", zlib.crc32(header))
        + content.getvalue()[33:]
    )
    assert "20000 x 20000 pixels, more than 178,956,970" in refusal(path)


def test_large_picture_below_the_limit_passes_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.new("L", (10_000, 10_000), 77).save(path)
    check_image(path)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """`content` cut off or with a few bits flipped."""
    if draw.random() < 0.5:
        return content[: draw.randrange(len(content))]
    bits = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        bits[draw.randrange(len(bits))] ^= 1 << draw.randrange(8)
    return bytes(bits)


def verdict(function: Callable[[Path], object], path: Path) -> str:
    try:
        function(path)
    except ImageError as error:
        return str(error)
    return "good"


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("jpg", {}),
        ("jpg", {"progressive": True}),
        ("jpg", {"subsampling": 0, "quality": 95}),
        ("jpg", {"restart_marker_blocks": 3}),
        ("png", {}),
        ("gif", {}),
    ],
    ids=["baseline", "progressive", "full-chroma", "restarts", "png", "gif"],
)
def test_checking_refuses_exactly_what_opening_refuses(
    tmp_path: Path, suffix: str, options: dict[str, Any]
) -> None:
    draw = random.Random(f"{suffix}{options}")
    noise = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    stored = io.BytesIO()
    picture = Image.fromarray(noise).resize((90, 70), Image.Resampling.BICUBIC)
    picture.save(stored, {"jpg": "JPEG"}.get(suffix, suffix), **options)
    path = tmp_path / f"damaged.{suffix}"
    verdicts = set()
    for _ in range(250):
        path.write_bytes(damaged(stored.getvalue(), draw))
        opening = verdict(open_image, path)
        assert verdict(check_image, path) == opening
        verdicts.add(opening == "good")
    assert verdicts == {True, False}


def test_opening_from_many_threads_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "shared.jpg"
    two_colours().save(path)
    expected = open_image(path).tobytes()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: open_image(path).tobytes(), range(64)))
    assert set(found) == {expected}


def test_opening_leaves_the_settings_of_pillow_alone(tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    two_colours().save(path)
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    open_image(path)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_real_photos_equal_what_pillow_makes_of_them(photos: Path) -> None:
    for path in sorted((photos / "val" / "bees").iterdir())[:20]:
        with Image.open(path) as image:
            expected = ImageOps.exif_transpose(image).convert("RGB")
        assert open_image(path).tobytes() == expected.tobytes()
        check_image(path)
