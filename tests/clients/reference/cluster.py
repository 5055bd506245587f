#!/usr/bin/env python3
"""A real Apache Kafka, to hold Strandline against: a controller and some brokers, from the jars on Maven Central.

    cluster.py [BROKERS] [--NAME VALUE …]      NAME is a setting of the brokers, such as group.initial.rebalance.delay.ms

It speaks the language of strandline-test-cluster: a line of JSON when everything is ready, then commands from standard
input, each answered with a line. `restart N` stops broker N and starts it again, `kill N` kills it with -9 and starts it
again. It ends, and everything with it, when its input ends.

The controller is a process of its own, so that killing a broker kills nothing else. Jars are kept in
${XDG_CACHE_HOME:-~/.cache}/strandline-clients/reference.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "strandline-clients/reference")
CONTROLLER = 100
READY_SECONDS = 90
JAVA = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", CACHE + "/jars/*"]


def defaults(brokers):
    """What differs from Kafka's own defaults: quick to notice a dead broker, copies on every broker, short sessions."""
    copies = min(brokers, 3)
    return {
        "num.partitions": 3,
        "default.replication.factor": copies,
        "offsets.topic.replication.factor": copies,
        "offsets.topic.num.partitions": 10,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 10,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": 1,
        "min.insync.replicas": 1,
        "group.initial.rebalance.delay.ms": 500,
        "group.consumer.session.timeout.ms": 6000,
        "group.consumer.min.session.timeout.ms": 1000,
        "group.consumer.heartbeat.interval.ms": 1000,
        "group.consumer.min.heartbeat.interval.ms": 500,
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        "log.flush.interval.messages": 9223372036854775807,
    }


def install():
    """The jars, once for each version of the list of them."""
    wanted, have = os.path.join(HERE, "pom.xml"), os.path.join(CACHE, "pom.xml")
    with contextlib.suppress(OSError), open(wanted) as a, open(have) as b:
        if a.read() == b.read():
            return
    shutil.rmtree(CACHE, ignore_errors=True)
    os.makedirs(CACHE)
    copy = ["mvn", "-q", "-B", "-f", wanted, "dependency:copy-dependencies", "-DoutputDirectory=" + CACHE + "/jars"]
    subprocess.run(copy, check=True, stdout=sys.stderr)
    shutil.copy(wanted, have)


def free_port():
    """Not one that outgoing connections get: one of them might have it when a broker comes back."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


class Node:
    """A process: the controller or a broker."""

    def __init__(self, folder, number, port, heap, settings):
        self.number, self.port, self.heap = number, port, heap
        self.properties = os.path.join(folder, f"{number}.properties")
        self.log = os.path.join(folder, f"{number}.log")
        self.process = None
        settings = {"node.id": number, "log.dirs": os.path.join(folder, f"data-{number}"), **settings}
        with open(self.properties, "w") as out:
            out.writelines(f"{name}={value}\n" for name, value in settings.items())

    def format(self, cluster_id):
        tool = [*JAVA, "kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", self.properties]
        subprocess.run(tool, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self):
        logging = "-Dlog4j2.configurationFile=" + os.path.join(HERE, "log4j2.properties")
        command = [*JAVA[:-2], f"-Xmx{self.heap}", logging, *JAVA[-2:], "kafka.Kafka", self.properties]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_ready(self):
        """It listens only after the controller has let it in and it has caught up."""
        until = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self.process.poll() is not None or time.monotonic() > until:
                with open(self.log) as log:
                    sys.stderr.write("".join(log.readlines()[-30:]))
                raise SystemExit(f"node {self.number} did not start")
            time.sleep(0.1)

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
            return
        self.process.kill()
        self.process.wait()


def plan(folder, brokers, settings):
    voters = {"controller.quorum.voters": f"{CONTROLLER}@127.0.0.1:{(port := free_port())}"}
    common = {**voters, "controller.listener.names": "CONTROLLER"}
    listens = {"process.roles": "controller", "listeners": f"CONTROLLER://127.0.0.1:{port}"}
    # Topics that are created without a number of partitions or copies get them from the controller.
    yield Node(folder, CONTROLLER, port, "256m", {**common, **settings, **listens})
    for number in range(1, brokers + 1):
        port = free_port()
        listens = {"process.roles": "broker", "listeners": f"PLAINTEXT://127.0.0.1:{port}", "broker.rack": f"zone-{number}"}
        yield Node(folder, number, port, "512m", {**common, **settings, **listens})


def arguments():
    words = sys.argv[1:]
    brokers = int(words.pop(0)) if words and not words[0].startswith("--") else 1
    names = [name.removeprefix("--") for name in words[::2]]
    return brokers, dict(zip(names, words[1::2], strict=True))


def obey(words, brokers):
    match words:
        case ["restart" | "kill" as what, number] if number in brokers:
            node = brokers[number]
            node.end(signal.SIGKILL if what == "kill" else signal.SIGTERM)
            node.start()
            node.wait_ready()
            return "ok"
    return f"{' '.join(words)!r} is no command"


def main():
    # What ends this ends its processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    count, settings = arguments()
    install()
    folder = tempfile.mkdtemp(prefix="strandline-reference-")
    nodes = list(plan(folder, count, {**defaults(count), **settings}))
    brokers = {str(node.number): node for node in nodes[1:]}
    try:
        cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        for node in nodes:
            node.format(cluster_id)
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait_ready()
        addresses = [f"127.0.0.1:{node.port}" for node in nodes[1:]]
        print(json.dumps({"brokers": addresses, "folder": folder}), flush=True)
        for line in sys.stdin:
            if words := line.split():
                print(obey(words, brokers), flush=True)
    finally:
        for node in reversed(nodes):
            if node.process:
                node.end(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
