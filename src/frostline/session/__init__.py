"""A session: freezing, optimizer, batches and proofs of a plan, for any training loop."""

from frostline.session.attached import Attachable as Attachable
from frostline.session.attached import Attached as Attached
from frostline.session.attached import PhaseEnd as PhaseEnd
from frostline.session.attached import checked_state as checked_state
from frostline.session.attached import part_of as part_of
from frostline.session.attached import plan_of as plan_of
from frostline.session.attached import prepare_optimizer as prepare_optimizer
from frostline.session.attached import restore_random as restore_random
from frostline.session.checkpoints import load_checkpoint as load_checkpoint
from frostline.session.checkpoints import save_checkpoint as save_checkpoint
from frostline.session.pipelines import Forward as Forward
from frostline.session.pipelines import Pipeline as Pipeline
from frostline.session.pipelines import PipelineOptions as PipelineOptions
from frostline.session.pipelines import default_store as default_store
from frostline.session.pipelines import kept_lines as kept_lines
from frostline.session.pipelines import prefixed as prefixed
from frostline.session.pipelines import store_folder as store_folder
from frostline.session.position import Position as Position
from frostline.session.position import goes_on as goes_on
from frostline.session.randomness import epoch_seed as epoch_seed
from frostline.session.randomness import random_state as random_state
from frostline.session.randomness import set_random_state as set_random_state
from frostline.session.session import Session as Session
from frostline.session.survey import Survey as Survey
from frostline.session.survey import freeze_for as freeze_for
from frostline.session.survey import survey as survey
