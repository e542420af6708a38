#!/usr/bin/env bash
# litdata lists bfloat16 among the dtypes of its tensor format, yet cannot write it:
# `optimize` over half-precision features of a frozen backbone works in float16 and ends in
# "Got unsupported ScalarType" in bfloat16.
# Seen with litdata 0.2.76, torch 2.15.0:
#   float16: read back, equal
#   bfloat16: TypeError: Got unsupported ScalarType BFloat16
. "$(dirname "$0")/environment.bash" torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 litdata==0.2.76
python -W ignore - <<'EOF'
import torch
from litdata.constants import _TORCH_DTYPES_MAPPING
from litdata.streaming.serializers import NoHeaderTensorSerializer, TensorSerializer

outcomes = {}
for dtype in (torch.float16, torch.bfloat16):
    assert dtype in _TORCH_DTYPES_MAPPING.values(), dtype
    features = torch.linspace(-2, 2, 6).to(dtype).view(2, 3)
    try:
        data, _ = TensorSerializer().serialize(features)
        same = torch.equal(TensorSerializer().deserialize(data).float(), features.float())
        outcomes[dtype] = "read back, equal" if same else "read back, other values"
    except TypeError as error:
        outcomes[dtype] = f"TypeError: {error}"
    try:  # the form without a header, which vectors take, does the same
        NoHeaderTensorSerializer().serialize(features[0])
        assert "equal" in outcomes[dtype], dtype
    except TypeError as error:
        assert outcomes[dtype] == f"TypeError: {error}", error
    print(f"{str(dtype).removeprefix('torch.')}: {outcomes[dtype]}")
assert outcomes == {
    torch.float16: "read back, equal",
    torch.bfloat16: "TypeError: Got unsupported ScalarType BFloat16",
}
EOF
