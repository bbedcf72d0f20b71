// An agent that is built on the MCP project's SDK for JavaScript: `node register_with_sdk.mjs ENDPOINT < metadata.json`.
//
// The SDK sends the request and reads the answer with its own code. On standard output is one JSON object: either
// `registered`, what the SDK made of the answer, and `position`, where in the log it is; or `refused`, the error that
// the SDK hands to an agent's developer.
import { text } from "node:stream/consumers";
import { registerClient } from "@modelcontextprotocol/sdk/client/auth.js";
import { OAuthError } from "@modelcontextprotocol/sdk/server/auth/errors.js";

const [endpoint] = process.argv.slice(2);
const clientMetadata = JSON.parse(await text(process.stdin));
let position;

async function fetchFn(url, init) {
  const answer = await fetch(url, init);
  position = answer.headers.get("Grantbook-Position");
  return answer;
}

async function register() {
  try {
    const metadata = { registration_endpoint: endpoint };
    return { registered: await registerClient(endpoint, { metadata, clientMetadata, fetchFn }), position };
  } catch (error) {
    if (!(error instanceof OAuthError)) throw error;
    return { refused: { code: error.errorCode, message: error.message } };
  }
}

console.log(JSON.stringify(await register()));
