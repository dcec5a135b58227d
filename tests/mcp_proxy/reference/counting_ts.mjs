// A small server on the TypeScript SDK (1.32) that writes down each tool call that reaches it.
//
// node counting_ts.mjs stdio|http. PEERS is the directory that holds node_modules. COUNTING_LOG names the file: one JSON
// line a call, {"name", "arguments"}, before the call is answered. Over HTTP the first line of stdout is {"port": N}; the
// address is http://127.0.0.1:N/mcp.
import { randomUUID } from "node:crypto";
import { appendFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";

const load = createRequire(`${process.env.PEERS}/`);
const { Server } = load("@modelcontextprotocol/sdk/server/index.js");
const { StdioServerTransport } = load("@modelcontextprotocol/sdk/server/stdio.js");
const { StreamableHTTPServerTransport } = load("@modelcontextprotocol/sdk/server/streamableHttp.js");
const { CallToolRequestSchema, ListToolsRequestSchema } = load("@modelcontextprotocol/sdk/types.js");

const inputSchema = { type: "object", properties: { text: { type: "string" } } };

function make() {
  const server = new Server({ name: "counting", version: "1.0" }, { capabilities: { tools: {} } });
  server.setRequestHandler(ListToolsRequestSchema, () => ({
    tools: ["echo", "forbidden"].map((name) => ({ name, description: name, inputSchema })),
  }));
  server.setRequestHandler(CallToolRequestSchema, ({ params }) => {
    const { name, arguments: given = {} } = params;
    appendFileSync(process.env.COUNTING_LOG, JSON.stringify({ name, arguments: given }) + "\n");
    return { content: [{ type: "text", text: String(given.text ?? "") }] };
  });
  return server;
}

const transports = new Map();

async function handle(request, response) {
  const session = request.headers["mcp-session-id"];
  let transport = transports.get(session);
  if (transport === undefined) {
    if (session !== undefined) {
      response.writeHead(404).end();
      return;
    }
    transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      onsessioninitialized: (id) => transports.set(id, transport),
    });
    transport.onclose = () => transports.delete(transport.sessionId);
    await make().connect(transport);
  }
  await transport.handleRequest(request, response);
}

if (process.argv[2] === "http") {
  const http = createServer((request, response) => void handle(request, response));
  http.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: http.address().port })));
} else {
  await make().connect(new StdioServerTransport());
}
