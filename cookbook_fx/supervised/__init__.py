"""Conversations to datums to batches, and how well a model predicts them."""

from cookbook_fx.supervised.dataset import SupervisedDataset as SupervisedDataset
from cookbook_fx.supervised.dataset import epoch_order as epoch_order
from cookbook_fx.supervised.datum import Reduction as Reduction
from cookbook_fx.supervised.datum import conversation_to_datum as conversation_to_datum
from cookbook_fx.supervised.datum import datum_from_tokens_weights as datum_from_tokens_weights
from cookbook_fx.supervised.likelihood import LikelihoodReport as LikelihoodReport
from cookbook_fx.supervised.likelihood import likelihood_report as likelihood_report
from cookbook_fx.supervised.preparation import Preparation as Preparation
from cookbook_fx.supervised.preparation import Prepared as Prepared
from cookbook_fx.supervised.preparation import prepare_conversations as prepare_conversations
from cookbook_fx.supervised.preparation import stream_batches as stream_batches
