"""A client as an agent: a process that does what it is told, one line of JSON for a request and one for its answer.

    COMMAND agent BOOTSTRAP CLIENT_ID

With STRANDLINE_GROUP_PROTOCOL=consumer in its environment it is a member by the group protocol of KIP-848.

So the scenarios are written once, in scenarios.py, and every client is held to the same. The requests:

    hello                                  -> {"lacks": [...]}: what this client has no API for, see LACKS
    send topic codec records               -> {"sent": [[partition, offset] or "why not", ...]}
    open topic group reset                    becomes a member of the group; reset is earliest, latest or none;
                                           -> {"pid": ...}, if it is another process that becomes the member;
                                              with isolation too, if it is not to be the client's default
    poll ms                                -> {"records": [...], "events": [...], "errors": [...]}
    commit offsets                            {partition: next offset} of the open topic, for the group
    committed partitions                   -> {"offsets": {partition: offset or -1}}, as the client's own API sees it
    pause partition, resume partition, seek partition offset
    times timestamp                        -> {"offsets": {partition: offset or null}}
    close                                     leaves the group; what was read meanwhile is in "records"
    create topic partitions configs, partitions topic -> {"count": n or null}, grow topic count, delete topic
    alter topic configs, config topic name -> {"value": ...}

and for transactions.py, of the clients that run.sh names for it:

    init_transactions id timeout_ms           from now on it sends in transactions
    begin_transaction
    add_offsets offsets                       {partition: next offset} of the open topic, for the group
    end_transaction commit                    commit is true or false
    describe_transactions id topic         -> {"state": ..., "listed": state, "timeout_ms": ..., "partitions": [...],
                                              "producers": {partition: [where a producer's transaction began or -1, ...]}}

A record is {"p": partition or null, "o": offset, "t": timestamp, "k": key, "v": value, "h": [[name, value], ...]}, with
key and values in base64 or null. An event is ["assigned", partitions] or ["revoked", partitions]: what was given and
taken since the last poll, in order. An answer of {"error": why} is a failure, {"lacks": what} says that there is no such
API. A line that does not begin with a brace is noise. An agent ends when its input does.

A partition is given up only after what was polled from it is committed, or COMMIT_PATIENCE_SECONDS have passed: that is
what an application does that wants to read nothing twice. Clients that rebalance within a poll get it for nothing.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time

import common

LACKS = {
    "null-header": "headers whose value is null",
    "empty": "telling what is empty from what is null",
    "reset-none": "a policy that refuses to guess an offset",
    "pause": "pausing a partition",
    "seek": "seeking within a group",
    "times": "offsets by timestamp",
    "committed": "asking for committed offsets",
    "admin-configs": "altering configs",
    "alter-errors": "saying that a config was refused",
    "leave": "leaving a group without losing the record that it has in hand",
    "commit": "committing by hand",
    "agent": "doing this from a command line that reads a group",
    "describe-transactions": "describing transactions",
    "patience": "the patience to stay in a group whose coordinator is away for some seconds",
}
COMMIT_PATIENCE_SECONDS = 3


class Failed(Exception):
    """The client says that it did not work."""


class Lacks(Exception):
    """The client has no such thing."""


class Agent:
    def __init__(self, command, bootstrap, client_id, log):
        self.log = open(log, "ab")
        self.process = subprocess.Popen(
            [*command, "agent", bootstrap, client_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            # A wrapper and what it wraps are killed together.
            start_new_session=True,
        )
        self.unread = b""

    def ask(self, do, patience=60, **what):
        try:
            self.process.stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise Failed(f"the client has ended ({do})") from None
        while not (line := self.line(do, patience)).startswith(b"{"):
            self.log.write(line + b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        if do != "hello" and "lacks" in answer:
            raise Lacks(LACKS.get(answer["lacks"], answer["lacks"]))
        return answer

    def line(self, do, patience):
        until = time.monotonic() + patience
        while b"\n" not in self.unread:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise Failed(f"no answer to {do} in {patience} s")
            data = os.read(self.process.stdout.fileno(), 1 << 20)
            if not data:
                raise Failed(f"the client ended during {do}")
            self.unread += data
        line, self.unread = self.unread.split(b"\n", 1)
        return line

    def kill(self):
        # Once it is waited for, its number may be another's.
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()

    def end(self):
        """Its input ends; so does it."""
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        self.kill()


# ---- the agents that are written in Python: a class with a method for each request


def serve(agent):
    """Answers requests until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            answer = getattr(agent, do)(**request) or {}
        except Lacks as lacks:
            answer = {"lacks": str(lacks)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the scenario decides
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(answer), flush=True)
    if closing := getattr(agent, "end", None):
        closing()


def to_record(partition, offset, timestamp, key, value, headers):
    headers = [[name, encode(data)] for name, data in headers or []]
    return {"p": partition, "o": offset, "t": timestamp, "k": encode(key), "v": encode(value), "h": headers}


def encode(data):
    return None if data is None else common.text(data)


def decode(text):
    return None if text is None else common.bytes_of(text)


def parts(record):
    """Key, value and headers of a record, as bytes."""
    return decode(record["k"]), decode(record["v"]), [(name, decode(value)) for name, value in record["h"]]
