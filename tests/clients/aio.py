"""aiokafka with its defaults."""

import asyncio
import sys
import time

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

import common

IDEMPOTENT = "--idempotent" in sys.argv
NAME = "aiokafka-idempotent" if IDEMPOTENT else "aiokafka"


async def send_all(bootstrap, client_id, topic, codec, source, goes_on=lambda: True, pause=None):
    settings = {"enable_idempotence": True} if IDEMPOTENT else {}
    client = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        client_id=client_id,
        compression_type=None if codec == "none" else codec,
        **settings,
    )
    await client.start()
    waiting = []
    for number, (key, value, headers) in enumerate(source):
        if not goes_on():
            break
        # Its answer says of every record of a batch that it has the time of the first, so it is told the time here.
        now_ms = int(time.time() * 1000)
        future = await client.send(topic, value=value, key=key, headers=headers, timestamp_ms=now_ms)
        waiting.append((future, now_ms, key, value, headers))
        if pause and number % 20 == 0:
            await asyncio.sleep(pause)
    lines = []
    for future, sent_ms, key, value, headers in waiting:
        sent = await asyncio.wait_for(future, 150)
        lines.append(common.line(sent.partition, sent.offset, sent_ms, key, value, headers))
    await client.stop()
    return lines


def produce(bootstrap, client_id, topic, codec):
    # It takes no null header value.
    source = ((k, v, [h for h in hs if h[1] is not None]) for k, v, hs in common.records(topic))
    return asyncio.run(send_all(bootstrap, client_id, topic, codec, source))


async def read_all(bootstrap, client_id, topic, expected):
    ends = common.ends_of(expected)
    client = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, client_id=client_id, group_id=None, auto_offset_reset="earliest"
    )
    await client.start()
    partitions = [TopicPartition(topic, p) for p in range(common.PARTITIONS)]
    client.assign(partitions)
    await client.seek_to_beginning(*partitions)
    got, limit = [], common.deadline()
    next_offsets = {p: 0 for p in range(common.PARTITIONS)}
    while any(next_offsets[p] < ends.get(p, 0) for p in next_offsets):
        common.before(limit, f"{topic}: {len(got)} records read")
        for batch in (await client.getmany(timeout_ms=500)).values():
            for r in batch:
                next_offsets[r.partition] = r.offset + 1
                got.append(common.line(r.partition, r.offset, r.timestamp, r.key, r.value, r.headers))
    await client.stop()
    return got


def verify(bootstrap, client_id, topic, expected):
    return asyncio.run(read_all(bootstrap, client_id, topic, expected))


def load(bootstrap, client_id, topic, goes_on):
    def endless():
        number = 0
        while True:
            yield b"%d" % (number % 50), b"value %d" % number, []
            number += 1

    return asyncio.run(send_all(bootstrap, client_id, topic, "none", endless(), goes_on, 0.02))


common.main(NAME, produce, verify, load)
