"""Groups of episodes as parts of a logtree."""

import json

import pytest

from cookbook_fx.reports.logtree import Scope, Text, logtree_json, logtree_page
from cookbook_fx.reports.rollout_tree import group_scope
from cookbook_fx.rl import RolloutError, Trajectory, TrajectoryGroup, Transition
from cookbook_fx.tokens import TokensWithLogprobs


@pytest.fixture
def group(tiny_tokenizer) -> TrajectoryGroup:
    """Three episodes of two turns; the second one earns most."""

    def words(text: str) -> list[int]:
        return tiny_tokenizer.encode(text, add_special_tokens=False)

    def episode(reward: float) -> Trajectory:
        first, said, second = words("What is 2 + 3?"), words("five"), words("Sure?")
        action = TokensWithLogprobs(tokens=said, maybe_logprobs=[-0.5] * len(said))
        turns = (
            Transition(ob=first, ac=action, reward=0, episode_done=False, metrics={"format": 1}),
            Transition(
                ob=[*first, *said, *second],
                ac=action,
                reward=reward,
                episode_done=True,
                logs={"answer": "<b>5</b>"},
            ),
        )
        return Trajectory(transitions=turns, final_ob=[], stop_reason="completed")

    return TrajectoryGroup(
        trajectories_G=[episode(reward) for reward in (0.5, 1.0, float("nan"))],
        final_rewards_G=[0, 0, 0],
        metrics_G=[{}, {"won": 1}, {}],
        rollout_errors=(RolloutError(error_type="ValueError", error_message="<i>no</i>"),),
    )


def test_a_group_is_told_from_its_best_episode_to_its_worst(group, tiny_tokenizer) -> None:
    notes = Scope(
        title="",
        children=(
            Scope(title="Episode 0", children=(Scope(title="empty"), Text(text="noted"))),
            Scope(title="Episode 1"),
        ),
    )
    scope = group_scope(
        group, title="Group", tags=("a", "b"), tokenizer=tiny_tokenizer, notes=notes
    )
    told = json.loads(logtree_json(scope))["root"]
    assert told["attributes"] == {"tags": "a, b"}
    table, *episodes, failed, noted = told["children"]
    assert table["rows"][1][:4] == [1, 1.0, 0, "completed"]
    assert [episode["title"] for episode in episodes] == ["Episode 1", "Episode 0", "Episode 2"]
    turns = episodes[0]["children"][0]["messages"]
    assert [(turn["role"], turn["content"][0]["text"]) for turn in turns] == [
        ("observed", "What is 2 + 3?"),
        ("sampled", "five"),
        ("observed", "Sure?"),
        ("sampled", "five"),
    ]
    assert "ValueError: <i>no</i>" in failed["text"]
    assert noted["children"] == [
        {
            "type": "scope",
            "title": "Episode 0",
            "attributes": {},
            "is_folded": False,
            "children": [{"type": "text", "text": "noted"}],
        }
    ]
    page = logtree_page(scope)
    assert "<b>5" not in page
    assert "<i>no" not in page


def test_of_many_episodes_some_are_told_of(group, tiny_tokenizer) -> None:
    scope = group_scope(group, title="Group", tags=(), tokenizer=None, num_rollouts=2)
    titles = [child.title for child in scope.children if isinstance(child, Scope)]
    assert titles == ["Episode 1", "Episode 2"]


def test_a_group_without_episodes_tells_why() -> None:
    errors = (RolloutError(error_type="ValueError", error_message="no"),)
    empty = TrajectoryGroup(
        trajectories_G=(), final_rewards_G=(), metrics_G=(), rollout_errors=errors
    )
    (only,) = group_scope(empty, title="Group", tags=(), tokenizer=None).children
    assert only == Text(text="An episode failed with ValueError: no")
