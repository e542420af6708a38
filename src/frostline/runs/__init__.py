"""Runs, where the parts are wired: fit a model, prepare from settings, reopen a finished run."""

from frostline.runs.finished import FinishedRun, HeldOut, Prediction, Verdict, open_run
from frostline.runs.fitting import Run, fit
from frostline.runs.preparing import Prepared, prepare
from frostline.runs.reporting import RunReport
from frostline.session import default_store

__all__ = [
    "FinishedRun",
    "HeldOut",
    "Prediction",
    "Prepared",
    "Run",
    "RunReport",
    "Verdict",
    "default_store",
    "fit",
    "open_run",
    "prepare",
]
