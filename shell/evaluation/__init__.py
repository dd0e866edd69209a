"""Evaluators: what a model is measured with."""

from shell.evaluation.nll import NLLEvaluator as NLLEvaluator
from shell.evaluation.nll import SubmittedEvaluation as SubmittedEvaluation
from shell.evaluation.preference import PreferenceEvaluator as PreferenceEvaluator
from shell.evaluation.preference import ReferenceScores as ReferenceScores
from shell.evaluation.preference import SubmittedPreferences as SubmittedPreferences
from shell.evaluation.rl_test_set import RLTestSetEvaluator as RLTestSetEvaluator
from shell.evaluation.rl_test_set import SamplingEvaluator as SamplingEvaluator
from shell.evaluation.teacher_kl import TeacherKLEvaluator as TeacherKLEvaluator
