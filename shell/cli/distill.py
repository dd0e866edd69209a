"""`cookbook-fx distill`: have a model learn from others, by their opinion of what it says."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import tyro

from shell.cli.options import BaseURL
from shell.cli.recording import Recording, RunDir
from shell.recipes.distillation.config import Lessons, Teaching
from shell.recipes.rl.config import Pace
from shell.training import Adam, ModelChoice, RLCadence, Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from cookbook_fx.renderers import Renderer
    from cookbook_fx.tokens import Tokenizer
    from shell.cli.options import Address
    from shell.clients import Service
    from shell.recipes.distillation.recipe import DistillationChoice
    from shell.recipes.prompts import PromptSplit
    from shell.stores import RunCheckpoint, RunFolder
    from shell.training.distillation import DistillationData
    from shell.training.rl_config import RLConfig

_INTERRUPTED = 130


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True, kw_only=True)
class Distill:
    """Have a model learn from one or more teachers, by their opinion of what it says itself.

    The student answers prompts; of each token that it sampled, the teacher says how likely it would
    have been, and the student moves to where the two agree. No answers are needed, and the teachers
    may be fine-tuned models, larger ones of the same family, or the student with more to go by.
    The same command again continues a run that was interrupted.

    For example
    $ cookbook-fx sft                                     (makes a teacher, and prints its path)
    $ cookbook-fx distill --teacher tinker://…/sampler_weights/final
    $ cookbook-fx distill --teacher tinker://A tinker://B --data starter mine.jsonl

    Args:
        lessons: teachers, and what they teach.
        model: the student.
        schedule: how long and how fast.
        adam: the optimizer, AdamW.
        cadence: what is done how often; may be changed when a run is continued.
        teaching: what a step learns from its teachers.
        pace: in which order the run samples and trains.
        question: is asked of the student before and after, and of its first teacher.
        base_url: another engine's address; its key is read from TINKER_API_KEY. None is an engine
            in this process.
        run_dir: the folder the run leaves, a path or a URL (s3://bucket/run): measurements,
            answers, checkpoints, configuration. A run found there is continued.
        recording: what becomes of a run found there, and where its measurements are sent.
        seed: of the initial LoRA weights, of the prompts' order and of what is sampled.
    """

    lessons: Lessons = field(default_factory=Lessons)
    model: ModelChoice = field(default_factory=ModelChoice)
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            learning_rate=1e-3, lr_schedule="linear", num_epochs=2, max_steps=40
        )
    )
    adam: Adam = field(default_factory=Adam)
    cadence: RLCadence = field(default_factory=lambda: RLCadence(eval_every=10))
    teaching: Teaching = field(default_factory=Teaching)
    pace: Pace = field(default_factory=Pace)
    question: str = "What is the capital of France?"
    base_url: BaseURL = None
    run_dir: RunDir = "runs/distill"
    recording: Recording = field(default_factory=Recording)
    seed: int = 0

    def run(self) -> int:
        """Fetches, trains, reports; 0 when finished, 130 when interrupted."""
        from rich.console import Console

        from shell.cli.options import engine
        from shell.cli.recording import open_run
        from shell.cli.report import report_run
        from shell.recipes.distillation.recipe import (
            MAY_DIFFER,
            WHY_NOT,
            read_lessons,
            run_description,
        )

        console = Console(highlight=False, markup=False, soft_wrap=True)
        prompts = read_lessons(self.choice)
        description = run_description(self.choice, prompts, base_url=self.base_url)
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
            loaded = _load(self, prompts, console)
            with engine(self.base_url, model=self.model.model, say=console.print) as address:
                console.print(f"Engine: {address.base_url}")
                run = _train(self, loaded, console=console, address=address, folder=folder)
                status = asyncio.run(run)
            report_run(folder.path, console)
            return status

    @property
    def choice(self) -> "DistillationChoice":
        """What is chosen about the run, wherever it is done."""
        from shell.recipes.distillation.recipe import DistillationChoice

        return DistillationChoice(
            lessons=self.lessons,
            model=self.model,
            schedule=self.schedule,
            adam=self.adam,
            cadence=self.cadence,
            teaching=self.teaching,
            pace=self.pace,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loaded:
    """What was found and made ready."""

    config: "RLConfig"
    data: "DistillationData"
    renderer: "Renderer"
    tokenizer: "Tokenizer"


def _load(command: Distill, prompts: "Sequence[PromptSplit]", console: "Console") -> _Loaded:
    """Finds the student's tokenizer and makes the prompts ready, saying what is done."""
    from cookbook_fx.renderers import get_renderer
    from shell.cli.options import warn_of_renderer
    from shell.hub import load_tokenizer, resolve_model
    from shell.hub.weights import context_length
    from shell.recipes.chat_sft import chosen_renderer
    from shell.recipes.distillation.recipe import distillation_config, lesson_data

    source = resolve_model(
        command.model.model, say=console.print, with_weights=command.base_url is None
    )
    console.print(f"Student: {source.name}, in {source.directory}")
    tokenizer = load_tokenizer(source.directory)
    name = chosen_renderer(command.model)
    renderer = get_renderer(name, tokenizer)
    warn_of_renderer(name, model=command.model.model, say=console.print)
    for number, (teacher, found) in enumerate(zip(command.lessons.teacher, prompts, strict=True)):
        console.print(
            f"Teacher {number}: {teacher}, of {len(found.train)} prompts; {len(found.test)} to "
            "test on"
        )
    made = lesson_data(command.choice, prompts, renderer=renderer, tokenizer=tokenizer)
    data = asyncio.run(made)
    config = distillation_config(
        command.choice, data, context_window=context_length(source.directory)
    )
    return _Loaded(config=config, data=data, renderer=renderer, tokenizer=tokenizer)


async def _train(
    command: Distill,
    loaded: _Loaded,
    *,
    console: "Console",
    address: "Address",
    folder: "RunFolder",
) -> int:
    """Trains, and shows what came of it."""
    from shell.cli.interrupts import stop_on_signal
    from shell.cli.progress import Watcher
    from shell.clients import connect
    from shell.recipes.distillation.recipe import evaluated
    from shell.training.rl import train_rl

    message = "Stopping: finishing the step under way and saving. Ctrl-C again quits at once."
    with stop_on_signal(message=message) as stop:
        async with connect(base_url=address.base_url, api_key=address.api_key) as service:
            data = await evaluated(
                loaded.data, loaded.config, service=service, tokenizer=loaded.tokenizer
            )
            with Watcher(console) as watcher:
                result = await train_rl(
                    loaded.config,
                    service=service,
                    data=data,
                    folder=folder,
                    observe=watcher,
                    stop=stop,
                )
            if not result.finished or result.checkpoint is None:
                console.print("Stopped. The same command continues this run.")
                return _INTERRUPTED
            await _compare(command, loaded, service, result.checkpoint, console=console)
            _print_results(console, folder, result.checkpoint)
            return 0


async def _compare(
    command: Distill,
    loaded: _Loaded,
    service: "Service",
    final: "RunCheckpoint",
    *,
    console: "Console",
) -> None:
    """Shows what student and teacher say to one question."""
    from shell.cli.asking import Manner, answers

    teacher = loaded.data.teachers[0]
    if teacher.load_checkpoint is not None:
        taught_by = await service.sampler(path=teacher.load_checkpoint)
    else:
        taught_by = await service.sampler(base_model=teacher.base_model)
    samplers = {
        "the teacher": taught_by,
        "the student after training": await service.sampler(path=final.sampler_path),
    }
    if command.model.load_checkpoint is None:
        base = await service.sampler(base_model=command.model.model)
        samplers = {"the student before training": base} | samplers
    console.print(f"\n{command.question}", style="bold")
    for who, sampler in samplers.items():
        (answer,) = await answers(
            sampler, command.question, renderer=loaded.renderer, manner=Manner()
        )
        console.print(f"\n{who}:", style="bold")
        console.print(answer)
    console.print()


def _print_results(console: "Console", folder: "RunFolder", final: "RunCheckpoint") -> None:
    """What came of a finished run and how to go on with it."""
    from shell.cli.curves import curve

    rows = folder.metrics.rows()
    found = [row["teacher_kl"] for row in rows if row.get("teacher_kl") is not None]
    if found:
        is_unicode = console.encoding.startswith("utf")
        console.print(f"KL to teacher (nats/token) at each of {len(found)} steps", style="bold")
        console.print(curve(found, is_unicode=is_unicode))
        console.print(f"KL to teacher: {found[0]:.3f} at first, {found[-1]:.3f} in the last step")
    names = sorted({name for row in rows for name in row if name.startswith("test/teacher_kl")})
    for name in names:
        measured = [row for row in rows if row.get(name) is not None]
        first, last = measured[0], measured[-1]
        of = f" of {name.rsplit('/', 1)[1]}" if "dataset_" in name else ""
        console.print(
            f"Held-out KL to teacher{of}: {first[name]:.4f} after {first['step']} steps, "
            f"{last[name]:.4f} after {last['step']} steps (nats/token)"
        )
    console.print(f"Measurements: {folder.metrics.path}")
    console.print(f"Answers: {folder.rollouts.path}")
    console.print(f"Trained model: {final.sampler_path}")
    console.print(f'Ask it: cookbook-fx sample --checkpoint {final.sampler_path} "Who are you?"')
