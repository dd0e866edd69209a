"""Weights by name: to be measured, to be compared with, or to judge."""

from shell.clients import Sampler, Service


async def sampler_of(service: Service, weights: str) -> Sampler:
    """A sampler of a model, or of a checkpoint of either kind.

    Args:
        service: the engine.
        weights: a model's name as the engine knows it, or a tinker:// path; of a checkpoint to
            train on from, too, which engines do not as a rule sample from.

    Raises:
        ServiceError: the engine does not have them.
    """
    if not weights.startswith("tinker://"):
        return await service.sampler(base_model=weights)
    if "/weights/" not in weights:
        return await service.sampler(path=weights)
    trainer = await service.restore(weights, with_optimizer=False)
    return await trainer.snapshot()
