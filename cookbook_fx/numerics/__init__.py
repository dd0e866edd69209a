"""Arrays in, arrays out: the formulas of training, alone and under jit, vmap and grad."""

from cookbook_fx.numerics.advantages import group_centered as group_centered
from cookbook_fx.numerics.advantages import group_normalized as group_normalized
from cookbook_fx.numerics.advantages import leave_one_out as leave_one_out
from cookbook_fx.numerics.advantages import max_rl as max_rl
from cookbook_fx.numerics.likelihood import bits_per_byte as bits_per_byte
from cookbook_fx.numerics.likelihood import example_mean_nll as example_mean_nll
from cookbook_fx.numerics.likelihood import mean_nll as mean_nll
from cookbook_fx.numerics.likelihood import perplexity as perplexity
from cookbook_fx.numerics.likelihood import weighted_nll as weighted_nll
from cookbook_fx.numerics.policy import LOSS_DEFAULTS as LOSS_DEFAULTS
from cookbook_fx.numerics.policy import LossSpec as LossSpec
from cookbook_fx.numerics.policy import cispo as cispo
from cookbook_fx.numerics.policy import cross_entropy as cross_entropy
from cookbook_fx.numerics.policy import dro as dro
from cookbook_fx.numerics.policy import importance_sampling as importance_sampling
from cookbook_fx.numerics.policy import ppo as ppo
from cookbook_fx.numerics.policy import token_losses as token_losses
from cookbook_fx.numerics.schedules import SCHEDULES as SCHEDULES
from cookbook_fx.numerics.schedules import learning_rate_multiplier as learning_rate_multiplier
