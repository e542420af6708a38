"""What a run writes down of itself, read back: its epochs, predictions, data and sessions.

Whatever is missing or damaged is said, not raised: older runs wrote less, and a report of a run
that lost a file is worth more than none.
"""

from frostline.records.answers import Answer as Answer
from frostline.records.answers import Answers as Answers
from frostline.records.answers import flat as flat
from frostline.records.answers import in_words as in_words
from frostline.records.answers import judged_by as judged_by
from frostline.records.answers import kept_of as kept_of
from frostline.records.answers import write_kept as write_kept
from frostline.records.certainty import accuracy_interval as accuracy_interval
from frostline.records.certainty import mcnemar as mcnemar
from frostline.records.epochs import EpochRecord as EpochRecord
from frostline.records.epochs import PhaseRecord as PhaseRecord
from frostline.records.epochs import Proven as Proven
from frostline.records.epochs import Spent as Spent
from frostline.records.epochs import phase_table as phase_table
from frostline.records.folder import RunFolder as RunFolder
from frostline.records.folder import no_run as no_run
from frostline.records.journal import BY_MODEL as BY_MODEL
from frostline.records.journal import Journal as Journal
from frostline.records.journal import PipelineFacts as PipelineFacts
from frostline.records.journal import RunPart as RunPart
from frostline.records.journal import write_sessions as write_sessions
from frostline.records.predictions import Judged as Judged
from frostline.records.predictions import judged_of as judged_of
from frostline.records.predictions import read_judged as read_judged
from frostline.records.predictions import write_judged as write_judged
from frostline.records.reading import DataNotes as DataNotes
from frostline.records.reading import EpochLine as EpochLine
from frostline.records.reading import ResultNotes as ResultNotes
from frostline.records.reading import RunRecords as RunRecords
from frostline.records.reading import read_data_notes as read_data_notes
from frostline.records.reading import read_records as read_records
from frostline.records.reading import write_data_notes as write_data_notes
