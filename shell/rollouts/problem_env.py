"""A question, an answer, a grade: environments of one turn."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import Renderer
from shell.rollouts.calls import called
from shell.rollouts.env import (
    Action,
    ActionExtra,
    Env,
    EnvGroupBuilder,
    Observation,
    StepResult,
    StopCondition,
)
from shell.rollouts.message_env import conversation_of


class ProblemEnv(Env):
    """One question, answered once.

        reward = format_coef · (format - 1) + correct

    `format` is whether the response ended as it should and `check_format` likes it. `correct` is
    what `check_answer` says, also of a response of the wrong format. Both are reported as metrics.

    Subclasses say what the question is and how an answer is graded. `check_answer` and
    `check_format` may take their time: they run in a thread, or are awaited where they are
    `async def`. They are given what the response says, its reasoning left out.

    Args:
        renderer: the chat format.
        convo_prefix: messages before the question, such as examples.
        format_coef: what a wrong format costs.
        require_stop_sequence_for_format: only the format's own stop ends a response as it should;
            otherwise the end-of-sequence token does too.

    Example:
        >>> class Sum(ProblemEnv):
        ...     def get_question(self):
        ...         return "What is 4 + 5?"
        ...
        ...     def check_answer(self, sample_str):
        ...         return "9" in sample_str
        ...
        ...     def check_format(self, sample_str):
        ...         return sample_str.strip().isdecimal()
        ...
        ...     def get_reference_answer(self):
        ...         return "9"
    """

    def __init__(
        self,
        renderer: Renderer,
        convo_prefix: Sequence[Message | Mapping[str, Any]] | None = None,
        format_coef: float = 0.1,
        *,
        require_stop_sequence_for_format: bool = True,
    ) -> None:
        self.renderer = renderer
        self.convo_prefix = conversation_of(convo_prefix or ())
        self.format_coef = format_coef
        self.require_stop_sequence_for_format = require_stop_sequence_for_format

    @property
    def stop_condition(self) -> StopCondition:
        """Where the answer stops."""
        return self.renderer.get_stop_sequences()

    @abstractmethod
    def get_question(self) -> str:
        """The question, as the user asks it."""

    @abstractmethod
    def check_answer(self, sample_str: str) -> Any:
        """How right a response is, from 0 or False to 1 or True; may be `async`."""

    @abstractmethod
    def check_format(self, sample_str: str) -> Any:
        """Whether a response has the form that was asked for, likewise; may be `async`."""

    @abstractmethod
    def get_reference_answer(self) -> str:
        """The right answer, to be shown beside the response."""

    async def initial_observation(self) -> tuple[Observation, StopCondition]:
        """The conversation before the question, and the question."""
        question = Message(role="user", content=self.get_question())
        prompt = await asyncio.to_thread(
            self.renderer.build_generation_prompt, (*self.convo_prefix, question)
        )
        return prompt, self.stop_condition

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        """Grades the answer."""
        del extra
        message, termination = await asyncio.to_thread(self.renderer.parse_response, action)
        response = message.text
        if self.require_stop_sequence_for_format:
            well_formed = termination.is_stop_sequence
        else:
            well_formed = termination.is_clean
        form = float(well_formed and await called(self.check_format, response))
        correct = float(await called(self.check_answer, response))
        return StepResult(
            reward=self.format_coef * (form - 1) + correct,
            episode_done=True,
            next_observation=(),
            next_stop_condition=self.stop_condition,
            metrics={"format": form, "correct": correct},
            logs={"response": response, "reference_answer": self.get_reference_answer()},
        )


@dataclass(frozen=True, slots=True, eq=False)
class ProblemGroupBuilder(EnvGroupBuilder):
    """Several attempts at one problem.

    Args:
        env_thunk: makes one environment, any kind of it.
        num_envs: attempts.
        dataset_name: what the group's numbers are reported under.

    Raises:
        ConfigurationError: there are fewer than one attempt.
    """

    env_thunk: Callable[[], Env]
    num_envs: int
    dataset_name: str = "problems"

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise ConfigurationError(f"`num_envs` must be at least 1, got {self.num_envs}")

    async def make_envs(self) -> Sequence[Env]:
        """`num_envs` new environments."""
        return [self.env_thunk() for _ in range(self.num_envs)]

    def logging_tags(self) -> list[str]:
        """The name of the data set."""
        return [self.dataset_name]
