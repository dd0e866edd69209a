"""Scores answers to tasks of reasoning-gym; workers load it, so it loads nothing else."""

import json
from functools import lru_cache
from typing import Any

import reasoning_gym


def score(task: str, task_config: str, answer: str, entry: dict[str, Any]) -> float:
    """How right an answer is, from 0 to 1, as the task sees it."""
    return float(_task(task, task_config).score_answer(answer, entry=entry))


@lru_cache(maxsize=4)
def _task(task: str, task_config: str) -> Any:
    return reasoning_gym.create_dataset(task, **json.loads(task_config))
