"""kcat, with text records: it is told partitions, and offsets count up."""

import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time

import agent
import common

NAME = "kcat"


def run(args, **settings):
    done = subprocess.run(["kcat", *args], capture_output=True, timeout=120, check=False, **settings)
    if done.returncode != 0:
        raise AssertionError(f"kcat ended with {done.returncode}: {done.stderr.decode()[-300:]}")
    return done.stdout


def produce(bootstrap, client_id, topic, codec):
    settings = ["-P", "-b", bootstrap, "-X", f"client.id={client_id}", "-t", topic, "-z", codec]
    lines = []
    for partition in range(common.PARTITIONS):
        texts = [(f"key {i}", f"value {i} of {partition} äöü") for i in range(100)]
        # -Z makes what is empty null.
        texts += [("only key", ""), ("", "only value")]
        stdin = "".join(f"{key}|{value}\n" for key, value in texts)
        headers = ["-H", "first=1", "-H", "second=two"]
        run([*settings, "-p", str(partition), "-K", "|", "-Z", *headers], input=stdin.encode())
        for offset, (key, value) in enumerate(texts):
            sent = [(key or None) and key.encode(), (value or None) and value.encode()]
            lines.append(common.line(partition, offset, "*", *sent, [("first", b"1"), ("second", b"two")]))
        large = f"large {partition} ".encode() + b"l" * common.LARGE_BYTES
        with tempfile.NamedTemporaryFile() as file:
            file.write(large)
            file.flush()
            run([*settings, "-p", str(partition), file.name])
        lines.append(common.line(partition, len(texts), "*", None, large, []))
    return lines


def verify(bootstrap, client_id, topic, expected):
    got = []
    for partition in range(common.PARTITIONS):
        args = ["-C", "-b", bootstrap, "-X", f"client.id={client_id}", "-t", topic, "-p", str(partition)]
        out = run([*args, "-o", "beginning", "-e", "-q", "-f", "%o %T %K %S %h\n%k%s\n"])
        while out:
            head, out = out.split(b"\n", 1)
            offset, timestamp, key_bytes, value_bytes, headers = head.split(b" ", 4)
            key_bytes, value_bytes = int(key_bytes), int(value_bytes)
            key = None if key_bytes < 0 else out[:key_bytes]
            out = out[max(key_bytes, 0) :]
            value = None if value_bytes < 0 else out[:value_bytes]
            out = out[max(value_bytes, 0) + 1 :]
            got.append((partition, int(offset), int(timestamp), key, value, headers))
    # It prints an empty header value and a null one as it likes, so headers are compared as it prints them.
    lines = {common.place(a_line): a_line for a_line in expected}
    return [as_expected(record, lines.get(record[:2], "")) for record in got]


def as_expected(record, expected):
    *fields, printed = record
    headers = expected.rsplit("\t", 1)[-1]
    names = ",".join(pair.split("=")[0] for pair in headers.split(",")) if headers else ""
    printed_names = ",".join(pair.split(b"=")[0].decode() for pair in printed.split(b",")) if printed else ""
    a_line = common.line(*fields, [])
    return a_line + (headers if printed_names == names else f"headers {printed!r}")


def load(bootstrap, client_id, topic, goes_on):
    raise NotImplementedError


class Agent:
    """A member that runs in a kcat of its own. It commits by itself, what it has printed; it is told nothing."""

    def __init__(self, bootstrap, client_id):
        self.common = ["-b", bootstrap, "-X", f"client.id={client_id}"]

    def hello(self):
        # What it has received when it is told to end it commits, but does not print.
        return {"lacks": ["leave"]}

    def open(self, topic, group, reset):
        resets = {"earliest": "earliest", "latest": "latest", "none": "error"}
        settings = {
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 1000,
            "auto.commit.interval.ms": 200,
            "auto.offset.reset": resets[reset],
            "fetch.wait.max.ms": 100,
        }
        settings = [word for name, value in settings.items() for word in ("-X", f"{name}={value}")]
        args = ["kcat", *self.common, *settings, "-u", "-f", "%p %o %T %s\n", "-G", group, topic]
        self.kcat = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.heard = queue.Queue()
        for number, stream in enumerate([self.kcat.stdout, self.kcat.stderr]):
            threading.Thread(target=self.listen, args=(number, stream), daemon=True).start()
        return {"pid": self.kcat.pid}

    def listen(self, number, stream):
        for a_line in stream:
            self.heard.put((number, a_line.decode().rstrip("\n")))

    def poll(self, ms):
        answer = {"records": [], "events": [], "errors": []}
        until = time.monotonic() + ms / 1000
        while (left := until - time.monotonic()) > 0:
            try:
                number, a_line = self.heard.get(timeout=left)
            except queue.Empty:
                break
            if number == 0:
                partition, offset, timestamp, value = a_line.split(" ", 3)
                record = agent.to_record(int(partition), int(offset), int(timestamp), None, value.encode(), [])
                answer["records"].append(record)
            elif found := re.search(r"rebalanced.*(assigned|revoked):(.*)", a_line):
                answer["events"].append([found[1], [int(p) for p in re.findall(r"\[(\d+)\]", found[2])]])
            elif "ERROR" in a_line and "Transport failure" not in a_line:
                answer["errors"].append(a_line)
        return answer

    def end(self):
        if hasattr(self, "kcat"):
            self.kcat.kill()

    def commit(self, offsets):
        raise agent.Lacks("commit")

    def close(self):
        # It commits and leaves.
        self.kcat.terminate()
        self.kcat.wait(20)
        return self.poll(300)

    def __getattr__(self, name):
        """Everything else is more than a command line can do."""

        def lacking(**_):
            raise agent.Lacks("agent")

        if name.startswith("__") or name == "kcat":
            raise AttributeError(name)
        return lacking


if __name__ == "__main__":
    os.environ["LC_ALL"] = "C.UTF-8"
    if sys.argv[1] == "agent":
        agent.serve(Agent(*sys.argv[2:4]))
    else:
        common.main(NAME, produce, verify, load)
