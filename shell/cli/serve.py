"""`cookbook-fx serve`: the engine alone, for any Tinker program."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Run the engine alone, for any program written for the Tinker SDK.

    Prints the address and the key, and serves until Ctrl-C.

    For example
    $ cookbook-fx serve
    $ cookbook-fx serve --model Qwen/Qwen3-0.6B --port 8000

    Args:
        model: what is served: a known name (see `cookbook-fx models`), the id of a model on the
            Hugging Face hub, a directory, or a .gguf file.
        dtype: of the model's matrices; None is bfloat16 on accelerators and float32 on CPUs.
        mesh: how several devices are shared, such as data=2,fsdp=4: batches are divided by the
            product, weights by fsdp. None divides weights by all devices.
        host: address to listen on; any but a loopback address needs --api-key.
        port: port to listen on; 0 is any free one.
        api_key: what clients must send, beginning with tml-; None makes one up.
        api_keys: file with a name and a key on each line, one for every user: what one of them
            makes is invisible to the others.
    """

    model: str = "smollm2-135m-instruct"
    dtype: Literal["float32", "bfloat16"] | None = None
    mesh: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    api_key: str | None = None
    api_keys: Path | None = None

    def run(self) -> int:
        """Serves until interrupted."""
        from rich.console import Console

        from shell.engine.serve import EngineConfig, read_keys, serve

        console = Console(highlight=False, soft_wrap=True, markup=False)
        config = EngineConfig(
            model=self.model,
            dtype=self.dtype,
            mesh=self.mesh,
            host=self.host,
            port=self.port,
            api_key=self.api_key,
            api_keys={} if self.api_keys is None else read_keys(self.api_keys),
        )
        serve(config, say=console.print)
        return 0
