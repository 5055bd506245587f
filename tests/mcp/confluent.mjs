// Confluent's MCP server on standard input and output: what a person would have it do with a topic.
//   node confluent.mjs NODE_MODULES_PARENT CONFIG
import { createRequire } from "node:module";
import assert from "node:assert/strict";

const [, , packages, config] = process.argv;
const require = createRequire(`${packages}/package.json`);
const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = require("@modelcontextprotocol/sdk/client/stdio.js");

const client = new Client({ name: "strandline-test", version: "1" });
await client.connect(
  new StdioClientTransport({
    command: process.execPath,
    args: [`${packages}/node_modules/@confluentinc/mcp-confluent/dist/index.js`, "--config", config],
    env: { ...process.env, DO_NOT_TRACK: "true" },
    stderr: "ignore",
  }),
);

async function call(name, args) {
  const answer = await client.callTool({ name, arguments: args });
  const text = answer.content.map((part) => part.text ?? "").join("\n");
  assert(!answer.isError, `${name}: ${text}`);
  console.log(`  ${name}: ${text.split("\n")[0]}`);
  return text;
}

await call("create-topics", { topics: [{ topic: "orders", numPartitions: 2 }] });
assert.match(await call("list-topics", {}), /\borders\b/);
await call("produce-message", { topicName: "orders", key: { message: "k" }, value: { message: "first" } });
await call("produce-message", { topicName: "orders", key: { message: "k" }, value: { message: { n: 2 } } });
const offsets = JSON.parse((await call("get-partition-offsets", { topicName: "orders" })).replace(/^[^{]*/, ""));
assert.deepEqual(offsets.partitions.map((p) => p.messageCount).sort(), [0, 2]);
const read = await call("consume-messages", { topics: [{ name: "orders" }], maxMessages: 2, timeoutMs: 20000 });
assert.match(read, /"value": "first"/);
assert.match(read, /\{\\"n\\":2\}/);
assert.match(await call("list-consumer-groups", {}), /mcp-confluent-/);
await call("delete-topics", { topicNames: ["orders"] });
assert.doesNotMatch(await call("list-topics", {}), /\borders\b/);
await client.close();
console.log("test-mcp-confluent: all passed");
