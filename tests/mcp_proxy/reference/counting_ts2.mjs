// A small server on the TypeScript SDK (2.x, both eras) that writes down each tool call that reaches it.
//
// node counting_ts2.mjs stdio|http. PEERS is the directory that holds node_modules. COUNTING_LOG names the file: one JSON
// line a call, {"name", "arguments"}, before the call is answered. Over HTTP the first line of stdout is {"port": N}; the
// address is http://127.0.0.1:N/mcp. It keeps no sessions: those of the older era get no session id.
import { appendFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";

const load = createRequire(`${process.env.PEERS}/`);
const { createMcpHandler, Server } = load("@modelcontextprotocol/server");
const { serveStdio } = load("@modelcontextprotocol/server/stdio");
const { toNodeHandler } = load("@modelcontextprotocol/node");

const inputSchema = { type: "object", properties: { text: { type: "string" } } };

function make() {
  const server = new Server({ name: "counting", version: "1.0" }, { capabilities: { tools: {} } });
  server.setRequestHandler("tools/list", () => ({
    tools: ["echo", "forbidden"].map((name) => ({ name, description: name, inputSchema })),
  }));
  server.setRequestHandler("tools/call", ({ params }) => {
    const { name, arguments: given = {} } = params;
    appendFileSync(process.env.COUNTING_LOG, JSON.stringify({ name, arguments: given }) + "\n");
    return { content: [{ type: "text", text: String(given.text ?? "") }] };
  });
  return server;
}

if (process.argv[2] === "http") {
  const http = createServer(toNodeHandler(createMcpHandler(make)));
  http.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: http.address().port })));
} else {
  serveStdio(make);
}
