// A registrar that keeps clients in memory, and nothing on disk. Prints its port when it serves.
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';

const provider = new Provider('http://127.0.0.1', {
  features: { registration: { enabled: true }, devInteractions: { enabled: false } },
});
const server = createServer(provider.callback());
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.on('end', () => process.exit()).resume(); // it ends with whoever started it
