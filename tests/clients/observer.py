"""What the scenarios see and do from outside, by clients other than the one under test."""

import contextlib
import os
import threading
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from kafka import KafkaAdminClient

PATIENCE_SECONDS = 60
COMMITTED_TRIES = 5


def eventually(what, check, seconds=PATIENCE_SECONDS):
    """Waits until the check gives something."""
    until = time.monotonic() + seconds
    while not (result := check()):
        if time.monotonic() > until:
            raise AssertionError(f"not in {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.1)
    return result


class Cluster:
    """The brokers, and the program that kills and restarts them, by its named pipes: commands and answers."""

    def __init__(self, bootstrap):
        self.bootstrap = bootstrap
        self.addresses = bootstrap.split(",")
        self.pipes = os.environ["STRANDLINE_CLUSTER_PIPES"]

    def tell(self, what, address):
        """`kill` or `restart` of the broker with this address; comes back when it is ready again."""
        with open(self.pipes + ".in", "w") as commands, open(self.pipes + ".out") as answers:
            commands.write(f"{what} {self.addresses.index(address) + 1}\n")
            commands.flush()
            answer = answers.readline().strip()
        if answer != "ok":
            raise AssertionError(f"{what} {address}: {answer or 'no answer'}")


class Observer:
    def __init__(self, bootstrap):
        self.bootstrap = bootstrap
        self.admin = AdminClient({"bootstrap.servers": bootstrap})

    def create(self, topic, partitions):
        self.admin.create_topics([NewTopic(topic, num_partitions=partitions)])[topic].result(30)
        # A broker that has not heard of it yet would send a client away.
        eventually(f"{topic} is there", lambda: topic in self.admin.list_topics(timeout=10).topics)
        time.sleep(0.3)

    def group(self, name):
        """Its coordinator's address, its state, and how many members it has."""

        def look():
            with contextlib.suppress(KafkaException):
                return self.admin.describe_consumer_groups([name], request_timeout=10)[name].result(15)

        found = eventually(f"{name} is described", look)
        return f"{found.coordinator.host}:{found.coordinator.port}", found.state.name, len(found.members)

    def shares(self, name):
        """The group's state, and what each member has, as the coordinator says."""
        with contextlib.suppress(KafkaException):
            found = self.admin.describe_consumer_groups([name], request_timeout=10)[name].result(15)
            has = {m.member_id[-6:]: [tp.partition for tp in m.assignment.topic_partitions] for m in found.members}
            return f"{found.state.name}, {has}"
        return "no answer"

    def committed(self, group, topic, partitions):
        """What two other clients say is committed, -1 where nothing is; they have to agree."""
        for _ in range(COMMITTED_TRIES):
            of_librdkafka = self.committed_by_librdkafka(group, topic, partitions)
            of_kafka_python = self.committed_by_kafka_python(group, topic, partitions)
            if of_librdkafka == of_kafka_python:
                return of_librdkafka
            # Somebody may have committed between the two.
        raise AssertionError(f"committed: librdkafka sees {of_librdkafka}, kafka-python {of_kafka_python}")

    def committed_by_librdkafka(self, group, topic, partitions):
        wanted = [TopicPartition(topic, p) for p in range(partitions)]
        # Its admin client's ListConsumerGroupOffsets crashes when a broker is no longer the coordinator (2.16.1).
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group})
        try:
            return {tp.partition: max(tp.offset, -1) for tp in consumer.committed(wanted, timeout=30)}
        finally:
            consumer.close()

    def committed_by_kafka_python(self, group, topic, partitions):
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap.split(","))
        try:
            listed = admin.list_group_offsets(group)[group]
        finally:
            admin.close()
        of_kafka_python = dict.fromkeys(range(partitions), -1)
        return of_kafka_python | {tp.partition: at.offset for tp, at in listed.items() if tp.topic == topic}

    def ends(self, topic, partitions):
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "nobody"})
        try:
            return {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=20)[1] for p in range(partitions)}
        finally:
            consumer.close()

    def produce(self, topic, values, partition=None):
        """Produces some texts and waits until they are acknowledged."""
        with Flow(self.bootstrap, topic, per_second=None) as flow:
            for value in values:
                flow.send(value, partition)
        return flow.sent


class Flow:
    """A steady flow of numbered records into a topic, each acknowledged or the flow has failed."""

    def __init__(self, bootstrap, topic, per_second=100):
        settings = {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5}
        # No record is given up while a broker is away.
        self.producer = Producer({**settings, "message.timeout.ms": 120_000})
        self.topic, self.per_second = topic, per_second
        self.sent, self.failures = {}, []
        self.next, self.stopped, self.thread = 0, threading.Event(), None

    def __enter__(self):
        if self.per_second:
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def run(self):
        while not self.stopped.wait(0.05):
            for _ in range(max(1, self.per_second // 20)):
                self.send(str(self.next))
                self.next += 1
            self.producer.poll(0)

    def send(self, value, partition=None):
        def acknowledged(error, message):
            if error:
                self.failures.append(str(error))
            else:
                self.sent[value] = (message.partition(), message.offset())

        where = {} if partition is None else {"partition": partition}
        self.producer.produce(self.topic, value.encode(), f"key {value}".encode(), on_delivery=acknowledged, **where)

    def stop(self):
        self.stopped.set()
        if self.thread:
            self.thread.join()
        left = self.producer.flush(120)
        if left or self.failures:
            raise AssertionError(f"the flow lost records: {left} unanswered, {self.failures[:3]}")
