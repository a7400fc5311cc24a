"""Performs every operation of PROTOCOL.md against a running fleet of a coordinator and two servers.

    python tests/interop/interop.py --nats nats://127.0.0.1:4222 --servers persist-1,persist-2

Exit status 0: the fleet behaves as the page says. Each check has its own subject, so it can run on a fleet in use. A check is a
function with `@check`; a new one goes into the part of its section.
"""

import argparse
import asyncio
import json
import pathlib
import sys
import traceback

from dormouse import PREFIX, Dormouse, DormouseError, Watcher, digest_of, new_ulid, pack, read_reply, settled, unpack

CHECKS = []
VECTORS = pathlib.Path(__file__).parents[2] / "crates/protocol/vectors"


def check(function):
    CHECKS.append(function)
    return function


class Fleet:
    """The fleet under test."""

    def __init__(self, client, servers):
        self.client = client
        self.servers = servers
        self.run = new_ulid().lower()

    def subject(self, name):
        return f"interop.{self.run}.{name}"


async def refused(code, call):
    """Returns the error of a call, which must have this code."""
    try:
        result = await call
    except DormouseError as error:
        assert error.code == code, f"{error.code} instead of {code}: {error}"
        return error
    raise AssertionError(f"not rejected with {code}: {result}")


async def until_serving(fleet):
    """Returns the health of every process once all of them serve. A starting process reports `not_serving` (section 9)."""
    while True:
        found = await fleet.client.health(expected=len(fleet.servers) + 1)
        for one in found:
            assert one["status"] in ("ok", "degraded", "not_serving"), one
        if all(one["status"] != "not_serving" for one in found):
            return found
        await asyncio.sleep(0.05)


def values(messages):
    return [message.get("value") for message in messages]


# ── Section 1: encoding ──────────────────────────────────────────────────────────────────────────────────────────────


@check
async def vectors_decode_in_another_implementation(fleet):
    def plain(value):
        if isinstance(value, bytes):
            return {"$bytes": value.hex()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value

    read = 0
    for file in sorted(VECTORS.glob("*.json")):
        for vector in json.loads(file.read_text()):
            data = bytes.fromhex(vector["hex"])
            if "headers" in vector:
                # A header block of NATS, not MessagePack.
                assert data == vector["headers"].encode(), f"{file.name}: {vector['headers']!r}"
                continue
            decoded = unpack(data)
            assert plain(decoded) == vector["value"], f"{file.name}: {vector['name']}"
            assert unpack(pack(decoded)) == decoded
            read += 1
    assert read > 30, "the vectors were not found"


@check
async def unknown_fields_are_ignored_and_nil_means_absent(fleet):
    subject = fleet.subject("fields")
    await fleet.client.set(subject, {"key": "k", "value": b"v", "headers": None, "shade": "blue"}, mood=7)
    reply = await fleet.client.call("get", subject, key="k", seq=None, keys=None)
    assert values(reply["messages"]) == [b"v"]


# ── Section 4: errors ────────────────────────────────────────────────────────────────────────────────────────────────


@check
async def errors_are_typed(fleet):
    client, subject = fleet.client, fleet.subject("errors")
    server = await client.locate(subject)
    route = f"{PREFIX}.server.{server}"

    async def raw(route, payload):
        return read_reply(await client.nats.request(route, payload, timeout=10))

    error = await refused("bad_request", raw(f"{route}.get.{subject}", b"\xc1\xc1"))
    assert error.status == 400 and error.body["message"]
    await refused("bad_request", raw(f"{route}.get.{subject}", pack({"v": 1, "key": "k"}) + b"\xc0"))
    await refused("bad_request", raw(f"{route}.explode.{subject}", pack({"v": 1})))
    await refused("bad_request", client.call("get", subject))
    await refused("bad_request", client.call("get_all", subject, limit=0))
    await refused("bad_request", client.set(subject, {"value": b"v", "seq": 0}))
    error = await refused("unsupported_version", client.call("get", subject, key="k", v=99))
    assert error.body["supported_version"] == 1
    error = await refused("too_large", client.set(subject, {"key": "k" * 1025, "value": b""}))
    assert error.body["limit"]
    error = await refused("bad_request", client.ask(f"coord.locate.{'x' * 600}", {"v": 1}))


@check
async def expectation_mismatch_returns_the_actual_id(fleet):
    client, subject = fleet.client, fleet.subject("expect")
    (first,) = await client.set(subject, {"key": "k", "value": b"1", "expect": {"key": None}})
    error = await refused("key_exists", client.set(subject, {"key": "k", "value": b"2", "expect": {"key": None}}))
    assert error.body["actual"] == {"term": first["term"], "seq": first["seq"]}
    current = {"term": first["term"], "seq": first["seq"]}
    (second,) = await client.set(subject, {"key": "k", "value": b"2", "expect": {"key": current}})
    error = await refused("wrong_last", client.set(subject, {"value": b"3", "expect": {"last": current}}))
    assert error.body["actual"] == {"term": second["term"], "seq": second["seq"]}
    current = {"term": second["term"], "seq": second["seq"]}
    await client.set(subject, {"value": b"3", "expect": {"last": current}})
    await refused("wrong_last", client.call("delete", subject, keys=["k"], expect={"key": {"term": 1, "seq": 999}}))
    reply = await client.call("delete", subject, keys=["k"], expect={"key": current})
    assert reply["seqs"] == [second["seq"]]


@check
async def request_retried_with_the_same_id_executes_once(fleet):
    client, subject = fleet.client, fleet.subject("once")
    for operation, fields in [
        ("set", {"sets": [{"value": b"v"}]}),
        ("configure", {"config": {"metadata": {"a": "b"}}}),
        ("delete", {"seqs": [1]}),
        ("set", {"sets": [{"value": b"w"}, {"value": b"x"}], "atomic": True}),
        ("delete_all", {}),
    ]:
        request = client.next_request_id()
        first = await client.call(operation, subject, request=request, **fields)
        before = (await client.call("info", subject))["position"]
        again = await client.call(operation, subject, request=request, **fields)
        assert (await client.call("info", subject))["position"] == before, f"{operation} was executed twice"
        if operation == "set":
            for one, other in zip(first["results"], again["results"]):
                assert other["ok"]["duplicate"] and settled(one["ok"]) == {**other["ok"], "duplicate": False}
        else:
            assert again["duplicate"] and settled(first) == {**again, "duplicate": False}, operation
    # An id of another request cannot be reused.
    await refused("bad_request", client.call("delete", subject, request=request, seqs=[1]))
    # A rejection is recorded if it depended on the state.
    await client.set(subject, {"key": "k", "value": b"1"})
    request = client.next_request_id()
    create = {"request": request, "sets": [{"key": "k", "value": b"2", "expect": {"key": None}}]}
    first = await client.call("set", subject, **create)
    await client.call("delete", subject, keys=["k"])
    assert (await client.call("set", subject, **create)) == first
    assert first["results"][0]["error"]["code"] == "key_exists"


# ── Section 5: operations ────────────────────────────────────────────────────────────────────────────────────────────


@check
async def message_with_every_field_round_trips(fleet):
    client, subject = fleet.client, fleet.subject("set")
    headers = [["trace", "1"], ["trace", "2"], ["Größe", "ü"]]
    item = {
        "seq": 7, "key": "k", "value": b"\x00\xff", "headers": headers, "timestamp": 1_600_000_000_000_000, "msg_id": "m-1",
        "expect": {"key": None},
    }
    (result,) = await client.set(subject, item, level="bucket")
    assert result["seq"] == 7 and result["timestamp"] == item["timestamp"] and not result["duplicate"]
    reply = await client.call("get", subject, seq=7)
    (message,) = reply["messages"]
    assert reply["position"] == {"term": result["term"], "rev": result["rev"]} and reply["answered"] == 1
    assert (message["key"], message["value"], message["headers"]) == ("k", b"\x00\xff", headers)
    assert message["size"] == 2 and message["term"] == result["term"] and message["rev"] == result["rev"]
    # A repeat of the msg_id gets the first result, regardless of the expectation.
    (again,) = await client.set(subject, item)
    assert again == {**result, "duplicate": True}
    # In a replacement, the key must be equal.
    await refused("bad_request", client.set(subject, {"seq": 7, "key": "other", "value": b"x"}))
    (replaced,) = await client.set(subject, {"seq": 7, "key": "k", "value": b"new"})
    assert replaced["seq"] == 7 and replaced["rev"] > result["rev"]
    # A skipped seq cannot be written later.
    await refused("bad_request", client.set(subject, {"seq": 3, "value": b"x"}))
    (following,) = await client.set(subject, {"value": b"stream"})
    assert following["seq"] == 8


@check
async def absent_and_empty_keys_and_values_are_distinct(fleet):
    client, subject = fleet.client, fleet.subject("nothing")
    await client.set(subject, {"key": ""}, {"key": "empty", "value": b""}, {"value": b"no key"}, {"key": "null"})
    reply = await client.call("get", subject, keys=["", "empty", "missing", "null"])
    assert reply["answered"] == 4 and [message["key"] for message in reply["messages"]] == ["", "empty", "null"]
    assert "value" not in reply["messages"][0] and reply["messages"][1]["value"] == b""
    reply = await client.call("get", subject, seqs=[4, 99, 1])
    assert reply["answered"] == 3 and [message["seq"] for message in reply["messages"]] == [4, 1]
    messages, _ = await client.get_all(subject)
    assert "key" not in messages[2]
    messages, _ = await client.get_all(subject, key_prefix="")
    assert len(messages) == 3, "a prefix must omit messages without a key"


@check
async def sets_fail_independently_and_a_batch_as_a_whole(fleet):
    client, subject = fleet.client, fleet.subject("batch")
    sets = [{"key": "a", "value": b"1"}, {"key": "a", "value": b"2", "expect": {"key": None}}, {"key": "b", "value": b"3"}]
    reply = await client.call("set", subject, sets=sets)
    assert [list(result) for result in reply["results"]] == [["ok"], ["error"], ["ok"]]
    assert reply["results"][2]["ok"]["rev"] == reply["results"][0]["ok"]["rev"] + 1
    error = await refused("key_exists", client.call("set", subject, atomic=True, sets=sets[1:]))
    assert error.status == 409
    info = await client.call("info", subject)
    assert info["count"] == 2, "a part of a batch was executed"
    results = await client.set(subject, {"key": "c", "value": b"4"}, {"key": "d", "value": b"5"}, atomic=True)
    assert len({result["rev"] for result in results}) == 1
    assert [result["seq"] for result in results] == [info["next_seq"], info["next_seq"] + 1]
    await refused("bad_request", client.call("set", subject, atomic=True, sets=[{"key": "x"}, {"key": "x"}]))


@check
async def messages_are_paged_in_both_directions(fleet):
    client, subject = fleet.client, fleet.subject("pages")
    await client.set(subject, *({"key": f"{'even' if n % 2 == 0 else 'odd'}-{n:02}", "value": b"%d" % n} for n in range(20)))
    messages, position = await client.get_all(subject, limit=3)
    assert [message["seq"] for message in messages] == list(range(1, 21))
    assert position == (await client.call("info", subject))["position"]
    messages, _ = await client.get_all(subject, limit=3, reverse=True, start_seq=5, end_seq=15)
    assert [message["seq"] for message in messages] == list(range(15, 4, -1))
    messages, _ = await client.get_all(subject, limit=4, key_prefix="odd-", end_seq=10)
    assert values(messages) == [b"1", b"3", b"5", b"7", b"9"]


@check
async def keys_are_paged_in_byte_order(fleet):
    client, subject = fleet.client, fleet.subject("keys")
    names = ["b", "", "ä", "a", "B", "b.1", "b.0"]
    await client.set(subject, *({"key": name} for name in names), {"value": b"no key"})
    found, cursor = [], None
    while True:
        page = await client.call("keys", subject, limit=2, cursor=cursor)
        found += page.get("keys", [])
        cursor = page.get("cursor")
        if cursor is None:
            break
    assert found == sorted(names, key=lambda name: name.encode())
    assert (await client.call("keys", subject, prefix="b."))["keys"] == ["b.0", "b.1"]


@check
async def large_value_is_omitted_from_pages_and_read_by_seq(fleet):
    client, subject = fleet.client, fleet.subject("large")
    large = bytes(range(256)) * 1200
    (result,) = await client.set(subject, {"key": "large", "value": large})
    (announced,), _ = await client.get_all(subject)
    assert announced["value_omitted"] and announced["size"] == len(large) and "value" not in announced
    reply = await client.call("get", subject, seq=result["seq"])
    assert values(reply["messages"]) == [large]


@check
async def value_of_any_size_transfers_in_chunks(fleet):
    client, subject = fleet.client, fleet.subject("pieces")
    # The check value of the CRC.
    assert digest_of(b"123456789") == "ae8b14860a799888"
    large = bytes(range(251)) * 12_000
    result = await client.upload(subject, large, key="large", headers=[["kind", "large"]], expect={"key": None})
    reply = await client.call("get", subject, key="large")
    (message,) = reply["messages"]
    assert message["value_omitted"] and message["size"] == len(large) and message["headers"] == [["kind", "large"]]
    assert message["rev"] == result["rev"] and await client.download(subject, message) == large
    empty = await client.upload(subject, b"", key="empty")
    assert empty["rev"] == result["rev"] + 1
    # The value is replaced: a chunked read returns one value or an error.
    await client.set(subject, {"key": "large", "value": b"small"})
    named = {"seq": message["seq"], "rev": message["rev"]}
    await refused("wrong_last", client.call("get_chunk", subject, offset=0, length=1, **named))


@check
async def upload_with_wrong_digest_or_cancelled_is_rejected(fleet):
    client, subject = fleet.client, fleet.subject("uploads")
    upload = new_ulid()
    assert (await client.call("upload_begin", subject, upload=upload))["received"] == 0
    state = await client.call("upload_chunk", subject, upload=upload, offset=0, bytes=b"abc")
    assert state["received"] == 3
    assert (await client.call("upload_begin", subject, upload=upload))["received"] == 3
    finish = {"upload": upload, "size": 3, "digest": digest_of(b"abd")}

    async def finished():
        state = await client.call("upload_finish", subject, **finish)
        while not state.get("stored"):
            await asyncio.sleep(0.02)
            state = await client.call("upload_finish", subject, **finish)
        return state

    await refused("corrupt", finished())
    assert (await client.call("upload_begin", subject, upload=upload))["received"] == 0
    await client.call("upload_cancel", subject, upload=upload)
    late = client.call("upload_chunk", subject, upload=upload, offset=3, bytes=b"d")
    await refused("unknown_upload", late)
    item = {"key": "k", "uploaded": {"upload": upload, "size": 3, "digest": digest_of(b"abc")}}
    await refused("bad_request", client.set(subject, item))
    assert not (await client.call("get", subject, key="k")).get("messages")


@check
async def retention_enforces_limits_and_expiry(fleet):
    client, subject = fleet.client, fleet.subject("limits")
    watcher = await Watcher.begin(client, subject)
    await client.call("configure", subject, config={"max_msgs": 2, "max_msg_size": 100})
    await client.set(subject, {"value": b"1"}, {"value": b"2"}, {"value": b"3"})
    messages, position = await client.get_all(subject)
    assert values(messages) == [b"2", b"3"]
    await refused("too_large", client.set(subject, {"value": b"x" * 200}))
    await client.call("configure", subject, config={"max_msgs": 2, "discard": "new"})
    error = await refused("limit_exceeded", client.set(subject, {"value": b"4"}))
    assert error.body["limit"] == "max_msgs"
    await client.call("delete_all", subject)
    (short,) = await client.set(subject, {"key": "short", "value": b"5", "ttl_ms": 300})
    reply = await client.call("get", subject, key="short")
    assert reply["messages"] and reply["messages"][0]["expires_at"] > 0
    while (await client.call("get", subject, key="short")).get("messages"):
        await asyncio.sleep(0.05)
    await watcher.follow((await client.call("info", subject))["position"])
    assert not watcher.state.messages and watcher.filled == 0, "removals must be in the events"
    assert (await client.call("info", subject))["position"]["rev"] > short["rev"]


@check
async def messages_are_deleted_by_seq_by_key_and_by_range(fleet):
    client, subject = fleet.client, fleet.subject("remove")
    await client.set(subject, *({"key": f"k{n}", "value": b"v"} for n in range(10)))
    reply = await client.call("delete", subject, seqs=[3, 99, 1], keys=["k4", "missing"])
    assert reply["seqs"] == [1, 3, 5]
    before = reply["position"]
    reply = await client.call("delete", subject, seqs=[3])
    assert not reply.get("seqs") and reply["position"] == before, "an empty removal changed the position"
    assert (await client.call("delete_all", subject, end_seq=6))["count"] == 3
    assert (await client.call("delete_all", subject, keep_last=1))["count"] == 3
    await refused("bad_request", client.call("delete_all", subject, end_seq=1, keep_last=1))
    info = await client.call("info", subject)
    assert (info["count"], info["first_seq"], info["last_seq"], info["next_seq"]) == (1, 10, 10, 11)
    assert (await client.call("delete_all", subject))["count"] == 1
    info = await client.call("info", subject)
    assert info["count"] == 0 and info["next_seq"] == 11 and "first_seq" not in info


@check
async def changes_lead_from_any_position_to_the_state(fleet):
    client, subject = fleet.client, fleet.subject("changes")
    watcher = Watcher(client, subject, None)
    await client.set(subject, *({"key": f"k{n}", "value": b"1"} for n in range(8)))
    await watcher.fill()
    await client.set(subject, {"key": "k1", "value": b"2"}, {"value": b"no key"})
    await client.call("delete", subject, keys=["k2", "k3"])
    await client.call("delete_all", subject, end_seq=1)
    await client.call("configure", subject, config={"metadata": {"owner": "me"}})
    await watcher.fill()
    messages, position = await client.get_all(subject)
    assert sorted(watcher.state.messages.values(), key=lambda message: message["seq"]) == messages
    assert watcher.state.position == position and watcher.state.config["metadata"] == {"owner": "me"}
    page = await client.call("changes", subject, after=position)
    assert not page.get("changes") and not page.get("more") and not page.get("resync") and page["position"] == position
    page = await client.call("changes", subject, after={"term": position["term"] + 9, "rev": 1})
    assert page["resync"] and not page.get("changes")
    await refused("bad_request", client.call("changes", subject, after=position, limit=0))


@check
async def subject_config_is_replaced_and_shown_by_info(fleet):
    client, subject = fleet.client, fleet.subject("configure")
    config = {"level": "memory", "metadata": {"owner": "me", "": "ü"}}
    reply = await client.call("configure", subject, config=config)
    info = await client.call("info", subject)
    assert info["config"]["metadata"] == config["metadata"] and info["level"] == "memory"
    assert info["position"] == reply["position"] and info["server"] in fleet.servers
    assert info["log"].startswith(info["server"] + "-")
    (result,) = await client.set(subject, {"value": b"v"})
    flushed = await client.call("flush", subject)
    assert flushed["position"]["rev"] >= result["rev"]
    info = await client.call("info", subject)
    assert info["bucket_rev"] >= result["rev"] and info["bytes"] > 0
    await client.call("configure", subject, config={})
    info = await client.call("info", subject)
    assert not info["config"].get("metadata") and info["level"] == "bucket", "the whole configuration must be replaced"


@check
async def destroyed_subject_continues_the_numbering(fleet):
    client, subject = fleet.client, fleet.subject("destroy")
    await client.set(subject, {"key": "k", "value": b"1"}, {"value": b"2"})
    before = await client.call("info", subject)
    request = client.next_request_id()
    destroyed = (await client.call("destroy", subject, request=request))["position"]
    assert destroyed["rev"] == before["position"]["rev"] + 1
    assert not (await client.call("get", subject, key="k")).get("messages")
    (result,) = await client.set(subject, {"value": b"3", "expect": {"last": None}})
    assert result["seq"] == before["next_seq"] and result["rev"] > destroyed["rev"] and result["term"] > destroyed["term"]
    page = await client.call("changes", subject, after=before["position"])
    assert page["resync"]
    again = await client.call("destroy", subject, request=request)
    assert (again["position"], again["duplicate"]) == (destroyed, True), "a destroy must execute once"
    assert (await client.call("info", subject))["count"] == 1
    before_it = {"session": request["session"], "counter": request["counter"] - 1}
    await refused("forgotten", client.call("set", subject, sets=[{"value": b"late"}], request=before_it))


# ── Section 6: events ────────────────────────────────────────────────────────────────────────────────────────────────


@check
async def watcher_starts_at_the_state_and_follows_changes(fleet):
    client, subject = fleet.client, fleet.subject("watch")
    await client.set(subject, {"key": "before", "value": b"1"})
    watcher = await Watcher.begin(client, subject)
    assert [message["key"] for message in watcher.state.messages.values()] == ["before"]
    await client.set(subject, {"key": "a", "value": b"1"}, {"key": "b", "value": b"2"}, {"value": b"3"})
    await client.set(subject, {"key": "a", "value": b"4"}, {"key": "c", "value": b"x" * 100_000}, atomic=True)
    await client.call("delete", subject, keys=["b"])
    await client.call("configure", subject, config={"metadata": {"a": "b"}})
    await client.call("delete_all", subject, end_seq=1)
    await watcher.follow((await client.call("info", subject))["position"])
    assert watcher.filled == 0 and watcher.state.config["metadata"] == {"a": "b"}
    assert watcher.state.messages[6]["value_omitted"], "a value above 64 KiB must be omitted"
    messages, _ = await client.get_all(subject)
    seen = sorted(watcher.state.messages.values(), key=lambda message: message["seq"])
    assert [(m["seq"], m["rev"], m.get("key")) for m in seen] == [(m["seq"], m["rev"], m.get("key")) for m in messages]


@check
async def watcher_refetches_a_gap_and_a_lost_last_event(fleet):
    client, subject = fleet.client, fleet.subject("gap")
    watcher = await Watcher.begin(client, subject)

    async def drop_next_change():
        while not (await watcher.next_event()).get("changes"):
            pass

    (first,) = await client.set(subject, {"key": "a", "value": b"1"})
    await watcher.follow(first)
    # A lost change, followed by other changes.
    await client.set(subject, {"key": "b", "value": b"2"})
    await drop_next_change()
    (last,) = await client.set(subject, {"key": "c", "value": b"3"})
    await watcher.follow(last)
    assert watcher.filled == 1
    assert sorted(message["key"] for message in watcher.state.messages.values()) == ["a", "b", "c"]
    # A lost change, followed only by a beacon.
    await client.call("delete", subject, keys=["a"])
    await drop_next_change()
    beacon = await watcher.next_event()
    assert not beacon.get("changes")
    await watcher.take(beacon)
    assert watcher.filled == 2
    assert sorted(message["key"] for message in watcher.state.messages.values()) == ["b", "c"]


@check
async def watcher_without_the_events_of_an_overwrite_and_a_delete_drops_the_key(fleet):
    client, subject = fleet.client, fleet.subject("gone")
    watcher = await Watcher.begin(client, subject)
    (first,) = await client.set(subject, {"key": "a", "value": b"1"})
    await watcher.follow(first)
    await client.set(subject, {"key": "b", "value": b"2"}, {"key": "a", "value": b"3"})
    await client.call("delete", subject, keys=["a"])
    # None of these events arrives here.
    await watcher.fill()
    assert [message["key"] for message in watcher.state.messages.values()] == ["b"]


# ── Sections 3, 7 and 9: finding the server, the fleet, health, discovery ────────────────────────────────────────────


@check
async def server_that_is_not_the_owner_names_the_owner(fleet):
    client, subject = fleet.client, fleet.subject("owner")
    await client.set(subject, {"key": "k", "value": b"v"})
    owner = await client.locate(subject)
    assert owner == client.servers[subject]
    (other,) = [server for server in fleet.servers if server != owner]
    error = await refused("not_owner", client.at(other, "get", subject, {"v": 1, "key": "k"}))
    assert error.status == 421 and error.body["owner"] == owner
    client.servers[subject] = other
    before = client.redirected
    reply = await client.call("get", subject, key="k")
    assert values(reply["messages"]) == [b"v"] and client.redirected == before + 1


@check
async def subject_that_moves_is_followed_by_the_client(fleet):
    client, subject = fleet.client, fleet.subject("move")
    await client.set(subject, {"key": "k", "value": b"v"})
    owner = await client.locate(subject)
    (other,) = [server for server in fleet.servers if server != owner]
    while not (await client.ask(f"admin.move.{subject}", {"v": 1, "to": other}))["done"]:
        await asyncio.sleep(0.05)
    (result,) = await client.set(subject, {"key": "k", "value": b"w"})
    assert (await client.call("info", subject))["server"] == other
    reply = await client.call("get", subject, key="k")
    assert values(reply["messages"]) == [b"w"] and reply["messages"][0]["rev"] == result["rev"]


@check
async def request_to_an_absent_server_finds_the_owner(fleet):
    client, subject = fleet.client, fleet.subject("absent")
    client.servers[subject] = "persist-none"
    await client.set(subject, {"value": b"v"})
    assert client.servers[subject] in fleet.servers


@check
async def admin_routes_list_servers_subjects_and_moves(fleet):
    client = fleet.client
    await client.set(fleet.subject("listed.a"), {"value": b"v"})
    await client.set(fleet.subject("listed.b"), {"value": b"v"})
    reply = await client.ask("admin.servers", {"v": 1})
    assert [server["name"] for server in reply["servers"]] == sorted(fleet.servers)
    for server in reply["servers"]:
        assert server["state"] == "alive" and server["log"].startswith(server["name"] + "-")
        assert server["capacity"] > 0 and server["version"]
    found, after = [], None
    while True:
        request = {"v": 1, "pattern": fleet.subject("listed.*"), "limit": 1, **({"after": after} if after else {})}
        page = await client.ask("admin.subjects", request)
        found += page.get("subjects", [])
        after = page.get("cursor")
        if after is None:
            break
    assert [entry["subject"] for entry in found] == [fleet.subject("listed.a"), fleet.subject("listed.b")]
    moves = await client.ask("admin.moves", {"v": 1})
    assert moves["pending"] == 0
    plan = await client.ask("admin.rebalance", {"v": 1, "dry_run": True})
    assert [server["name"] for server in plan["servers"]] == sorted(fleet.servers)


@check
async def server_is_drained_and_takes_subjects_again(fleet):
    client = fleet.client
    subject = fleet.subject("drained")
    await client.set(subject, {"key": "k", "value": b"v"})
    owner = await client.locate(subject)
    state = (await client.ask(f"admin.drain.{owner}", {"v": 1}))["server"]["state"]
    while state != "drained":
        assert state == "draining", state
        await asyncio.sleep(0.1)
        state = (await client.ask(f"admin.drain.{owner}", {"v": 1}))["server"]["state"]
    reply = await client.call("get", subject, key="k")
    assert values(reply["messages"]) == [b"v"] and client.servers[subject] != owner
    reply = await client.ask(f"admin.undrain.{owner}", {"v": 1})
    assert reply["server"]["state"] == "alive"
    await refused("bad_request", client.ask("admin.drain.persist-none", {"v": 1}))
    # A drain ends with a restart under a new log. The server is a member before it serves.
    await until_serving(fleet)


@check
async def health_is_reported_by_each_process(fleet):
    processes = await until_serving(fleet)
    assert sorted(one["name"] for one in processes) == sorted([*fleet.servers, "coordinator"])
    for one in processes:
        assert one["kind"] == ("coordinator" if one["name"] == "coordinator" else "server")
        assert one["status"] in ("ok", "degraded"), one
        # Whole milliseconds: 0 within the first one.
        assert type(one["uptime_ms"]) is int and one["uptime_ms"] >= 0, one
        assert isinstance(one["figures"], dict), one
        assert one["id"] and one["version"] and isinstance(one["problems"], list)
    (one,) = await fleet.client.health(fleet.servers[0])
    assert one["name"] == fleet.servers[0]


@check
async def services_api_finds_each_process(fleet):
    client, expected = fleet.client, len(fleet.servers) + 1
    for verb, kind in [("PING", "ping"), ("INFO", "info"), ("STATS", "stats")]:
        answers = await client.gather(f"$SRV.{verb}", expected)
        assert {answer["type"] for answer in answers} == {f"io.nats.micro.v1.{kind}_response"}
        assert sorted({answer["name"] for answer in answers}) == ["dormouse-coordinator", "dormouse-persist-server"]
        for answer in answers:
            (one,) = await client.gather(f"$SRV.{verb}.{answer['name']}.{answer['id']}", 1)
            assert one["id"] == answer["id"]
            if verb != "PING":
                assert one["endpoints"]


async def run(arguments):
    client = await Dormouse.connect(arguments.nats)
    fleet = Fleet(client, sorted(arguments.servers.split(",")))
    failed = []
    for function in CHECKS:
        if arguments.only and arguments.only not in function.__name__:
            continue
        try:
            await asyncio.wait_for(function(fleet), 120)
            print(f"ok      {function.__name__}", flush=True)
        except Exception:  # a failed check must not stop the others
            failed.append(function.__name__)
            print(f"FAILED  {function.__name__}\n{traceback.format_exc()}", flush=True)
    await client.close()
    print(f"{len(CHECKS) - len(failed)} of {len(CHECKS)} checks hold", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nats", required=True, help="address of the nats-server")
    parser.add_argument("--servers", required=True, help="the names of the two servers, joined by a comma")
    parser.add_argument("--only", default="", help="only checks whose names contain this")
    sys.exit(asyncio.run(run(parser.parse_args())))
