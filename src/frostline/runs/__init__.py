"""Runs, where the parts are wired: fit a model, prepare one from settings, reopen a finished one."""

from frostline.runs.finished import FinishedRun, Verdict, open_run
from frostline.runs.fitting import Run, fit
from frostline.runs.preparing import Prepared, prepare

__all__ = ["FinishedRun", "Prepared", "Run", "Verdict", "fit", "open_run", "prepare"]
