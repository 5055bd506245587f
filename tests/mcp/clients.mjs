// The official TypeScript clients against the observer: version 1, which begins with initialize, and version 2, which asks
// for the newest protocol. Every tool that needs no argument, resources, prompts.
//
//     clients.mjs MODULES URL TOKEN
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [modules, url, token] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const load = async (name) => import(pathToFileURL(require.resolve(name)).href);
const requestInit = { headers: { Authorization: `Bearer ${token}` } };

async function check(name, client, transport) {
  await client.connect(transport);
  const { tools } = await client.listTools();
  assert(tools.length >= 27, `${tools.length} tools`);
  let called = 0;
  for (const tool of tools) {
    assert(tool.annotations.readOnlyHint && tool.outputSchema, tool.name);
    if (tool.inputSchema.required?.length) continue;
    // The client validates structured content against the output schema by itself.
    const result = await client.callTool({ name: tool.name, arguments: {} });
    assert(!result.isError, `${tool.name}: ${JSON.stringify(result.structuredContent)}`);
    assert.equal(result.structuredContent.meta.schema_version, '1');
    called += 1;
  }
  const refused = await client.callTool({ name: 'list_topics', arguments: { no_such_argument: 1 } });
  assert(refused.isError && refused.structuredContent.error.code === 'invalid_argument');
  const { resources } = await client.listResources();
  for (const { uri } of resources) {
    const { contents } = await client.readResource({ uri });
    assert(contents[0].text, uri);
  }
  const { prompts } = await client.listPrompts();
  const filled = await client.getPrompt({ name: 'cluster_health_check', arguments: {} });
  assert(filled.messages.length > 0);
  console.log(`  ${name}: ${called} of ${tools.length} tools, ${resources.length} resources, ${prompts.length} prompts`);
  await client.close();
}

const own = { name: 'test-mcp', version: '1' };
{
  const { Client } = await load('@modelcontextprotocol/sdk/client/index.js');
  const { StreamableHTTPClientTransport } = await load('@modelcontextprotocol/sdk/client/streamableHttp.js');
  await check('typescript sdk 1', new Client(own), new StreamableHTTPClientTransport(new URL(url), { requestInit }));
}
for (const versionNegotiation of [{ mode: 'legacy' }, { mode: 'auto' }]) {
  const { Client, StreamableHTTPClientTransport } = await load('@modelcontextprotocol/client');
  const transport = new StreamableHTTPClientTransport(new URL(url), { requestInit });
  await check(`typescript sdk 2, ${versionNegotiation.mode}`, new Client(own, { versionNegotiation }), transport);
}
