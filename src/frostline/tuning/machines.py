"""What of the machine decides which forms are tried: its name, and what it may be good at."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from frostline.tuning.forms import DtypeName


def machine(device: torch.device | str = "cpu") -> str:
    """The processor or accelerator, its abilities, torch's version and the number of threads.

    A decision made under one such name holds under an equal one.
    """
    where = torch.device(device)
    parts = [_processor(), torch.backends.cpu.get_cpu_capability()]
    parts += [name for name, there in _abilities().items() if there]
    parts += [f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    if where.type == "cuda":
        properties = torch.cuda.get_device_properties(where)
        parts += [f"{properties.name} {properties.major}.{properties.minor}"]
    elif where.type != "cpu":
        parts += [where.type]
    return ", ".join(parts)


def fast_dtypes(device: torch.device) -> tuple[DtypeName, ...]:
    """Reduced dtypes the device computes in hardware, most promising first."""
    if device.type == "cpu":
        able = _abilities()
        bfloat16 = able["amx"] or able["avx512_bf16"] or able["arm"]
        # Without AMX float16 was slower than float32 in every network tried (torch 2.15).
        float16 = able["amx_fp16"]
        return (*(("bfloat16",) if bfloat16 else ()), *(("float16",) if float16 else ()))
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return ("float16",)
    return ("bfloat16", "float16")


def _abilities() -> dict[str, bool]:
    """Instructions for reduced precision; private names of torch, there since 2.6."""
    return {
        "amx": torch.cpu._is_amx_tile_supported(),
        "amx_fp16": torch.cpu._is_amx_fp16_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "arm": platform.machine() in ("aarch64", "arm64"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
