"""Many conversations at once."""

from collections.abc import Sequence

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers.renderer import Renderer, SupervisedExample, TrainOnWhat


def build_supervised_batch(
    renderer: Renderer,
    conversations: Sequence[Sequence[Message]],
    train_on_what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
) -> list[tuple[SupervisedExample, ...]]:
    """`build_supervised_examples` of each conversation, with their texts encoded together.

    The tokenizer works in threads of its own, and encodes a text that occurs often only once.

    Raises:
        ConfigurationError, DataError: as for one conversation, which is told by its number from 0.
    """
    ahead = renderer.encoded_ahead(conversations, train_on_what)
    examples = []
    for index, messages in enumerate(conversations):
        try:
            examples.append(ahead.build_supervised_examples(messages, train_on_what))
        except (ConfigurationError, DataError) as error:
            raise type(error)(f"conversation {index}: {error}") from error
    return examples
