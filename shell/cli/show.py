"""`cookbook-fx show`: see conversations as a model is trained on them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cookbook_fx.errors import ConfigurationError, DataError
from shell.training.config import TrainedMessages

if TYPE_CHECKING:
    from rich.console import Console

    from cookbook_fx.chat import Conversation
    from cookbook_fx.renderers import Renderer, SupervisedExample
    from cookbook_fx.reports import ExampleSection
    from cookbook_fx.tokens import Tokenizer

# The long name is the other commands'; the choices stand in the help once, not with each name.
_TRAIN_ON = tyro.conf.arg(aliases=("--train-on",), metavar="WHAT")


@dataclass(frozen=True, kw_only=True)
class Show:
    """Show conversations as a model is trained on them: token for token, coloured by weight.

    Green is what is trained, yellow what is only read. Without colours, as in a file or with
    NO_COLOR set, what is trained stands between {+ and +}. FORCE_COLOR keeps the colours in a pipe.

    For example
    $ cookbook-fx show mine.jsonl --renderer chatml
    $ cookbook-fx show mine.jsonl --model Qwen/Qwen3-0.6B --limit 3
    $ cookbook-fx show mine.jsonl --train-on last_assistant_message --html mine.html

    Args:
        data: a JSONL file, each line {"messages": [{"role": ..., "content": ...}, ...]}.
        renderer: how conversations are written for the model; None is what suits it best, where
            that is known (see `cookbook-fx models`), and chatml else. `template` follows the
            model's own template; package.module:function is a renderer of your own.
        model: whose tokenizer is used: a known name (see `cookbook-fx models`), the id of a model
            on the Hugging Face hub, a directory, or a .gguf file.
        train_on_what: which messages are trained on: last_assistant_message, last_assistant_turn,
            all_assistant_messages, all_messages, all_tokens, all_user_and_system_messages or
            customized (those that say "trainable": true).
        limit: conversations to show, from the first one on; None shows all.
        html: write a page for a browser to this file, instead.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    renderer: str | None = None
    model: str = "smollm2-135m-instruct"
    train_on_what: Annotated[TrainedMessages, _TRAIN_ON] = "all_assistant_messages"
    limit: int | None = 10
    html: Path | None = None

    def run(self) -> int:
        """Prints the examples, or writes them to a page."""
        from rich.console import Console

        from cookbook_fx.renderers import get_renderer
        from shell.cli.options import warn_of_renderer
        from shell.hub import (
            load_tokenizer,
            read_conversations,
            recommended_renderer,
            resolve_model,
        )
        from shell.hub.models import say_on_standard_error

        if self.limit is not None and self.limit < 1:
            raise ConfigurationError(f"`limit` must be 1 or more, got {self.limit}")
        # One more tells whether there are more; a large file is not read for a look at its start.
        first = None if self.limit is None else self.limit + 1
        conversations = read_conversations(self.data, first=first)
        source = resolve_model(self.model, say=say_on_standard_error, with_weights=False)
        tokenizer = load_tokenizer(source.directory)
        name = self.renderer or recommended_renderer(self.model)
        renderer = get_renderer(name, tokenizer)
        warn_of_renderer(name, model=self.model, say=say_on_standard_error)
        shown = conversations[: self.limit]
        examples = self._examples(shown, renderer)
        console = Console(highlight=False, markup=False, soft_wrap=True)
        if self.html is None:
            print_examples(examples, tokenizer, console=console)
        else:
            _write(
                examples, tokenizer, path=self.html, title=f"{self.data.name}, rendered by {name}"
            )
            console.print(f"Page: {self.html}")
        if len(shown) < len(conversations):
            console.print(
                f"There are more conversations than these {len(shown)}; --limit None shows all."
            )
        return 0

    def _examples(
        self, conversations: "tuple[Conversation, ...]", renderer: "Renderer"
    ) -> "Iterator[ExampleSection]":
        """What each conversation is trained as, in order."""
        from cookbook_fx.renderers import TrainOnWhat

        for number, conversation in enumerate(conversations):
            try:
                examples = renderer.build_supervised_examples(
                    conversation, TrainOnWhat(self.train_on_what)
                )
            except (ConfigurationError, DataError) as error:
                raise type(error)(f"conversation {number}: {error}") from error
            for part, example in enumerate(examples, start=1):
                which = f", part {part} of {len(examples)}" if len(examples) > 1 else ""
                yield _section(f"conversation {number}{which}", example)


def _section(which: str, example: "SupervisedExample") -> "ExampleSection":
    """An example under its counts."""
    import numpy as np

    from cookbook_fx.reports import ExampleSection

    # Nothing predicts the first token, so that a weight of its own would train nothing.
    weights = np.concatenate([np.zeros(1, np.float32), example.weights[1:]])
    return ExampleSection(
        heading=f"{which}: {len(weights)} tokens, {np.count_nonzero(weights)} trained",
        tokens=example.tokens,
        weights=weights,
    )


def print_examples(
    examples: "Iterator[ExampleSection]", tokenizer: "Tokenizer", *, console: "Console"
) -> None:
    """One example below the other, in colours where there are some."""
    from cookbook_fx.reports import format_colorized, format_marked

    write = format_colorized if has_colors(console) else format_marked
    for example in examples:
        console.print(example.heading, style="bold")
        print_as_it_is(write(example.tokens, example.weights, tokenizer), console=console)


def has_colors(console: "Console") -> bool:
    """Whether what is printed may be in colours."""
    return console.color_system is not None and not console.no_color


def print_as_it_is(text: str, *, console: "Console") -> None:
    """A text that has its colours and its lines, with an empty line behind it."""
    # Where the output is not Unicode, as little as possible is lost.
    text = text.encode(console.encoding, "backslashreplace").decode(console.encoding)
    # Brackets in it mean nothing.
    console.out(text, highlight=False, end="\n" if text.endswith("\n") else "\n\n")


def _write(
    examples: "Iterator[ExampleSection]", tokenizer: "Tokenizer", *, path: Path, title: str
) -> None:
    """The examples as a page of their own."""
    from cookbook_fx.reports import html_page
    from shell.stores.files import storing

    page = html_page(examples, tokenizer, title=title)
    with storing(path, what="the page"):
        path.write_text(page, encoding="utf-8")
