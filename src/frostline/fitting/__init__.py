"""`fl.fit`, our own loop over a session, wired to data, files and reports."""

from frostline.fitting.beginning import check_settings as check_settings
from frostline.fitting.fitting import Outset as Outset
from frostline.fitting.fitting import Run as Run
from frostline.fitting.fitting import fit as fit
from frostline.fitting.fitting import outset as outset
from frostline.fitting.fitting import task_given as task_given
from frostline.fitting.longer import is_length_alone as is_length_alone
from frostline.fitting.longer import lengthened as lengthened
from frostline.fitting.together import resumes as resumes
