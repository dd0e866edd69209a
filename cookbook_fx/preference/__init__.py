"""Comparisons of completions: read, written as conversations, paired, and learned from."""

from cookbook_fx.preference.comparison import LABELS as LABELS
from cookbook_fx.preference.comparison import Comparison as Comparison
from cookbook_fx.preference.comparison import Label as Label
from cookbook_fx.preference.comparison import LabeledComparison as LabeledComparison
from cookbook_fx.preference.comparison import RankedCompletions as RankedCompletions
from cookbook_fx.preference.comparison import (
    labeled_comparison_from_dict as labeled_comparison_from_dict,
)
from cookbook_fx.preference.comparison import (
    labeled_comparison_to_dict as labeled_comparison_to_dict,
)
from cookbook_fx.preference.comparisons import ComparisonDataset as ComparisonDataset
from cookbook_fx.preference.comparisons import PreparedComparisons as PreparedComparisons
from cookbook_fx.preference.comparisons import prepare_comparisons as prepare_comparisons
from cookbook_fx.preference.objective import PREFERENCE_LOSSES as PREFERENCE_LOSSES
from cookbook_fx.preference.objective import PairInputs as PairInputs
from cookbook_fx.preference.objective import PreferenceLoss as PreferenceLoss
from cookbook_fx.preference.objective import PreferenceObjective as PreferenceObjective
from cookbook_fx.preference.objective import PreferenceReport as PreferenceReport
from cookbook_fx.preference.objective import PreferenceStep as PreferenceStep
from cookbook_fx.preference.objective import PreferenceStepMetrics as PreferenceStepMetrics
from cookbook_fx.preference.objective import completion_logprobs as completion_logprobs
from cookbook_fx.preference.objective import kto_pairs as kto_pairs
from cookbook_fx.preference.objective import preference_loss as preference_loss
from cookbook_fx.preference.objective import preference_report as preference_report
from cookbook_fx.preference.objective import preference_step as preference_step
from cookbook_fx.preference.objective import token_preference_loss as token_preference_loss
from cookbook_fx.preference.pairs import PairBatch as PairBatch
from cookbook_fx.preference.pairs import PairPreparation as PairPreparation
from cookbook_fx.preference.pairs import PreferenceDataset as PreferenceDataset
from cookbook_fx.preference.pairs import PreferencePair as PreferencePair
from cookbook_fx.preference.pairs import PreparedPairs as PreparedPairs
from cookbook_fx.preference.pairs import Ties as Ties
from cookbook_fx.preference.pairs import prepare_pairs as prepare_pairs
from cookbook_fx.preference.renderer import ComparisonRenderer as ComparisonRenderer
from cookbook_fx.preference.renderer import (
    ComparisonRendererFromChatRenderer as ComparisonRendererFromChatRenderer,
)
from cookbook_fx.preference.tournament import Match as Match
from cookbook_fx.preference.tournament import TournamentPattern as TournamentPattern
from cookbook_fx.preference.tournament import matchups as matchups
from cookbook_fx.preference.tournament import win_minus_loss as win_minus_loss
