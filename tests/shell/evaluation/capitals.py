"""An Inspect task whose data stands in it."""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

WORDS = ("the cat", "the dog", "the mat", "the door")


@task
def letters() -> Task:
    """Whether an answer holds an e; a model that knows nothing sometimes does."""
    return Task(
        dataset=[Sample(input=word, target="e") for word in WORDS],
        solver=generate(),
        scorer=includes(),
    )
