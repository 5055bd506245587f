"""kafka-python with its defaults: idempotence is on."""

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

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


common.main(NAME, produce, verify, load)
