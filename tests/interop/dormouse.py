"""A client of Dormouse in another language, written from PROTOCOL.md alone.

It does what that page requires of a client: it calls `locate`, sends the operation to the named server, caches the
server, locates again if the server is not the owner, and gives every changing request an id. It is not a library; it
shows whether the page is sufficient. Section numbers are those of the page.
"""

import asyncio
import json
import os
import time

import msgpack
from nats.aio.client import Client as Nats
from nats.errors import NoRespondersError

# Section 3: the default prefix.
PREFIX = "persist"

# The deadline of one request, and of a call with its retries, in seconds.
REQUEST_DEADLINE = 10
CALL_DEADLINE = 60

# Section 5: changing operations carry a request id.
CHANGING = {"set", "delete", "delete_all", "configure", "destroy", "upload_commit"}

# The size of a chunk in bytes, and the number of chunks in flight.
CHUNK_BYTES = 64 * 1024
WINDOW = 8


class DormouseError(Exception):
    """A reply that is an error, section 4."""

    def __init__(self, status, body):
        super().__init__(f"{body['code']}: {body['message']}")
        self.status = status
        self.code = body["code"]
        self.body = body


def new_ulid():
    """Section 1: 26 characters of Crockford's base 32, upper case: 48 bits of milliseconds, 80 random bits."""
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    number = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    return "".join(alphabet[(number >> (5 * digit)) & 31] for digit in reversed(range(26)))


def digest_of(data):
    """Section 1: CRC-64/NVME, 16 hexadecimal digits."""
    crc = 0xFFFF_FFFF_FFFF_FFFF
    for byte in data:
        crc = DIGEST_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return f"{crc ^ 0xFFFF_FFFF_FFFF_FFFF:016x}"


def digest_entry(byte):
    for _ in range(8):
        byte = (byte >> 1) ^ (0x9A6C_9329_AC4B_C9B5 if byte & 1 else 0)
    return byte


DIGEST_TABLE = [digest_entry(byte) for byte in range(256)]


def pack(value):
    """Section 1: one MessagePack map with string keys; bytes are `bin`, text is `str`."""
    return msgpack.packb(value, use_bin_type=True)


def unpack(data):
    """Exactly one value; trailing bytes raise."""
    return msgpack.unpackb(data, raw=False, strict_map_key=True)


def settled(result):
    """A result with every `bool` field: an absent one is false, section 1."""
    return {"duplicate": False, **result}


def read_reply(message):
    """The result of a reply, or its error; only the header distinguishes them."""
    status = (message.headers or {}).get("Nats-Service-Error-Code")
    if status is None:
        return unpack(message.data)
    raise DormouseError(int(status), unpack(message.data))


class Dormouse:
    """A connection to a fleet."""

    def __init__(self, nats):
        self.nats = nats
        self.session = new_ulid()
        self.counter = 0
        self.servers = {}
        # The number of redirects to another server.
        self.redirected = 0

    @classmethod
    async def connect(cls, url):
        nats = Nats()
        await nats.connect(url, connect_timeout=REQUEST_DEADLINE)
        return cls(nats)

    async def close(self):
        await self.nats.close()

    def next_request_id(self):
        self.counter += 1
        return {"session": self.session, "counter": self.counter}

    async def ask(self, route, body):
        """One request and its reply, on any route below the prefix."""
        message = await self.nats.request(f"{PREFIX}.{route}", pack(body), timeout=REQUEST_DEADLINE)
        return read_reply(message)

    async def locate(self, subject):
        """Section 3: the server of a subject."""
        return (await self.ask(f"coord.locate.{subject}", {"v": 1}))["server"]

    async def at(self, server, operation, subject, body):
        """An operation at a given server."""
        return await self.ask(f"server.{server}.{operation}.{subject}", body)

    async def call(self, operation, subject, **fields):
        """An operation at the owner of the subject. All attempts of a change have the same id, section 4."""
        body = {"v": 1, **fields}
        if operation in CHANGING and "request" not in fields:
            body["request"] = self.next_request_id()
        deadline = time.monotonic() + CALL_DEADLINE
        pause = 0.02
        while True:
            try:
                if subject not in self.servers:
                    self.servers[subject] = await self.locate(subject)
                return await self.at(self.servers[subject], operation, subject, body)
            except NoRespondersError:
                # No responders: the request was not executed, and another server may own the subject.
                self.servers.pop(subject, None)
            except DormouseError as error:
                if error.code == "not_owner":
                    self.redirected += 1
                    owner = error.body.get("owner")
                    if owner is None:
                        self.servers.pop(subject, None)
                    else:
                        self.servers[subject] = owner
                elif error.code not in ("unavailable", "overloaded"):
                    raise
                else:
                    pause = max(pause, error.body.get("retry_after_ms", 0) / 1000)
            except asyncio.TimeoutError:
                # No reply: a change is sent again with its id.
                self.servers.pop(subject, None)
            if time.monotonic() + pause > deadline:
                raise TimeoutError(f"{operation} of {subject}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1)

    async def set(self, subject, *sets, **fields):
        """Section 5, set: the results, in order; the first error is raised."""
        reply = await self.call("set", subject, sets=list(sets), **fields)
        for outcome in reply["results"]:
            if "error" in outcome:
                raise DormouseError(None, outcome["error"])
        return [settled(outcome["ok"]) for outcome in reply["results"]]

    async def get_all(self, subject, **fields):
        """All messages of a range, page by page, and the position of the first page."""
        messages, position, bounds = [], None, dict(fields)
        while True:
            page = await self.call("get_all", subject, **bounds)
            position = position or page["position"]
            if page["position"]["term"] != position["term"]:
                # Only pages of one term lead to a state: this one begins again.
                messages, position, bounds = [], None, dict(fields)
                continue
            messages += page.get("messages", [])
            if page.get("cursor") is None:
                return messages, position
            bounds["end_seq" if fields.get("reverse") else "start_seq"] = page["cursor"]

    async def upload(self, subject, value, **fields):
        """Section 5, values of any size: an upload in chunks, then one set with the other fields."""
        upload, digest, size = new_ulid(), digest_of(value), len(value)
        request = self.next_request_id()
        while True:
            try:
                await self.send_chunks(subject, upload, value)
                state = await self.call("upload_finish", subject, upload=upload, size=size, digest=digest)
                while not state.get("stored"):
                    if state["received"] < size:
                        raise DormouseError(None, {"code": "unknown_upload", "message": "bytes are missing"})
                    await asyncio.sleep(0.02)
                    state = await self.call("upload_finish", subject, upload=upload, size=size, digest=digest)
                item = {**fields, "uploaded": {"upload": upload, "size": size, "digest": digest}}
                reply = await self.call("upload_commit", subject, sets=[item], request=request)
            except DormouseError as error:
                if error.code != "unknown_upload":
                    raise
                continue
            (outcome,) = reply["results"]
            if "error" in outcome:
                raise DormouseError(None, outcome["error"])
            return settled(outcome["ok"])

    async def send_chunks(self, subject, upload, value):
        """Sends every byte that the server does not have."""
        received = (await self.call("upload_begin", subject, upload=upload, size=len(value)))["received"]
        offsets = list(range(received, len(value), CHUNK_BYTES))
        for first in range(0, len(offsets), WINDOW):
            # The order does not matter.
            window = reversed(offsets[first : first + WINDOW])
            await asyncio.gather(
                *(
                    self.call("upload_chunk", subject, upload=upload, offset=offset, bytes=value[offset : offset + CHUNK_BYTES])
                    for offset in window
                )
            )

    async def download(self, subject, message):
        """The value of a message, read in chunks and compared with its digest."""
        named = {"seq": message["seq"], "rev": message["rev"]}
        info = await self.call("get_chunk", subject, offset=0, length=0, **named)
        value = b""
        while len(value) < info["size"]:
            chunk = await self.call("get_chunk", subject, offset=len(value), length=CHUNK_BYTES, **named)
            assert chunk["bytes"] and chunk["digest"] == info["digest"]
            value += chunk["bytes"]
        assert digest_of(value) == info["digest"], "the bytes differ from the written ones"
        return value

    async def health(self, name=None, expected=1):
        """Section 9: health as JSON, from all processes or from one."""
        route = f"{PREFIX}.health" + (f".{name}" if name else "")
        return await self.gather(route, expected)

    async def gather(self, route, expected):
        """Several replies to one request, each of them JSON."""
        inbox = self.nats.new_inbox()
        subscription = await self.nats.subscribe(inbox)
        await self.nats.publish(route, b"", reply=inbox)
        answers = [await subscription.next_msg(timeout=REQUEST_DEADLINE) for _ in range(expected)]
        await subscription.unsubscribe()
        return [json.loads(answer.data) for answer in answers]


class State:
    """A watcher's copy of a subject: its messages by seq, and the position up to which it is complete."""

    def __init__(self):
        self.messages = {}
        self.config = {}
        self.position = {"term": 0, "rev": 0}

    def take(self, change):
        """Section 5, changes, and section 6: applying a change twice has no further effect."""
        ((kind, content),) = change.items()
        if kind == "set":
            message = content["message"]
            if content.get("replaces") is not None:
                self.messages.pop(content["replaces"], None)
            self.drop_key(message.get("key"))
            self.messages[message["seq"]] = message
        elif kind == "delete":
            # A key that was overwritten and then deleted is named with its last seq, which this copy may never have had.
            for removed in content["removed"]:
                self.messages.pop(removed["seq"], None)
                self.drop_key(removed.get("key"))
        elif kind == "delete_all":
            for seq in [seq for seq in self.messages if seq <= content["end_seq"]]:
                del self.messages[seq]
        elif kind == "configure":
            self.config = content["config"]
        # Unknown kinds are ignored.

    def drop_key(self, key):
        """Removes the message under a key. A message without a key has none to remove."""
        if key is not None:
            for seq in [seq for seq, held in self.messages.items() if held.get("key") == key]:
                del self.messages[seq]


class Watcher:
    """Section 6: how a watcher starts, and how it fills a gap."""

    def __init__(self, client, subject, subscription):
        self.client = client
        self.subject = subject
        self.subscription = subscription
        self.state = State()
        self.filled = 0

    @classmethod
    async def begin(cls, client, subject):
        # First subscribe, then read the position of the subject: events up to it are before the watch.
        subscription = await client.nats.subscribe(f"{PREFIX}.events.{subject}")
        await client.nats.flush()
        watcher = cls(client, subject, subscription)
        watcher.state.position = (await client.call("info", subject))["position"]
        messages, position = await client.get_all(subject)
        watcher.state.messages = {message["seq"]: message for message in messages}
        watcher.state.position = position
        return watcher

    async def next_event(self):
        return unpack((await self.subscription.next_msg(timeout=REQUEST_DEADLINE)).data)

    async def take(self, event):
        """Applies a received event."""
        seen = self.state.position
        if event["term"] < seen["term"] or (event["term"] == seen["term"] and event["rev"] <= seen["rev"]):
            return
        revs = [self.rev_of(change) for change in event.get("changes", [])]
        first = min(revs) if revs else event["rev"] + 1
        # In the same term, the next change has the next rev. In a new term, it follows the term base, which must be complete
        # here.
        follows = seen["rev"] + 1 == first and (event["term"] == seen["term"] or event["term_base"] == seen["rev"])
        if not follows:
            return await self.fill()
        for change in event.get("changes", []):
            self.state.take(change)
        self.state.position = {"term": event["term"], "rev": event["rev"]}

    async def fill(self):
        """Reads the missed changes, or everything after a resync."""
        self.filled += 1
        term = None
        while True:
            page = await self.client.call("changes", self.subject, after=self.state.position, limit=3)
            # Only pages of one term lead to a state.
            if page.get("resync") or term not in (None, page["position"]["term"]):
                messages, position = await self.client.get_all(self.subject)
                self.state.messages = {message["seq"]: message for message in messages}
                self.state.position, term = position, position["term"]
                continue
            term = page["position"]["term"]
            for change in page.get("changes", []):
                self.state.take(change)
            self.state.position = page["position"]
            if not page.get("more"):
                return

    async def follow(self, position):
        """Applies events until the position is reached."""
        while (self.state.position["term"], self.state.position["rev"]) < (position["term"], position["rev"]):
            await self.take(await self.next_event())

    @staticmethod
    def rev_of(change):
        ((kind, content),) = change.items()
        return content["message"]["rev"] if kind == "set" else content["rev"]
