#!/usr/bin/env python3
"""What Apache Kafka builds on its clients: the tools, Streams, a Connect worker, MirrorMaker 2.

    platform_java.py THING BOOTSTRAP FOLDER      one of THINGS, see below; FOLDER has jars and classes
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter

import common
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from observer import Flow, Observer, eventually
from scenarios import equal

WHAT, BOOTSTRAP, FOLDER = sys.argv[1:4]
OBSERVER = Observer(BOOTSTRAP)
JVM = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
JVM += ["-cp", f"{FOLDER}/classes:{FOLDER}/jars/*"]
TOPICS = "org.apache.kafka.tools.TopicCommand"
CONFIGS = "kafka.admin.ConfigCommand"
GROUPS = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
CONSOLE_CONSUMER = "org.apache.kafka.tools.consumer.ConsoleConsumer"
OFFSETS = "org.apache.kafka.tools.GetOffsetShell"


def tool(name, *args, fails=False):
    """Runs one of Kafka's command-line tools; gives what it printed."""
    command = [*JVM, name, "--bootstrap-server", BOOTSTRAP, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    if (done.returncode != 0) != fails:
        raise AssertionError(f"{name.split('.')[-1]} {' '.join(args)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout + (done.stderr if fails else "")


def holds(what, text, *wanted):
    for part in wanted:
        if not re.search(part, text):
            raise AssertionError(f"{what}: no {part!r} in {text[:400]!r}")


# ---- the tools


def topics():
    tool(TOPICS, "--create", "--topic", "tools-made", "--partitions", "3", "--config", "retention.ms=3600000")
    holds("the list", tool(TOPICS, "--list"), r"(?m)^tools-made$")
    described = tool(TOPICS, "--describe", "--topic", "tools-made")
    holds("the description", described, "PartitionCount: 3", "retention.ms=3600000", r"Partition: 2\s+Leader: \d+")
    tool(TOPICS, "--alter", "--topic", "tools-made", "--partitions", "5")
    eventually("5 partitions", lambda: "PartitionCount: 5" in tool(TOPICS, "--describe", "--topic", "tools-made"), 20)
    holds("a second one", tool(TOPICS, "--create", "--topic", "tools-made", fails=True), "already exists")
    tool(TOPICS, "--delete", "--topic", "tools-made")
    eventually("it is gone", lambda: "tools-made" not in tool(TOPICS, "--list").split(), 20)


def configs():
    OBSERVER.create("tools-configs", 1)
    entity = ["--entity-type", "topics", "--entity-name", "tools-configs"]
    tool(CONFIGS, "--alter", *entity, "--add-config", "retention.ms=7200000,max.message.bytes=100000")
    described = lambda: tool(CONFIGS, "--describe", *entity)  # noqa: E731
    eventually("the configs", lambda: "retention.ms=7200000" in described() and "max.message.bytes=100000" in described(), 20)
    tool(CONFIGS, "--alter", *entity, "--delete-config", "retention.ms")
    eventually("one is deleted", lambda: "retention.ms=7200000" not in described(), 20)
    holds("what is refused", tool(CONFIGS, "--alter", *entity, "--add-config", "retention.ms=often", fails=True), "(?i)invalid")


def groups():
    """A console consumer reads in a group; its group is listed, described, reset by the tool and read again, deleted."""
    OBSERVER.create("tools-groups", 2)
    values = [f"value {i}" for i in range(40)]
    OBSERVER.produce("tools-groups", values[:20], 0)
    OBSERVER.produce("tools-groups", values[20:], 1)
    for protocol in ["classic", "consumer"]:
        group = f"tools-{protocol}"
        read = ["--topic", "tools-groups", "--group", group, "--timeout-ms", "6000"]
        read += ["--consumer-property", f"group.protocol={protocol}", "--consumer-property", "auto.offset.reset=earliest"]
        equal(f"{protocol}: read", sorted(tool(CONSOLE_CONSUMER, *read).splitlines()), sorted(values))
        holds("the list", tool(GROUPS, "--list"), rf"(?m)^{group}\s*$")
        described = tool(GROUPS, "--describe", "--group", group)
        holds("the description", described, r"tools-groups\s+0\s+(\S+\s+)?20\s+20\s+0", r"tools-groups\s+1\s+(\S+\s+)?20\s+20\s+0")
        holds("the state", tool(GROUPS, "--describe", "--group", group, "--state"), "Empty")
        reset = ["--reset-offsets", "--group", group, "--topic", "tools-groups", "--to-offset", "15", "--execute"]
        holds("the reset", tool(GROUPS, *reset), r"tools-groups\s+0\s+15")
        again = sorted(values[15:20] + values[35:])
        equal(f"{protocol}: read again", sorted(tool(CONSOLE_CONSUMER, *read).splitlines()), again)
        holds("the deletion", tool(GROUPS, "--delete", "--group", group), "(?i)successful")
        eventually("it is gone", lambda: group not in tool(GROUPS, "--list").split(), 20)  # noqa: B023


def offsets():
    OBSERVER.create("tools-offsets", 2)
    OBSERVER.produce("tools-offsets", ["one", "two", "three"], 1)
    holds("the offsets", tool(OFFSETS, "--topic", "tools-offsets"), "tools-offsets:0:0", "tools-offsets:1:3")


# ---- Streams


class Program:
    """A Java program in the background; its log is shown when something fails."""

    def __init__(self, main, *args):
        self.log = tempfile.NamedTemporaryFile(prefix="strandline-java-", suffix=".log")
        self.process = subprocess.Popen([*JVM, main, *args], stdout=self.log, stderr=self.log)

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
            return
        self.process.kill()
        self.process.wait()

    def tail(self):
        with open(self.log.name, errors="replace") as log:
            print("".join(log.readlines()[-25:]))


@contextlib.contextmanager
def programs():
    """Whatever is started here ends here."""
    running = []
    try:
        yield running
    except BaseException:
        for program in running:
            program.tail()
        raise
    finally:
        for program in running:
            program.end(signal.SIGKILL)


def records(topic, partitions):
    """Every record of a topic that is committed, if it is of a transaction: its key and value."""
    settings = {"isolation.level": "read_committed", "enable.auto.commit": False, "enable.partition.eof": True}
    consumer = Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": "nobody", **settings})
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(partitions)])
    found, at_end, until = [], set(), time.monotonic() + 30
    while len(at_end) < partitions and time.monotonic() < until:
        message = consumer.poll(0.5)
        if message and not message.error():
            found.append((message.key(), message.value()))
        elif message and message.error().code() == KafkaError._PARTITION_EOF:
            at_end.add(message.partition())
    consumer.close()
    return found


def last_values(topic, partitions):
    """The last value of each key."""
    return {key.decode(): int.from_bytes(value, "big") for key, value in records(topic, partitions)}


def compact(topic, partitions):
    """Has a topic compacted as soon as anything is dirty, and waits until no key is there twice."""
    found = lambda: [key for key, _ in records(topic, partitions)]  # noqa: E731
    before = found()
    if len(set(before)) == len(before):
        raise AssertionError(f"{topic} has nothing to compact: {len(before)} records")
    eager = "min.cleanable.dirty.ratio=0.01,segment.ms=1000"
    tool(CONFIGS, "--alter", "--entity-type", "topics", "--entity-name", topic, "--add-config", eager)

    def is_compacted():
        now = found()
        return len(set(now)) == len(now)

    eventually(lambda: f"{topic} is compacted: {len(found())} records of {len(set(found()))} keys", is_compacted, 180)
    equal(f"{topic}: keys", set(found()), set(before))


WORDS = "the quick brown fox jumps over the lazy dog while the cat sleeps".split()


class Words:
    """Lines that were sent to count, and what the counts should be."""

    def __init__(self, name):
        self.name, self.lines, self.sent = name, 0, Counter()
        OBSERVER.create(f"{name}-lines", 3)
        OBSERVER.create(f"{name}-counts", 3)

    def produce(self, lines):
        values = [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(4)) + f" line-{self.lines + i}" for i in range(lines)]
        self.lines += lines
        OBSERVER.produce(f"{self.name}-lines", values)
        self.sent.update(word for value in values for word in value.split())

    def counts(self):
        return last_values(f"{self.name}-counts", 3)

    def missing(self, exactly):
        have = self.counts()
        return {w: (have.get(w), n) for w, n in self.sent.items() if have.get(w, 0) < n or (exactly and have[w] != n)}

    def counted(self, what, exactly=True):
        eventually(lambda: f"{what}: {list(self.missing(exactly).items())[:3]}", lambda: not self.missing(exactly), 60)


def word_count():
    """Two workers count words, one is killed and its part goes on from changelog and commits: nothing is missing.

    At least once: what was counted after the last commit of the one that was killed may be counted twice.
    """
    words = Words("streams")
    with programs() as running, tempfile.TemporaryDirectory() as folder:
        start = lambda n: running.append(Program("WordCount", BOOTSTRAP, f"{folder}/{n}", "streams"))  # noqa: E731
        start(1)
        words.produce(200)
        words.counted("one worker counts")
        start(2)
        eventually("two members", lambda: OBSERVER.group("streams-word-count")[2] >= 2, 40)
        words.produce(200)
        words.counted("two workers count")
        running.pop(0).end(signal.SIGKILL)
        words.produce(200)
        words.counted("one is killed", exactly=False)
        equal("words that were never sent", set(words.counts()) - set(words.sent), set())


def table_from_a_compacted_changelog():
    """A worker without any state of its own goes on exactly where the one before ended, from a compacted changelog."""
    words = Words("tables")
    with programs() as running, tempfile.TemporaryDirectory() as folder:
        start = lambda n: running.append(Program("WordCount", BOOTSTRAP, f"{folder}/{n}", "tables"))  # noqa: E731
        start(1)
        for _ in range(4):
            words.produce(100)
            words.counted("the first worker counts")
        changelog = "tables-word-count-KSTREAM-AGGREGATE-STATE-STORE-0000000003-changelog"
        holds("the changelog", tool(TOPICS, "--describe", "--topic", changelog), "cleanup.policy=compact")
        compact(changelog, 3)
        running.pop(0).end()
        words.produce(100)
        start(2)
        words.counted("a worker without state goes on")
        equal("words that were never sent", set(words.counts()) - set(words.sent), set())


def word_count_exactly_once():
    """The same with transactions, killed twice in the middle of the work: each word is counted exactly once, and no
    count is seen twice."""
    words = Words("exactly")
    with programs() as running, tempfile.TemporaryDirectory() as folder:
        arguments = lambda n: [BOOTSTRAP, f"{folder}/{n}", "exactly", "exactly_once_v2"]  # noqa: E731
        running.append(Program("WordCount", *arguments(1)))
        words.produce(200)
        words.counted("one worker counts")
        running.append(Program("WordCount", *arguments(2)))
        eventually("two members", lambda: OBSERVER.group("exactly-word-count")[2] >= 2, 40)
        for n in (3, 4):
            # For a second or so, since a transaction is committed every half.
            for _ in range(20):
                words.produce(20)
            running.pop(0).end(signal.SIGKILL)
            running.append(Program("WordCount", *arguments(n)))
            words.produce(200)
        words.counted("two are killed")
    equal("words that were never sent", set(words.counts()) - set(words.sent), set())
    before = {}
    for key, value in records("exactly-counts", 3):
        if value <= before.get(key, b""):
            raise AssertionError(f"{key} is counted as {value.hex()} after {before[key].hex()}")
        before[key] = value


# ---- Connect


class Worker(Program):
    def __init__(self, folder, name, cluster="connect", **more):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        settings = {
            "bootstrap.servers": BOOTSTRAP,
            "group.id": f"{cluster}-workers",
            "key.converter": "org.apache.kafka.connect.storage.StringConverter",
            "value.converter": "org.apache.kafka.connect.storage.StringConverter",
            "offset.storage.topic": f"{cluster}-offsets",
            "offset.storage.replication.factor": -1,
            "offset.storage.partitions": 3,
            "config.storage.topic": f"{cluster}-configs",
            "config.storage.replication.factor": -1,
            "status.storage.topic": f"{cluster}-status",
            "status.storage.replication.factor": -1,
            "status.storage.partitions": 2,
            "offset.flush.interval.ms": 1000,
            "listeners": f"http://127.0.0.1:{self.port}",
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 1000,
            "scheduled.rebalance.max.delay.ms": 1000,
            **more,
        }
        path = f"{folder}/{name}.properties"
        with open(path, "w") as out:
            out.writelines(f"{key}={value}\n" for key, value in settings.items())
        super().__init__("org.apache.kafka.connect.cli.ConnectDistributed", path)

    def ask(self, method, path, body=None):
        url = f"http://127.0.0.1:{self.port}{path}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or b"null")

    def tries(self, method, path, body=None):
        """None while it is not ready, or is rebalancing."""
        with contextlib.suppress(urllib.error.URLError, TimeoutError, ConnectionError):
            return self.ask(method, path, body)


def running_tasks(worker, connector):
    status = worker.tries("GET", f"/connectors/{connector}/status")
    return status and [task["state"] for task in status["tasks"]] == ["RUNNING"]


def file_connectors():
    """A file goes into a topic and out into another file; the worker's own topics are compacted and it is killed, and the
    next one goes on."""
    with programs() as running, tempfile.TemporaryDirectory() as folder:
        source, sink = f"{folder}/in.txt", f"{folder}/out.txt"
        lines = [f"line {i}" for i in range(300)]

        def write(some):
            with open(source, "a") as out:
                out.writelines(line + "\n" for line in some)

        def missing():
            if not os.path.exists(sink):
                return len(lines)
            with open(sink) as file:
                return len(set(lines) - set(file.read().splitlines()))

        write(lines[:100])
        OBSERVER.create("connect-lines", 3)
        worker = Worker(folder, "first")
        running.append(worker)
        eventually("the worker answers", lambda: worker.tries("GET", "/connectors") is not None, 90)
        connectors = {
            "file-source": {"connector.class": "FileStreamSource", "file": source, "topic": "connect-lines"},
            "file-sink": {"connector.class": "FileStreamSink", "file": sink, "topics": "connect-lines"},
        }
        for name, config in connectors.items():
            config = {**config, "tasks.max": "1"}
            eventually(f"{name} is made", lambda: worker.tries("PUT", f"/connectors/{name}/config", config), 40)  # noqa: B023
        for name in connectors:
            eventually(f"{name} runs", lambda: running_tasks(worker, name), 40)  # noqa: B023
        eventually(lambda: f"{missing()} lines are missing", lambda: missing() <= 200, 40)
        write(lines[100:200])
        eventually(lambda: f"{missing()} lines are missing", lambda: missing() <= 100, 40)
        # Its offsets are flushed every second.
        time.sleep(2)
        write(lines[200:210])
        eventually(lambda: f"{missing()} lines are missing", lambda: missing() <= 90, 40)
        time.sleep(2)
        compact("connect-offsets", 3)
        compact("connect-status", 2)
        worker.end(signal.SIGKILL)
        write(lines[210:])
        running.append(Worker(folder, "second"))
        eventually(lambda: f"{missing()} lines are missing after the kill", lambda: missing() == 0, 90)
        with open(sink) as file:
            twice = [line for line, count in Counter(file.read().splitlines()).items() if count > 1]
        equal("lines that came twice though they were committed", twice, [])


def source_exactly_once():
    """A file goes into a topic in transactions, which the offsets are part of; its worker is killed in the middle, twice:
    each line comes exactly once."""
    topic, lines = "connect-exactly", []
    connector = {"connector.class": "FileStreamSource", "topic": topic, "tasks.max": "1"}
    connector |= {"exactly.once.support": "required", "transaction.boundary": "poll"}
    with programs() as running, tempfile.TemporaryDirectory() as folder:
        source = f"{folder}/in.txt"

        def write():
            with open(source, "a") as out:
                for _ in range(50):
                    lines.append(f"line {len(lines)}")
                    out.write(lines[-1] + "\n")

        def come():
            return [value.decode() for _, value in records(topic, 3)]

        OBSERVER.create(topic, 3)
        for n in range(3):
            worker = Worker(folder, f"exactly-{n}", "exactly", **{"exactly.once.source.support": "enabled"})
            running.append(worker)
            eventually("the worker answers", lambda: worker.tries("GET", "/connectors") is not None, 90)  # noqa: B023
            if n == 0:
                put = lambda: worker.tries("PUT", "/connectors/exactly/config", {**connector, "file": source})  # noqa: B023, E731
                eventually("the connector is made", put, 40)
            write()
            eventually(lambda: f"{lines[-1]} comes", lambda: lines[-1] in come(), 90)
            for _ in range(20):
                time.sleep(0.05)
                write()
            if n < 2:
                worker.end(signal.SIGKILL)
        eventually(lambda: f"{len(set(lines) - set(come()))} lines are missing", lambda: not set(lines) - set(come()), 90)
        equal("lines that came, sorted", sorted(come()), sorted(lines))


def mirror_maker():
    """MirrorMaker 2 copies a topic, with the configs that it has and the timestamps of its records."""
    topic, mirrored = "mirror-source", "there.mirror-source"
    configs = {"retention.ms": "864000000", "segment.ms": "3600000", "max.message.bytes": "500000"}
    create = [part for key, value in configs.items() for part in ("--config", f"{key}={value}")]
    tool(TOPICS, "--create", "--topic", topic, "--partitions", "2", *create)
    # A week ago, within the retention that the topic has and beyond the one that a topic has by default.
    times = [int(time.time() * 1000) - 7 * 86_400_000 - 3_600_000 + i * 1000 for i in range(200)]
    producer = Producer({"bootstrap.servers": BOOTSTRAP})
    for n, at in enumerate(times):
        producer.produce(topic, f"value {n}", f"key {n}", partition=n % 2, timestamp=at)
    equal("records that were not produced", producer.flush(30), 0)
    bytes_as_they_are = "org.apache.kafka.connect.converters.ByteArrayConverter"
    connector = {
        "connector.class": "org.apache.kafka.connect.mirror.MirrorSourceConnector",
        "tasks.max": "1",
        "topics": topic,
        "source.cluster.alias": "there",
        "target.cluster.alias": "here",
        "source.cluster.bootstrap.servers": BOOTSTRAP,
        "target.cluster.bootstrap.servers": BOOTSTRAP,
        "key.converter": bytes_as_they_are,
        "value.converter": bytes_as_they_are,
        "replication.factor": "-1",
        "offset-syncs.topic.replication.factor": "-1",
        "refresh.topics.interval.seconds": "2",
        "sync.topic.configs.interval.seconds": "2",
        "sync.topic.acls.enabled": "false",
    }
    with programs() as running, tempfile.TemporaryDirectory() as folder:
        worker = Worker(folder, "mirror")
        running.append(worker)
        eventually("the worker answers", lambda: worker.tries("GET", "/connectors") is not None, 90)
        eventually("the mirror is made", lambda: worker.tries("PUT", "/connectors/mirror/config", connector), 40)
        eventually("the mirror runs", lambda: running_tasks(worker, "mirror"), 60)
        eventually("all is mirrored", lambda: sum(ends_of(mirrored, 2)) == len(times), 60)
        tool(CONFIGS, "--entity-type", "topics", "--entity-name", topic, "--alter", "--add-config", "retention.ms=950400000")
        configs["retention.ms"] = "950400000"
        wanted = [f"{key}={value}" for key, value in configs.items()]
        described = lambda: tool(TOPICS, "--describe", "--topic", mirrored)  # noqa: E731
        eventually("the mirror has the configs", lambda: all(config in described() for config in wanted), 40)
    seen = {}
    consumer = Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": "nobody", "enable.auto.commit": False})
    consumer.assign([TopicPartition(mirrored, p, OFFSET_BEGINNING) for p in (0, 1)])
    while len(seen) < len(times) and (message := consumer.poll(20)):
        seen[message.value().decode()] = (message.key().decode(), message.partition(), message.timestamp()[1])
    consumer.close()
    equal("what is mirrored", seen, {f"value {n}": (f"key {n}", n % 2, at) for n, at in enumerate(times)})


def ends_of(topic, partitions):
    """The partitions' ends; none while there is no such topic."""
    with contextlib.suppress(KafkaException):
        return OBSERVER.ends(topic, partitions).values()
    return []


THINGS = {
    "tools": {"kafka-topics": topics, "kafka-configs": configs, "kafka-consumer-groups": groups, "kafka-get-offsets": offsets},
    "streams": {
        "a Streams word count": word_count,
        "a Streams table from a compacted changelog": table_from_a_compacted_changelog,
    },
    "streams-exactly-once": {"a word count, killed twice": word_count_exactly_once},
    "connect-exactly-once": {"a source connector, killed twice": source_exactly_once},
    "connect": {"Connect's file connectors": file_connectors, "MirrorMaker 2": mirror_maker},
}

for thing, action in THINGS[WHAT].items():
    common.attempt(f"{WHAT}: {thing}", action)
