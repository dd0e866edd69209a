import asyncio
import threading
import time
from functools import partial

import pytest

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import get_renderer
from cookbook_fx.rl import Trajectory
from shell.rollouts.problem_env import ProblemEnv, ProblemGroupBuilder
from tests.family_tokenizers import tiny_tokenizer

TOKENIZER = tiny_tokenizer("qwen3")
RENDERER = get_renderer("qwen3", TOKENIZER)


class SumEnv(ProblemEnv):
    """As environments are written for tinker-cookbook."""

    def __init__(self, x, y, renderer, convo_prefix=None, format_coef=0.1, **options):
        super().__init__(renderer, convo_prefix, format_coef=format_coef, **options)
        self.x, self.y = x, y

    def get_question(self) -> str:
        return f"What is {self.x} + {self.y}?"

    def check_answer(self, sample_str: str) -> bool:
        return str(self.x + self.y) in sample_str

    def check_format(self, sample_str: str) -> bool:
        return sample_str.strip().isdecimal()

    def get_reference_answer(self) -> str:
        return str(self.x + self.y)


def response(text, *, ended=True):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    return [*ids, TOKENIZER.convert_tokens_to_ids("<|im_end|>")] if ended else ids


@pytest.mark.parametrize(
    ("said", "ended", "form", "correct"),
    [
        ("9", True, 1.0, 1.0),
        ("It is 9", True, 0.0, 1.0),
        ("8", True, 1.0, 0.0),
        ("eight", True, 0.0, 0.0),
        ("9", False, 0.0, 1.0),
    ],
)
def test_reward_is_correctness_less_what_a_wrong_format_costs(said, ended, form, correct):
    env = SumEnv(4, 5, RENDERER, format_coef=0.25)
    step = asyncio.run(env.step(response(said, ended=ended), extra={"stop_reason": "stop"}))
    assert step.reward == 0.25 * (form - 1) + correct
    assert step.metrics == {"format": form, "correct": correct}
    assert step.logs == {"response": said, "reference_answer": "9"}
    assert step.episode_done
    assert len(step.next_observation) == 0


def test_prompt_is_the_prefix_and_the_question():
    prefix = [
        {"role": "user", "content": "What is 1 + 1?"},
        Message(role="assistant", content="2"),
    ]
    prompt, stop = asyncio.run(SumEnv(4, 5, RENDERER, prefix).initial_observation())
    assert TOKENIZER.decode(prompt) == (
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\nWhat is 4 + 5?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tuple(stop) == tuple(RENDERER.get_stop_sequences())
    with pytest.raises(DataError, match="role"):
        SumEnv(4, 5, RENDERER, [{"role": "nobody", "content": ""}])


def test_graders_see_what_is_said_and_not_what_is_thought():
    think = "<think>\nIs it 9?\n</think>\n\n"
    step = asyncio.run(SumEnv(4, 5, RENDERER).step(response(f"{think}8")))
    assert step.metrics == {"format": 1.0, "correct": 0.0}
    assert step.logs["response"] == "8"


def test_the_end_of_the_sequence_is_an_end_for_those_who_ask():
    tokenizer = tiny_tokenizer("gpt_oss")
    renderer = get_renderer("role_colon", tokenizer)
    action = tokenizer.encode(" 9<|return|>", add_special_tokens=False)
    strict = asyncio.run(SumEnv(4, 5, renderer).step(action))
    lenient = SumEnv(4, 5, renderer, require_stop_sequence_for_format=False)
    assert strict.metrics["format"] == 0.0
    assert asyncio.run(lenient.step(action)).metrics["format"] == 1.0


def test_format_is_not_looked_at_where_the_response_did_not_end():
    looked = []

    class Looking(SumEnv):
        def check_format(self, sample_str):
            looked.append(sample_str)
            return True

    asyncio.run(Looking(4, 5, RENDERER).step(response("9", ended=False)))
    assert looked == []


def test_async_graders_are_awaited_and_may_give_parts_of_a_point():
    class Judged(SumEnv):
        async def check_answer(self, sample_str):
            await asyncio.sleep(0)
            return 0.5

    step = asyncio.run(Judged(4, 5, RENDERER).step(response("9")))
    assert (step.reward, step.metrics["correct"]) == (0.5, 0.5)


def test_slow_graders_leave_the_event_loop_free():
    class Slow(SumEnv):
        def check_answer(self, sample_str):
            assert threading.current_thread() is not threading.main_thread()
            time.sleep(0.5)
            return True

    async def longest_gap(work):
        gaps, last = [], time.monotonic()
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
        return max(gaps)

    assert asyncio.run(longest_gap(Slow(4, 5, RENDERER).step(response("9")))) < 0.3


def test_what_a_grader_raises_is_raised():
    class Broken(SumEnv):
        def check_answer(self, sample_str):
            raise ZeroDivisionError("no such answer")

    with pytest.raises(ZeroDivisionError, match="no such answer"):
        asyncio.run(Broken(4, 5, RENDERER).step(response("9")))


def test_groups_are_attempts_at_one_problem():
    builder = ProblemGroupBuilder(
        env_thunk=partial(SumEnv, 4, 5, renderer=RENDERER), num_envs=3, dataset_name="sums"
    )
    envs = asyncio.run(builder.make_envs())
    assert len({id(env) for env in envs}) == 3
    assert builder.logging_tags() == ["sums"]
    assert ProblemGroupBuilder(lambda: envs[0], 1).logging_tags() == ["problems"]
    nothing = Trajectory(transitions=[], final_ob=())
    rewards = asyncio.run(builder.compute_group_rewards([nothing, nothing], envs[:2]))
    assert rewards == [(0.0, {}), (0.0, {})]
    with pytest.raises(ConfigurationError, match="num_envs"):
        ProblemGroupBuilder(lambda: envs[0], 0)
