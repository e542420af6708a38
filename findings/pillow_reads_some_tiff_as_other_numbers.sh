#!/usr/bin/env bash
# Pillow opens TIFF files as microscopes, satellites and numpy users write them, raises nothing, and
# gives other numbers than the file holds. One expects an error for a layout that is not supported, as
# Pillow gives for float16. Frozen features of such pictures are features of noise. All files here are
# written by tifffile, which reads each of them back as it was.
# (White-is-zero is turned round in 8 bits, and not in 16: the same picture comes out as a negative.)
# Seen with Pillow 13.0.0, tifffile 2026.3.3, imagecodecs 2026.3.6, numpy 2.4.6 (share of pixels that
# differ from what was written):
#   grey uint16, little-endian, deflate: I;16, 0.00 differ
#   grey uint16, big-endian, deflate: I;16B, 0.00 differ
#   grey uint16, white is zero: I;16, 0.00 differ
#   grey uint8, white is zero: L, 1.00 differ
#   grey int16, big-endian, deflate: I, 1.00 differ
#   grey float32, big-endian, deflate: F, 1.00 differ
#   grey uint32 above 2**31: I, 1.00 differ
#   colour uint16 in planes, plain: RGB, 1.00 differ
. "$(dirname "$0")/environment.bash" pillow==13.0.0 tifffile==2026.3.3 imagecodecs==2026.3.6 \
    numpy==2.4.6
python -W ignore - <<'EOF'
import numpy
import tifffile
from PIL import Image

draw = numpy.random.default_rng(0)
grey = draw.integers(0, 30000, (64, 48))
planes = draw.integers(0, 65536, (3, 64, 48)).astype("uint16")
deflate = {"compression": "deflate", "photometric": "minisblack"}
cases = {
    "grey uint16, little-endian, deflate": (grey.astype("uint16"), {"byteorder": "<", **deflate}),
    "grey uint16, big-endian, deflate": (grey.astype("uint16"), {"byteorder": ">", **deflate}),
    "grey uint16, white is zero": (grey.astype("uint16"), {"photometric": "miniswhite"}),
    "grey uint8, white is zero": ((grey % 256).astype("uint8"), {"photometric": "miniswhite"}),
    "grey int16, big-endian, deflate": (grey.astype("int16"), {"byteorder": ">", **deflate}),
    "grey float32, big-endian, deflate": (grey.astype("float32"), {"byteorder": ">", **deflate}),
    "grey uint32 above 2**31": ((grey + 2**31).astype("uint32"), {"photometric": "minisblack"}),
    "colour uint16 in planes, plain": (planes, {"photometric": "rgb", "planarconfig": "separate"}),
}
shares = {}
for words, (values, how) in cases.items():
    tifffile.imwrite("one.tif", values, **how)
    assert (tifffile.imread("one.tif") == values).all(), words
    image = Image.open("one.tif")
    found = numpy.asarray(image)
    # Of 16-bit colour Pillow keeps the high byte; more than that is not asked for.
    wanted = (values >> 8).transpose(1, 2, 0) if values.ndim == 3 else values
    shares[words] = float((found.astype("float64") != wanted).mean())
    print(f"{words}: {image.mode}, {shares[words]:.2f} differ")
right, other = list(shares.values())[:3], list(shares.values())[3:]
assert not any(right) and min(other) > 0.9, shares
EOF
