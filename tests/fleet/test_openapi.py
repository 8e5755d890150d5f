"""Every operation of the OpenAPI document, asked with what its schemas allow, and with much that they do not.

The document is the one that a real server gives out, and the requests go to that server. There is never a 5xx, whatever
is asked; every refusal is problem details (RFC 9457).
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.live import LiveFleet
from fleet.support import Reply
from issuing.cluster import Cluster, missing
from pi_agent.fleet.api import api
from pi_agent.fleet.wire import LocalConnection

DOCUMENT: dict[str, Any] = json.loads(json.dumps(api.get_openapi_schema()))
PROBLEM = DOCUMENT["components"]["schemas"]["Problem"]
OPERATIONS = [(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods]
EXAMPLES = 25
# Words that mean something here, so that more than the first check of a route is reached.
TELLING = (
    "model:2b", "auth:1d", "-tag:lab", "serial:*", 'name:"', "(", "@view", "view", "device", "https://a.example", "now",
    "pi-0000000000000000", "root", "reader", "admin", "0", "-auth", "name,model", "\x00", "\ud7ff", "%00", "..", "é", "'",
)  # fmt: skip
EDGES = (-(2**63) - 1, -1, 0, 1, 2**31, 2**63 - 1, 2**63, 10**30)

anything = (
    st.none() | st.booleans() | st.sampled_from(EDGES) | st.sampled_from(TELLING) | st.text(max_size=20)
    | st.lists(st.text(max_size=3), max_size=3) | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
)  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def live(request: pytest.FixtureRequest) -> Iterator[LiveFleet]:
    """A server with two devices, on each database; SQLite in memory where that can be, since a thousand changes wait for
    the disk otherwise.
    """
    memory = Path("/dev/shm")  # a folder of our own is made in it
    with contextlib.ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="fleet-", dir=memory if memory.is_dir() else None)
        data = Path(stack.enter_context(folder)) / "data"
        options = ["--database", _database(stack)] if request.param == "postgresql" else []
        fleet = LiveFleet(data, *options)
        stack.callback(fleet.stop)
        fleet.enroll()
        fleet.enroll(approved=False, board=None)
        yield fleet


def _database(stack: contextlib.ExitStack) -> str:
    if why := missing():
        pytest.skip(why)
    cluster = Cluster()
    stack.callback(cluster.close)
    return cluster.database(nothing=True)


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a JSON schema, as far as this document uses it."""
    if "$ref" in schema:
        return of_schema(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of([of_schema(one) for one in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "object":
        known = {name: of_schema(one) for name, one in schema.get("properties", {}).items()}
        required = {name: known.pop(name) for name in schema.get("required", ())}
        return st.fixed_dictionaries(required, optional=known)
    if kind == "array":
        return st.lists(of_schema(schema.get("items", {})), max_size=min(3, schema.get("maxItems", 3)))
    if kind == "integer":
        edges = [schema[bound] for bound in ("minimum", "maximum") if bound in schema]
        return st.sampled_from(edges or EDGES) | st.integers(0, 5)
    if kind == "boolean":
        return st.booleans()
    if kind == "null":
        return st.none()
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True) | st.sampled_from(TELLING)
    return st.sampled_from(TELLING) | st.text(max_size=min(schema.get("maxLength", 40), 40))


def perhaps(valid: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what is allowed."""
    return st.integers(0, 4).flatmap(lambda dice: valid if dice else anything)


def inputs(method: str, path: str) -> st.SearchStrategy[tuple[dict[str, Any], dict[str, Any], Any]]:
    """(values in the path, values in the query, the body or None) for an operation."""
    operation = DOCUMENT["paths"][path][method.lower()]
    places: dict[str, dict[str, Any]] = {"path": {}, "query": {}, "header": {}}
    for parameter in operation.get("parameters", ()):
        places[parameter["in"]][parameter["name"]] = perhaps(of_schema(parameter["schema"]))
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    body: st.SearchStrategy[Any] = st.none()
    if content:
        whole = of_schema(content["schema"])
        changed = st.tuples(whole, st.dictionaries(st.text(max_size=3), anything, max_size=2))
        spoiled = st.tuples(whole, anything, st.integers(0, 9)).map(_spoiled)
        body = st.one_of(whole, whole, changed.map(lambda pair: {**pair[0], **pair[1]}), spoiled, anything)
    return st.tuples(st.fixed_dictionaries(places["path"]), st.fixed_dictionaries({}, optional=places["query"]), body)


def _spoiled(parts: tuple[dict[str, Any], Any, int]) -> dict[str, Any]:
    """With something else in the place of one member."""
    members, other, place = parts
    names = sorted(members)
    return {**members, names[place % len(names)]: other} if names else {"": other}


def ask(live: LiveFleet, method: str, target: str, body: Any, **headers: str) -> Reply:
    """As the owner of the fleet, over its socket, where nobody is told to come less often."""
    data = b"" if body is None else json.dumps(body).encode()
    with contextlib.closing(LocalConnection(str(live.data / "fleet.sock"), 20)) as connection:
        connection.request(method, target, data, {"content-type": "application/json"} | headers)
        answer, whole = connection.getresponse(), b""
        while part := answer.read1(65536):
            whole += part
    return Reply(answer.status, {}, whole)


def target(path: str, within: dict[str, Any], query: dict[str, Any]) -> str:
    segments = {name: quote(str(value), safe="", errors="replace") or "-" for name, value in within.items()}
    return path.format(**segments) + "?" + urlencode(query, doseq=False, errors="replace")


def check_problem(reply: Reply) -> None:
    """A refusal is what the document says that it is."""
    kinds = {"string": str, "integer": int}
    for name, value in reply.json.items():
        assert isinstance(value, kinds[PROBLEM["properties"][name]["type"]]), name
    assert set(PROBLEM["required"]) <= set(reply.json)
    assert reply.json["status"] == reply.status
    assert reply.json["detail"]


def test_each_operation_has_a_name_and_refusals() -> None:
    """A short name of its own, for whoever makes a client of the document, and one form for every refusal."""
    described = [operation for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in described]
    assert len(set(names)) == len(names) == len(OPERATIONS)
    assert all(name.replace("_", "").isalpha() and len(name) <= 25 for name in names), names
    for operation in described:
        refusals = [operation["responses"][status]["content"] for status in ("4XX", "5XX")]
        schemas = [content["application/problem+json"]["schema"]["$ref"] for content in refusals]
        assert schemas == ["#/components/schemas/Problem"] * 2


def parameters(place: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, parameter) for each parameter that is sent in this place."""
    return [
        (method, path, one)
        for method, path in OPERATIONS
        for one in DOCUMENT["paths"][path][method.lower()]["parameters"]
        if one["in"] == place
    ]


def test_each_bound_is_where_the_document_says(live: LiveFleet) -> None:
    """What may be asked for is answered, and what is one beyond it is refused."""
    seen = set()
    for method, path, one in parameters("query"):
        schema, name = one["schema"], one["name"]
        edges = [(schema[bound], step) for bound, step in (("minimum", -1), ("maximum", 1)) if bound in schema]
        good = schema.get("enum", [edge for edge, _ in edges])
        bad = ["nothing"] if "enum" in schema else [edge + step for edge, step in edges]
        for values, statuses in ((good, {200}), (bad, {400})):
            found = {ask(live, method, f"{path}?{urlencode({name: value})}", None).status for value in values}
            assert found <= statuses, (path, name)
        seen |= {(path.rpartition("/")[2], name)} if good else set()
    lists = {("devices", "limit"), ("audit", "limit"), ("devices", "sort"), ("counts", "by")}
    assert seen == lists | {("devices.csv", "sort"), ("devices.jsonl", "sort")}


def test_each_header_does_what_the_document_says(live: LiveFleet) -> None:
    """A key that is too long is no key, and a device is not as somebody else has read it."""
    found = parameters("header")
    assert {(method, path) for method, path, _ in found} == {one for one in OPERATIONS if one[0] != "GET"}
    for method, path, one in found:
        if one["name"] == "Idempotency-Key":
            reply = ask(live, method, path, {}, **{"idempotency-key": "x" * (one["schema"]["maxLength"] + 1)})
            assert (reply.status, "Idempotency-Key" in reply.json["detail"]) == (400, True), path
        else:
            assert one["name"] == "If-Match"
            more: dict[str, dict[str, Any]] = {"tag": {"add": ["x"]}, "rename": {"name": "x"}}
            body = {"query": "model:2b", "reason": "x", **more.get(path.rpartition("/")[2], {})}
            assert ask(live, method, path, body, **{"if-match": '"other"'}).status == 412, path


def test_the_server_gives_out_this_document(live: LiveFleet) -> None:
    """OpenAPI 3.1, with an operation for each of the routes below."""
    reply = ask(live, "GET", "/api/v1/openapi.json", None)
    assert reply.json == DOCUMENT
    assert reply.json["openapi"].startswith("3.1")


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_is_a_server_error(live: LiveFleet, method: str, path: str) -> None:
    """Whatever is asked: an answer, or a refusal that says what is wrong."""

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(inputs(method, path))
    def check(asked: tuple[dict[str, Any], dict[str, Any], Any]) -> None:
        within, query, body = asked
        reply = ask(live, method, target(path, within, query), body)
        assert reply.status < 500, reply.body
        if reply.status >= 400:
            check_problem(reply)

    check()
