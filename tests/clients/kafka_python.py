"""kafka-python with its defaults: idempotence is on."""

import sys

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, NewPartitions, NewTopic
from kafka.structs import OffsetAndMetadata

import agent
import common

NAME = "kafka-python"


def producer(bootstrap, client_id, codec):
    return KafkaProducer(
        bootstrap_servers=bootstrap.split(","),
        client_id=client_id,
        compression_type=None if codec == "none" else codec,
    )


def send_all(client, topic, source, goes_on=lambda: True):
    waiting = []
    for key, value, headers in source:
        if not goes_on():
            break
        waiting.append((client.send(topic, value=value, key=key, headers=headers), key, value, headers))
    client.flush(150)
    lines = []
    for future, key, value, headers in waiting:
        sent = future.get(150)
        lines.append(common.line(sent.partition, sent.offset, sent.timestamp, key, value, headers))
    client.close()
    return lines


def produce(bootstrap, client_id, topic, codec):
    # It takes no null header value.
    source = ((k, v, [h for h in hs if h[1] is not None]) for k, v, hs in common.records(topic))
    return send_all(producer(bootstrap, client_id, codec), topic, source)


def verify(bootstrap, client_id, topic, expected):
    ends = common.ends_of(expected)
    client = KafkaConsumer(
        bootstrap_servers=bootstrap.split(","),
        client_id=client_id,
        group_id=None,
        auto_offset_reset="earliest",
    )
    partitions = [TopicPartition(topic, p) for p in range(common.PARTITIONS)]
    client.assign(partitions)
    client.seek_to_beginning(*partitions)
    got, limit = [], common.deadline()
    while any(client.position(tp) < ends.get(tp.partition, 0) for tp in partitions):
        common.before(limit, f"{topic}: {len(got)} records read")
        for batch in client.poll(500).values():
            for r in batch:
                got.append(common.line(r.partition, r.offset, r.timestamp, r.key, r.value, r.headers))
    client.close()
    return got


def load(bootstrap, client_id, topic, goes_on):
    import time

    def endless():
        number = 0
        while True:
            yield b"%d" % (number % 50), b"value %d" % number, []
            number += 1
            if number % 20 == 0:
                time.sleep(0.02)

    return send_all(producer(bootstrap, client_id, "none"), topic, endless(), goes_on)


class Agent(ConsumerRebalanceListener):
    def __init__(self, bootstrap, client_id):
        self.common = {"bootstrap_servers": bootstrap.split(","), "client_id": client_id}
        self.producers, self.consumer, self.topic, self.events = {}, None, None, []
        self.admin = KafkaAdminClient(**self.common)

    def hello(self):
        return {"lacks": ["null-header"]}

    def send(self, topic, codec, records):
        if codec not in self.producers:
            # The broker is to refuse what is too large, not the client.
            settings = {"compression_type": None if codec == "none" else codec, "max_request_size": 5_000_000}
            self.producers[codec] = KafkaProducer(**self.common, **settings)
        waiting = []
        for r in records:
            headers = [(name, agent.decode(value)) for name, value in r["h"]]
            where = {"partition": r["p"], "timestamp_ms": r["t"], "headers": headers}
            waiting.append(self.producers[codec].send(topic, agent.decode(r["v"]), agent.decode(r["k"]), **where))
        self.producers[codec].flush(60)
        return {"sent": [self.sent(future) for future in waiting]}

    def sent(self, future):
        try:
            at = future.get(60)
            return [at.partition, at.offset]
        except Exception as error:  # noqa: BLE001 - the scenario decides
            return f"{type(error).__name__}: {error}"

    def open(self, topic, group, reset):
        self.topic, self.events = topic, []
        self.consumer = KafkaConsumer(
            **self.common,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset=reset,
            session_timeout_ms=6000,
            heartbeat_interval_ms=1000,
            fetch_max_wait_ms=100,
        )
        self.consumer.subscribe([topic], listener=self)

    def on_partitions_assigned(self, assigned):
        self.events.append(["assigned", [tp.partition for tp in assigned]])

    def on_partitions_revoked(self, revoked):
        self.events.append(["revoked", [tp.partition for tp in revoked]])

    def poll(self, ms):
        records, errors = [], []
        try:
            for batch in self.consumer.poll(ms).values():
                records += [agent.to_record(r.partition, r.offset, r.timestamp, r.key, r.value, r.headers) for r in batch]
        except Exception as error:  # noqa: BLE001 - the scenario decides
            errors.append(f"{type(error).__name__}: {error}")
        events, self.events = self.events, []
        return {"records": records, "events": events, "errors": errors}

    def commit(self, offsets):
        self.consumer.commit({TopicPartition(self.topic, int(p)): OffsetAndMetadata(o, "", -1) for p, o in offsets.items()})

    def committed(self, partitions):
        found = {p: self.consumer.committed(TopicPartition(self.topic, p)) for p in partitions}
        return {"offsets": {p: -1 if offset is None else offset for p, offset in found.items()}}

    def pause(self, partition):
        self.consumer.pause(TopicPartition(self.topic, partition))

    def resume(self, partition):
        self.consumer.resume(TopicPartition(self.topic, partition))

    def seek(self, partition, offset):
        self.consumer.seek(TopicPartition(self.topic, partition), offset)

    def times(self, timestamp):
        found = self.consumer.offsets_for_times(dict.fromkeys(self.consumer.assignment(), timestamp))
        return {"offsets": {tp.partition: at.offset if at else None for tp, at in found.items()}}

    def close(self):
        self.consumer.close()

    def create(self, topic, partitions, configs):
        # A copy of everything is the cluster's business.
        self.admin.create_topics([NewTopic(topic, partitions, -1, topic_configs=configs)])

    def partitions(self, topic):
        found = {t["name"]: t for t in self.admin.describe_topics()}
        return {"count": len(found[topic]["partitions"]) if topic in found else None}

    def grow(self, topic, count):
        self.admin.create_partitions({topic: NewPartitions(count)})

    def delete(self, topic):
        self.admin.delete_topics([topic])

    def alter(self, topic, configs):
        answer = self.admin.alter_configs([ConfigResource("TOPIC", topic, configs)])["topic"][topic]
        if answer and "Error" in str(answer):
            raise agent.Failed(answer)

    def config(self, topic, name):
        described = self.admin.describe_configs([ConfigResource("TOPIC", topic)], config_filter="all")
        return {"value": described["topic"][topic][name]["value"]}


if sys.argv[1] == "agent":
    agent.serve(Agent(*sys.argv[2:4]))
else:
    common.main(NAME, produce, verify, load)
