"""`cookbook-fx sample`: ask a model one question."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from shell.cli.options import BaseURL

if TYPE_CHECKING:
    from shell.cli.options import Address


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Ask a model one question and print what it says.

    For example
    $ cookbook-fx sample "What is the tallest mountain?"
    $ cookbook-fx sample --checkpoint tinker://.../sampler_weights/final "Who are you?"
    $ cookbook-fx sample --num-samples 4 --temperature 1 "Tell me a joke."

    Args:
        question: what is asked.
        model: the base model: a known name (see `cookbook-fx models`), the id of a model on the
            Hugging Face hub, a directory, or a .gguf file. None is the checkpoint's own, or
            without a checkpoint smollm2-135m-instruct.
        checkpoint: a tinker:// path printed by `cookbook-fx sft`, or the directory of an adapter
            that peft or `cookbook-fx export` wrote; None asks the base model.
        base_url: another engine's address; its key is read from TINKER_API_KEY. None is an engine
            in this process.
        renderer: how conversations are written for the model; None is what suits it best, where
            that is known (see `cookbook-fx models`), and chatml else. `template` follows the
            model's own template; package.module:function is a renderer of your own.
        max_tokens: longest answer.
        temperature: 0 always takes the likeliest token, 1 samples as the model would.
        top_p: sample from the likeliest tokens that make up this probability only.
        num_samples: independent answers; they differ only at a temperature above 0.
        seed: same seed, same answers.
    """

    question: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="QUESTION")]
    model: str | None = None
    checkpoint: str | None = None
    base_url: BaseURL = None
    renderer: str | None = None
    max_tokens: int = 200
    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1
    seed: int = 0

    def run(self) -> int:
        """Prints the answers, one below the other."""
        from shell.cli.options import engine, local_checkpoint
        from shell.hub.models import say_on_standard_error

        model = self._base_model()
        path = self.checkpoint and local_checkpoint(
            self.checkpoint, model=model, base_url=self.base_url
        )
        with engine(self.base_url, model=model, say=say_on_standard_error) as address:
            for answer in asyncio.run(self._answers(address, model, path)):
                print(answer)  # noqa: T201
        return 0

    def _base_model(self) -> str:
        """What an engine of this process is to serve."""
        from shell.cli.options import named_base_model
        from shell.hub import DEFAULT_MODEL, home

        if self.model is not None:
            return self.model
        if self.checkpoint is None or self.base_url is not None:
            return DEFAULT_MODEL
        from shell.engine.checkpoints import base_model_of
        from shell.engine.imports import is_adapter

        if is_adapter(self.checkpoint):
            return named_base_model(Path(self.checkpoint).expanduser())
        return base_model_of(home() / "checkpoints", self.checkpoint)

    async def _answers(self, address: "Address", model: str, path: str | None) -> tuple[str, ...]:
        from cookbook_fx.renderers import get_renderer
        from shell.cli.asking import Manner, answers
        from shell.cli.options import warn_of_renderer
        from shell.clients import connect
        from shell.hub import load_tokenizer, recommended_renderer, resolve_model
        from shell.hub.models import say_on_standard_error

        manner = Manner(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            num_samples=self.num_samples,
            seed=self.seed,
        )
        async with connect(base_url=address.base_url, api_key=address.api_key) as service:
            base_model = model if path is None else None
            sampler = await service.sampler(base_model=base_model, path=path)
            asked = self.model or sampler.base_model
            source = await asyncio.to_thread(resolve_model, asked, with_weights=False)
            name = self.renderer or recommended_renderer(asked)
            renderer = get_renderer(name, load_tokenizer(source.directory))
            warn_of_renderer(name, model=asked, say=say_on_standard_error)
            return await answers(sampler, self.question, renderer=renderer, manner=manner)
