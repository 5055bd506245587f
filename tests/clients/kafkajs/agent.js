// kafkajs as an agent: requests as agent.py describes them. Its consumer calls back; what it hands over waits here for
// the next poll, and it goes on only when that is committed or has waited too long.

const readline = require("readline");
const { Kafka, CompressionTypes, ConfigResourceTypes, Partitioners, logLevel } = require("kafkajs");

const COMMIT_PATIENCE_MS = 3000;
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const decode = (text) => (text === null ? null : Buffer.from(text, "base64"));
const encode = (bytes) => (bytes === null || bytes === undefined ? null : Buffer.from(bytes).toString("base64"));

// Headers are an object here; a name that occurs twice has a list.
function toHeaders(pairs) {
  const headers = {};
  for (const [name, value] of pairs) {
    if (name in headers) headers[name] = [].concat(headers[name], [decode(value)]);
    else headers[name] = decode(value);
  }
  return headers;
}

function toPairs(headers) {
  return Object.entries(headers || {}).flatMap(([name, value]) => [].concat(value).map((v) => [name, encode(v)]));
}

class Agent {
  constructor(bootstrap, clientId, codecs) {
    this.codecs = codecs;
    const retry = { initialRetryTime: 100, retries: 20, maxRetryTime: 1000 };
    // Its errors go to the log, not into the answers.
    const logCreator = () => ({ log, label }) => console.error(label, log.message, log.error || "");
    this.kafka = new Kafka({ clientId, brokers: bootstrap.split(","), retry, logLevel: logLevel.WARN, logCreator });
    this.admin = this.kafka.admin();
    this.connected = this.admin.connect();
    this.batches = [];
    this.handed = [];
    this.rebalances = 0;
  }

  async hello() {
    return { lacks: ["null-header", "reset-none", "patience"] };
  }

  async send({ topic, codec, records }) {
    if (!(codec in this.codecs)) return { lacks: `the codec ${codec}` };
    const producer = this.kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner, retry: { retries: 5 } });
    await producer.connect();
    const sent = [];
    try {
      // An answer has one base offset for each partition, so records that choose their own go one at a time.
      for (const r of records) {
        const message = { key: decode(r.k), value: decode(r.v), headers: toHeaders(r.h) };
        if (r.p !== null) message.partition = r.p;
        if (r.t !== null) message.timestamp = String(r.t);
        try {
          const [at] = await producer.send({ topic, compression: this.codecs[codec], messages: [message] });
          sent.push([at.partition, Number(at.baseOffset)]);
        } catch (error) {
          sent.push(`${error.name} ${error.type || ""} ${error.message}`);
        }
      }
    } finally {
      await producer.disconnect();
    }
    return { sent };
  }

  async open({ topic, group, reset }) {
    Object.assign(this, { topic, group, reset, events: [], batches: [], owned: [], isOpen: true });
    await this.join();
  }

  async join() {
    const consumer = this.kafka.consumer({
      groupId: this.group,
      sessionTimeout: 6000,
      heartbeatInterval: 1000,
      rebalanceTimeout: 10000,
      maxWaitTimeInMs: 100,
      // Its own restart may come twice and then reads everything twice.
      retry: { initialRetryTime: 100, retries: 20, maxRetryTime: 1000, restartOnFailure: async () => false },
    });
    this.consumer = consumer;
    const { CRASH, GROUP_JOIN, REBALANCING } = consumer.events;
    consumer.on(CRASH, () => this.rejoin(consumer));
    consumer.on(REBALANCING, () => this.assigned(consumer, []));
    consumer.on(GROUP_JOIN, ({ payload }) => this.assigned(consumer, payload.memberAssignment[this.topic] || []));
    await consumer.connect();
    await consumer.subscribe({ topics: [this.topic], fromBeginning: this.reset === "earliest" });
    await consumer.run({
      autoCommit: false,
      eachBatchAutoResolve: false,
      partitionsConsumedConcurrently: 6,
      eachBatch: (batch) => this.hand(consumer, batch),
    });
  }

  async rejoin(crashed) {
    if (crashed !== this.consumer || !this.isOpen) return;
    this.assigned(crashed, []);
    this.consumer = null;
    this.batches = [];
    await crashed.disconnect().catch(() => {});
    while (this.isOpen && !this.consumer) {
      await this.join().catch(async (error) => {
        console.error(error);
        this.consumer = null;
        await sleep(500);
      });
    }
  }

  assigned(consumer, partitions) {
    if (consumer !== this.consumer) return;
    this.rebalances += 1;
    // What nobody has seen yet comes again, to whoever has the partition then.
    for (const entry of this.batches) entry.dropped = true;
    this.batches = [];
    if (this.owned.length) this.events.push(["revoked", this.owned]);
    if (partitions.length) this.events.push(["assigned", partitions]);
    this.owned = partitions;
  }

  // Puts a batch where poll finds it, and waits for its commit.
  async hand(consumer, { batch, resolveOffset, heartbeat, isRunning, isStale }) {
    // What lies before a seek may come along.
    if (!isRunning() || isStale() || consumer !== this.consumer) return;
    let done;
    const waits = new Promise((resolve) => (done = resolve));
    const entry = { partition: batch.partition, messages: batch.messages, done, polled: false };
    this.batches.push(entry);
    try {
      while (!entry.polled && !entry.dropped && isRunning() && !isStale()) {
        await Promise.race([waits, sleep(50)]);
        await heartbeat();
      }
    } finally {
      // A heartbeat that fails gives the batch back; it comes again.
      if (!entry.polled) this.batches = this.batches.filter((other) => other !== entry);
    }
    if (!entry.polled) return;
    const until = Date.now() + COMMIT_PATIENCE_MS;
    while (!entry.committed && Date.now() < until && isRunning()) await Promise.race([waits, sleep(50)]);
    if (!isStale()) for (const message of batch.messages) resolveOffset(message.offset);
  }

  async poll({ ms }) {
    // Whoever polls again does not intend to commit what it had.
    this.release();
    const until = Date.now() + ms;
    while (!this.batches.length && Date.now() < until) await sleep(10);
    const records = [];
    this.handed = this.batches;
    this.rebalancesAtPoll = this.rebalances;
    this.batches = [];
    for (const entry of this.handed) {
      entry.polled = true;
      for (const m of entry.messages) {
        const record = { p: entry.partition, o: Number(m.offset), t: Number(m.timestamp) };
        records.push({ ...record, k: encode(m.key), v: encode(m.value), h: toPairs(m.headers) });
      }
    }
    const events = this.events;
    this.events = [];
    return { records, events, errors: [] };
  }

  release() {
    for (const entry of this.handed) {
      entry.committed = true;
      entry.done();
    }
    this.handed = [];
  }

  async commit({ offsets }) {
    const list = Object.entries(offsets).map(([p, offset]) => ({ partition: Number(p), offset: String(offset) }));
    try {
      if (!this.consumer) throw new Error("it is joining again");
      await this.consumer.commitOffsets(list.map((at) => ({ topic: this.topic, ...at })));
      // It tries again after a rebalance too, when the new owner, itself perhaps, has begun from the commit before.
      if (this.rebalancesAtPoll !== this.rebalances) throw new Error("there was a rebalance");
    } finally {
      this.release();
    }
  }

  async committed({ partitions }) {
    const [found] = await this.admin.fetchOffsets({ groupId: this.group, topics: [this.topic] });
    const known = Object.fromEntries(found.partitions.map((at) => [at.partition, Number(at.offset)]));
    return { offsets: Object.fromEntries(partitions.map((p) => [p, known[p] ?? -1])) };
  }

  async pause({ partition }) {
    this.release();
    this.consumer.pause([{ topic: this.topic, partitions: [partition] }]);
  }

  async resume({ partition }) {
    this.consumer.resume([{ topic: this.topic, partitions: [partition] }]);
  }

  async seek({ partition, offset }) {
    this.release();
    this.batches = this.batches.filter((entry) => entry.partition !== partition);
    this.consumer.seek({ topic: this.topic, partition, offset: String(offset) });
  }

  async times({ timestamp }) {
    // It answers with the end of a partition where nothing is as late.
    const found = await this.admin.fetchTopicOffsetsByTimestamp(this.topic, timestamp);
    const ends = await this.admin.fetchTopicOffsets(this.topic);
    const end = Object.fromEntries(ends.map((at) => [at.partition, at.offset]));
    const offset = (at) => (at.offset === end[at.partition] ? null : Number(at.offset));
    return { offsets: Object.fromEntries(found.map((at) => [at.partition, offset(at)])) };
  }

  async close() {
    this.release();
    this.isOpen = false;
    if (this.consumer) await this.consumer.disconnect();
  }

  async create({ topic, partitions, configs }) {
    const configEntries = Object.entries(configs).map(([name, value]) => ({ name, value }));
    const created = await this.admin.createTopics({ topics: [{ topic, numPartitions: partitions, configEntries }] });
    if (!created) throw new Error("the topic exists");
  }

  async partitions({ topic }) {
    if (!(await this.admin.listTopics()).includes(topic)) return { count: null };
    const { topics } = await this.admin.fetchTopicMetadata({ topics: [topic] });
    return { count: topics[0].partitions.length };
  }

  async grow({ topic, count }) {
    await this.admin.createPartitions({ topicPartitions: [{ topic, count }] });
  }

  async delete({ topic }) {
    await this.admin.deleteTopics({ topics: [topic] });
  }

  async alter({ topic, configs }) {
    const configEntries = Object.entries(configs).map(([name, value]) => ({ name, value }));
    const resources = [{ type: ConfigResourceTypes.TOPIC, name: topic, configEntries }];
    await this.admin.alterConfigs({ validateOnly: false, resources });
  }

  async config({ topic, name }) {
    const resources = [{ type: ConfigResourceTypes.TOPIC, name: topic, configNames: [name] }];
    const answer = await this.admin.describeConfigs({ includeSynonyms: false, resources });
    return { value: answer.resources[0].configEntries.find((entry) => entry.configName === name).configValue };
  }
}

exports.serve = async (bootstrap, clientId, codecs) => {
  const agent = new Agent(bootstrap, clientId, codecs);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { do: what, ...request } = JSON.parse(line);
    let answer;
    try {
      await agent.connected;
      answer = (await agent[what](request)) || {};
    } catch (error) {
      answer = { error: `${error.name}: ${error.type || ""} ${error.message}` };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
  }
};
