// kafkajs: what it writes and reads of the files that common.py describes. Its consumer is always a member of a group.
//
//   client.js produce|verify|load BOOTSTRAP ZONE FOLDER [STOP]
//   client.js agent BOOTSTRAP CLIENT_ID

const fs = require("fs");
const path = require("path");
const crypto = require("crypto");
const { Kafka, CompressionTypes, CompressionCodecs, Partitioners, logLevel } = require("kafkajs");
const { serve } = require("./agent");

const [mode, bootstrap, zone, folder, stop] = process.argv.slice(2);
const PARTITIONS = 3;
const RECORDS = 300;
const LARGE_BYTES = 900_000;
const CODECS = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP };

// These are packages of their own, some of them with native code that may not be there.
const optional = {
  snappy: () => (CompressionCodecs[CompressionTypes.Snappy] = require("kafkajs-snappy")),
  lz4: () => {
    const LZ4 = require("kafkajs-lz4");
    CompressionCodecs[CompressionTypes.LZ4] = new (LZ4.default || LZ4)().codec;
  },
  zstd: () => {
    const Zstd = require("@kafkajs/zstd");
    CompressionCodecs[CompressionTypes.ZSTD] = (Zstd.default || Zstd)();
  },
};
const types = { snappy: CompressionTypes.Snappy, lz4: CompressionTypes.LZ4, zstd: CompressionTypes.ZSTD };
for (const [codec, load] of mode === "load" ? [] : Object.entries(optional)) {
  try {
    load();
    CODECS[codec] = types[codec];
  } catch (error) {
    if (mode === "produce") console.log(`SKIP kafkajs produces ${codec}: its package does not load (${String(error.message).split("\n")[0]})`);
  }
}

const kafka = new Kafka({
  clientId: `kafkajs,zone=${zone}`,
  brokers: bootstrap.split(","),
  logLevel: logLevel.NOTHING,
});

const text = (bytes) => (bytes === null ? "-" : bytes.toString("base64"));

function line(partition, offset, message) {
  const pairs = Object.entries(message.headers || {}).flatMap(([name, value]) => [].concat(value).map((v) => [name, v]));
  const headers = pairs.map(([name, value]) => `${name}=${text(value)}`);
  const fields = [partition, offset, message.timestamp, text(message.key), text(message.value), headers.join(",")];
  return fields.join("\t");
}

// Sends messages of one topic in one go; gives their lines. An answer has one base offset for each partition.
async function send(producer, topic, codec, messages) {
  const answers = await producer.send({ topic, compression: CODECS[codec], messages });
  const next = new Map(answers.map((a) => [a.partition, BigInt(a.baseOffset)]));
  return messages.map((message) => {
    const offset = next.get(message.partition);
    if (offset === undefined) throw new Error(`partition ${message.partition} is not in ${JSON.stringify(answers)}`);
    next.set(message.partition, offset + 1n);
    return line(message.partition, offset, message);
  });
}

function record(i) {
  const value = i % 11 === 0 ? null : crypto.randomBytes((i * 7) % 400);
  return {
    partition: i % PARTITIONS,
    key: i % 7 === 0 ? null : Buffer.concat([Buffer.from(`key-${i % 20}`), crypto.randomBytes(i % 5)]),
    value: i === RECORDS / 2 ? crypto.randomBytes(LARGE_BYTES) : value,
    headers: i % 3 === 0 ? {} : { number: Buffer.from(String(i)), empty: Buffer.alloc(0) },
    timestamp: String(Date.now()),
  };
}

const place = (l) => l.split("\t", 2).map(Number);
const byPlace = (a, b) => place(a)[0] - place(b)[0] || place(a)[1] - place(b)[1];

function note(topic, lines) {
  lines.sort(byPlace);
  fs.writeFileSync(path.join(folder, `${topic}.tsv`), lines.map((l) => l + "\n").join(""));
}

async function attempt(what, action) {
  try {
    await action();
    console.log(`PASS ${what}`);
  } catch (error) {
    console.log(error);
    console.log(`FAIL ${what}: ${error.message}`);
  }
}

async function produce(codec) {
  const topic = `kafkajs-${codec}`;
  // kafkajs turns idempotence on only when it is asked to.
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner, idempotent: codec === "none" });
  await producer.connect();
  const lines = [];
  for (let i = 0; i < RECORDS; i += 30) {
    const messages = Array.from({ length: 30 }, (_, j) => record(i + j));
    lines.push(...(await send(producer, topic, codec, messages)));
  }
  await producer.disconnect();
  note(topic, lines);
}

// Reads everything that others wrote, with codecs that it knows; gives the lines.
async function read(topic, expected) {
  const consumer = kafka.consumer({ groupId: `kafkajs-${zone}-${topic}`, maxWaitTimeInMs: 100 });
  await consumer.connect();
  await consumer.subscribe({ topics: [topic], fromBeginning: true });
  const got = [];
  const eachMessage = async ({ partition, message }) => got.push(line(partition, message.offset, message));
  await consumer.run({ autoCommit: false, eachMessage });
  for (const until = Date.now() + 90_000; got.length < expected.length; ) {
    if (Date.now() > until) throw new Error(`${got.length} of ${expected.length} records in time`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await consumer.disconnect();
  return got;
}

function compare(expected, got) {
  got.sort(byPlace);
  expected.forEach((want, i) => {
    // Its headers are an object: their order is lost, and so is which of two with one name was first.
    const parts = (l) => l.split("\t").map((part, n) => (n === 5 ? part.split(",").sort().join() : part));
    const [wanted, had] = [parts(want), parts(got[i])];
    if (wanted[2] === "*") had[2] = "*";
    if (wanted.join("\t") !== had.join("\t")) throw new Error(`${got[i].slice(0, 160)} instead of ${want.slice(0, 160)}`);
  });
  if (got.length !== expected.length) throw new Error(`${got.length} records instead of ${expected.length}`);
}

async function verify() {
  for (const file of fs.readdirSync(folder).filter((name) => name.endsWith(".tsv")).sort()) {
    const topic = file.slice(0, -".tsv".length);
    const codec = topic.split("-").pop();
    if (codec in types && !(codec in CODECS)) {
      console.log(`SKIP kafkajs reads ${topic}: its package for ${codec} does not load`);
      continue;
    }
    const expected = fs.readFileSync(path.join(folder, file), "utf8").split("\n").slice(0, -1);
    const what = `kafkajs reads ${topic} (${expected.length} records)`;
    await attempt(what, async () => compare(expected, await read(topic, expected)));
  }
}

async function load() {
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
  await producer.connect();
  const lines = [];
  for (let i = 0; !fs.existsSync(stop); i += 10) {
    // One partition at a time: kafkajs notes which brokers have answered, not which partitions, so what it sends again
    // after a partition has moved to a broker that has answered already is forgotten.
    const messages = Array.from({ length: 10 }, (_, j) => ({
      partition: (i / 10) % PARTITIONS,
      key: Buffer.from(String((i + j) % 50)),
      value: Buffer.from(`value ${i + j}`),
      timestamp: String(Date.now()),
    }));
    lines.push(...(await send(producer, "kafkajs-load", "none", messages)));
  }
  await producer.disconnect();
  note("kafkajs-load", lines);
}

async function main() {
  if (mode === "agent") return serve(bootstrap, zone, CODECS);
  if (mode === "verify") return verify();
  if (mode === "load") return attempt("kafkajs produces under load", load);
  for (const codec of Object.keys(CODECS)) await attempt(`kafkajs produces ${codec}`, () => produce(codec));
}

main().then(() => process.exit(0));
