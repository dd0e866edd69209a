"""`cookbook-fx sft`: fine-tune a model on conversations."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cookbook_fx.errors import ConfigurationError
from shell.cli.options import BaseURL
from shell.cli.recording import Recording, RunDir
from shell.recipes.evaluation.config import Tasks
from shell.training import Adam, Cadence, ChatData, ModelChoice, Schedule, SFTConfig

if TYPE_CHECKING:
    from rich.console import Console

    from cookbook_fx.renderers import Renderer
    from shell.cli.options import Address
    from shell.clients import Service
    from shell.recipes.chat_sft import LoadedData
    from shell.stores import RunCheckpoint, RunFolder

_INTERRUPTED = 130
# As many as are kept to be looked at.
_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Fine-tune a model on conversations, on this machine or on another engine.

    Without options: fetches a small chat model, trains a LoRA on the conversations that come with
    the library, and shows one question answered before and after. The same command again
    continues a run that was interrupted.

    For example
    $ cookbook-fx sft
    $ cookbook-fx sft --data mine.jsonl --test-size 20 --run-dir runs/mine
    $ cookbook-fx sft --base-url http://127.0.0.1:8000   (key in TINKER_API_KEY)

    Args:
        model: what is trained.
        data: what it is trained and measured on.
        schedule: how long and how fast.
        adam: the optimizer, AdamW.
        cadence: what is done how often; may be changed when a run is continued.
        tasks: what the weights are measured on besides, whenever they are evaluated; may be changed
            when a run is continued: the rows name what they were measured on.
        base_url: another engine's address; its key is read from TINKER_API_KEY. None is an engine
            in this process.
        run_dir: the folder the run leaves, a path or a URL (s3://bucket/run): measurements,
            checkpoints, configuration. A run found there is continued.
        recording: what becomes of a run found there, and where its measurements are sent.
        seed: of the initial LoRA weights and of the order of the data.
        question: what is asked before and after.
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    data: ChatData = field(default_factory=ChatData)
    schedule: Schedule = field(default_factory=lambda: Schedule(learning_rate=1e-3))
    adam: Adam = field(default_factory=Adam)
    cadence: Cadence = field(default_factory=lambda: Cadence(eval_every=20))
    tasks: Tasks = field(default_factory=Tasks)
    base_url: BaseURL = None
    run_dir: RunDir = "runs/sft"
    recording: Recording = field(default_factory=Recording)
    seed: int = 0
    question: str = "What is the capital of France?"

    def run(self) -> int:
        """Fetches, trains, reports; 0 when finished, 130 when interrupted."""
        from rich.console import Console

        from shell.cli.options import engine
        from shell.cli.recording import open_run
        from shell.cli.report import report_run
        from shell.recipes.chat_sft import MAY_DIFFER, WHY_NOT, run_description

        console = Console(highlight=False, markup=False, soft_wrap=True)
        description = run_description(self.config, self.data, base_url=self.base_url)
        with open_run(
            self.run_dir,
            self.recording,
            config=description,
            console=console,
            may_differ=MAY_DIFFER,
            reasons=WHY_NOT,
        ) as folder:
            console.print(f"Run folder: {self.run_dir}")
            latest = folder.checkpoints.latest()
            if latest is not None and latest.final:
                console.print("This run is finished. To train again, choose another --run-dir.")
                _print_results(console, folder, latest)
                return 0
            loaded, renderer = _load(self, console)
            if latest is None and len(loaded.data.train):
                _keep_examples(self, loaded, folder)
            with engine(self.base_url, model=self.model.model, say=console.print) as address:
                console.print(f"Engine: {address.base_url}")
                run = _train(
                    self,
                    console=console,
                    address=address,
                    renderer=renderer,
                    loaded=loaded,
                    folder=folder,
                )
                status = asyncio.run(run)
            report_run(folder.path, console)
            return status

    @property
    def config(self) -> SFTConfig:
        """What the loop is told."""
        return SFTConfig(
            model=self.model,
            schedule=self.schedule,
            adam=self.adam,
            cadence=self.cadence,
            seed=self.seed,
        )


def _load(command: SFT, console: "Console") -> "tuple[LoadedData, Renderer]":
    """Finds the model's tokenizer and makes the conversations ready, saying what is done."""
    from cookbook_fx.renderers import get_renderer
    from shell.cli.asking import question_prompt
    from shell.cli.options import warn_of_renderer
    from shell.hub import load_tokenizer, resolve_model
    from shell.hub.weights import context_length
    from shell.recipes.chat_sft import account, chosen_renderer, load_data

    source = resolve_model(
        command.model.model, say=console.print, with_weights=command.base_url is None
    )
    console.print(f"Model: {source.name}, in {source.directory}")
    tokenizer = load_tokenizer(source.directory)
    name = chosen_renderer(command.model)
    renderer = get_renderer(name, tokenizer)
    warn_of_renderer(name, model=command.model.model, say=console.print)
    context = context_length(source.directory)
    asked = len(question_prompt(command.question, renderer))
    if context is not None and asked >= context:
        # Now, not when it is asked: that is after the training.
        raise ConfigurationError(
            f"--question is {asked} tokens long, and the model can read {context}; shorten it"
        )
    loaded = load_data(
        command.data,
        renderer=renderer,
        tokenizer=tokenizer,
        context_length=context,
        seed=command.seed,
    )
    console.print(f"Training data: {account(loaded.train)}")
    if loaded.held_out is not None:
        console.print(f"Held-out data: {account(loaded.held_out)}")
    return loaded, renderer


async def _train(
    command: SFT,
    *,
    console: "Console",
    address: "Address",
    renderer: "Renderer",
    loaded: "LoadedData",
    folder: "RunFolder",
) -> int:
    """Trains, then asks the model from before and the one from after."""
    from shell.cli.interrupts import stop_on_signal
    from shell.cli.progress import Watcher
    from shell.clients import connect
    from shell.recipes.evaluation.builders import chosen_evaluators
    from shell.recipes.rl.workers import Workers
    from shell.training.sft import train_supervised

    message = "Stopping: finishing the steps under way and saving. Ctrl-C again quits at once."
    with Workers() as workers, stop_on_signal(message=message) as stop:
        async with connect(base_url=address.base_url, api_key=address.api_key) as service:
            evaluators = loaded.data.evaluators + await chosen_evaluators(
                command.tasks,
                service=service,
                model=command.model,
                renderer=renderer,
                workers=workers,
            )
            with Watcher(console) as watcher:
                result = await train_supervised(
                    command.config,
                    service=service,
                    data=replace(loaded.data, evaluators=evaluators),
                    folder=folder,
                    observe=watcher,
                    stop=stop,
                )
            if not result.finished or result.checkpoint is None:
                console.print("Stopped. The same command continues this run.")
                return _INTERRUPTED
            await _compare(
                command,
                service,
                result.checkpoint,
                console=console,
                renderer=renderer,
                folder=folder,
            )
            _print_results(console, folder, result.checkpoint)
            return 0


async def _compare(
    command: SFT,
    service: "Service",
    final: "RunCheckpoint",
    *,
    console: "Console",
    renderer: "Renderer",
    folder: "RunFolder",
) -> None:
    """Shows what the model says to one question with the weights of before and of after."""
    from cookbook_fx.reports.samples import ShownText
    from shell.cli.asking import Manner, question_prompt, sampled_answers

    samplers = {"after": await service.sampler(path=final.sampler_path)}
    if command.model.load_checkpoint is None:
        # A new LoRA adds nothing, so that the base model is the one from before.
        base = await service.sampler(base_model=command.model.model)
        samplers = {"before": base} | samplers
    console.print(f"\n{command.question}", style="bold")
    shown = []
    for when, sampler in samplers.items():
        (answer,) = await sampled_answers(
            sampler, command.question, renderer=renderer, manner=Manner()
        )
        console.print(f"\n{when} training:", style="bold")
        console.print(answer.text)
        shown.append(
            ShownText(
                title=f"Said {when} training",
                prompt=question_prompt(command.question, renderer),
                tokens=answer.sampled.tokens,
                logprobs=answer.sampled.logprobs,
            )
        )
    await asyncio.to_thread(folder.samples.replace, shown)
    console.print()


def _keep_examples(command: SFT, loaded: "LoadedData", folder: "RunFolder") -> None:
    """Keeps the first examples that are trained on, to be looked at."""
    from cookbook_fx.reports import tokens_and_weights
    from cookbook_fx.reports.samples import ShownText
    from shell.training.beginnings import epoch_seed

    batch = loaded.data.train.get_batch(0, epoch_seed=epoch_seed(command.seed, 0))
    examples = [tokens_and_weights(datum) for datum in batch[:_EXAMPLES]]
    folder.samples.replace(
        [
            ShownText(
                title="Trained on",
                heading=f"example {number} of the first step",
                tokens=example.tokens,
                weights=example.weights,
            )
            for number, example in enumerate(examples, start=1)
        ]
    )


def _print_results(console: "Console", folder: "RunFolder", final: "RunCheckpoint") -> None:
    """What came of a finished run and how to go on with it."""
    measured = [row for row in folder.metrics.rows() if row.get("test/nll") is not None]
    if measured:
        first, last = measured[0], measured[-1]
        console.print(
            f"Held-out NLL: {first['test/nll']:.4f} after {first['step']} steps, "
            f"{last['test/nll']:.4f} after {last['step']} steps (nats/token)"
        )
    console.print(f"Measurements: {folder.metrics.path}")
    console.print(f"Trained model: {final.sampler_path}")
    console.print(f'Ask it: cookbook-fx sample --checkpoint {final.sampler_path} "Who are you?"')
