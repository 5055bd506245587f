#!/usr/bin/env python3
"""Transactions, as scenarios for the clients that run.sh names; the command line is that of scenarios.py.

An agent with a transactional id sends in transactions. The readers are agents of the same client, in other processes.
"""

import threading
import time

import agent
from observer import eventually
from scenarios import assigned, equal, main, read, send, texts, values

TIMEOUT_MS = 60_000
SHORT_TIMEOUT_MS = 5_000
QUIET_SECONDS = 1.5
# What a client is told whose transactional id has gone to another. Sarama has no name for PRODUCER_FENCED.
FENCED = ["fenced", "invalidproducerepoch", "invalid_producer_epoch", "old epoch", "error code = 90"]
# What it is told whose transaction has timed out: clients do not tell that from being fenced.
TIMED_OUT = [*FENCED, "invalidtxnstate", "invalid_txn_state"]


def producer(run, timeout_ms=TIMEOUT_MS):
    """One with the scenario's transactional id; whoever had it is fenced."""
    a = run.agent()
    a.ask("init_transactions", id=run.name, timeout_ms=timeout_ms)
    return a


def reader(run, topic, isolation, partitions=2):
    a = run.agent()
    a.ask("open", topic=topic, group=f"{topic}-{isolation}", reset="earliest", isolation=isolation)
    equal("records of an empty topic", assigned(a, partitions), [])
    return a


def transaction(a, topic, word):
    """Begins one and sends ten records, to two partitions in turn; gives their texts."""
    sent = [f"{word} {i}" for i in range(10)]
    a.ask("begin_transaction")
    send(a, topic, [record for i, text in enumerate(sent) for record in values([text], p=i % 2)])
    return sent


def seen(a, count):
    """The texts that are read: at least so many, and what else comes soon."""
    got = texts(read(a, count)) if count else []
    until = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < until:
        answer = a.ask("poll", ms=300)
        equal("errors", answer["errors"], [])
        got += texts(answer["records"])
    return sorted(got)


def refused(a):
    """The commit is refused; gives the reason."""
    try:
        a.ask("end_transaction", commit=True)
    except agent.Failed as failed:
        return str(failed)
    raise AssertionError("a transaction was committed that had to be refused")


def says(words, why):
    if not any(word in why.lower() for word in words):
        raise AssertionError(f"this says nothing of {words[0]}: {why}")


# ---- the scenarios


def commit_and_abort(run):
    """What is open is not seen, what is committed is, what is aborted never is; nor what lies behind an open one."""
    topic = run.topic(2)
    committed, uncommitted = reader(run, topic, "read_committed"), reader(run, topic, "read_uncommitted")
    a = producer(run)
    first = transaction(a, topic, "first")
    run.observer.produce(topic, ["behind"], 0)
    equal("seen by read_uncommitted", seen(uncommitted, 11), sorted([*first, "behind"]))
    equal("seen while it is open", seen(committed, 0), [])
    a.ask("end_transaction", commit=True)
    equal("seen when it is committed", seen(committed, 11), sorted([*first, "behind"]))
    aborted = transaction(a, topic, "aborted")
    a.ask("end_transaction", commit=False)
    last = transaction(a, topic, "last")
    a.ask("end_transaction", commit=True)
    equal("seen after the abort", seen(committed, 10), last)
    equal("seen by read_uncommitted", seen(uncommitted, 20), sorted(aborted + last))
    committed.ask("close")
    committed.ask("open", topic=topic, group=topic + "-late", reset="earliest", isolation="read_committed")
    equal("seen by one that comes late", seen(committed, 21), sorted([*first, "behind", *last]))


def fencing(run):
    """A second instance aborts what the first has open; the first is fenced, whether it commits or sends."""
    topic = run.topic(2)
    committed = reader(run, topic, "read_committed")
    first = producer(run)
    transaction(first, topic, "first")
    second = producer(run)
    says(FENCED, refused(first))
    sent = transaction(second, topic, "second")
    second.ask("end_transaction", commit=True)
    third = producer(run)
    second.ask("begin_transaction")
    records = [{"p": 0, "k": None, "t": None, "h": [], "v": agent.encode(b"from a zombie")}]
    try:
        [why] = second.ask("send", topic=topic, codec="none", records=records)["sent"]
    except agent.Failed as failed:
        why = str(failed)
    if not isinstance(why, str):
        raise AssertionError(f"a fenced instance could send: {why}")
    says(FENCED, f"{why}, {refused(second)}")
    sent += transaction(third, topic, "third")
    third.ask("end_transaction", commit=True)
    equal("seen", seen(committed, 20), sorted(sent))


def timeout(run):
    """A transaction that is left open is aborted when its time is up: readers go on, and its producer cannot commit it."""
    topic = run.topic(2)
    committed = reader(run, topic, "read_committed")
    began = time.monotonic()
    left = producer(run, SHORT_TIMEOUT_MS)
    transaction(left, topic, "left open")
    run.observer.produce(topic, ["behind"], 0)
    equal("seen when it has timed out", seen(committed, 1), ["behind"])
    took = time.monotonic() - began
    if took < SHORT_TIMEOUT_MS / 1000:
        raise AssertionError(f"it was aborted after {took:.1f} s")
    says(TIMED_OUT, why := refused(left))
    next_one = producer(run)
    sent = transaction(next_one, topic, "next")
    next_one.ask("end_transaction", commit=True)
    equal("seen of the next instance", seen(committed, 10), sent)
    return f"refused with {why[:120]}"


def described(run):
    """An open transaction is listed and described, and so are its producers; a committed one as committed."""
    topic = run.topic(2)
    run.observer.produce(topic, ["before"], 1)
    a = producer(run)
    look = lambda: a.ask("describe_transactions", id=run.name, topic=topic)  # noqa: E731
    transaction(a, topic, "open")
    found = look()
    equal("state", (found["listed"], found["state"]), ("Ongoing", "Ongoing"))
    equal("timeout", found["timeout_ms"], TIMEOUT_MS)
    equal("partitions", found["partitions"], [0, 1])
    # The producer of the record before has no transaction.
    begins = {p: sorted(begin) for p, begin in found["producers"].items()}
    equal("where its producers began", begins, {"0": [0], "1": [-1, 1]})
    a.ask("end_transaction", commit=True)
    eventually(lambda: f"it is complete: {look()}", lambda: look()["state"] == look()["listed"] == "CompleteCommit", 20)
    equal("partitions when it is committed", look()["partitions"], [])
    equal("producers in a transaction", [b for begin in look()["producers"].values() for b in begin if b >= 0], [])


class Copying:
    """A source that grows, a target, and the copier that is at work: it reads one in a group and writes to the other, in
    transactions that its offsets are part of."""

    def __init__(self, run):
        self.run, self.given = run, []
        self.source, self.target = run.topic(3, "-source"), run.topic(2, "-target")
        self.group = self.source + "-group"
        self.start()

    def start(self):
        self.copier = producer(self.run)
        self.copier.ask("open", topic=self.source, group=self.group, reset="earliest", isolation="read_committed")

    def grow(self):
        more = [f"{len(self.given) + i}" for i in range(30)]
        self.run.observer.produce(self.source, more)
        self.given += more

    def copy(self, steps=("send", "offsets", "commit")):
        """One transaction of all that a poll gives, as far as these steps go."""
        got = read(self.copier, 1)
        self.copier.ask("begin_transaction")
        send(self.copier, self.target, values(f"copy of {text}" for text in texts(got)))
        if "offsets" in steps:
            self.copier.ask("add_offsets", offsets={r["p"]: r["o"] + 1 for r in sorted(got, key=lambda r: r["o"])})
        if "commit" in steps:
            self.copier.ask("end_transaction", commit=True)

    def finish(self):
        """Copies the rest; then every record is copied exactly once. Gives how many other copies were never committed."""
        ends = self.run.observer.ends(self.source, 3)
        while self.run.observer.committed(self.group, self.source, 3) != ends:
            self.copy()
        copies = sorted(f"copy of {text}" for text in self.given)
        found = {}
        for isolation in ["read_committed", "read_uncommitted"]:
            a = self.run.agent()
            a.ask("open", topic=self.target, group=f"{self.target}-{isolation}", reset="earliest", isolation=isolation)
            found[isolation] = seen(a, len(copies))
        equal("copies", found["read_committed"], copies)
        equal("copies that were never asked for", set(found["read_uncommitted"]) - set(copies), set())
        return len(found["read_uncommitted"]) - len(copies)


def exactly_once(run):
    """A copier is killed in the middle of a transaction, again and again, and the next one goes on."""
    copying = Copying(run)
    for steps in [["send"], ["send", "offsets"], ["send", "offsets"]]:
        for _ in range(3):
            copying.grow()
            copying.copy()
        copying.grow()
        copying.copy(steps)
        copying.copier.kill()
        copying.start()
    copying.grow()
    aborted = copying.finish()
    if not aborted:
        raise AssertionError("no transaction was killed in the middle")
    return f"{aborted} more copies were of transactions that were killed"


def brokers_killed(run):
    """Every broker is killed, one after the other, while a copier is at work; a copier that fails is started again."""
    copying, killed, failures = Copying(run), [], []

    def kill_all():
        for address in run.cluster.addresses:
            run.cluster.tell("kill", address)
            killed.append(address)
            time.sleep(2)

    killing = threading.Thread(target=kill_all, daemon=True)
    killing.start()
    while killing.is_alive():
        copying.grow()
        try:
            copying.copy()
        except (agent.Failed, AssertionError) as failed:
            failures.append(str(failed)[:100])
            copying.copier.kill()
            copying.start()
    copying.finish()
    equal("brokers killed", killed, run.cluster.addresses)
    return f"{len(copying.given)} records, {len(failures)} failures {failures[:2]}"


SCENARIOS = {
    "commit-and-abort": commit_and_abort,
    "fencing": fencing,
    "timeout": timeout,
    "described": described,
    "exactly-once": exactly_once,
    "brokers-killed": brokers_killed,
}

if __name__ == "__main__":
    main(SCENARIOS)
