"""The loops. This file loads only what describes a run, so that `--help` need not load JAX."""

from shell.training.config import Adam as Adam
from shell.training.config import Cadence as Cadence
from shell.training.config import ChatData as ChatData
from shell.training.config import KLReference as KLReference
from shell.training.config import ModelChoice as ModelChoice
from shell.training.config import RLCadence as RLCadence
from shell.training.config import SamplingChoice as SamplingChoice
from shell.training.config import Schedule as Schedule
from shell.training.config import SFTConfig as SFTConfig
from shell.training.dpo_config import DPOConfig as DPOConfig
from shell.training.dpo_config import PreferenceChoice as PreferenceChoice
from shell.training.dpo_config import PreferenceData as PreferenceData
