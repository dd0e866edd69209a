"""Evaluators: what a model is measured with."""

from shell.evaluation.answers import AnswersFile as AnswersFile
from shell.evaluation.answers import ExampleRecord as ExampleRecord
from shell.evaluation.answers import GradedAnswer as GradedAnswer
from shell.evaluation.custom import CustomEvaluator as CustomEvaluator
from shell.evaluation.custom import EvaluationExample as EvaluationExample
from shell.evaluation.custom import Grader as Grader
from shell.evaluation.custom import GradingFailed as GradingFailed
from shell.evaluation.evaluator import EvaluationContext as EvaluationContext
from shell.evaluation.evaluator import Evaluations as Evaluations
from shell.evaluation.evaluator import Evaluator as Evaluator
from shell.evaluation.evaluator import EvaluatorBuilder as EvaluatorBuilder
from shell.evaluation.evaluator import SamplingClientEvaluator as SamplingClientEvaluator
from shell.evaluation.evaluator import SubmittedEvaluations as SubmittedEvaluations
from shell.evaluation.evaluator import TrainingClientEvaluator as TrainingClientEvaluator
from shell.evaluation.matches import Matches as Matches
from shell.evaluation.matches import MatchResults as MatchResults
from shell.evaluation.matches import WinRateEvaluator as WinRateEvaluator
from shell.evaluation.nll import NLLEvaluator as NLLEvaluator
from shell.evaluation.nll import SamplerNLLEvaluator as SamplerNLLEvaluator
from shell.evaluation.nll import SubmittedEvaluation as SubmittedEvaluation
from shell.evaluation.preference import PreferenceEvaluator as PreferenceEvaluator
from shell.evaluation.preference import ReferenceScores as ReferenceScores
from shell.evaluation.preference import SubmittedPreferences as SubmittedPreferences
from shell.evaluation.rl_test_set import RLTestSetEvaluator as RLTestSetEvaluator
from shell.evaluation.teacher_kl import TeacherKLEvaluator as TeacherKLEvaluator
from shell.evaluation.weights import sampler_of as sampler_of
