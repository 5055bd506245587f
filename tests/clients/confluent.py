"""confluent-kafka, which is librdkafka, with its defaults and with idempotence."""

import sys

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

import common

IDEMPOTENT = "--idempotent" in sys.argv
NAME = "librdkafka-idempotent" if IDEMPOTENT else "librdkafka"


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


common.main(NAME, produce, verify, load)
