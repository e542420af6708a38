"""The first faithful form of a prefix: precision, layout and folding, in the order of the machine.

`tune_and_realise` decides and gives the prefix in the form that it chose; `realise` gives any form.
"""

from frostline.tuning.forms import PLAIN, Form
from frostline.tuning.machines import machine
from frostline.tuning.realising import Realised, realise
from frostline.tuning.results import Trial, Tuned
from frostline.tuning.search import DEFAULT_TOLERANCE, Precision, tune_and_realise

__all__ = [
    "DEFAULT_TOLERANCE",
    "PLAIN",
    "Form",
    "Precision",
    "Realised",
    "Trial",
    "Tuned",
    "machine",
    "realise",
    "tune_and_realise",
]
