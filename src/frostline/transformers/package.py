"""What is used of transformers, and how to get it."""

from __future__ import annotations

try:
    from transformers import PreTrainedModel as PreTrainedModel
    from transformers import TrainerCallback as TrainerCallback
    from transformers import TrainerControl as TrainerControl
    from transformers import TrainerState as TrainerState
    from transformers import TrainingArguments as TrainingArguments
    from transformers.trainer_callback import ExportableState as ExportableState
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "frostline.transformers needs transformers and accelerate, which are not installed: pip "
        'install "frostline[hf,accelerate]".'
    ) from error
