"""The official Python client against the observer, in both eras: every tool that needs no argument, resources, prompts.

    clients.py URL TOKEN
"""

import asyncio
import sys

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def check(url: str, token: str, mode: str) -> None:
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=30)
    async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
        tools = (await client.list_tools()).tools
        assert len(tools) >= 27, tools
        called = 0
        for tool in tools:
            assert tool.annotations.read_only_hint and tool.output_schema, tool.name
            if tool.input_schema.get("required"):
                continue
            # The client validates structured content against the output schema by itself.
            result = await client.call_tool(tool.name, {})
            assert not result.is_error, (tool.name, result)
            assert result.structured_content["meta"]["schema_version"] == "1"
            called += 1
        refused = await client.call_tool("list_topics", {"no_such_argument": 1})
        assert refused.is_error and refused.structured_content["error"]["code"] == "invalid_argument"
        resources = (await client.list_resources()).resources
        for resource in resources:
            contents = (await client.read_resource(resource.uri)).contents
            assert contents and contents[0].text, resource.uri
        prompts = (await client.list_prompts()).prompts
        filled = await client.get_prompt("cluster_health_check", {})
        assert filled.messages
        print(f"  python client, {mode}: {called} of {len(tools)} tools, {len(resources)} resources, {len(prompts)} prompts")


for era in ("legacy", "auto"):
    asyncio.run(check(sys.argv[1], sys.argv[2], era))
