"""`frostline demo`: the main job on an embedded default, without data, hub or arguments."""

from __future__ import annotations


def demo() -> None:
    """Freeze EfficientNet-Lite0's ImageNet weights and teach it handwritten digits."""
