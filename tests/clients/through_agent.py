#!/usr/bin/env python3
"""Writes and reads the files that common.py describes through a client's agent, for clients that have only that.

through_agent.py MODE BOOTSTRAP ZONE FOLDER [STOP] -- NAME COMMAND...
"""

import os
import sys
import time

import agent
import common

SPLIT = sys.argv.index("--")
NAME, COMMAND = sys.argv[SPLIT + 1], sys.argv[SPLIT + 2 :]
sys.argv = sys.argv[:SPLIT]


def start(bootstrap, client_id, topic=None):
    """The agent, and what it lacks; the topic is made."""
    a = agent.Agent(COMMAND, bootstrap, client_id, os.devnull)
    if topic:
        a.ask("create", topic=topic, partitions=common.PARTITIONS, configs={})
        time.sleep(0.5)
    return a, a.ask("hello")["lacks"]


def send(a, topic, codec, records):
    asked = []
    for key, value, headers in records:
        pairs = [[name, agent.encode(data)] for name, data in headers]
        asked.append({"p": None, "t": None, "k": agent.encode(key), "v": agent.encode(value), "h": pairs})
    lines = []
    for place, record in zip(a.ask("send", topic=topic, codec=codec, records=asked)["sent"], records, strict=True):
        if isinstance(place, str):
            raise AssertionError(f"{topic}: {place}")
        lines.append(common.line(*place, "*", *record))
    return lines


def produce(bootstrap, client_id, topic, codec):
    a, lacks = start(bootstrap, client_id, topic)
    records = list(common.records(topic))
    if "null-header" in lacks:
        records = [(key, value, [h for h in headers if h[1] is not None]) for key, value, headers in records]
    lines = send(a, topic, codec, records)
    a.end()
    return lines


READER = []


def verify(bootstrap, client_id, topic, expected):
    # One process reads all of them, one after the other.
    if not READER:
        READER.extend(start(bootstrap, client_id))
    a, lacks = READER
    a.ask("open", topic=topic, group=f"{client_id.replace(',zone=', '-')}-{topic}", reset="earliest")
    got, limit = [], common.deadline()
    while len(got) < len(expected):
        common.before(limit, f"{topic}: {len(got)} records read")
        answer = a.ask("poll", ms=300)
        got += [common.line(r["p"], r["o"], r["t"], *agent.parts(r)) for r in answer["records"]]
    a.ask("close")
    if "empty" in lacks:
        wanted = {common.place(a_line): a_line for a_line in expected}
        got = [distinguished(a_line, wanted.get(common.place(a_line), "")) for a_line in got]
    return got


def distinguished(got, expected):
    """The expected line, where the client gave the same but for null instead of empty."""

    def blurred(a_line):
        fields = a_line.split("\t")
        headers = ",".join(h + "-" if h.endswith("=") and h.count("=") == 1 else h for h in fields[5].split(","))
        return [*fields[:2], *[field or "-" for field in fields[3:5]], headers]

    return expected if expected and blurred(got) == blurred(expected) else got


def load(bootstrap, client_id, topic, goes_on):
    a, _ = start(bootstrap, client_id, topic)
    lines, number = [], 0
    while goes_on():
        records = [(b"%d" % (i % 50), b"value %d" % i, []) for i in range(number, number + 10)]
        lines += send(a, topic, "none", records)
        number += len(records)
    a.end()
    return lines


common.main(NAME, produce, verify, load)
