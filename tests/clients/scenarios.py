#!/usr/bin/env python3
"""What is asked of every client, once for all of them; the clients are agents (agent.py).

    scenarios.py CLIENT BOOTSTRAP [SCENARIO ...] -- COMMAND...
    scenarios.py --list

Prints PASS, FAIL or SKIP, the client, the scenario, and why. STRANDLINE_CLUSTER_PIPES names two pipes, .in
and .out: commands to the cluster and its answers. Names of topics and groups have the client in them, so nothing is shared.
"""

import contextlib
import os
import random
import shutil
import sys
import tempfile
import time

import agent
import common
from agent import Lacks
from group import Group
from observer import Cluster, Flow, Observer, eventually

# The largest batch that a topic takes unless told otherwise, and what surrounds a value alone in a batch without a key:
# the header of a batch, and 11 bytes for the lengths, deltas and attributes of the record.
MAX_MESSAGE_BYTES = 1_048_588
AROUND_ONE_VALUE = 61 + 11
QUIET_TRIES = 3
NO_SUCH_THING = "no API for "


class Run:
    """One client, one scenario: what it needs, and what has to be cleaned up."""

    def __init__(self, client, command, cluster, observer, scenario):
        self.client, self.command, self.cluster, self.observer = client, command, cluster, observer
        self.name = f"{client}-{scenario}"
        self.agents = []
        self.log = tempfile.mktemp(prefix=f"{self.name}-", suffix=".log")

    def agent(self):
        a = agent.Agent(self.command, self.cluster.bootstrap, f"{self.client},zone=any", self.log)
        self.agents.append(a)
        return a

    def lacks(self):
        a = self.agent()
        try:
            return a.ask("hello")["lacks"]
        finally:
            a.kill()

    def topic(self, partitions, suffix=""):
        topic = f"{self.name}{suffix}"
        self.observer.create(topic, partitions)
        return topic

    def group(self, topic, partitions):
        return Group(f"{topic}-group", topic, partitions, self.observer, self.agent)

    def clean(self):
        for a in self.agents:
            a.kill()


def send(a, topic, records, codec="none"):
    """Every record has to be taken; gives partition and offset of each."""
    records = [{"p": None, "k": None, "t": None, "h": [], **record} for record in records]
    sent = a.ask("send", topic=topic, codec=codec, records=records)["sent"]
    for place in sent:
        if isinstance(place, str):
            raise AssertionError(f"{topic}: {place}")
    return [tuple(place) for place in sent]


def values(texts, **rest):
    return [{"v": agent.encode(str(text).encode()), **rest} for text in texts]


def read(a, count):
    """At least so many records."""
    got = []

    def enough():
        answer = a.ask("poll", ms=300)
        if answer["errors"]:
            raise AssertionError(str(answer["errors"][:3]))
        got.extend(answer["records"])
        return len(got) >= count

    eventually(lambda: f"{len(got)} of {count} records were read", enough)
    return got


def assigned(a, partitions):
    """Polls until it has so many partitions; gives the records that came along."""
    have, got = set(), []

    def all_of_them():
        answer = a.ask("poll", ms=200)
        for what, changed in answer["events"]:
            have.update(changed) if what == "assigned" else have.difference_update(changed)
        got.extend(answer["records"])
        return len(have) >= partitions

    eventually(lambda: f"{have} is assigned instead of {partitions} partitions", all_of_them)
    return got


def texts(records):
    return [agent.decode(record["v"]).decode() for record in records]


def equal(what, got, wanted):
    if got != wanted:
        raise AssertionError(f"{what}: {str(got)[:250]} instead of {str(wanted)[:250]}")


# ---- the scenarios


def codecs(run):
    """Every codec, headers, null and empty keys and values, in a group, byte for byte."""
    a = run.agent()
    lacks = a.ask("hello")["lacks"]
    absent = []
    for codec in common.CODECS:
        topic = run.topic(common.PARTITIONS, f"-{codec}")
        expected = []
        records = list(common.records(topic, 60))
        if "null-header" in lacks:
            records = [(k, v, [h for h in hs if h[1] is not None]) for k, v, hs in records]
        if "empty" in lacks:
            records = [(k or None, v or None, [h for h in hs if h[1]]) for k, v, hs in records]
        asked = [{"k": agent.encode(k), "v": agent.encode(v), "h": encoded(hs)} for k, v, hs in records]
        try:
            places = send(a, topic, asked, codec)
        except Lacks:
            absent.append(codec)
            continue
        for (partition, offset), (key, value, headers) in zip(places, records, strict=True):
            expected.append(common.line(partition, offset, "*", key, value, headers))
        a.ask("open", topic=topic, group=topic + "-group", reset="earliest")
        got = [common.line(r["p"], r["o"], r["t"], *agent.parts(r)) for r in read(a, len(records))]
        common.compare(topic, sorted(expected, key=common.place), got)
        a.ask("close")
    if len(absent) == len(common.CODECS):
        raise Lacks("producing any of them here")
    return without(absent)


def encoded(headers):
    return [[name, agent.encode(value)] for name, value in headers]


def keyed_order(run):
    """What has one key goes to one partition and comes back in order."""
    topic = run.topic(4)
    a = run.agent()
    keys = [f"key {i}" for i in range(25)]
    sequence = [(key, f"{key}: {turn}") for turn in range(20) for key in keys]
    random.Random(topic).shuffle(keys)
    records = [{"k": agent.encode(k.encode()), "v": agent.encode(v.encode())} for k, v in sequence]
    for i in range(0, len(records), 100):
        send(a, topic, records[i : i + 100])
    a.ask("open", topic=topic, group=topic + "-group", reset="earliest")
    by_key, partitions = {}, {}
    for record in read(a, len(records)):
        key, value, _ = agent.parts(record)
        by_key.setdefault(key.decode(), []).append(value.decode())
        partitions.setdefault(key.decode(), set()).add(record["p"])
    for key in keys:
        equal(key, by_key[key], [f"{key}: {turn}" for turn in range(20)])
        equal(f"partitions of {key}", len(partitions[key]), 1)
    equal("partitions that are used", len(set.union(*partitions.values())) > 1, True)


def group_of_three(run):
    """Two members, a third comes, one leaves, one is killed: nothing is lost, and nothing read twice without need."""
    partitions = 6
    topic = run.topic(partitions)
    group, lacks = run.group(topic, partitions), run.lacks()
    with Flow(run.cluster.bootstrap, topic) as flow:
        first, second = group.add("first"), group.add("second")
        group.wait_shared()
        group.add("third")
        group.wait_shared()
        for _ in range(QUIET_TRIES):
            # The quiet case: every record exactly once. A busy machine may be late for a heartbeat: then once more.
            begin, events = flow.next, group.events()
            time.sleep(3)
            quiet = [str(i) for i in range(begin, flow.next)]
            group.wait_read(quiet)
            if group.events() == events:
                break
            group.wait_shared()
        equal("events of rebalances in a quiet group, by member", group.events(), events)
        equal("records that were read twice in a quiet group", group.twice(quiet), [])
        if "leave" not in lacks:
            # Whoever was thought dead on a busy machine has to be forgotten before.
            members = lambda count: lambda: run.observer.group(group.name)[2] == count  # noqa: E731
            eventually("the group has three members", members(3))
            group.leave(second)
            eventually("two are left, sooner than a session ends", members(2), 4)
            group.wait_shared()
            time.sleep(1)
        group.kill(first)
        group.wait_shared()
        time.sleep(1)
    group.wait_read(flow.sent)
    group.end()
    group.check()
    equal("committed", run.observer.committed(group.name, topic, partitions), run.observer.ends(topic, partitions))
    return without([agent.LACKS["leave"]] if "leave" in lacks else [])


def resume(run):
    """A member goes on where the group's commits end; others see the same commits, and -1 where there is none."""
    topic, group = run.topic(3), f"{run.name}-group"
    run.observer.produce(topic, [str(i) for i in range(60)], 0)
    run.observer.produce(topic, [str(i) for i in range(60, 90)], 1)
    nothing = {0: -1, 1: -1, 2: -1}
    equal("committed before anything is", run.observer.committed(group, topic, 3), nothing)
    a = run.agent()
    a.ask("open", topic=topic, group=group, reset="earliest")
    read(a, 90)
    own_view(a, nothing)
    # In the middle of what was read.
    a.ask("commit", offsets={0: 20})
    wanted = {0: 20, 1: -1, 2: -1}
    own_view(a, wanted)
    equal("committed", run.observer.committed(group, topic, 3), wanted)
    a.ask("commit", offsets={0: 25, 1: 10})
    a.ask("close")
    a.end()
    wanted = {0: 25, 1: 10, 2: -1}
    equal("committed after it has left", run.observer.committed(group, topic, 3), wanted)
    a = run.agent()
    a.ask("open", topic=topic, group=group, reset="earliest")
    got = texts(read(a, 55))
    own_view(a, wanted)
    rest = [str(i) for i in [*range(25, 60), *range(70, 90)]]
    equal("read after the commits", sorted(got, key=int), rest)
    a.ask("close")


def own_view(a, wanted):
    with contextlib.suppress(Lacks):
        offsets = a.ask("committed", partitions=sorted(wanted))["offsets"]
        equal("committed, as the client sees it", {int(p): o for p, o in offsets.items()}, wanted)


def timestamp(run):
    """Offsets by timestamp: at a record, between two, before all, after all; and reading from there."""
    topic = run.topic(1)
    a = run.agent()
    base = int(time.time() * 1000) - 100_000
    for i in range(50):
        # One batch each, so that the answer is in an index of batches; then many in one.
        send(a, topic, values([i], t=base + i * 1000))
    send(a, topic, [record for i in range(50, 80) for record in values([i], t=base + i * 1000)])
    a.ask("open", topic=topic, group=topic + "-group", reset="earliest")
    records = assigned(a, 1)
    read(a, 80 - len(records))
    for at, wanted in [(base + 7000, 7), (base + 7001, 8), (base - 5, 0), (base + 60_500, 61), (base + 90_000, None)]:
        offset = a.ask("times", timestamp=at)["offsets"]["0"]
        equal(f"offset of {at - base} ms", offset, wanted)
    absent = []
    with lacking(absent):
        a.ask("seek", partition=0, offset=61)
        equal("read after the seek", texts(read(a, 19)), [str(i) for i in range(61, 80)])
        a.ask("seek", partition=0, offset=5)
        equal("read after the seek back", texts(read(a, 75)), [str(i) for i in range(5, 80)])
    a.ask("close")
    return without(absent)


def reset(run):
    """Where nothing is committed: from the beginning, from the end, or an error; likewise for a commit out of range."""
    topic = run.topic(2)
    a = run.agent()
    old = [f"old {i}" for i in range(20)]
    run.observer.produce(topic, old[:10], 0)
    run.observer.produce(topic, old[10:], 1)
    a.ask("open", topic=topic, group=topic + "-earliest", reset="earliest")
    equal("from the earliest", sorted(texts(read(a, 20))), sorted(old))
    absent = []
    with lacking(absent):
        # Out of range by far, which the policy has to mend as well.
        a.ask("commit", offsets={0: 5000})
        a.ask("close")
        a.ask("open", topic=topic, group=topic + "-earliest", reset="earliest")
        got = texts(read(a, 20))
        equal("from a commit that is out of range", sorted(got), sorted(old))
    a.ask("close")
    a.ask("open", topic=topic, group=topic + "-latest", reset="latest")
    got = assigned(a, 2)
    new = []

    def new_ones():
        new.append(f"new {len(new)}")
        run.observer.produce(topic, new[-1:], len(new) % 2)
        got.extend(a.ask("poll", ms=300)["records"])
        return len({record["p"] for record in got}) == 2

    eventually(lambda: f"{len(got)} new records are read", new_ones)
    equal("old records from the latest", [text for text in texts(got) if not text.startswith("new")], [])
    a.ask("close")
    if "reset-none" in a.ask("hello")["lacks"]:
        return without([*absent, agent.LACKS["reset-none"]])
    with contextlib.suppress(agent.Failed):
        a.ask("open", topic=topic, group=topic + "-none", reset="none")
        errors = []

        def refused():
            answer = a.ask("poll", ms=300)
            equal("records with the policy none", answer["records"], [])
            errors.extend(answer["errors"])
            return errors

        eventually("an error", refused)
    with contextlib.suppress(agent.Failed):
        a.ask("close")
    return without(absent)


def pause(run):
    """A paused partition gives nothing, the other one goes on; resumed, it gives everything."""
    topic = run.topic(2)
    a = run.agent()
    a.ask("open", topic=topic, group=topic + "-group", reset="earliest")
    assigned(a, 2)
    run.observer.produce(topic, ["a 0", "a 1"], 0)
    run.observer.produce(topic, ["b 0", "b 1"], 1)
    read(a, 4)
    a.ask("pause", partition=0)
    run.observer.produce(topic, [f"a {i}" for i in range(2, 40)], 0)
    run.observer.produce(topic, [f"b {i}" for i in range(2, 40)], 1)
    got = texts(read(a, 38))
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        got += texts(a.ask("poll", ms=300)["records"])
    equal("read while the other is paused", got, [f"b {i}" for i in range(2, 40)])
    a.ask("resume", partition=0)
    equal("read when resumed", texts(read(a, 38)), [f"a {i}" for i in range(2, 40)])
    a.ask("close")


def large(run):
    """A batch of exactly the largest size is taken and read; one byte more is refused and nothing of it is kept."""
    topic = run.topic(1)
    a = run.agent()
    size = MAX_MESSAGE_BYTES - AROUND_ONE_VALUE
    value = random.Random(1).randbytes(size)
    equal("place of the largest", send(a, topic, [{"v": agent.encode(value)}]), [(0, 0)])
    sent = a.ask("send", topic=topic, codec="none", records=[one_value(value + b"x")])["sent"]
    if not isinstance(sent[0], str):
        raise AssertionError(f"one byte over the limit was taken: {sent}")
    equal("the reason", too_large(sent[0]), True)
    # Another producer, since a refused batch has confused the sequence numbers of some.
    equal("place of the next", send(run.agent(), topic, values(["small"])), [(0, 1)])
    a.ask("open", topic=topic, group=topic + "-group", reset="earliest")
    got = [agent.parts(record)[1] for record in read(a, 2)]
    equal("what is read back", [v == w for v, w in zip(got, [value, b"small"], strict=True)], [True, True])
    a.ask("close")


def one_value(value):
    return {"p": None, "k": None, "t": None, "h": [], "v": agent.encode(value)}


def too_large(why):
    """MESSAGE_TOO_LARGE, MSG_SIZE_TOO_LARGE, MessageSizeTooLarge, RecordTooLargeException, 'larger than the max'..."""
    why = why.lower().replace("_", " ")
    return any(word in why for word in ["too large", "toolarge", "larger than", "too big"])


def admin(run):
    """Topics: create with configs, describe, add partitions, alter a config, delete; and what must be refused."""
    a = run.agent()
    topic = f"{run.name}-made"
    a.ask("create", topic=topic, partitions=2, configs={"retention.ms": "3600000"})
    equal("partitions", wait_partitions(a, topic, 2), 2)
    try:
        a.ask("create", topic=topic, partitions=2, configs={})
    except agent.Failed as failed:
        equal(f"the reason: {failed}", "exist" in str(failed).lower(), True)
    else:
        raise AssertionError("a topic was created twice")
    absent = []
    with lacking(absent):
        equal("retention.ms", a.ask("config", topic=topic, name="retention.ms")["value"], "3600000")
        a.ask("alter", topic=topic, configs={"retention.ms": "7200000"})
        altered = lambda: a.ask("config", topic=topic, name="retention.ms")["value"] == "7200000"  # noqa: E731
        eventually("the config is altered", altered, 10)
        try:
            a.ask("alter", topic=topic, configs={"retention.ms": "often"})
        except agent.Failed:
            pass
        else:
            if "alter-errors" not in a.ask("hello")["lacks"]:
                raise AssertionError("retention.ms=often was taken")
        equal("retention.ms", a.ask("config", topic=topic, name="retention.ms")["value"], "7200000")
    with lacking(absent):
        a.ask("grow", topic=topic, count=5)
        equal("partitions", wait_partitions(a, topic, 5), 5)
        try:
            a.ask("grow", topic=topic, count=3)
        except agent.Failed:
            pass
        else:
            raise AssertionError("a topic was made smaller")
    a.ask("delete", topic=topic)
    wait_partitions(a, topic, None)
    return without(absent)


@contextlib.contextmanager
def lacking(absent):
    try:
        yield
    except Lacks as lacks:
        absent.append(str(lacks))


def without(absent):
    return f"without {', '.join(absent)}" if absent else ""


def wait_partitions(a, topic, count):
    seen = [None]

    def look():
        seen[0] = a.ask("partitions", topic=topic)["count"]
        return seen[0] == count

    eventually(lambda: f"{topic} has {seen[0]} partitions instead of {count}", look, 15)
    return count


def coordinator_killed(run):
    """Whoever leads the group is killed: no rebalance, nothing lost, commits go on."""
    broker_away(run, lambda coordinator, others: coordinator, "kill")


def broker_killed(run):
    """A broker that is not the coordinator is killed: the same."""
    broker_away(run, lambda coordinator, others: others[0], "kill")


def broker_restarted(run):
    """The coordinator is restarted in an orderly manner: the same."""
    broker_away(run, lambda coordinator, others: coordinator, "restart")


def broker_away(run, choose, how):
    partitions = 6
    topic = run.topic(partitions)
    group = run.group(topic, partitions)
    patient = "patience" not in run.lacks()
    with Flow(run.cluster.bootstrap, topic) as flow:
        for name in ["first", "second"]:
            group.add(name)
        group.wait_shared()
        begin = str(flow.next)
        eventually("something is read before", lambda: len(group.reads) > 20)
        shares, events, refused = group.shares(), group.events(), len(group.refused)
        coordinator = run.observer.group(group.name)[0]
        others = [address for address in run.cluster.addresses if address != coordinator]
        run.cluster.tell(how, choose(coordinator, others))
        time.sleep(3)
    group.wait_read(flow.sent)
    ends = run.observer.ends(topic, partitions)
    commits_go_on = lambda: run.observer.committed(group.name, topic, partitions) == ends  # noqa: E731
    eventually(lambda: f"commits go on: {group.committed}, refused: {group.refused[refused:][:3]}", commits_go_on, 20)
    rebalanced = group.events() != events
    if patient:
        equal("shares", group.shares(), shares)
        equal("events of rebalances, by member", group.events(), events)
        quiet = [value for value in flow.sent if int(value) >= int(begin)]
        equal("records that were read twice", group.twice(quiet), [])
    else:
        group.wait_shared()
    group.end()
    group.check()
    equal("committed", run.observer.committed(group.name, topic, partitions), run.observer.ends(topic, partitions))
    return "rebalanced, since it lacks " + agent.LACKS["patience"] if rebalanced else ""


SCENARIOS = {
    "codecs": codecs,
    "keyed-order": keyed_order,
    "group": group_of_three,
    "resume": resume,
    "timestamp": timestamp,
    "reset": reset,
    "pause": pause,
    "large": large,
    "admin": admin,
    "coordinator-killed": coordinator_killed,
    "coordinator-restarted": broker_restarted,
    "broker-killed": broker_killed,
}


def main(scenarios):
    words, command = sys.argv[1:], []
    if words == ["--list"]:
        print("\n".join(scenarios))
        return
    if "--" in words:
        words, command = words[: words.index("--")], words[words.index("--") + 1 :]
    client, bootstrap, *names = words
    cluster, observer = Cluster(bootstrap), Observer(bootstrap)
    for name in names or scenarios:
        run = Run(client, command, cluster, observer, name)
        attempt(f"{client} {name}", run, scenarios[name])


def attempt(what, run, scenario):
    began = time.monotonic()
    try:
        but = scenario(run)
    except Lacks as lacks:
        common.say("SKIP", f"{what}: {NO_SUCH_THING}{lacks}")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure to report
        common.say("FAIL", f"{what}: {type(error).__name__}: {str(error)[:1200]}")
        with contextlib.suppress(OSError), open(run.log, errors="replace") as log:
            print("".join(log.readlines()[-int(os.environ.get("STRANDLINE_LOG_LINES", "15")) :]), flush=True)
    else:
        common.say("PASS", f"{what} ({time.monotonic() - began:.0f} s)" + (f", {but}" if but else ""))
    finally:
        run.clean()
        with contextlib.suppress(OSError):
            if keep := os.environ.get("STRANDLINE_KEEP_LOGS"):
                shutil.copy(run.log, keep)
            os.remove(run.log)


if __name__ == "__main__":
    main(SCENARIOS)
