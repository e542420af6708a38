"""Runs: prepared from settings, and opened again to evaluate, predict, prove and report."""

from frostline.runs.finished import FinishedRun as FinishedRun
from frostline.runs.finished import Prediction as Prediction
from frostline.runs.finished import open_run as open_run
from frostline.runs.preparing import Prepared as Prepared
from frostline.runs.preparing import prepare as prepare
from frostline.runs.starting import Start as Start
