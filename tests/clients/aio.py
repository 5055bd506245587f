"""aiokafka with its defaults."""

import asyncio
import sys
import threading
import time

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import for_code

import agent
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


class Agent(ConsumerRebalanceListener):
    """Its tasks run in a loop of their own, between the requests too."""

    def __init__(self, bootstrap, client_id):
        self.common = {"bootstrap_servers": bootstrap, "client_id": client_id}
        self.producers, self.consumer, self.topic, self.events = {}, None, None, []
        self.uncommitted = False
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def __getattribute__(self, name):
        """The requests are coroutines; whoever asks waits for them."""
        found = super().__getattribute__(name)
        if name.startswith("on_") or name == "administer" or not asyncio.iscoroutinefunction(found):
            return found
        return lambda **args: asyncio.run_coroutine_threadsafe(found(**args), self.loop).result()

    def hello(self):
        return {"lacks": ["null-header", "admin-configs"]}

    async def send(self, topic, codec, records):
        if codec not in self.producers:
            # The broker is to refuse what is too large, not the client.
            settings = {"compression_type": None if codec == "none" else codec, "max_request_size": 5_000_000}
            self.producers[codec] = AIOKafkaProducer(**self.common, **settings, enable_idempotence=True)
            await self.producers[codec].start()
        waiting = []
        for r in records:
            headers = [(name, agent.decode(value)) for name, value in r["h"]]
            where = {"partition": r["p"], "timestamp_ms": r["t"], "headers": headers}
            try:
                waiting.append(await self.producers[codec].send(topic, agent.decode(r["v"]), agent.decode(r["k"]), **where))
            except Exception as error:  # noqa: BLE001 - the scenario decides
                waiting.append(error)
        return {"sent": [await sent(future) for future in waiting]}

    async def open(self, topic, group, reset):
        self.topic, self.events = topic, []
        self.consumer = AIOKafkaConsumer(
            **self.common,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset=reset,
            session_timeout_ms=6000,
            heartbeat_interval_ms=1000,
            fetch_max_wait_ms=100,
        )
        await self.consumer.start()
        self.consumer.subscribe([topic], listener=self)

    async def on_partitions_assigned(self, assigned):
        self.events.append(["assigned", [tp.partition for tp in assigned]])

    async def on_partitions_revoked(self, revoked):
        until = time.monotonic() + agent.COMMIT_PATIENCE_SECONDS
        while self.uncommitted and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self.events.append(["revoked", [tp.partition for tp in revoked]])

    async def poll(self, ms):
        # Whoever polls again does not intend to commit what it had.
        self.uncommitted = False
        records, errors = [], []
        try:
            for batch in (await self.consumer.getmany(timeout_ms=ms)).values():
                records += [agent.to_record(r.partition, r.offset, r.timestamp, r.key, r.value, r.headers) for r in batch]
        except Exception as error:  # noqa: BLE001 - the scenario decides
            errors.append(f"{type(error).__name__}: {error}")
        self.uncommitted = bool(records)
        events, self.events = self.events, []
        return {"records": records, "events": events, "errors": errors}

    async def commit(self, offsets):
        await self.consumer.commit({TopicPartition(self.topic, int(p)): o for p, o in offsets.items()})
        self.uncommitted = False

    async def committed(self, partitions):
        found = {p: await self.consumer.committed(TopicPartition(self.topic, p)) for p in partitions}
        return {"offsets": {p: -1 if offset is None else offset for p, offset in found.items()}}

    async def pause(self, partition):
        self.consumer.pause(TopicPartition(self.topic, partition))

    async def resume(self, partition):
        self.consumer.resume(TopicPartition(self.topic, partition))

    async def seek(self, partition, offset):
        self.consumer.seek(TopicPartition(self.topic, partition), offset)

    async def times(self, timestamp):
        found = await self.consumer.offsets_for_times(dict.fromkeys(self.consumer.assignment(), timestamp))
        return {"offsets": {tp.partition: at.offset if at else None for tp, at in found.items()}}

    async def close(self):
        self.uncommitted = False
        await self.consumer.stop()

    async def create(self, topic, partitions, configs):
        await self.administer(lambda a: a.create_topics([NewTopic(topic, partitions, 1, topic_configs=configs)]))

    async def partitions(self, topic):
        found = await self.administer(lambda a: a.describe_topics())
        counts = {t["topic"]: len(t["partitions"]) for t in found}
        return {"count": counts.get(topic)}

    async def grow(self, topic, count):
        await self.administer(lambda a: a.create_partitions({topic: NewPartitions(count)}))

    async def delete(self, topic):
        await self.administer(lambda a: a.delete_topics([topic]))

    async def alter(self, topic, configs):
        raise agent.Lacks("admin-configs")

    async def config(self, topic, name):
        answers = await self.administer(lambda a: a.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)]))
        entries = answers[0].resources[0][4]
        return {"value": {entry[0]: entry[1] for entry in entries}[name]}

    async def administer(self, action):
        """Its admin client gives errors within the answers, for some requests."""
        client = AIOKafkaAdminClient(**self.common)
        await client.start()
        try:
            answer = await action(client)
        finally:
            await client.close()
        for errors in [getattr(answer, "topic_errors", None), getattr(answer, "topic_error_codes", None)]:
            for name, code, *message in errors or []:
                if code:
                    raise agent.Failed(f"{name}: {for_code(code).__name__} {message}")
        return answer


async def sent(future):
    try:
        if isinstance(future, Exception):
            raise future
        at = await asyncio.wait_for(future, 60)
        return [at.partition, at.offset]
    except Exception as error:  # noqa: BLE001 - the scenario decides
        return f"{type(error).__name__}: {error}"


if sys.argv[1] == "agent":
    agent.serve(Agent(*sys.argv[2:4]))
else:
    common.main(NAME, produce, verify, load)
