"""The first faithful form of a prefix: precision, layout and folding, in the order of the machine.

`tune_and_realise` decides and gives the prefix in the form that it chose; `realise` gives any form.
"""

from frostline.tuning.forms import PLAIN as PLAIN
from frostline.tuning.forms import Form as Form
from frostline.tuning.forms import machine as machine
from frostline.tuning.realising import WEIGHTS_STAY_WEIGHTS as WEIGHTS_STAY_WEIGHTS
from frostline.tuning.realising import Realised as Realised
from frostline.tuning.realising import realise as realise
from frostline.tuning.search import DEFAULT_TOLERANCE as DEFAULT_TOLERANCE
from frostline.tuning.search import WORTH_SAMPLES as WORTH_SAMPLES
from frostline.tuning.search import DecodingTrial as DecodingTrial
from frostline.tuning.search import FormTrial as FormTrial
from frostline.tuning.search import Tuned as Tuned
from frostline.tuning.search import percent as percent
from frostline.tuning.search import relative_error as relative_error
from frostline.tuning.search import tolerance_of as tolerance_of
from frostline.tuning.search import tune_and_realise as tune_and_realise
