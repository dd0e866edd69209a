"""Our models on Inspect AI's own command line; needs the extra `inspect`.

Inspect finds this file by the package's entry point:
$ inspect eval task.py --model cookbook-fx/smollm2-135m-instruct
$ inspect eval task.py --model cookbook-fx/runs/mine -M max_tokens=64
$ inspect eval task.py --model cookbook-fx/tinker://... --model-base-url http://127.0.0.1:8000
"""

import asyncio

from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, modelapi
from inspect_ai.tool import ToolChoice, ToolInfo

from shell.cli.options import engine
from shell.cli.target import find_target, opened
from shell.evaluation.inspect_tasks import InspectModel
from shell.hub.models import say_on_standard_error


@modelapi(name="cookbook-fx")
class NamedModel(ModelAPI):
    """Whatever `cookbook-fx eval` can measure, opened when it is first asked.

    Args:
        model_name: as `cookbook-fx eval` takes it: a known name, a hub id, a directory, a
            tinker:// path or the folder of a run.
        base_url: another engine's address, whose key is read from TINKER_API_KEY; None is an
            engine in this process.
        api_key: not used.
        config: Inspect's settings.
        base_model: of a checkpoint or adapter, where it is not its own.
        renderer: the chat format; None is what the model was trained in, or what suits it best.
        max_tokens: the longest answer, where a task does not say.
        include_reasoning: keep what the model thinks in its messages.
        seed: of all that is sampled, where a task does not say.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # as Inspect's own
        *,
        base_model: str | None = None,
        renderer: str | None = None,
        max_tokens: int = 2048,
        include_reasoning: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self._target = find_target(model_name, model=base_model, base_url=base_url)
        self._renderer = renderer
        self._max_tokens = max_tokens
        self._include_reasoning = include_reasoning
        self._seed = seed
        self._keeper: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[ModelAPI] | None = None

    def max_connections(self) -> int:
        """Requests at a time; an engine decodes many together."""
        return 512

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """As `InspectModel.generate`."""
        model = await self._opened()
        answer: ModelOutput = await model.generate(input, tools, tool_choice, config)
        return answer

    async def aclose(self) -> None:
        """Ends the engine, if it is one of this process."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})

    async def _opened(self) -> ModelAPI:
        """The model, which is opened by whoever asks first on an event loop."""
        if self._keeper is None or self._ready is None or self._keeper.done():
            self._ready = asyncio.get_running_loop().create_future()
            self._keeper = asyncio.create_task(self._keep(self._ready))
        keeper, ready = self._keeper, self._ready
        await asyncio.wait({keeper, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            keeper.result()
        return ready.result()

    async def _keep(self, ready: asyncio.Future[ModelAPI]) -> None:
        """Keeps the model open for as long as this task runs.

        Inspect as a rule closes no model, but whoever ends an event loop cancels its tasks.
        """
        with engine(
            self.base_url, model=self._target.model or "", say=say_on_standard_error
        ) as address:
            opening = opened(self._target, address=address, renderer=self._renderer)
            async with opening as (sampler, context):
                ready.set_result(
                    InspectModel(
                        self.model_name,
                        sampler=sampler,
                        renderer=context.renderer,
                        tokenizer=context.tokenizer,
                        max_tokens=self._max_tokens,
                        context_window=context.context_window,
                        include_reasoning=self._include_reasoning,
                        seed=self._seed,
                    )
                )
                await asyncio.Event().wait()
