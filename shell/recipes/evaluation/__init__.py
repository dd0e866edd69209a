"""Evaluations by name: questions with graders, held-out text, environments, Inspect tasks."""
