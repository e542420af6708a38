"""Which operations have a rule of their own.

A rule takes the settings and what the operation was given. It decides by what wants a gradient at
that moment, and answers None where PyTorch itself keeps as little: then the operation runs as it
is. Operations without a rule, checked to keep no more than their backward needs: linear and matrix
products (an input only for the other's gradient), embedding (the indices), elementwise products,
group, layer and RMS norm, softmax, ELU, and fused attention.
"""

from __future__ import annotations

from frostline.backward.rules import activations, convolutions, dropouts, norms, pools
from frostline.backward.tensors import Rules

RULES: Rules = {
    **activations.RULES,
    **convolutions.RULES,
    **dropouts.RULES,
    **norms.RULES,
    **pools.RULES,
}
