// An agent that is built on the MCP project's SDK for JavaScript: `node call_with_sdk.mjs SERVER`.
//
// It keeps its credentials as long as it runs. On standard input is one JSON string a line: the name of a tool to call,
// or the address that the user's browser was sent back to. On standard output is one JSON object a line: `authorize`,
// where it sends the user; or `result` of a call, with its `client` id, how many times it has `registered`, and how many
// times the server `refused` it.
import { createInterface } from "node:readline";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { UnauthorizedError } from "@modelcontextprotocol/sdk/client/auth.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const server = new URL(process.argv[2]);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (object) => console.log(JSON.stringify(object));
const next = async () => JSON.parse((await lines.next()).value ?? "null");

const kept = {};
let registered = 0;
let refused = 0;
const authProvider = {
  redirectUrl: "http://localhost:7777/callback",
  clientMetadata: {
    client_name: "Agent in JavaScript",
    redirect_uris: ["http://localhost:7777/callback"],
    token_endpoint_auth_method: "none",
    grant_types: ["authorization_code", "refresh_token"],
    response_types: ["code"],
  },
  clientInformation: () => kept.client,
  saveClientInformation: (client) => {
    kept.client = client;
    registered += 1;
  },
  tokens: () => kept.tokens,
  saveTokens: (tokens) => {
    kept.tokens = tokens;
  },
  redirectToAuthorization: (url) => say({ authorize: url.href }),
  saveCodeVerifier: (verifier) => {
    kept.verifier = verifier;
  },
  codeVerifier: () => kept.verifier,
  // What the SDK asks its host for when a token, or the whole client, counts no longer.
  invalidateCredentials: (scope) => {
    if (scope === "all" || scope === "client") delete kept.client;
    if (scope === "all" || scope === "tokens") delete kept.tokens;
  },
};

async function counting(url, init) {
  const answer = await fetch(url, init);
  if (answer.status === 401 && String(url) === server.href) refused += 1;
  return answer;
}

async function call(name) {
  for (;;) {
    const transport = new StreamableHTTPClientTransport(server, { authProvider, fetch: counting });
    const client = new Client({ name: "agent", version: "1" });
    try {
      await client.connect(transport);
      const { content } = await client.callTool({ name });
      await client.close();
      return content;
    } catch (error) {
      if (!(error instanceof UnauthorizedError)) throw error;
      await transport.finishAuth(new URL(await next()).searchParams.get("code"));
    }
  }
}

for (let name = await next(); name !== null; name = await next()) {
  const result = await call(name);
  say({ result, client: kept.client.client_id, registered, refused, tokens: kept.tokens });
}
