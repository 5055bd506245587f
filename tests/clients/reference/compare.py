#!/usr/bin/env python3
"""What two brokers answer to the same requests: the one under test, and a real Apache Kafka.

    compare.py ADDRESS REFERENCE        prints where they differ; exit status 1 if they do
    compare.py ADDRESS                  prints what one of them answers

Error codes, and whether strings are null, are compared; texts are not. Cases in which we differ on purpose are in
DELIBERATE, with the reason. Start the reference with cluster.py.
"""

import gzip
import json
import os
import struct
import sys
import time
import uuid

from wire import Connection

CASES = []

# Case: why the answer is another one.
DELIBERATE = {
    "coordinator of a transaction": "there are no transactions yet: a final code",
    "broker config: unknown": "Kafka stores configs that nobody knows; here what is stored has a meaning",
    "produce: a transactional batch": "there are no transactions yet",
}


def case(function):
    CASES.append(function)
    return function


# ---- batches

TABLE = []
for n in range(256):
    for _ in range(8):
        n = (n >> 1) ^ 0x82F63B78 if n & 1 else n >> 1
    TABLE.append(n)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def zigzag(number):
    number = ((number << 1) ^ (number >> 63)) & (1 << 64) - 1
    out = b""
    while number >= 0x80:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def record(index, delta_ms=0, key=b"k", value=b"v"):
    field = lambda data: zigzag(-1) if data is None else zigzag(len(data)) + data
    body = b"\0" + zigzag(delta_ms) + zigzag(index) + field(key) + field(value) + zigzag(0)
    return zigzag(len(body)) + body


def batch(records, codec=0, base=None, most=None, pid=-1, epoch=-1, seq=-1, count=None, last=None, attributes=0, magic=2,
          offset=0, crc=None):
    base = int(time.time() * 1000) if base is None else base
    count = len(records) if count is None else count
    last = len(records) - 1 if last is None else last
    payload = b"".join(records)
    payload = gzip.compress(payload) if codec == 1 else payload
    head = struct.pack(">hiqqqhii", attributes | codec, last, base, base if most is None else most, pid, epoch, seq, count)
    sum_ = crc32c(head + payload) if crc is None else crc
    rest = struct.pack(">ibI", -1, magic, sum_) + head + payload
    return struct.pack(">qi", offset, len(rest)) + rest


# ---- cases

class Side:
    """A broker, with what cases need of it."""

    def __init__(self, address):
        self.address = address
        self.connection = Connection(address)
        self.suffix = uuid.uuid4().hex[:8]
        self.topics = {}

    def ask(self, name, version, **fields):
        try:
            return self.connection.ask(name, version, **fields)
        except EOFError:
            self.connection = Connection(self.address)
            return "closed"

    def topic(self, name, **configs):
        """A topic of one partition, on a single broker so that it has a leader here."""
        if name not in self.topics:
            self.topics[name] = f"{name}-{self.suffix}"
            topic = {"Name": self.topics[name], "NumPartitions": 1, "ReplicationFactor": 1}
            topic["Configs"] = [{"Name": key.replace("_", "."), "Value": value} for key, value in configs.items()]
            answer = self.ask("CreateTopics", 7, Topics=[topic], timeoutMs=10000)
            assert answer["Topics"][0]["ErrorCode"] == 0, answer
            time.sleep(1)
        return self.topics[name]

    def produce(self, name, data, version=9, acks=-1, **configs):
        topic = self.topic(name, **configs)
        partition = {"Index": 0, "Records": data}
        fields = {"Acks": acks, "TimeoutMs": 10000, "TopicData": [{"Name": topic, "PartitionData": [partition]}]}
        answer = self.ask("Produce", version, **fields)
        if answer == "closed":
            return answer
        part = answer["Responses"][0]["PartitionResponses"][0]
        found = {"error": part["ErrorCode"], "offset": part["BaseOffset"]}
        if version >= 8:
            found["records"] = [error["BatchIndex"] for error in part["RecordErrors"]]
            if part["ErrorCode"] == 0:
                found["message"] = part["ErrorMessage"]
        return found

    def group(self, name):
        return f"{name}-{self.suffix}"


@case
def versions(side):
    answer = side.ask("ApiVersions", 4, ClientSoftwareName="compare", ClientSoftwareVersion="1")
    ours = {0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 22, 23, 32, 33, 35, 37, 42, 43, 44, 45, 46, 47, 57, 60, 61, 68, 69, 74, 75}
    for api in sorted(answer["ApiKeys"], key=lambda a: a["ApiKey"]):
        if api["ApiKey"] in ours:
            yield f"versions of api {api['ApiKey']}", (api["MinVersion"], api["MaxVersion"])
    yield "features", sorted(f["Name"] for f in answer["FinalizedFeatures"] if f["Name"] in ("group.version", "metadata.version"))


@case
def produce(side):
    now = int(time.time() * 1000)
    hour = 3_600_000
    plain = [record(i) for i in range(3)]
    late = [record(0), record(1, 5 * hour), record(2)]
    answer = side.produce
    yield "produce: version 2", answer("p", batch(plain), 3) and side.ask("Produce", 3, Acks=1, TimeoutMs=1000, TopicData=[])
    yield "produce: one batch", answer("p", batch(plain))["error"]
    yield "produce: message of success", answer("p", batch(plain))["message"]
    yield "produce: nothing", answer("p", b"")
    yield "produce: an empty batch", answer("p", batch([]))
    yield "produce: count 0", answer("p", batch(plain, count=0))
    yield "produce: count too low", answer("p", batch(plain, count=2, last=1))
    yield "produce: count too high", answer("p", batch(plain, count=4, last=3))
    yield "produce: last offset delta", answer("p", batch(plain, last=7))
    yield "produce: negative count", answer("p", batch(plain, count=-1, last=-2))
    yield "produce: two batches", answer("p", batch(plain) * 2)
    yield "produce: half a batch", answer("p", batch(plain)[:70])
    yield "produce: half a header", answer("p", batch(plain)[:30])
    yield "produce: magic 0", answer("p", batch(plain, magic=0))
    yield "produce: magic 1", answer("p", batch(plain, magic=1))
    yield "produce: magic 3", answer("p", batch(plain, magic=3))
    yield "produce: a wrong sum", answer("p", batch(plain, crc=1))
    yield "produce: base offset 5", answer("p", batch(plain, offset=5))
    yield "produce: a control batch", answer("p", batch(plain, attributes=0x20))
    yield "produce: a transactional batch", answer("p", batch(plain, attributes=0x10, pid=5, epoch=0, seq=0))["error"]
    yield "produce: no sequence", answer("p", batch(plain, pid=5, epoch=0, seq=-1))
    yield "produce: zstd in version 6", answer("p", batch(plain, codec=4), 6)
    yield "produce: too large", answer("p", batch([record(0, value=bytes(1_100_000))]))
    yield "produce: acks 2", answer("p", batch(plain), acks=2)
    yield "produce: a garbled payload", answer("p", batch([b"garbage"], codec=0, count=1, last=0))["error"]
    for codec in (0, 1):
        yield f"produce: a record far ahead, codec {codec}", answer("p", batch(late, codec, base=now, most=now))
        yield f"produce: header far ahead, codec {codec}", answer("p", batch(plain, codec, base=now, most=now + 5 * hour))["error"]
        yield f"produce: base far ahead, codec {codec}", answer("p", batch(plain, codec, base=now + 5 * hour))
        yield f"produce: no timestamps, codec {codec}", answer("p", batch(plain, codec, base=-1, most=-1))["error"]
        keys = [record(0), record(1, key=None), record(2, key=None)]
        yield f"produce: no keys, codec {codec}", answer("c", batch(keys, codec), cleanup_policy="compact")
        yield f"produce: keys, codec {codec}", answer("c", batch(plain, codec), cleanup_policy="compact")["error"]
        stamped = batch(plain, codec, attributes=8)
        yield f"produce: append time by the producer, codec {codec}", answer("p", stamped)["error"]
        yield f"produce: append time on such a topic, codec {codec}", answer("s", stamped, message_timestamp_type="LogAppendTime")
        yield f"produce: append time, codec {codec}", answer("s", batch(plain, codec))["error"]
    both = [record(0, key=None), record(1, 5 * hour), record(2)]
    yield "produce: a key and a time", answer("c", batch(both, base=now))
    for first, seq in (("first", 0), ("again", 0), ("a gap", 9), ("next", 3), ("old epoch", 6)):
        epoch = 4 if first == "old epoch" else 5
        yield f"produce: idempotent, {first}", answer("i", batch(plain, pid=123456, epoch=epoch, seq=seq))["error"]
    yield "produce: idempotent, new epoch with a gap", answer("i", batch(plain, pid=123456, epoch=6, seq=3))["error"]
    yield "produce: a stranger in the middle", answer("i", batch(plain, pid=123457, epoch=0, seq=17))["error"]


@case
def largest_timestamps(side):
    now = int(time.time() * 1000)
    for codec in (0, 1):
        for what, most, deltas in (("unset", -1, (0, 0)), ("of the first", now - 3000, (0, 2000)), ("right", now - 1000, (0, 2000)),
                                   ("unset of three", -1, (0, 1000, 500)), ("below", now - 9000, (0, 1000))):
            name = f"time-{codec}-{what.replace(' ', '-')}"
            records = [record(i, delta) for i, delta in enumerate(deltas)]
            side.produce(name, batch(records, codec, base=now - 3000, most=most))
            topic = side.topic(name)
            ask = {"Topic": topic, "Partitions": [{"Partition": 0, "FetchOffset": 0, "PartitionMaxBytes": 100000}]}
            answer = side.ask("Fetch", 11, MaxWaitMs=500, MinBytes=1, Topics=[ask])
            records = answer["Responses"][0]["Partitions"][0]["Records"]
            yield f"largest timestamp {what}, codec {codec}", struct.unpack(">q", records[35:43])[0] - now
            for back in (2500, 1500, 500):
                part = {"PartitionIndex": 0, "CurrentLeaderEpoch": -1, "Timestamp": now - back}
                listed = side.ask("ListOffsets", 5, ReplicaId=-1, Topics=[{"Name": topic, "Partitions": [part]}])
                yield f"offset {back} ms ago, {what}, codec {codec}", listed["Topics"][0]["Partitions"][0]["Offset"]


@case
def unknown_topics(side):
    side.topic("p")
    name = f"nowhere-{side.suffix}"
    data = [{"Name": name, "PartitionData": [{"Index": 0, "Records": batch([record(0)])}]}]
    answer = side.ask("Produce", 9, Acks=-1, TimeoutMs=3000, TopicData=data)
    yield "produce: unknown topic", answer["Responses"][0]["PartitionResponses"][0]["ErrorCode"]
    time.sleep(1)
    answer = side.ask("Metadata", 8, Topics=[{"Name": name}], AllowAutoTopicCreation=False)
    yield "metadata: it is still unknown", answer["Topics"][0]["ErrorCode"]


@case
def topics(side):
    def create(what, version=7, **topic):
        topic = {"Name": side.group("new"), "NumPartitions": -1, "ReplicationFactor": -1, **topic}
        answer = side.ask("CreateTopics", version, Topics=[topic], timeoutMs=10000, validateOnly=True)
        found = answer["Topics"][0]
        size = found.get("NumPartitions"), found.get("ReplicationFactor")
        return f"create: {what}", (found["ErrorCode"], found["ErrorMessage"] is None, size)

    assign = lambda *replicas: [{"PartitionIndex": i, "BrokerIds": ids} for i, ids in enumerate(replicas)]
    yield create("replication factor 2", NumPartitions=1, ReplicationFactor=2)
    yield create("too many replicas", NumPartitions=1, ReplicationFactor=9)
    yield create("no replicas", NumPartitions=1, ReplicationFactor=0)
    yield create("no partitions", NumPartitions=0, ReplicationFactor=1)
    yield create("assigned", Assignments=assign([1, 2], [2, 1]))
    yield create("unknown broker", Assignments=assign([99]))
    yield create("empty list", Assignments=assign([]))
    yield create("a broker twice", Assignments=assign([1, 1]))
    yield create("lists of two lengths", Assignments=assign([1], [1, 2]))
    yield create("a gap", Assignments=[{"PartitionIndex": 1, "BrokerIds": [1]}])
    yield create("a partition twice", Assignments=assign([1]) * 2)
    yield create("numbers beside an assignment", NumPartitions=1, Assignments=assign([1]))
    yield create("replicas beside an assignment", ReplicationFactor=1, Assignments=assign([1]))
    for name, value in (
        ("compression.gzip.level", "6"), ("compression.gzip.level", "0"), ("compression.lz4.level", "9"), ("compression.lz4.level", "18"),
        ("compression.zstd.level", "5"), ("compression.zstd.level", "23"), ("local.retention.ms", "-2"), ("local.retention.ms", "-3"),
        ("local.retention.bytes", "-2"), ("remote.storage.enable", "false"), ("remote.storage.enable", "true"),
        ("remote.log.copy.disable", "false"), ("remote.log.copy.disable", "true"), ("remote.log.delete.on.disable", "false"),
        ("leader.replication.throttled.replicas", "*"), ("leader.replication.throttled.replicas", "0:1,1:2"),
        ("leader.replication.throttled.replicas", "x"), ("follower.replication.throttled.replicas", ""), ("min.insync.replicas", "2"),
        ("retention.ms", "x"), ("no.such.config", "1"), ("cleanup.policy", "compact,delete"), ("segment.bytes", "1048576"),
    ):
        yield create(f"{name}={value}", NumPartitions=1, ReplicationFactor=1, Configs=[{"Name": name, "Value": value}])
    twice = [{"Name": side.group("twice"), "NumPartitions": 1, "ReplicationFactor": 1}] * 2
    answer = side.ask("CreateTopics", 7, Topics=twice, timeoutMs=10000, validateOnly=True)
    yield "create: a name twice", [t["ErrorCode"] for t in answer["Topics"]]
    topic = side.topic("p")
    for what, assigned in (("none", None), ("empty", []), ("unknown", [[99]]), ("empty list", [[]]), ("too long", [[1, 2]]), ("right", [[1]])):
        assigned = assigned if assigned is None else [{"BrokerIds": ids} for ids in assigned]
        answer = side.ask("CreatePartitions", 3, Topics=[{"Name": topic, "Count": 2, "Assignments": assigned}], TimeoutMs=5000, ValidateOnly=True)
        yield f"more partitions: {what}", [(r["ErrorCode"], r["ErrorMessage"] is None) for r in answer["Results"]]
    for count in (1, 0, -1):
        answer = side.ask("CreatePartitions", 3, Topics=[{"Name": topic, "Count": count, "Assignments": None}], TimeoutMs=5000, ValidateOnly=True)
        yield f"more partitions: {count}", answer["Results"][0]["ErrorCode"]
    answer = side.ask("CreatePartitions", 3, Topics=[{"Name": topic, "Count": 2, "Assignments": None}] * 2, TimeoutMs=5000, ValidateOnly=True)
    yield "more partitions: twice", [r["ErrorCode"] for r in answer["Results"]]
    for what, cursor in (("not asked for", ("a", 0)), ("negative", (topic, -1)), ("right", (topic, 0))):
        cursor = {"TopicName": cursor[0], "PartitionIndex": cursor[1]}
        answer = side.ask("DescribeTopicPartitions", 0, Topics=[{"Name": topic}], Cursor=cursor)
        yield f"cursor: {what}", [t["ErrorCode"] for t in answer["Topics"]]
    answer = side.ask("DeleteTopics", 6, Topics=[{"Name": "nowhere"}], TimeoutMs=5000)["Responses"][0]
    yield "delete: unknown", (answer["ErrorCode"], answer["ErrorMessage"] is None)


@case
def configs(side):
    topic = side.topic("p")
    brokers = side.ask("Metadata", 9, Topics=[])["Brokers"]
    me = next(str(b["NodeId"]) for b in brokers if side.address.endswith(f":{b['Port']}"))

    def alter(what, kind, name, config, value, operation=0):
        resource = {"ResourceType": kind, "ResourceName": name, "Configs": [{"Name": config, "ConfigOperation": operation, "Value": value}]}
        answer = side.ask("IncrementalAlterConfigs", 1, Resources=[resource], ValidateOnly=True)["Responses"][0]
        return f"{what}", (answer["ErrorCode"], answer["ErrorMessage"] is None)

    yield alter("topic config", 2, topic, "retention.ms", "5000")
    yield alter("topic config: wrong", 2, topic, "retention.ms", "x")
    yield alter("topic config: unknown", 2, topic, "no.such.config", "x")
    yield alter("topic config: unknown topic", 2, "nowhere", "retention.ms", "5000")
    resource = {"ResourceType": 2, "ResourceName": topic, "Configs": [{"Name": "retention.ms", "Value": "5000"}]}
    answer = side.ask("AlterConfigs", 2, Resources=[resource], ValidateOnly=True)["Responses"][0]
    yield "topic config, all", (answer["ErrorCode"], answer["ErrorMessage"])
    for what, name in (("broker", me), ("default", "")):
        yield alter(f"{what} config", 4, name, "log.retention.ms", "6000")
        yield alter(f"{what} config: wrong", 4, name, "log.retention.ms", "x")
        yield alter(f"{what} config: read-only", 4, name, "broker.rack", "x")
        yield alter(f"{what} config: auto.create.topics.enable", 4, name, "auto.create.topics.enable", "false")
        yield alter(f"{what} config: a throttle", 4, name, "leader.replication.throttled.rate", "100000")
        yield alter(f"{what} config: removed", 4, name, "log.retention.ms", None, 1)
        yield alter(f"{what} config: message.max.bytes", 4, name, "message.max.bytes", "2000000")
    yield alter("broker config: unknown", 4, me, "no.such.config", "x")
    yield alter("broker config: another broker", 4, "99", "log.retention.ms", "6000")
    yield alter("broker config: no number", 4, "x", "log.retention.ms", "6000")
    asked = {"ResourceType": 2, "ResourceName": topic, "ConfigurationKeys": ["retention.ms"]}
    for documented in (False, True):
        answer = side.ask("DescribeConfigs", 4, Resources=[asked], IncludeDocumentation=documented)["Results"][0]
        yield f"described, documented {documented}", (answer["ErrorMessage"], answer["Configs"][0]["Documentation"] is None)
    asked = {"ResourceType": 2, "ResourceName": "nowhere", "ConfigurationKeys": None}
    answer = side.ask("DescribeConfigs", 4, Resources=[asked])["Results"][0]
    yield "described: unknown topic", (answer["ErrorCode"], answer["ErrorMessage"] is None)
    answer = side.ask("UpdateFeatures", 1, FeatureUpdates=[{"Feature": "group.version", "MaxVersionLevel": 1, "UpgradeType": 1}], timeoutMs=5000)
    yield "features: nothing new", (answer["ErrorCode"], answer["ErrorMessage"], answer["Results"][0]["ErrorCode"])


@case
def coordinators(side):
    for _ in range(60):
        answer = side.ask("FindCoordinator", 4, KeyType=0, CoordinatorKeys=["x"])["Coordinators"][0]
        if answer["ErrorCode"] == 0:
            break
        time.sleep(0.5)
    yield "coordinator of a group", (answer["ErrorCode"], answer["ErrorMessage"])
    answer = side.ask("FindCoordinator", 2, KeyType=0, Key="x")
    yield "coordinator of a group, version 2", (answer["ErrorCode"], answer["ErrorMessage"])
    for what, kind in (("a transaction", 1), ("a share group", 2), ("nothing", 3)):
        answer = side.ask("FindCoordinator", 4, KeyType=kind, CoordinatorKeys=["x"])["Coordinators"][0]
        yield f"coordinator of {what}", answer["ErrorCode"]
    answer = side.ask("FindCoordinator", 4, KeyType=0, CoordinatorKeys=[""])["Coordinators"][0]
    yield "coordinator of an empty id", answer["ErrorCode"]


class Group:
    """A group, asked at its coordinator."""

    def __init__(self, side, name):
        self.side, self.id = side, side.group(name)
        for _ in range(100):
            found = side.ask("FindCoordinator", 4, KeyType=0, CoordinatorKeys=[self.id])["Coordinators"][0]
            if found["ErrorCode"] == 0:
                break
            time.sleep(0.3)
        self.connection = Connection(f"{found['Host']}:{found['Port']}")

    def ask(self, name, version, **fields):
        return self.connection.ask(name, version, GroupId=self.id, **fields)

    def join(self, member="", instance=None, version=7, kind="consumer", protocols=("range",), session=10000):
        protocols = [{"Name": name, "Metadata": b"\0\1" + bytes(12)} for name in protocols]
        fields = {"SessionTimeoutMs": session, "RebalanceTimeoutMs": 10000, "MemberId": member, "ProtocolType": kind, "Protocols": protocols}
        if instance is not None:
            fields["GroupInstanceId"] = instance
        return self.ask("JoinGroup", version, **fields)

    def sync(self, member, generation, version=5, **fields):
        fields = {"ProtocolType": "consumer", "ProtocolName": "range", **fields}
        return self.ask("SyncGroup", version, GenerationId=generation, MemberId=member, **fields)["ErrorCode"]

    def heartbeat(self, member, generation, instance=None):
        return self.ask("Heartbeat", 4, GenerationId=generation, MemberId=member, GroupInstanceId=instance)["ErrorCode"]

    def commit(self, member, generation, version=8, topic=None, instance=None, offset=1, metadata="m"):
        parts = [{"PartitionIndex": 0, "CommittedOffset": offset, "CommittedMetadata": metadata}]
        fields = {"GenerationIdOrMemberEpoch": generation, "MemberId": member, "Topics": [{"Name": topic or self.side.topic("p"), "Partitions": parts}]}
        if instance is not None:
            fields["GroupInstanceId"] = instance
        return self.ask("OffsetCommit", version, **fields)["Topics"][0]["Partitions"][0]["ErrorCode"]

    def leave(self, *members):
        members = [{"MemberId": member, "GroupInstanceId": instance} for member, instance in members]
        answer = self.ask("LeaveGroup", 4, Members=members)
        return answer["ErrorCode"], [m["ErrorCode"] for m in answer["Members"]]


@case
def classic_groups(side):
    group = Group(side, "classic")
    yield "heartbeat: no such group", group.heartbeat("m", 1)
    yield "sync: no such group", group.sync("m", 1)
    yield "commit: no such group, no member", group.commit("", -1)
    group = Group(side, "absent")
    yield "commit: no such group, a member", group.commit("m", 1)
    yield "commit: no such group, a generation", group.commit("", 1)
    yield "leave: no such group", group.leave(("m", None))
    yield "delete: no such group", group.connection.ask("DeleteGroups", 2, GroupsNames=[group.id])["Results"][0]["ErrorCode"]
    described = group.connection.ask("DescribeGroups", 6, Groups=[group.id])["Groups"][0]
    yield "describe: no such group", (described["ErrorCode"], described["GroupState"], described["ErrorMessage"] is None)
    described = group.connection.ask("DescribeGroups", 5, Groups=[group.id])["Groups"][0]
    yield "describe: no such group, version 5", (described["ErrorCode"], described["GroupState"])
    described = group.connection.ask("ConsumerGroupDescribe", 1, GroupIds=[group.id])["Groups"][0]
    yield "describe: no such consumer group", (described["ErrorCode"], described["ErrorMessage"] is None)
    fetched = group.connection.ask("OffsetFetch", 8, Groups=[{"GroupId": group.id, "Topics": [{"Name": side.topic("p"), "PartitionIndexes": [0]}]}])
    part = fetched["Groups"][0]["Topics"][0]["Partitions"][0]
    yield "fetch offsets: no such group", (fetched["Groups"][0]["ErrorCode"], part["CommittedOffset"], part["Metadata"], part["ErrorCode"])
    group = Group(side, "joined")
    yield "join: session too short", group.join(session=1)["ErrorCode"]
    yield "join: session too long", group.join(session=99999999)["ErrorCode"]
    yield "join: no protocol", group.join(protocols=())["ErrorCode"]
    yield "join: no protocol type", group.join(kind="")["ErrorCode"]
    yield "join: unknown member", group.join(member="nobody")["ErrorCode"]
    first = group.join()
    yield "join: id required", (first["ErrorCode"], first["ProtocolType"], first["ProtocolName"])
    member = first["MemberId"]
    joined = group.join(member)
    generation = joined["GenerationId"]
    yield "join: joined", (joined["ErrorCode"], joined["ProtocolType"], joined["ProtocolName"], joined["SkipAssignment"] if "SkipAssignment" in joined else None)
    yield "join: another protocol type", group.join(kind="other")["ErrorCode"]
    yield "join: no common protocol", group.join(protocols=("strange",))["ErrorCode"]
    yield "heartbeat: before the assignment", group.heartbeat(member, generation)
    yield "commit: before the assignment", group.commit(member, generation)
    yield "commit: before the assignment, a wrong generation", group.commit(member, generation + 1)
    yield "sync: a wrong generation", group.sync(member, generation + 1)
    yield "sync: an unknown member", group.sync("nobody", generation)
    yield "sync: another protocol", group.sync(member, generation, ProtocolName="strange")
    yield "sync: another protocol type", group.sync(member, generation, ProtocolType="other")
    yield "sync: the leader", group.sync(member, generation, Assignments=[{"MemberId": member, "Assignment": b"a"}])
    yield "heartbeat: a member", group.heartbeat(member, generation)
    yield "heartbeat: an older generation", group.heartbeat(member, generation - 1)
    yield "heartbeat: a later generation", group.heartbeat(member, generation + 1)
    yield "heartbeat: an unknown member", group.heartbeat("nobody", generation)
    yield "heartbeat: an unknown instance", group.heartbeat(member, generation, "nobody")
    yield "commit: a member", group.commit(member, generation)
    yield "commit: an older generation", group.commit(member, generation - 1)
    yield "commit: a later generation", group.commit(member, generation + 1)
    yield "commit: generation -1 of a member", group.commit(member, -1)
    yield "commit: an unknown member", group.commit("nobody", generation)
    yield "commit: nobody", group.commit("", -1)
    yield "commit: nobody with a generation", group.commit("", generation)
    yield "commit: an unknown instance", group.commit(member, generation, instance="nobody")
    yield "commit: an unknown topic", group.commit(member, generation, topic="nowhere")
    yield "commit: metadata too long", group.commit(member, generation, metadata="m" * 5000)
    yield "commit: a negative offset", group.commit(member, generation, offset=-1)
    yield "delete: has members", group.connection.ask("DeleteGroups", 2, GroupsNames=[group.id])["Results"][0]["ErrorCode"]
    deleted = group.ask("OffsetDelete", 0, Topics=[{"Name": side.topic("p"), "Partitions": [{"PartitionIndex": 0}]}])
    parts = [p["ErrorCode"] for t in deleted["Topics"] for p in t["Partitions"]]
    yield "delete offsets: has members", (deleted["ErrorCode"], parts)
    beat = {"MemberId": str(uuid.uuid4()), "MemberEpoch": 0, "RebalanceTimeoutMs": 10000, "SubscribedTopicNames": [side.topic("p")], "TopicPartitions": []}
    yield "consumer heartbeat: a strange classic group", group.ask("ConsumerGroupHeartbeat", 0, **beat)["ErrorCode"]
    yield "leave: an unknown member", group.leave(("nobody", None))
    yield "leave: an unknown instance", group.leave(("", "nobody"))
    left = group.ask("LeaveGroup", 4, Members=[{"MemberId": member}])
    yield "leave: a member", (left["ErrorCode"], [(m["ErrorCode"], m["GroupInstanceId"]) for m in left["Members"]])
    yield "heartbeat: it has left", group.heartbeat(member, generation)
    yield "commit: it has left", group.commit(member, generation)
    yield "commit: empty group, nobody", group.commit("", -1)
    yield "commit: empty group, a generation", group.commit("", generation)
    yield "sync: empty group", group.sync(member, generation)
    group = Group(side, "static")
    joined = group.join(instance="i")
    member, generation = joined["MemberId"], joined["GenerationId"]
    yield "static: joined", joined["ErrorCode"]
    yield "static: sync", group.sync(member, generation, GroupInstanceId="i", Assignments=[{"MemberId": member, "Assignment": b"a"}])
    again = group.join(instance="i")
    yield "static: joined again", (again["ErrorCode"], again["GenerationId"] - generation)
    yield "static: heartbeat of the old one", group.heartbeat(member, generation, "i")
    yield "static: commit of the old one", group.commit(member, generation, instance="i")
    yield "static: sync of the old one", group.sync(member, generation, GroupInstanceId="i")
    yield "static: join of the old one", group.join(member, instance="i")["ErrorCode"]
    yield "static: heartbeat without its instance", group.heartbeat(again["MemberId"], generation)
    yield "static: leave of the old one", group.leave((member, "i"))
    yield "static: leave by the instance", group.leave(("", "i"))


@case
def consumer_groups(side):
    group = Group(side, "next")
    beat = lambda member, epoch, version=1, **fields: group.ask("ConsumerGroupHeartbeat", version, MemberId=member, MemberEpoch=epoch, **fields)
    topic = side.topic("p")
    member = str(uuid.uuid4())
    yield "consumer: unknown group", beat(member, 5)["ErrorCode"]
    yield "consumer: no rebalance time-out", beat(member, 0, SubscribedTopicNames=[topic], TopicPartitions=[])["ErrorCode"]
    yield "consumer: no subscription", beat(member, 0, RebalanceTimeoutMs=10000, TopicPartitions=[])["ErrorCode"]
    yield "consumer: no member id", beat("", 0, RebalanceTimeoutMs=10000, SubscribedTopicNames=[topic], TopicPartitions=[])["ErrorCode"]
    joins = {"RebalanceTimeoutMs": 10000, "SubscribedTopicNames": [topic], "TopicPartitions": []}
    yield "consumer: strange assignor", beat(member, 0, ServerAssignor="strange", **joins)["ErrorCode"]
    yield "consumer: wrong pattern", beat(member, 0, RebalanceTimeoutMs=10000, SubscribedTopicRegex="(", TopicPartitions=[])["ErrorCode"]
    yield "consumer: epoch -3", beat(member, -3)["ErrorCode"]
    yield "consumer: epoch -2 without an instance", beat(member, -2)["ErrorCode"]
    joined = beat(member, 0, **joins)
    yield "consumer: joined", (joined["ErrorCode"], joined["ErrorMessage"], joined["MemberId"] == member)
    epoch = joined["MemberEpoch"]
    yield "consumer: beat", beat(member, epoch)["ErrorCode"]
    yield "consumer: later epoch", beat(member, epoch + 1)["ErrorCode"]
    yield "consumer: unknown member", beat(str(uuid.uuid4()), epoch)["ErrorCode"]
    yield "consumer: commit", group.commit(member, epoch, 9)
    yield "consumer: commit, later epoch", group.commit(member, epoch + 1, 9)
    yield "consumer: commit, epoch -1", group.commit(member, -1, 9)
    yield "consumer: commit, unknown member", group.commit(str(uuid.uuid4()), epoch, 9)
    yield "consumer: commit, nobody", group.commit("", -1, 9)
    yield "consumer: commit, version 8", group.commit(member, epoch, 8)
    for what, who, at in (("right", member, epoch), ("later epoch", member, epoch + 1), ("unknown", "nobody", epoch), ("nobody", None, -1)):
        asked = {"GroupId": group.id, "MemberId": who, "MemberEpoch": at, "Topics": [{"Name": topic, "PartitionIndexes": [0]}]}
        yield f"consumer: fetch offsets, {what}", group.connection.ask("OffsetFetch", 9, Groups=[asked])["Groups"][0]["ErrorCode"]
    yield "consumer: classic join", group.join()["ErrorCode"]
    yield "consumer: classic join, strange type", group.join(kind="other")["ErrorCode"]
    yield "consumer: classic heartbeat", group.heartbeat(member, epoch)
    yield "consumer: classic sync", group.sync(member, epoch)
    described = group.connection.ask("DescribeGroups", 6, Groups=[group.id])["Groups"][0]
    yield "consumer: described as classic", (described["ErrorCode"], described["GroupState"], described["ErrorMessage"] is None)
    described = group.connection.ask("ConsumerGroupDescribe", 1, GroupIds=[group.id])["Groups"][0]
    told = [(m["InstanceId"], m["RackId"], m["SubscribedTopicRegex"]) for m in described["Members"]]
    yield "consumer: described", (described["ErrorCode"], described["ErrorMessage"], told)
    yield "consumer: delete", group.connection.ask("DeleteGroups", 2, GroupsNames=[group.id])["Results"][0]["ErrorCode"]
    yield "consumer: left", beat(member, -1)["ErrorCode"]
    yield "consumer: commit after leaving", group.commit(member, epoch, 9)
    yield "consumer: static", (static := beat(str(uuid.uuid4()), 0, InstanceId="i", **joins))["ErrorCode"]
    yield "consumer: static, taken", beat(str(uuid.uuid4()), 0, InstanceId="i", **joins)["ErrorCode"]
    yield "consumer: static, fenced", beat(str(uuid.uuid4()), static["MemberEpoch"], InstanceId="i")["ErrorCode"]


@case
def reassignments(side):
    topic = side.topic("p")
    ask = lambda replicas, number=0: side.ask("AlterPartitionReassignments", 0, Topics=[{"Name": topic, "Partitions": [{"PartitionIndex": number, "Replicas": replicas}]}], TimeoutMs=5000)
    for what, replicas, number in (("cancel", None, 0), ("empty", [], 0), ("unknown broker", [99], 0), ("twice", [1, 1], 0), ("unknown partition", [1], 7)):
        part = ask(replicas, number)["Responses"][0]["Partitions"][0]
        yield f"reassign: {what}", part["ErrorCode"]
    answer = side.ask("ListPartitionReassignments", 0, Topics=None, TimeoutMs=5000)
    yield "reassignments", (answer["ErrorCode"], answer["ErrorMessage"])
    answer = side.ask("ElectLeaders", 2, ElectionType=0, TopicPartitions=[{"Topic": topic, "Partitions": [0, 7]}], TimeoutMs=5000)
    yield "elect", sorted((p["PartitionId"], p["ErrorCode"]) for r in answer["ReplicaElectionResults"] for p in r["PartitionResult"])


def answers(address):
    side, found = Side(address), {}
    for function in CASES:
        try:
            for name, answer in function(side):
                found[name] = answer
        except Exception as error:  # the rest is still worth comparing
            found[f"{function.__name__} ended"] = repr(error)
            side.connection = Connection(address)
    return found


def main():
    ours = answers(sys.argv[1])
    if len(sys.argv) < 3:
        for name, answer in ours.items():
            print(f"{name}: {json.dumps(answer, default=str)}")
        return 0
    theirs, differ = answers(sys.argv[2]), 0
    for name in {**theirs, **ours}:
        if ours.get(name) != theirs.get(name):
            why = DELIBERATE.get(name)
            differ += why is None
            print(f"{'DIFFERS' if why is None else 'differs'} {name}: {ours.get(name)}, Kafka: {theirs.get(name)}{f' ({why})' if why else ''}")
    print(f"{len(theirs)} answers compared, {differ} differ")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
