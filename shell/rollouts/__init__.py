"""Episodes: environments, the policies that act in them, and who runs them."""

from shell.rollouts.completers import ContextOverflow as ContextOverflow
from shell.rollouts.completers import GroupTokenCompleter as GroupTokenCompleter
from shell.rollouts.completers import MessageCompleter as MessageCompleter
from shell.rollouts.completers import TinkerMessageCompleter as TinkerMessageCompleter
from shell.rollouts.completers import TinkerTokenCompleter as TinkerTokenCompleter
from shell.rollouts.completers import TokenCompleter as TokenCompleter
from shell.rollouts.env import Action as Action
from shell.rollouts.env import ActionExtra as ActionExtra
from shell.rollouts.env import Env as Env
from shell.rollouts.env import EnvGroupBuilder as EnvGroupBuilder
from shell.rollouts.env import InitialObservationOverflow as InitialObservationOverflow
from shell.rollouts.env import Observation as Observation
from shell.rollouts.env import RLDataset as RLDataset
from shell.rollouts.env import RLDatasetBuilder as RLDatasetBuilder
from shell.rollouts.env import StepResult as StepResult
from shell.rollouts.env import StopCondition as StopCondition
from shell.rollouts.limits import ParseErrorPolicy as ParseErrorPolicy
from shell.rollouts.limits import RolloutLimits as RolloutLimits
from shell.rollouts.limits import TerminationRewardPolicy as TerminationRewardPolicy
