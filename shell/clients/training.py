"""One LoRA in training on an engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import tinker

from cookbook_fx.data import Datum
from cookbook_fx.lm import AdamParams
from shell.clients import convert
from shell.clients.convert import ForwardResult, OptimResult
from shell.clients.errors import translated
from shell.clients.pending import Pending
from shell.clients.sampling import Sampler
from shell.clients.versions import awaitable


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Submits operations without waiting; the engine does them in the order of submission.

    A `loss` is one of `numerics.LOSS_DEFAULTS`, or another that the engine knows; `config` holds
    those of its settings that are not to be the engine's own.
    """

    sdk: tinker.TrainingClient

    def forward_backward(
        self,
        data: Sequence[Datum],
        *,
        loss: str = "cross_entropy",
        config: Mapping[str, float] | None = None,
    ) -> Pending[ForwardResult]:
        """Adds the gradients of the loss over `data` to those waiting for an optimizer step."""
        return Pending(
            future=self.sdk.forward_backward(convert.to_sdk_data(data, loss=loss), loss, config),
            convert=convert.from_sdk_forward,
            doing="the forward and backward pass",
        )

    def forward(
        self,
        data: Sequence[Datum],
        *,
        loss: str = "cross_entropy",
        config: Mapping[str, float] | None = None,
    ) -> Pending[ForwardResult]:
        """Measures the loss over `data` and leaves weights and gradients alone."""
        return Pending(
            future=self.sdk.forward(convert.to_sdk_data(data, loss=loss), loss, config),
            convert=convert.from_sdk_forward,
            doing="the forward pass",
        )

    def optim_step(self, adam: AdamParams) -> Pending[OptimResult]:
        """Updates the weights from the gradients waiting, and clears those."""
        return Pending(
            future=self.sdk.optim_step(convert.to_sdk_adam(adam)),
            convert=convert.from_sdk_optim,
            doing="the optimizer step",
        )

    def save_state(self, name: str, *, ttl_seconds: int | None = None) -> Pending[str]:
        """Saves weights and optimizer state as they are after what was submitted before.

        The result is their `tinker://` path, which `Service.restore` takes. After `ttl_seconds`
        the engine deletes them; None keeps them.
        """
        return Pending(
            future=self.sdk.save_state(name, ttl_seconds=ttl_seconds),
            convert=attrgetter("path"),
            doing="saving the state",
        )

    def save_for_sampling(self, name: str) -> Pending[str]:
        """Saves the weights for `Service.sampler`; the result is their `tinker://` path."""
        return Pending(
            future=self.sdk.save_weights_for_sampler(name),
            convert=attrgetter("path"),
            doing="saving the weights for sampling",
        )

    def snapshot(self) -> Pending[Sampler]:
        """The weights as they are after what was submitted before, to sample from.

        They have no name and last as long as the session; `save_for_sampling` keeps them.
        SDKs before 0.38 wait for them here, and everything else waits meanwhile.
        """
        doing = "preparing the weights for sampling"
        with translated(doing):
            future = awaitable(self.sdk.save_weights_and_get_sampling_client())
        return Pending(future=future, convert=_sampler, doing=doing)


def _sampler(sdk: tinker.SamplingClient) -> Sampler:
    return Sampler(sdk=sdk)
