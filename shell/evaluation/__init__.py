"""Evaluators: what a model is measured with."""

from shell.evaluation.nll import NLLEvaluator as NLLEvaluator
from shell.evaluation.nll import SubmittedEvaluation as SubmittedEvaluation
