"""What every client does: make records, note what was acknowledged, compare it with what is read.

A file names its topic and has one line for each record, in the order of partition and offset:

    partition TAB offset TAB timestamp TAB key TAB value TAB headers

Key and value are base64, or - for null; headers are name=base64, or name=-, with commas between. A timestamp of * is
not compared. A result is a line that begins with PASS, FAIL or SKIP; run.sh counts them.
"""

import base64
import os
import random
import sys
import time
import traceback

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
PARTITIONS = 3
RECORDS = 300
LARGE_BYTES = 900_000


def records(seed, count=RECORDS):
    """Keys, values and headers: null ones, empty ones, binary ones, and one that is almost too large."""
    rng = random.Random(seed)
    for i in range(count):
        key = None if i % 7 == 0 else b"key-%d-" % (i % 20) + rng.randbytes(i % 5)
        value = None if i % 11 == 0 else rng.randbytes(rng.randrange(0, 400))
        if key is None and value is None:
            # Some clients refuse a record of nothing.
            value = b""
        if i == count // 2:
            value = rng.randbytes(LARGE_BYTES // 2) + b"x" * (LARGE_BYTES // 2)
        headers = [("number", b"%d" % i)] * (i % 3)
        if i % 5 == 0:
            headers.append(("empty", b""))
        if i % 13 == 0:
            headers.append(("null", None))
        yield key, value, headers


def text(data):
    return "-" if data is None else base64.b64encode(data).decode()


def bytes_of(a_text):
    return None if a_text == "-" else base64.b64decode(a_text)


def line(partition, offset, timestamp, key, value, headers):
    headers = ",".join(f"{name}={text(value)}" for name, value in headers or [])
    return f"{partition}\t{offset}\t{timestamp}\t{text(key)}\t{text(value)}\t{headers}"


def place(a_line):
    partition, offset = a_line.split("\t", 2)[:2]
    return int(partition), int(offset)


def note(folder, topic, lines, ordered=True):
    """Writes what was acknowledged, given in the order in which it was sent; offsets must have that order too, if the
    client keeps it."""
    last = {}
    for a_line in lines:
        partition, offset = place(a_line)
        if ordered and offset <= last.get(partition, -1):
            raise AssertionError(f"{topic}-{partition}: offset {offset} was given after {last[partition]}")
        last[partition] = offset
    with open(os.path.join(folder, topic + ".tsv"), "w") as out:
        for a_line in sorted(lines, key=place):
            out.write(a_line + "\n")


def files(folder):
    for name in sorted(os.listdir(folder)):
        if name.endswith(".tsv"):
            with open(os.path.join(folder, name)) as file:
                yield name[: -len(".tsv")], file.read().splitlines()


def compare(topic, expected, got):
    """Fails unless every record is there, in order, byte for byte, and nothing else."""
    got = sorted(got, key=place)
    for want, have in zip(expected, got):
        want_parts, have_parts = want.split("\t"), have.split("\t")
        if want_parts[2] == "*":
            have_parts[2] = "*"
        if want_parts != have_parts:
            raise AssertionError(f"{topic}: {have[:160]!r} instead of {want[:160]!r}")
    if len(expected) != len(got):
        raise AssertionError(f"{topic}: {len(got)} records instead of {len(expected)}")


def say(result, what):
    print(f"{result} {what}", flush=True)


def attempt(what, action):
    """Does it and says how it went."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure to report
        traceback.print_exc(file=sys.stdout)
        say("FAIL", f"{what}: {type(error).__name__}: {str(error)[:300]}")
    else:
        say("PASS", what)


def main(name, produce, verify, load, ordered=True):
    """Runs what the command line asks for. `ordered` says whether the client keeps the order when a partition moves to
    another broker: one with many requests in flight and without idempotence does not promise it, here or on Kafka.

    produce BOOTSTRAP ZONE FOLDER            every codec into a topic of its own
    verify BOOTSTRAP ZONE FOLDER             every topic that a file is there for
    load BOOTSTRAP ZONE FOLDER STOP          without a pause until the file STOP exists
    """
    mode, bootstrap, zone, folder = sys.argv[1:5]
    client_id = f"{name},zone={zone}"
    if mode == "produce":
        for codec in CODECS:
            topic = f"{name}-{codec}"
            attempt(f"{name} produces {codec}", lambda: note(folder, topic, produce(bootstrap, client_id, topic, codec)))
    elif mode == "verify":
        for topic, expected in files(folder):
            attempt(
                f"{name} reads {topic} ({len(expected)} records)",
                lambda: compare(topic, expected, verify(bootstrap, client_id, topic, expected)),
            )
    else:
        stop = sys.argv[5]
        topic = f"{name}-load" + os.environ.get("STRANDLINE_TOPIC_SUFFIX", "")
        goes_on = lambda: not os.path.exists(stop)  # noqa: E731
        attempt(
            f"{name} produces under load",
            lambda: note(folder, topic, load(bootstrap, client_id, topic, goes_on), ordered),
        )


def ends_of(expected):
    """The offset after the last expected record, by partition."""
    ends = {}
    for a_line in expected:
        partition, offset = place(a_line)
        ends[partition] = offset + 1
    return ends


def deadline(seconds=90):
    return time.monotonic() + seconds


def before(limit, what):
    if time.monotonic() > limit:
        raise AssertionError(f"{what}: not in time")
