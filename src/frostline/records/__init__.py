"""What a run has noted of itself, read back: its predictions, its data, its sessions, its figures.

Whatever is missing or damaged is told, not raised: older runs noted less, and a report of a run
that lost a file is worth more than none.
"""

from frostline.records.predictions import Judged, judged_of, read_judged, write_judged
from frostline.records.reading import (
    ClassLine,
    DataNotes,
    EpochLine,
    PhaseLine,
    ResultNotes,
    RunRecords,
    read_records,
    write_data_notes,
)
from frostline.records.sessions import BY_MODEL, FedNote, Session, read_sessions, write_sessions

__all__ = [
    "BY_MODEL",
    "ClassLine",
    "DataNotes",
    "EpochLine",
    "FedNote",
    "Judged",
    "PhaseLine",
    "ResultNotes",
    "RunRecords",
    "Session",
    "judged_of",
    "read_judged",
    "read_records",
    "read_sessions",
    "write_data_notes",
    "write_judged",
    "write_sessions",
]
