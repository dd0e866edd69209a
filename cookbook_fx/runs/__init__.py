"""Which step comes next and what is due at it: decisions about a run, without doing anything."""

from cookbook_fx.runs.pacing import Pacing as Pacing
from cookbook_fx.runs.plan import Position as Position
from cookbook_fx.runs.plan import RunPlan as RunPlan
from cookbook_fx.runs.plan import Step as Step
from cookbook_fx.runs.plan import is_due as is_due
from cookbook_fx.runs.provenance import CodeState as CodeState
from cookbook_fx.runs.provenance import RunStart as RunStart
from cookbook_fx.runs.provenance import start_from_json as start_from_json
from cookbook_fx.runs.provenance import start_to_json as start_to_json
from cookbook_fx.runs.seeds import derived_seed as derived_seed
