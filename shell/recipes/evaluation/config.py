"""What a model can be evaluated on: small frozen records, quick to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RecipeName = Literal["arithmetic", "guess-number", "math", "reasoning-gym", "shorter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """What a model is evaluated on, besides what a run measures anyway; as many as are given.

    Args:
        questions: questions with right answers, to be graded: JSONL files, each line {"prompt":
            ..., "reference": ...}, or data sets on the Hugging Face hub.
        question_grader: how answers to them are graded: exact_match, contains, number, math, regex,
            choice, or a function of your own, package.module:function, which takes the answer's
            text and the reference and says whether it is right, or how right from 0 to 1.
        nll: JSONL files of conversations; how likely are the assistant's messages in them?
        rl: the test sets of reinforcement-learning recipes, by the recipe's name; an answer may be
            as long as the recipe says.
        inspect: Inspect AI tasks: file.py, file.py@task or package/task. Needs
            `pip install "cookbook-fx[inspect]"`.
        against: another model or checkpoint (tinker://...), whose answers to the starter prompts
            are compared with this one's.
        judge: says whose answer is better: shorter, a tinker:// path of a reward model that
            `cookbook-fx rlhf` made, or package.module:function.
    """

    questions: tuple[str, ...] = ()
    question_grader: str = "exact_match"
    nll: tuple[Path, ...] = ()
    rl: tuple[RecipeName, ...] = ()
    inspect: tuple[str, ...] = ()
    against: str | None = None
    judge: str = "shorter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """How answers are sampled where they are evaluated.

    Args:
        max_tokens: the longest answer, in tokens.
        temperature: 0 always takes the likeliest token.
        top_p: sample from the likeliest tokens that make up this probability only.
        num_samples: answers to each question, of which pass@k is told, and epochs of Inspect tasks;
            needs a temperature above 0.
        limit: questions, conversations, groups or prompts of each task at most; None takes all.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1
    limit: int | None = None
