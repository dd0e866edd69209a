"""Off-policy distillation: what a teacher says of given texts, as data for the supervised loop.

    examples = taught_examples(conversations, renderer=renderer)
    datums = await soft_target_data(examples, teacher, top_k=20)
    data = SFTData(train=SupervisedDataset(datums=datums, batch_size=8))

With `teacher_prompt` a model is its own teacher: it is shown what its student is not.
"""

import asyncio
from collections.abc import Sequence

from cookbook_fx.data import Datum
from cookbook_fx.distillation import TaughtExample, check_top_k, soft_target_datum
from shell.clients import Sampler
from shell.rollouts.attempts import concurrently


async def soft_target_data(
    examples: Sequence[TaughtExample],
    teacher: Sampler,
    *,
    top_k: int = 20,
    renormalized: bool = True,
    concurrency: int = 32,
) -> tuple[Datum, ...]:
    """A datum for each example, with the teacher's likeliest tokens as soft targets.

    Args:
        examples: as from `taught_examples`.
        teacher: the model, of the student's vocabulary.
        top_k: candidates in each place; engines have a limit, Tinker's is 20.
        renormalized: as for `soft_target_datum`.
        concurrency: examples under way at a time.

    Raises:
        ConfigurationError: a number is below 1.
        DataError: a row does not begin with the prompt that the teacher has its own for.
        ServiceError: the engine failed.
    """
    check_top_k(top_k)
    slots = asyncio.Semaphore(concurrency)

    async def one(example: TaughtExample) -> Datum:
        async with slots:
            told = await teacher.likeliest(example.shown, top_k=top_k)
        return soft_target_datum(example, told.ids, told.logprobs, renormalized=renormalized)

    return tuple(await concurrently(one, examples))
