"""Any request of Kafka's protocol, from the message definitions in Kafka's own jar: for holding two brokers side by side.

    from wire import Connection
    Connection("127.0.0.1:9092").ask("Metadata", 9, Topics=[{"Name": "t"}])

Fields that are not given have their defaults. Null is None, so a null string and an empty one differ.
"""

import contextlib
import functools
import glob
import json
import os
import re
import socket
import struct
import uuid
import zipfile

CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "strandline-clients/reference")


@functools.cache
def definitions():
    """Every message definition by its name."""
    (jar,) = glob.glob(CACHE + "/jars/kafka-clients-*.jar")
    found = {}
    with zipfile.ZipFile(jar) as files:
        for name in files.namelist():
            if re.fullmatch(r"common/message/\w+\.json", name):
                text = re.sub(r"^\s*//.*$", "", files.read(name).decode(), flags=re.M)
                text = re.sub(r"(?<=[,\[{\]}])\s*//.*$", "", text, flags=re.M)
                definition = json.loads(text)
                found[definition["name"]] = definition
    return found


def covers(versions, version):
    if versions in (None, "none"):
        return False
    low, plus, high = re.fullmatch(r"(\d+)(\+|-(\d+))?", versions).groups()
    return int(low) <= version and (plus == "+" or version <= int(high or low))


def versions_of(name):
    """The versions that Kafka's own definition of a request has."""
    low, _, high = definitions()[name + "Request"]["validVersions"].partition("-")
    return range(int(low), int(high or low) + 1)


NUMBERS = {"int8": ">b", "int16": ">h", "uint16": ">H", "int32": ">i", "uint32": ">I", "int64": ">q", "float64": ">d"}


class Codec:
    """Writes and reads one version of one message."""

    def __init__(self, name, version):
        self.definition, self.version = definitions()[name], version
        self.flexible = covers(self.definition.get("flexibleVersions"), version)
        self.structs = {s["name"]: s["fields"] for s in self.definition.get("commonStructs", [])}

    def fields_of(self, kind, field):
        return field.get("fields") or self.structs[kind]

    def default(self, field):
        kind, given = field["type"], field.get("default")
        if given == "null":
            return None
        if kind.startswith("[]"):
            return []
        if kind in NUMBERS:
            return float(given or 0) if kind == "float64" else int(str(given or 0), 0)
        if kind == "bool":
            return str(given).lower() == "true"
        return {"string": given or "", "uuid": uuid.UUID(int=0), "bytes": b"", "records": None}.get(kind, {})

    # ---- writing

    def varint(self, number):
        out = b""
        while number >= 0x80:
            out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
        return out + bytes([number])

    def length(self, number, short=False):
        if self.flexible:
            return self.varint(number + 1)
        return struct.pack(">h" if short else ">i", number)

    def write_value(self, kind, field, value):
        if kind.startswith("[]"):
            if value is None:
                return self.length(-1)
            return self.length(len(value)) + b"".join(self.write_value(kind[2:], field, item) for item in value)
        if kind in NUMBERS:
            return struct.pack(NUMBERS[kind], value)
        if kind == "bool":
            return b"\1" if value else b"\0"
        if kind == "uuid":
            return value.bytes
        if kind in ("string", "bytes", "records"):
            if value is None:
                return self.length(-1, kind == "string")
            raw = value.encode() if isinstance(value, str) else value
            return self.length(len(raw), kind == "string") + raw
        if covers(field.get("nullableVersions"), self.version) and not field["type"].startswith("[]"):
            return b"\xff" if value is None else b"\1" + self.write(self.fields_of(kind, field), value)
        return self.write(self.fields_of(kind, field), value)

    def write(self, fields, values):
        unknown = set(values) - {field["name"] for field in fields}
        if unknown:
            raise ValueError(f"{self.definition['name']} has no {unknown}")
        out, tagged = b"", []
        for field in fields:
            value = values.get(field["name"], self.default(field))
            if covers(field.get("taggedVersions"), self.version):
                if value != self.default(field):
                    tagged.append((field["tag"], self.write_value(field["type"], field, value)))
            elif covers(field["versions"], self.version):
                out += self.write_value(field["type"], field, value)
        if self.flexible:
            out += self.varint(len(tagged))
            for tag, raw in sorted(tagged):
                out += self.varint(tag) + self.varint(len(raw)) + raw
        return out

    # ---- reading

    def take(self, count):
        piece, self.rest = self.rest[:count], self.rest[count:]
        if len(piece) < count:
            raise EOFError("the response is cut")
        return piece

    def read_varint(self):
        number = shift = 0
        while True:
            (byte,) = self.take(1)
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7

    def read_length(self, short=False):
        if self.flexible:
            return self.read_varint() - 1
        return struct.unpack(">h" if short else ">i", self.take(2 if short else 4))[0]

    def read_value(self, kind, field):
        if kind.startswith("[]"):
            count = self.read_length()
            return None if count < 0 else [self.read_value(kind[2:], field) for _ in range(count)]
        if kind in NUMBERS:
            return struct.unpack(NUMBERS[kind], self.take(struct.calcsize(NUMBERS[kind])))[0]
        if kind == "bool":
            return self.take(1) != b"\0"
        if kind == "uuid":
            return uuid.UUID(bytes=self.take(16))
        if kind in ("string", "bytes", "records"):
            count = self.read_length(kind == "string")
            if count < 0:
                return None
            raw = self.take(count)
            return raw.decode() if kind == "string" else raw
        if (
            covers(field.get("nullableVersions"), self.version)
            and not field["type"].startswith("[]")
            and self.take(1) == b"\xff"
        ):
            return None
        return self.read(self.fields_of(kind, field))

    def read(self, fields):
        out, tagged = {}, {}
        for field in fields:
            if covers(field.get("taggedVersions"), self.version):
                tagged[field["tag"]] = field
                out[field["name"]] = self.default(field)
            elif covers(field["versions"], self.version):
                out[field["name"]] = self.read_value(field["type"], field)
        if self.flexible:
            for _ in range(self.read_varint()):
                tag, count = self.read_varint(), self.read_varint()
                raw, rest = self.take(count), self.rest
                if tag in tagged:
                    self.rest = raw
                    out[tagged[tag]["name"]] = self.read_value(tagged[tag]["type"], tagged[tag])
                self.rest = rest
        return out


class Connection:
    """A connection to a broker."""

    def __init__(self, address, client_id="wire", timeout=30):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout)
        self.client_id, self.correlation = client_id, 0

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()

    def ask(self, name, version, **fields):
        """The response, as a dictionary. EOFError if the broker closes the connection."""
        codec = Codec(name + "Request", version)
        self.correlation += 1
        key = codec.definition["apiKey"]
        head = struct.pack(">hhih", key, version, self.correlation, len(self.client_id)) + self.client_id.encode()
        frame = head + (b"\0" if codec.flexible else b"") + codec.write(codec.definition["fields"], fields)
        self.socket.sendall(struct.pack(">i", len(frame)) + frame)
        return self.receive(name, version)

    def receive(self, name, version):
        """The next response, as one of this message and version."""
        body = self.exactly(struct.unpack(">i", self.exactly(4))[0])
        codec = Codec(name + "Response", version)
        codec.rest = body[4:]
        if codec.flexible and name != "ApiVersions":
            codec.take(1)
        answer = codec.read(codec.definition["fields"])
        if codec.rest:
            raise ValueError(f"{len(codec.rest)} bytes behind {name}Response")
        return answer

    def exactly(self, count):
        out = b""
        while len(out) < count:
            piece = self.socket.recv(count - len(out))
            if not piece:
                raise EOFError("the broker closed the connection")
            out += piece
        return out
