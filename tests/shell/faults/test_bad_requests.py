"""Anything at all, sent to every endpoint: a clear refusal, no 5xx, no file outside of the root."""

import itertools
import json
import resource
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shell.engine.app import _ROUTES
from shell.engine.serve import Endpoint, EngineConfig, EngineLimits, embedded_engine
from tests.shell.engine.conftest import forward_backward_body

# What endpoints read; the rest of an object may be called anything.
NAMES = (
    "session_id", "model_id", "seq_id", "request_id", "path", "tinker_path", "base_model",
    "model_path", "model_seq_id", "sampling_session_id", "sampling_session_seq_id", "lora_config",
    "rank", "seed", "train_mlp", "adam_params", "learning_rate", "ttl_seconds", "user_metadata",
    "overwrite", "kind", "prompt", "chunks", "tokens", "sampling_params", "max_tokens", "stop",
    "num_samples", "temperature", "top_p", "prompt_logprobs", "topk_prompt_logprobs", "type",
    "target", "prev_cursor", "timeout", "retrieved_request_ids", "tags", "display_name",
)  # fmt: skip
HOSTILE_NAMES = (
    "..", ".", "/", "../../x", "..\\..\\x", "/etc/passwd", "a/b", "a\x00b", "%2e%2e%2f", "~root",
    "é" * 80, "x" * 5000, "\u202egnp", " ", "-rf", "a\nb", ".hidden", "\ud800", "💥",
)  # fmt: skip
SLOW = settings(
    deadline=None,
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
numbers = st.integers() | st.integers(-(2**70), 2**70) | st.floats()
leaves = st.none() | st.booleans() | numbers | st.text(max_size=20) | st.sampled_from(HOSTILE_NAMES)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
bodies = st.dictionaries(st.sampled_from(NAMES), values, max_size=12) | values


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outer") / "state"


@pytest.fixture(scope="module")
def http(tiny_model_directory: Path, state_dir: Path):
    config = EngineConfig(
        model=str(tiny_model_directory),
        state_dir=state_dir,
        limits=EngineLimits(long_poll_seconds=0.05),
    )
    with embedded_engine(config) as endpoint, client(endpoint) as http:
        yield http
        assert sorted(entry.name for entry in state_dir.parent.iterdir()) == ["state"]


def client(endpoint: Endpoint) -> httpx.Client:
    headers = {"X-API-Key": endpoint.api_key}
    return httpx.Client(base_url=f"{endpoint.base_url}/api/v1", headers=headers, timeout=60)


@pytest.fixture(scope="module")
def known(http, tiny_model_directory) -> dict[str, str]:
    """Ids that exist, so that what is wrong is the rest."""
    session = http.post("/create_session", json={}).json()["session_id"]
    sampler = {
        "session_id": session,
        "sampling_session_seq_id": 1,
        "base_model": str(tiny_model_directory),
    }
    sampling = http.post("/create_sampling_session", json=sampler).json()["sampling_session_id"]
    return {
        "session_id": session,
        "model_id": new_model(http, session, str(tiny_model_directory)),
        "sampling_session_id": sampling,
    }


@pytest.fixture
def model_id(http, tiny_model_directory) -> str:
    """A model of which no operation has been submitted."""
    session = http.post("/create_session", json={}).json()["session_id"]
    return new_model(http, session, str(tiny_model_directory))


def new_model(http: httpx.Client, session: str, base_model: str) -> str:
    create = {"session_id": session, "model_seq_id": 0, "base_model": base_model}
    made = http.post("/create_model", json=create | {"lora_config": {"rank": 2}}).json()
    assert settled(http, made).json()["model_id"] == made["model_id"]
    return made["model_id"]


def settled(http: httpx.Client, promise: dict) -> httpx.Response:
    for _ in range(1000):
        answer = http.post("/retrieve_future", json={"request_id": promise["request_id"]})
        if answer.status_code != 408:
            return answer
    raise AssertionError(f"{promise} is not kept")


def is_fine(answer: httpx.Response) -> bool:
    """Understood or refused, and in words where it is refused."""
    if answer.status_code >= 400 and answer.status_code != 408:
        return answer.status_code < 500 and bool(answer.json()["detail"])
    return answer.status_code < 500


def address(path: str, **parts: str) -> str:
    for name in ("model_id", "session_id", "sampler_id", "segment", "name"):
        path = path.replace(f"{{{name}}}", parts.get(name, "weights"))
    return path


POSTS = sorted({(method, path) for method, path, _ in _ROUTES if method in ("POST", "PUT")})


@pytest.mark.parametrize(("method", "path"), POSTS)
def test_any_json_at_all(http, known, method, path):
    places = itertools.count(1)

    @SLOW
    @given(body=bodies, is_known=st.booleans())
    def check(body, is_known):
        if is_known and isinstance(body, dict):
            body = body | known | {"seq_id": next(places), "model_seq_id": 0, "num_samples": 1}
        text = json.dumps(body).encode()
        assert is_fine(http.request(method, address(path), content=text))

    if not path.endswith("/finish"):
        check()


NO_JSON = (
    b"", b"{", b"\x00\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 10_000, b"NaN",
    b'{"session_id": "\\ud800", "model_id": "\\u0000"}', b'{"seq_id": 1e400}',
)  # fmt: skip
KINDS = ("application/json", "text/plain", "application/x-protobuf", "multipart/form-data", "x")


@pytest.mark.parametrize(("method", "path"), POSTS)
def test_what_is_no_json(http, method, path):
    for content, kind in zip(NO_JSON, itertools.cycle(KINDS), strict=False):
        headers = {"Content-Type": kind}
        assert is_fine(http.request(method, address(path), content=content, headers=headers))


def test_any_change_of_a_forward_backward_body(http, known, model_id):
    places = itertools.count(1)

    # Where, as a share of what is there; how much is taken out; what is put in.
    changes = st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8))

    @settings(SLOW, max_examples=200)
    @given(edits=st.lists(changes, min_size=1, max_size=6))
    def check(edits):
        body = forward_backward_body(known["model_id"], next(places))
        for share, taken, put in edits:
            at = int(share * len(body))
            body = body[:at] + put + body[at + taken :]
        assert is_fine(http.post("/forward_backward", content=body))

    check()
    # The engine still computes.
    promise = http.post("/forward_backward", content=forward_backward_body(model_id, 1)).json()
    assert settled(http, promise).headers["content-type"] == "application/x-protobuf"


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_leads_out_of_the_root(http, model_id, state_dir, name):
    before = sorted(state_dir.parent.rglob("*"))
    endings = ("", "_for_sampler", "_external")
    for seq_id, ending in enumerate(endings, start=1):
        body = json.dumps({"model_id": model_id, "seq_id": seq_id, "path": name}).encode()
        answer = http.post(f"/save_weights{ending}", content=body)
        assert answer.status_code == 200
        assert "error" in settled(http, answer.json()).json()
    tinker_path = f"tinker://{model_id}/weights/{name}"
    body = json.dumps({"tinker_path": tinker_path}).encode()
    assert http.post("/weights_info", content=body).status_code in (400, 404)
    assert sorted(state_dir.parent.rglob("*")) == before


def test_memory_is_bounded(http):
    before = most_memory()
    text = json.dumps({"tags": ["x" * 1000] * 1000}).encode()
    for _ in range(30):
        http.post("/telemetry", content=text)
        http.post("/asample", content=text)
        http.post("/create_model", content=b"[" * 1_000_000)
    assert most_memory() - before < 200 * 2**20


def most_memory() -> int:
    """The most bytes of memory that this process, engine included, has ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
