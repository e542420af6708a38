"""`fl.sweep`: many settings on features that are computed once, trained together."""

from frostline.sweeps.results import Member as Member
from frostline.sweeps.results import Sweep as Sweep
from frostline.sweeps.settings import Setting as Setting
from frostline.sweeps.sweeping import sweep as sweep
