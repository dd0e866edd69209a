"""What a run writes: its folder, its measurements, its checkpoints."""

from shell.stores.checkpoints import RunCheckpoint as RunCheckpoint
from shell.stores.checkpoints import RunCheckpoints as RunCheckpoints
from shell.stores.code_state import CodeFile as CodeFile
from shell.stores.metrics import MetricsFile as MetricsFile
from shell.stores.rollouts import BatchesFile as BatchesFile
from shell.stores.rollouts import RolloutHead as RolloutHead
from shell.stores.rollouts import RolloutsFile as RolloutsFile
from shell.stores.run_folder import RunFolder as RunFolder
from shell.stores.run_folder import open_run_folder as open_run_folder
from shell.stores.samples import SamplesFile as SamplesFile
