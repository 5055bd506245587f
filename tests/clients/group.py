"""A consumer group whose members are agents, and the rules that its reading has to keep.

Whatever happens to members and brokers: no record that a member was told is committed is ever read again, and a member
reads a partition without gaps and never backwards for as long as it is not taken from it. What must not be lost, or read
twice, or rebalanced, the scenario asks for.
"""

import os
import signal
import threading
import time
from collections import Counter

import agent
from observer import eventually

POLL_MS = 200


class Member(threading.Thread):
    """Polls and commits what it has polled, again and again, in a thread of its own."""

    def __init__(self, group, name, client, pid):
        super().__init__(daemon=True)
        self.group, self.name, self.agent, self.pid = group, name, client, pid
        self.owned, self.next, self.events = set(), {}, []
        self.leaves, self.gone = threading.Event(), threading.Event()

    def run(self):
        try:
            while not self.leaves.is_set():
                self.turn()
            for record in self.agent.ask("close").get("records", []):
                self.read(record["p"], record["o"], agent.decode(record["v"]).decode())
        except agent.Failed as failed:
            # Whoever was killed cannot answer.
            if not self.gone.is_set():
                self.group.wrong.append(f"{self.name}: {failed}")
        except Exception as error:  # noqa: BLE001 - a thread must not end unheard
            self.group.wrong.append(f"{self.name}: {type(error).__name__}: {error}")

    def turn(self):
        answer = self.agent.ask("poll", ms=POLL_MS)
        self.group.errors += [f"{self.name}: {error}" for error in answer["errors"]]
        for what, partitions in answer["events"]:
            self.rebalanced(what, set(partitions))
        for record in answer["records"]:
            self.read(record["p"], record["o"], agent.decode(record["v"]).decode())
        ends = {record["p"]: record["o"] + 1 for record in answer["records"] if record["p"] in self.owned}
        while ends and not self.gone.is_set():
            try:
                self.agent.ask("commit", offsets=ends)
            except agent.Lacks:
                # It commits by itself, and does not say when.
                return
            except agent.Failed as failed:
                # A rebalance or a coordinator that is away: whoever has the partition then reads it again.
                self.group.refused.append(f"{self.name}: {failed}")
                return
            with self.group.lock:
                for p, offset in ends.items():
                    self.group.committed[p] = max(offset, self.group.committed.get(p, 0))
            return

    def rebalanced(self, what, partitions):
        self.events.append((what, sorted(partitions)))
        self.owned = self.owned | partitions if what == "assigned" else self.owned - partitions
        for p in partitions:
            self.next.pop(p, None)

    def read(self, p, offset, value):
        with self.group.lock:
            if offset < self.group.committed.get(p, 0):
                committed = self.group.committed[p]
                self.group.wrong.append(f"{self.name} read {p}:{offset} though {committed} was committed")
            if offset != self.next.get(p, offset):
                self.group.wrong.append(f"{self.name} read {p}:{offset} instead of {self.next[p]}")
            self.group.reads.append((self.name, p, offset, value))
        self.next[p] = offset + 1


class Group:
    def __init__(self, name, topic, partitions, observer, new_agent):
        self.name, self.topic, self.partitions = name, topic, partitions
        self.observer, self.new_agent = observer, new_agent
        self.lock, self.members = threading.Lock(), []
        self.reads, self.committed = [], {}
        self.wrong, self.errors, self.refused = [], [], []

    def add(self, name):
        client = self.new_agent()
        opened = client.ask("open", topic=self.topic, group=self.name, reset="earliest")
        member = Member(self, name, client, opened.get("pid"))
        self.members.append(member)
        member.start()
        return member

    def leave(self, member):
        """It is asked to."""
        member.leaves.set()
        member.join(40)
        member.gone.set()
        member.agent.end()
        self.members.remove(member)

    def kill(self, member):
        if member.pid:
            # What it has printed it may have committed, so that is still read.
            os.kill(member.pid, signal.SIGKILL)
            time.sleep(1)
        member.gone.set()
        member.agent.kill()
        member.join(40)
        self.members.remove(member)

    def end(self):
        for member in list(self.members):
            self.leave(member)

    def wait_shared(self):
        """Until every partition has one owner and everybody a fair share."""
        fair = self.partitions // len(self.members)

        def shared():
            owned = [p for m in self.members for p in m.owned]
            return sorted(owned) == list(range(self.partitions)) and all(len(m.owned) >= fair for m in self.members)

        eventually(lambda: f"{len(self.members)} members share: {self.told()}", shared)

    def told(self):
        """What there is to know when it does not go on."""
        coordinator = self.observer.shares(self.name)
        with self.lock:
            places = {p: offset for _, p, offset, _ in self.reads}
        return f"{self.shares()}, read to {places}, committed {self.committed}, events {self.events()}, coordinator: {coordinator}; {self.wrong[:3]} {self.refused[-3:]}"

    def shares(self):
        return {m.name: sorted(m.owned) for m in self.members}

    def wait_read(self, flow_or_values):
        wanted = flow_or_values

        def missing():
            with self.lock:
                return set(wanted) - {value for *_, value in self.reads}

        eventually(lambda: f"{len(missing())} of {len(wanted)} records are not read: {self.told()}", lambda: not missing())

    def twice(self, values):
        """Which of these were read more than once."""
        with self.lock:
            counted = Counter(value for *_, value in self.reads)
        return [value for value in values if counted[value] > 1]

    def events(self):
        return {m.name: list(m.events) for m in self.members}

    def check(self):
        if self.wrong:
            raise AssertionError(f"{len(self.wrong)} wrong: {'; '.join(self.wrong[:4])}")
