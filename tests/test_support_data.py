import pytest

from tests.support_data import llamafactory_conversations


@pytest.mark.slow
def test_the_instruction_rows():
    conversations = llamafactory_conversations()
    assert len(conversations) == 999
    assert {tuple(message.role for message in turns) for turns in conversations} == {
        ("user", "assistant")
    }
    assert conversations[0][0].content == "Describe a process of making crepes."
