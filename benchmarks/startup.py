"""How long `cookbook-fx sft` takes from process start to its first optimizer step.

    python -m benchmarks.startup [--cold]

Runs the command as a user would, in a new run folder, until the first row of `metrics.jsonl` is
there, and then stops it. What comes before that row: imports, loading the model, the question
answered before training, the first evaluation, and the step itself. `--cold` also begins without
compiled programs and without the model, which is then downloaded.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_LIMIT_SECONDS = 600


def seconds_to_first_step(home: Path | None) -> float:
    """Starts the command, waits for its first finished step and ends it.

    Raises:
        RuntimeError: the command ended or took too long before that.
    """
    environment = dict(os.environ) | ({} if home is None else {"COOKBOOK_FX_HOME": str(home)})
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run" / "metrics.jsonl"
        command = [
            sys.executable,
            "-c",
            "from shell.cli.main import main; raise SystemExit(main())",
        ]
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "sft", "--run-dir", str(metrics.parent)],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            while not (metrics.exists() and '"train_mean_nll"' in metrics.read_text()):
                if process.poll() is not None:
                    raise RuntimeError(f"the command ended with status {process.returncode}")
                if time.perf_counter() - began > _LIMIT_SECONDS:
                    raise RuntimeError(f"no step within {_LIMIT_SECONDS} seconds")
                time.sleep(0.02)
            return time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def main() -> None:
    """Prints the seconds of each start."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--cold", action="store_true", help="also without model and compiled programs"
    )
    parser.add_argument("--repeats", type=int, default=2, help="warm starts to measure")
    arguments = parser.parse_args()
    if arguments.cold:
        with tempfile.TemporaryDirectory() as home:
            print(f"cold: {seconds_to_first_step(Path(home)):6.1f} s", flush=True)
            print(f"then: {seconds_to_first_step(Path(home)):6.1f} s", flush=True)
        return
    seconds_to_first_step(None)
    for _ in range(arguments.repeats):
        print(f"warm: {seconds_to_first_step(None):6.1f} s", flush=True)


if __name__ == "__main__":
    main()
