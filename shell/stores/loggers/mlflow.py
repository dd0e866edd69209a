"""MLflow: a tracking server, or files or a data base of one's own."""

import re
import time
from collections.abc import Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from cookbook_fx.errors import ConfigurationError
from shell.stores.loggers.sinks import LoggedRun, Row, flat, numbers, settings

# MLflow's own limits for one request and for one value.
_MOST_METRICS = 1000
_MOST_PARAMETERS = 100
_MOST_CHARACTERS = 6000
# With it a run knows itself how far it has come.
_STEP = "step"
_REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")


class MLflow:
    """Sends the numbers of rows to one run of MLflow."""

    def __init__(self, client: Any, run: Any) -> None:
        self._client = client
        self._run = run

    @property
    def run_id(self) -> str:
        """The id that the server gave."""
        return str(self._run.info.run_id)

    @property
    def where(self) -> str:
        """The server or the store, and the run in it."""
        return f"{self._client.tracking_uri}, run {self.run_id}"

    def begin(self, *, first_step: int, sent: int) -> int:
        """Goes on behind the last step there."""
        last = self._run.data.metrics.get(_STEP)
        return sent if last is None else max(sent, int(last) + 1)

    def send(self, rows: Sequence[Row]) -> None:
        """Taken by the server when it returns."""
        now = int(time.time() * 1000)
        for row in rows:
            step = int(row["step"])
            # The step comes last: where it is, the others are.
            found = [*numbers(row).items(), (_STEP, float(step))]
            metrics = [Metric(_allowed(name), value, now, step) for name, value in found]
            for begin in range(0, len(metrics), _MOST_METRICS):
                chunk = metrics[begin : begin + _MOST_METRICS]
                self._client.log_batch(self.run_id, metrics=chunk)

    def close(self) -> None:
        """Says that nothing more comes for now."""
        self._client.set_terminated(self.run_id)


def open_sink(run: LoggedRun) -> MLflow:
    """Begins a run, or goes on with it; MLFLOW_TRACKING_URI and its like work as ever.

    Raises:
        ConfigurationError: the server wants other credentials.
    """
    try:
        return _opened(MlflowClient(), run)
    except MlflowException as error:
        if error.error_code not in _REFUSALS and error.get_http_status_code() not in (401, 403):
            raise
        raise ConfigurationError(
            f"MLflow lets no run begin: {error}; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        ) from error


def _allowed(name: str) -> str:
    """A name without the characters that MLflow refuses."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _opened(client: Any, run: LoggedRun) -> MLflow:
    if run.run_id is None:
        experiment = client.get_experiment_by_name(run.project)
        experiment_id = (
            client.create_experiment(run.project)
            if experiment is None
            else experiment.experiment_id
        )
        opened = client.create_run(experiment_id, run_name=run.name)
    else:
        client.update_run(run.run_id, status="RUNNING")
        opened = client.get_run(run.run_id)
    described = {
        _allowed(name): str(value)[:_MOST_CHARACTERS] for name, value in flat(settings(run)).items()
    }
    # A parameter is written once; what has changed since is told beside it.
    known = opened.data.params
    new = [Param(name, text) for name, text in described.items() if name not in known]
    changed = [
        RunTag(f"changed.{name}", text)
        for name, text in described.items()
        if known.get(name, text) != text
    ]
    for begin in range(0, len(new), _MOST_PARAMETERS):
        client.log_batch(opened.info.run_id, params=new[begin : begin + _MOST_PARAMETERS])
    client.log_batch(opened.info.run_id, tags=changed[:_MOST_PARAMETERS])
    return MLflow(client, opened)
