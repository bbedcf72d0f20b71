// An OpenID provider on loopback, with pages of its own for signing in. Reads its settings as JSON from the first line
// of standard input, and writes its issuer as JSON when it is ready. People are what they say: their claims come as
// settings too, by what they type as their login.

import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';

console.info = console.warn = () => {}; // that it is for development alone is known
const { Provider } = await import('oidc-provider');

const lines = createInterface({ input: process.stdin });
lines.on('close', () => process.exit()); // whoever started it is gone, or done with it
const settings = JSON.parse(await new Promise((resolve) => lines.once('line', resolve)));

const jwk = (kid, ...of) => ({ ...generateKeyPairSync(...of).privateKey.export({ format: 'jwk' }), kid, use: 'sig' });

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}/tenant`;
  const provider = new Provider(issuer, {
    clients: settings.clients,
    jwks: {
      keys: [
        jwk('rsa', 'rsa', { modulusLength: 2048 }),
        jwk('ec', 'ec', { namedCurve: 'P-256' }),
        jwk('ed', 'ed25519'),
      ],
    },
    conformIdTokenClaims: settings.thin,
    claims: {
      openid: ['sub'],
      email: ['email', 'email_verified'],
      profile: ['preferred_username', 'groups'],
    },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, ...settings.people[id] }) }),
    pkce: { required: () => true },
    cookies: { keys: ['of the test'] },
    features: { devInteractions: { enabled: true } },
  });
  const handle = provider.callback();
  server.on('request', (request, response) => {
    if (!request.url.startsWith('/tenant')) return response.writeHead(404).end();
    request.originalUrl = request.url; // where oidc-provider looks for the path under which it is mounted
    request.url = request.url.slice('/tenant'.length) || '/';
    return handle(request, response);
  });
  process.stdout.write(`${JSON.stringify({ issuer })}\n`);
});
