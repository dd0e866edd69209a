"""`cookbook-fx models`: what can be trained and asked."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models that are known, which are on this machine, and which can be used.

    Any other model of the Llama or Qwen3 families can be used as well: by its id on the Hugging
    Face hub, or as a directory or .gguf file.
    """

    def run(self) -> int:
        """Prints a table."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Column, Table

        from shell.hub import known_models, recommended_renderer

        # A name is there to be copied: it may take two lines, but is never cut short.
        columns = ("here", "size", "renderer", "usable", "source")
        table = Table(
            Column("model", overflow="fold"), *columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for model in known_models():
            table.add_row(
                model.name,
                "yes" if model.cached else "fetched when used",
                f"{model.size_bytes / 1e6:.0f} MB",
                recommended_renderer(model.name),
                "yes" if model.usable else f"no: {model.problem}",
                model.source,
            )
        Console(highlight=False, markup=False).print(table)
        return 0
