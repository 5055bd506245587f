"""confluent-kafka, which is librdkafka, with its defaults and with idempotence, and with both group protocols."""

import os
import sys

from confluent_kafka import OFFSET_BEGINNING, TIMESTAMP_CREATE_TIME, Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

import agent
import common

IDEMPOTENT = "--idempotent" in sys.argv
NAME = "librdkafka-idempotent" if IDEMPOTENT else "librdkafka"
NEXT_PROTOCOL = os.environ.get("STRANDLINE_GROUP_PROTOCOL") == "consumer"


def producer(bootstrap, client_id, codec):
    settings = {"bootstrap.servers": bootstrap, "client.id": client_id, "compression.type": codec}
    if IDEMPOTENT:
        settings["enable.idempotence"] = True
    return Producer(settings)


def send_all(client, topic, source, goes_on=lambda: True):
    lines, failures = {}, []

    def delivered(number, key, value, headers):
        def done(error, message):
            if error is not None:
                failures.append(str(error))
                return
            timestamp = message.timestamp()[1]
            lines[number] = common.line(message.partition(), message.offset(), timestamp, key, value, headers)

        return done

    for number, (key, value, headers) in enumerate(source):
        if not goes_on():
            break
        while True:
            try:
                client.produce(topic, value, key, headers=headers, on_delivery=delivered(number, key, value, headers))
                break
            except BufferError:
                client.poll(0.1)
        client.poll(0)
    left = client.flush(150)
    if failures or left:
        raise AssertionError(f"{len(failures)} records failed, {left} were not answered: {failures[:3]}")
    return [lines[number] for number in sorted(lines)]


def produce(bootstrap, client_id, topic, codec):
    return send_all(producer(bootstrap, client_id, codec), topic, common.records(topic))


def verify(bootstrap, client_id, topic, expected):
    ends = common.ends_of(expected)
    # A group's name is demanded by the client; nothing is committed and no group is joined.
    client = Consumer({
        "bootstrap.servers": bootstrap,
        "client.id": client_id,
        "group.id": "none",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
    })
    client.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(common.PARTITIONS)])
    got, at_end, limit = [], set(), common.deadline()
    while len(at_end) < common.PARTITIONS:
        common.before(limit, f"{topic}: {len(got)} records read")
        message = client.poll(1)
        if message is None:
            continue
        if message.error():
            if message.error().name() == "_PARTITION_EOF" and message.offset() >= ends.get(message.partition(), 0):
                at_end.add(message.partition())
            elif message.error().name() != "_PARTITION_EOF":
                raise AssertionError(str(message.error()))
            continue
        got.append(
            common.line(
                message.partition(),
                message.offset(),
                message.timestamp()[1],
                message.key(),
                message.value(),
                message.headers(),
            )
        )
    client.close()
    return got


def load(bootstrap, client_id, topic, goes_on):
    def endless():
        number = 0
        while True:
            yield b"%d" % (number % 50), b"value %d" % number, None
            number += 1
            if number % 20 == 0:
                client.poll(0.01)

    client = producer(bootstrap, client_id, "none")
    return send_all(client, topic, endless(), goes_on)


class Agent:
    def __init__(self, bootstrap, client_id):
        self.common = {"bootstrap.servers": bootstrap, "client.id": client_id}
        self.producers, self.consumer, self.topic, self.events = {}, None, None, []
        self.transactional = None
        self.admin = AdminClient(self.common)

    def hello(self):
        return {"lacks": []}

    def send(self, topic, codec, records):
        if not self.transactional and codec not in self.producers:
            # The broker is to refuse what is too large, not the client.
            settings = {"compression.type": codec, "enable.idempotence": True, "message.max.bytes": 5_000_000}
            self.producers[codec] = Producer({**self.common, **settings})
        sent, producer = [None] * len(records), self.transactional or self.producers[codec]
        for number, r in enumerate(records):

            def delivered(error, message, number=number):
                sent[number] = error.name() if error else [message.partition(), message.offset()]

            where = {} if r["p"] is None else {"partition": r["p"]}
            when = {} if r["t"] is None else {"timestamp": r["t"]}
            headers = [(name, agent.decode(value)) for name, value in r["h"]]
            value, key = agent.decode(r["v"]), agent.decode(r["k"])
            producer.produce(topic, value, key, headers=headers, on_delivery=delivered, **where, **when)
        producer.flush(60)
        return {"sent": sent}

    def open(self, topic, group, reset, isolation=None):
        settings = {"group.id": group, "enable.auto.commit": False, "auto.offset.reset": RESETS[reset]}
        if isolation:
            settings["isolation.level"] = isolation
        if NEXT_PROTOCOL:
            settings |= {"group.protocol": "consumer"}
        else:
            settings |= {"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000}
        if what := os.environ.get("STRANDLINE_CLIENT_DEBUG"):
            settings["debug"] = what
        self.topic, self.events = topic, []
        self.consumer = Consumer({**self.common, **settings, "fetch.wait.max.ms": 100})
        given, taken = self.noting("assigned"), self.noting("revoked")
        self.consumer.subscribe([topic], on_assign=given, on_revoke=taken, on_lost=taken)

    def noting(self, what):
        return lambda _, partitions: self.events.append([what, [tp.partition for tp in partitions]])

    def poll(self, ms):
        records, errors = [], []
        for m in self.consumer.consume(500, ms / 1000):
            if m.error():
                # A broker that is away is not the application's business.
                if m.error().code() not in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                    errors.append(f"{m.error().name()}: {m.error().str()}")
                continue
            stamp = m.timestamp()[1] if m.timestamp()[0] == TIMESTAMP_CREATE_TIME else None
            records.append(agent.to_record(m.partition(), m.offset(), stamp, m.key(), m.value(), m.headers()))
        events, self.events = self.events, []
        return {"records": records, "events": events, "errors": errors}

    def commit(self, offsets):
        wanted = [TopicPartition(self.topic, int(p), o) for p, o in offsets.items()]
        for tp in self.consumer.commit(offsets=wanted, asynchronous=False):
            if tp.error:
                raise agent.Failed(str(tp.error))

    def committed(self, partitions):
        answer = self.consumer.committed([TopicPartition(self.topic, p) for p in partitions], timeout=20)
        return {"offsets": {tp.partition: max(tp.offset, -1) for tp in answer}}

    def pause(self, partition):
        self.consumer.pause([TopicPartition(self.topic, partition)])

    def resume(self, partition):
        self.consumer.resume([TopicPartition(self.topic, partition)])

    def seek(self, partition, offset):
        self.consumer.seek(TopicPartition(self.topic, partition, offset))

    def times(self, timestamp):
        asked = [TopicPartition(self.topic, tp.partition, timestamp) for tp in self.consumer.assignment()]
        found = self.consumer.offsets_for_times(asked, timeout=20)
        return {"offsets": {tp.partition: tp.offset if tp.offset >= 0 else None for tp in found}}

    def close(self):
        self.consumer.close()
        self.consumer = None

    def init_transactions(self, id, timeout_ms):
        settings = {"transactional.id": id, "transaction.timeout.ms": timeout_ms}
        self.transactional = Producer({**self.common, **settings})
        self.transactional.init_transactions(30)

    def begin_transaction(self):
        self.transactional.begin_transaction()

    def add_offsets(self, offsets):
        wanted = [TopicPartition(self.topic, int(p), offset) for p, offset in offsets.items()]
        self.transactional.send_offsets_to_transaction(wanted, self.consumer.consumer_group_metadata(), 30)

    def end_transaction(self, commit):
        if commit:
            self.transactional.commit_transaction(30)
        else:
            self.transactional.abort_transaction(30)

    def describe_transactions(self, id, topic):
        raise agent.Lacks("describe-transactions")

    def create(self, topic, partitions, configs):
        self.admin.create_topics([NewTopic(topic, num_partitions=partitions, config=configs)])[topic].result(30)

    def partitions(self, topic):
        found = self.admin.list_topics(timeout=20).topics.get(topic)
        return {"count": len(found.partitions) if found else None}

    def grow(self, topic, count):
        self.admin.create_partitions([NewPartitions(topic, count)])[topic].result(30)

    def delete(self, topic):
        self.admin.delete_topics([topic])[topic].result(30)

    def alter(self, topic, configs):
        entries = [ConfigEntry(n, v, incremental_operation=AlterConfigOpType.SET) for n, v in configs.items()]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        self.admin.incremental_alter_configs([resource])[resource].result(30)

    def config(self, topic, name):
        resource = ConfigResource(ResourceType.TOPIC, topic)
        return {"value": self.admin.describe_configs([resource])[resource].result(30)[name].value}


RESETS = {"earliest": "earliest", "latest": "latest", "none": "error"}

if sys.argv[1] == "agent":
    agent.serve(Agent(*sys.argv[2:4]))
else:
    common.main(NAME, produce, verify, load, ordered=IDEMPOTENT)
