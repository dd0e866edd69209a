"""Arrays in, arrays out: the formulas of training, alone and under jit, vmap and grad.

Each new shape compiles a function once more, 0.1 to 2 seconds: hand ragged work over in a few sizes
(`data.bucket`, or the flat arrays of an `rl.TrajectoryBatch`), never trajectory by trajectory.
"""

from cookbook_fx.numerics.advantages import group_centered as group_centered
from cookbook_fx.numerics.advantages import group_normalized as group_normalized
from cookbook_fx.numerics.advantages import leave_one_out as leave_one_out
from cookbook_fx.numerics.advantages import max_rl as max_rl
from cookbook_fx.numerics.aggregation import constant_length_weights as constant_length_weights
from cookbook_fx.numerics.aggregation import sequence_mean_weights as sequence_mean_weights
from cookbook_fx.numerics.aggregation import token_mean_weights as token_mean_weights
from cookbook_fx.numerics.diagnostics import PolicyDiagnostics as PolicyDiagnostics
from cookbook_fx.numerics.diagnostics import policy_diagnostics as policy_diagnostics
from cookbook_fx.numerics.gae import generalized_advantages as generalized_advantages
from cookbook_fx.numerics.kl import KLPenalty as KLPenalty
from cookbook_fx.numerics.kl import SampleTrainKL as SampleTrainKL
from cookbook_fx.numerics.kl import kl_divergence as kl_divergence
from cookbook_fx.numerics.kl import kl_k1 as kl_k1
from cookbook_fx.numerics.kl import kl_k2 as kl_k2
from cookbook_fx.numerics.kl import kl_k3 as kl_k3
from cookbook_fx.numerics.kl import kl_penalty as kl_penalty
from cookbook_fx.numerics.kl import sample_train_kl as sample_train_kl
from cookbook_fx.numerics.likelihood import bits_per_byte as bits_per_byte
from cookbook_fx.numerics.likelihood import entropy as entropy
from cookbook_fx.numerics.likelihood import example_mean_nll as example_mean_nll
from cookbook_fx.numerics.likelihood import mean_nll as mean_nll
from cookbook_fx.numerics.likelihood import perplexity as perplexity
from cookbook_fx.numerics.likelihood import weighted_nll as weighted_nll
from cookbook_fx.numerics.policy import LOSS_DEFAULTS as LOSS_DEFAULTS
from cookbook_fx.numerics.policy import LossSpec as LossSpec
from cookbook_fx.numerics.policy import cispo as cispo
from cookbook_fx.numerics.policy import cross_entropy as cross_entropy
from cookbook_fx.numerics.policy import dro as dro
from cookbook_fx.numerics.policy import gspo as gspo
from cookbook_fx.numerics.policy import importance_sampling as importance_sampling
from cookbook_fx.numerics.policy import ppo as ppo
from cookbook_fx.numerics.policy import sequence_log_ratios as sequence_log_ratios
from cookbook_fx.numerics.policy import token_losses as token_losses
from cookbook_fx.numerics.policy import truncated_importance_weights as truncated_importance_weights
from cookbook_fx.numerics.preference import PreferenceGradients as PreferenceGradients
from cookbook_fx.numerics.preference import PreferenceMetrics as PreferenceMetrics
from cookbook_fx.numerics.preference import dpo as dpo
from cookbook_fx.numerics.preference import hinge as hinge
from cookbook_fx.numerics.preference import ipo as ipo
from cookbook_fx.numerics.preference import kto as kto
from cookbook_fx.numerics.preference import kto_reference_point as kto_reference_point
from cookbook_fx.numerics.preference import orpo as orpo
from cookbook_fx.numerics.preference import preference_gradients as preference_gradients
from cookbook_fx.numerics.preference import preference_metrics as preference_metrics
from cookbook_fx.numerics.preference import robust_dpo as robust_dpo
from cookbook_fx.numerics.preference import sequence_logprobs as sequence_logprobs
from cookbook_fx.numerics.preference import simpo as simpo
from cookbook_fx.numerics.returns import discounted_sums as discounted_sums
from cookbook_fx.numerics.returns import linear_recurrence as linear_recurrence
from cookbook_fx.numerics.schedules import SCHEDULES as SCHEDULES
from cookbook_fx.numerics.schedules import learning_rate_multiplier as learning_rate_multiplier
