"""How well each stage's features serve, and what freezing up to it costs: `fl.probe`."""

from frostline.probing.probing import probe as probe
from frostline.probing.results import Probe as Probe
from frostline.probing.results import StageScore as StageScore
