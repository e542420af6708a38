"""What a run trained, for other tools: full checkpoints, and files that need no Frostline."""

from frostline.exports.base import keep_base as keep_base
from frostline.exports.exporting import Exported as Exported
from frostline.exports.exporting import check_export as check_export
from frostline.exports.exporting import check_fold as check_fold
from frostline.exports.exporting import export as export
from frostline.exports.merging import check_checkpoint_path as check_checkpoint_path
from frostline.exports.merging import merged as merged
from frostline.exports.merging import scaling as scaling
from frostline.exports.merging import write_state_dict as write_state_dict
from frostline.exports.opened import EXPORTED as EXPORTED
from frostline.exports.opened import ExportedModel as ExportedModel
from frostline.exports.opened import open_export as open_export
