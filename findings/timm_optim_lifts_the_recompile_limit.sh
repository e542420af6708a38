#!/usr/bin/env bash
# Importing timm's optimizers changes torch.compile for the whole process: the number of times that
# one function may be compiled anew before dynamo gives up goes from 8 to 1,000,000. A loop that
# freezes and thaws under torch.compile then compiles at every change without an end, and what one
# measures of recompiling depends on whether anything imported timm.optim.
# Seen with timm 1.0.31, torch 2.15.0:
#   recompile_limit 8 before, 8 after `import timm.layers`, 1000000 after `import timm.optim`
. "$(dirname "$0")/environment.bash" torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 timm==1.0.31
python -W ignore - <<'EOF'
import torch._dynamo

limits = [torch._dynamo.config.recompile_limit]
import timm.layers  # noqa: E402

limits.append(torch._dynamo.config.recompile_limit)
import timm.optim  # noqa: E402

limits.append(torch._dynamo.config.recompile_limit)
print(
    "recompile_limit {} before, {} after `import timm.layers`, {} after `import timm.optim`".format(
        *limits
    )
)
assert limits == [8, 8, 1_000_000], limits
EOF
