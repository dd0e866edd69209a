"""`cookbook-fx chat`: talk with a model or a checkpoint."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cookbook_fx.errors import CookbookError
from shell.cli.options import BaseURL

if TYPE_CHECKING:
    from cookbook_fx.chat import Conversation
    from cookbook_fx.renderers.streaming import Delta
    from shell.cli.conversing import Answer, Speaker

_HELP = """/reset        begin anew; the system prompt stays
/undo         take back the last question and its answer
/system TEXT  another system prompt, and begin anew; without text, none
/save FILE    add the conversation to a JSONL file, as `sft --data` reads it
/quit         end, as Ctrl-D does; Ctrl-C stops an answer"""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Talk with a model or a checkpoint; its answers appear as they are sampled.

    Reasoning is shown dimmed. Ctrl-C stops an answer, Ctrl-D ends; /help tells the rest. Without a
    terminal, every line of standard input is a turn and plain text comes out.

    For example
    $ cookbook-fx chat
    $ cookbook-fx chat runs/sft --system "You are a ship's cook."
    $ echo "Who are you?" | cookbook-fx chat tinker://.../sampler_weights/final --temperature 0

    Args:
        target: who is talked with: a known model's name (see `cookbook-fx models`), the id of a
            model on the Hugging Face hub, a directory, a .gguf file, a tinker:// path, the
            directory of a peft adapter, or the folder of a run. None is smollm2-135m-instruct.
        system: the system prompt.
        max_tokens: the longest answer, in tokens.
        temperature: 0 always takes the likeliest token, 1 samples as the model would.
        top_p: sample from the likeliest tokens that make up this probability only.
        renderer: how conversations are written for the model; None is what it was trained in, or
            what suits it best.
        model: the base model of a checkpoint or adapter, where it is not its own.
        base_url: another engine's address; its key is read from TINKER_API_KEY. None is an engine
            in this process.
        seed: same seed, same answers.
    """

    target: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL|CHECKPOINT|RUN")
    ] = None
    system: str | None = None
    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    renderer: str | None = None
    model: str | None = None
    base_url: BaseURL = None
    seed: int = 0

    def run(self) -> int:
        """Talks until the input ends."""
        from shell.cli.options import engine
        from shell.cli.target import find_target
        from shell.hub.models import say_on_standard_error

        target = find_target(self.target, model=self.model, base_url=self.base_url)
        with (
            engine(self.base_url, model=target.model or "", say=say_on_standard_error) as address,
            asyncio.Runner() as runner,
        ):
            from shell.cli.conversing import Speaker
            from shell.cli.target import opened

            stack = AsyncExitStack()
            opening = opened(target, address=address, renderer=self.renderer)
            sampler, context = runner.run(stack.enter_async_context(opening))
            try:
                speaker = Speaker(
                    sampler=sampler,
                    renderer=context.renderer,
                    max_tokens=self.max_tokens,
                    temperature=self.temperature,
                    top_p=self.top_p,
                    context_window=context.context_window,
                    seed=self.seed,
                )
                _Talk(speaker, runner, system=self.system).go()
            finally:
                runner.run(stack.aclose())
        return 0


class _Talk:
    """Reads turns and commands, and shows the answers."""

    def __init__(self, speaker: "Speaker", runner: asyncio.Runner, *, system: str | None) -> None:
        self._speaker = speaker
        self._runner = runner
        self._system = system
        self._turns: Conversation = ()
        self._is_terminal = sys.stdin.isatty() and sys.stdout.isatty()

    def go(self) -> None:
        """Talks until the input ends."""
        if self._is_terminal:
            # Line editing and a history for `input`, where Python has it.
            with suppress(ImportError):
                import readline  # noqa: F401
            self._tell("Ctrl-C stops an answer, Ctrl-D ends, /help tells more.")
        for line in self._lines():
            if not line.strip():
                continue
            try:
                if line.startswith("/"):
                    if not self._obeyed(line.strip()):
                        return
                else:
                    self._answer(line)
            except CookbookError as error:
                self._tell(f"error: {error}")

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                yield input("> " if self._is_terminal else "")
            except EOFError:
                if self._is_terminal:
                    self._write("\n")
                return
            except KeyboardInterrupt:
                if not self._is_terminal:
                    raise
                self._write("\n")
                self._tell("Ctrl-D ends.")
            # Bytes that are no text stop nothing.
            except UnicodeDecodeError as error:
                self._tell(f"error: that line is no UTF-8 text ({error.reason})")

    def _obeyed(self, line: str) -> bool:
        """Does what a line that begins with a slash says; False if that is to end."""
        from cookbook_fx.errors import ConfigurationError

        command, _, argument = line.partition(" ")
        argument = argument.strip()
        match command:
            case "/quit" | "/exit":
                return False
            case "/reset":
                self._turns = ()
                self._tell("The conversation begins anew.")
            case "/system":
                self._system, self._turns = argument or None, ()
                self._tell("The conversation begins anew.")
            case "/undo":
                self._undo()
            case "/save":
                self._save(argument)
            case "/help":
                self._tell(_HELP)
            case _:
                raise ConfigurationError(
                    f"there is no command {command}; /help tells those there are. A line that is "
                    "to begin with a slash needs a space before it"
                )
        return True

    def _undo(self) -> None:
        asked = [place for place, turn in enumerate(self._turns) if turn.role == "user"]
        self._turns = self._turns[: asked[-1]] if asked else ()
        self._tell(f"{len(self._turns)} messages are left.")

    def _save(self, file: str) -> None:
        from cookbook_fx.chat import conversation_to_dict
        from cookbook_fx.errors import ConfigurationError
        from shell.stores.lines import append_lines

        if not file or not self._turns:
            raise ConfigurationError("/save FILE keeps a conversation in which something was said")
        path = Path(file).expanduser()
        append_lines(path, [conversation_to_dict(self._conversation)], what="the conversation")
        self._tell(f"Added to {path}.")

    @property
    def _conversation(self) -> "Conversation":
        from shell.cli.conversing import said_by

        return (*([said_by("system", self._system)] if self._system else []), *self._turns)

    def _answer(self, question: str) -> None:
        """Asks, shows what comes, and remembers it as far as it came."""
        from shell.cli.conversing import Answer, said_by

        asked = said_by("user", question)
        answer = Answer(speaker=self._speaker, conversation=(*self._conversation, asked))
        is_stopped = False
        try:
            self._runner.run(self._show(answer))
        except KeyboardInterrupt:
            is_stopped = True
        if is_stopped and not answer.tokens:
            self._tell("Stopped; nothing was said.")
            return
        said = answer.so_far()
        self._turns = (*self._turns, asked, said.message)
        if is_stopped:
            self._write("\n")
            self._tell("Stopped.")
        elif not said.termination.is_clean and len(answer.tokens) >= answer.room:
            is_full = answer.room < self._speaker.max_tokens
            reason = (
                "the model can read no more; /undo or /reset makes room"
                if is_full
                else "--max-tokens allows longer answers"
            )
            self._tell(f"Cut off: {reason}.")

    async def _show(self, answer: "Answer") -> None:
        with self._dimming() as show:
            async for delta in answer.deltas():
                show(delta)
        self._write("\n")

    @contextmanager
    def _dimming(self) -> "Iterator[Callable[[Delta], None]]":
        """A function that writes parts of an answer, reasoning dimmed."""
        from cookbook_fx.renderers.streaming import Revision, TextDelta, ThinkingDelta
        from shell.cli.conversing import harmless

        colors = self._is_terminal and "NO_COLOR" not in os.environ
        dim, plain = ("\x1b[2m", "\x1b[0m") if colors else ("", "")
        is_dim = False

        def show(delta: "Delta") -> None:
            nonlocal is_dim
            is_thinking = isinstance(delta, ThinkingDelta)
            if is_thinking != is_dim:
                self._write(dim if is_thinking else f"\n{plain}")
                is_dim = is_thinking
            match delta:
                case ThinkingDelta():
                    self._write(harmless(delta.thinking))
                case TextDelta():
                    self._write(harmless(delta.text))
                case Revision():
                    self._write(f"\n{harmless(delta.message.text)}")
                case call:
                    self._write(harmless(f"\n[calls {call.name} {call.arguments}]"))

        try:
            yield show
        finally:
            if is_dim:
                self._write(plain)

    def _tell(self, sentence: str) -> None:
        """Something that is none of the answers."""
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
