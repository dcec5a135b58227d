// The client of the TypeScript SDK (1.32), against the address in argv, with the token in TOKEN. PEERS is the directory that
// holds node_modules. Says what it saw as JSON.
import { createRequire } from "node:module";

const load = createRequire(`${process.env.PEERS}/`);
const { Client } = load("@modelcontextprotocol/sdk/client/index.js");
const { StreamableHTTPClientTransport } = load("@modelcontextprotocol/sdk/client/streamableHttp.js");

const headers = { Authorization: `Bearer ${process.env.TOKEN}` };
const client = new Client({ name: "tests", version: "1.0" });
await client.connect(new StreamableHTTPClientTransport(new URL(process.argv[2]), { requestInit: { headers } }));
const tools = (await client.listTools()).tools.map((tool) => tool.name);
const echo = (await client.callTool({ name: "echo", arguments: { text: "hi" } })).content[0].text;
const refused = await client.callTool({ name: "merge", arguments: {} }).then(
  () => 0,
  (error) => error.code,
);
console.log(JSON.stringify({ tools, echo, refused }));
await client.close();
