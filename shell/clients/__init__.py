"""The Tinker SDK wrapped: records in, records out, and every failure a ServiceError."""

from shell.clients.convert import ForwardResult as ForwardResult
from shell.clients.convert import NextTokens as NextTokens
from shell.clients.convert import OptimResult as OptimResult
from shell.clients.convert import Sample as Sample
from shell.clients.convert import TopTokens as TopTokens
from shell.clients.custom_loss import CustomLoss as CustomLoss
from shell.clients.custom_loss import CustomPass as CustomPass
from shell.clients.custom_loss import CustomResult as CustomResult
from shell.clients.custom_loss import forward_backward_custom as forward_backward_custom
from shell.clients.errors import CheckpointNotFound as CheckpointNotFound
from shell.clients.pending import Pending as Pending
from shell.clients.sampling import Sampler as Sampler
from shell.clients.sampling import SampleRequest as SampleRequest
from shell.clients.service import NewLoRA as NewLoRA
from shell.clients.service import Service as Service
from shell.clients.service import connect as connect
from shell.clients.training import Trainer as Trainer
