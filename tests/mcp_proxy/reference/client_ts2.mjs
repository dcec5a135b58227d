// The client of the TypeScript SDK (2.x), against the address and in the mode (legacy, auto) in argv, with the token in TOKEN.
// PEERS is the directory that holds node_modules. Says what it saw as JSON.
import { createRequire } from "node:module";

const { Client, StreamableHTTPClientTransport } = createRequire(`${process.env.PEERS}/`)("@modelcontextprotocol/client");

const [url, mode] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${process.env.TOKEN}` };
const client = new Client({ name: "tests", version: "1.0" }, { versionNegotiation: { mode } });
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
const tools = (await client.listTools()).tools.map((tool) => tool.name);
const echo = (await client.callTool({ name: "echo", arguments: { text: "hi" } })).content[0].text;
const refused = await client.callTool({ name: "merge", arguments: {} }).then(
  () => 0,
  (error) => error.code,
);
console.log(JSON.stringify({ tools, echo, refused }));
await client.close();
