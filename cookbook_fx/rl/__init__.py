"""Reinforcement learning's data: episodes, the batch made of them, what a step learns from it."""

from cookbook_fx.rl.batch import BLOCK as BLOCK
from cookbook_fx.rl.batch import TrajectoryBatch as TrajectoryBatch
from cookbook_fx.rl.batch import trajectory_batch as trajectory_batch
from cookbook_fx.rl.metrics import TrajectoryReport as TrajectoryReport
from cookbook_fx.rl.metrics import compute_trajectory_metrics as compute_trajectory_metrics
from cookbook_fx.rl.shaping import KLShaped as KLShaped
from cookbook_fx.rl.shaping import batch_data as batch_data
from cookbook_fx.rl.shaping import group_advantages as group_advantages
from cookbook_fx.rl.shaping import kl_shaped as kl_shaped
from cookbook_fx.rl.shaping import token_advantages as token_advantages
from cookbook_fx.rl.shaping import trajectory_mean_weights as trajectory_mean_weights
from cookbook_fx.rl.trajectory import PARSE_ERROR_MASKED as PARSE_ERROR_MASKED
from cookbook_fx.rl.trajectory import RolloutError as RolloutError
from cookbook_fx.rl.trajectory import StopReason as StopReason
from cookbook_fx.rl.trajectory import Trajectory as Trajectory
from cookbook_fx.rl.trajectory import TrajectoryGroup as TrajectoryGroup
from cookbook_fx.rl.trajectory import Transition as Transition
