"""A transformer, its adapter, its training step and its sampler; knows nothing of chat or RL."""

from cookbook_fx.lm.config import Llama3RopeScaling as Llama3RopeScaling
from cookbook_fx.lm.config import LMConfig as LMConfig
from cookbook_fx.lm.config import config_from_hf as config_from_hf
from cookbook_fx.lm.lora import ALPHA as ALPHA
from cookbook_fx.lm.lora import LoRA as LoRA
from cookbook_fx.lm.lora import LoRAConfig as LoRAConfig
from cookbook_fx.lm.lora import LowRank as LowRank
from cookbook_fx.lm.lora import init_lora as init_lora
from cookbook_fx.lm.training import AdamParams as AdamParams
from cookbook_fx.lm.training import LossOutput as LossOutput
from cookbook_fx.lm.training import OptimReport as OptimReport
from cookbook_fx.lm.training import PromptScores as PromptScores
from cookbook_fx.lm.training import TrainState as TrainState
from cookbook_fx.lm.training import forward as forward
from cookbook_fx.lm.training import forward_backward as forward_backward
from cookbook_fx.lm.training import init_train_state as init_train_state
from cookbook_fx.lm.training import optim_step as optim_step
from cookbook_fx.lm.training import score_prompts as score_prompts
from cookbook_fx.lm.transformer import Tokens as Tokens
from cookbook_fx.lm.transformer import hidden_states as hidden_states
from cookbook_fx.lm.weights import LayerWeights as LayerWeights
from cookbook_fx.lm.weights import LMWeights as LMWeights
from cookbook_fx.lm.weights import random_tensors as random_tensors
from cookbook_fx.lm.weights import tensor_names as tensor_names
from cookbook_fx.lm.weights import weights_from_tensors as weights_from_tensors
from cookbook_fx.numerics.policy import LossSpec as LossSpec
