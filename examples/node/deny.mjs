import { createHash } from 'node:crypto' // README.md says how it is run, and why each line is there
import { createInterface } from 'node:readline'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect, delay } from '@nats-io/transport-node'
const [FEED, KEEP, STALE, SKEW, LATE] = ['GRANTBOOK_REVOCATIONS', Number(process.argv[2]) + 60, 5, 5, 900] // seconds
const KIND = /^(client(?=\.(deleted|suspended|resumed)$)|grant(?=\.revoked$)|user(?=\.grants_revoked$))/ // known types
const token = (id) => /^[\w-]{1,64}$/.test(id) ? id : `~${createHash('sha256').update(id).digest('base64url')}`
const gatesOf = (it, client = `grantbook.client.${token(it.client_id)}`) => ({ client: `${client}.gate`, grant:
  `${client}.grant.${token(it.grant_id)}.gate`, user: `grantbook.user.${it.user_key ?? token(it.user_id)}.gate` })
const hears = ({ sources: [log] = [] }) => log?.active >= 0 && log.active < 3e9 && !log.lag && !log.error // nanoseconds
let view = { gates: new Map(), proven: -Infinity } // by subject: tokens that were issued until then are denied
const denied = (it, at = it.iat ?? NaN) => !(process.uptime() - view.proven < STALE) || at < Date.now() / 1e3 - KEEP ||
  Object.values(gatesOf(it)).some((gate) => view.gates.has(gate) && !(at > view.gates.get(gate).until))
async function apply(next, it, was = next.gates.get(it.subject) ?? { until: 0, heard: 0 }) {
  const gate = { ...was, until: Infinity, heard: Infinity } // for good, unless it is understood
  next.applied = it.seq, next.gates.set(it.subject, gate)
  const event = it.json(), type = it.headers.get('ce-type'), at = Date.parse(event.at.trim()) / 1000
  if (event.type !== type || gatesOf(event)[KIND.exec(type)?.[0]] !== it.subject || !event.by.kind || !at) return
  if (type === 'client.resumed' && !was.final && was.heard < Infinity) return next.gates.delete(it.subject)
  gate.heard = Math.max(process.uptime(), was.heard), gate.final ||= type === 'client.deleted'
  if (/^user/.test(type)) gate.until = Math.max(Math.min(it.info.timestampNanos / 1e9, at + LATE) + SKEW, was.until)
}
async function follow(jsm, began = process.uptime()) {
  const info = await jsm.streams.info(FEED), since = new Date(Date.parse(info.ts) - KEEP * 1000).toISOString()
  const consumer = await jsm.jetstream().consumers.get(FEED, { deliver_policy: 'by_start_time', opt_start_time: since })
  const next = { gates: new Map(), proven: -Infinity, applied: (await consumer.info(true)).delivered.stream_seq }
  const callback = (it) => it.seq === next.applied + 1 && apply(next, it).catch(() => {}) // not understood: denied
  const messages = await consumer.consume({ callback })
  for (let said = info, end = info.state.last_seq, asked = began, had; ; await delay(1000)) { // for what was on its way
    if (said.created !== info.created || end < had || had < end && had === next.applied) return messages.stop()
    if (next.applied >= end && hears(said) && (end || asked > began + 3)) view = Object.assign(next, { proven: asked })
    for (const [gate, { heard }] of next.gates) if (heard < process.uptime() - KEEP) next.gates.delete(gate)
    asked = process.uptime(), had = next.applied
    said = await jsm.streams.info(FEED).catch(() => ({ ...info, state: {} })), end = said.state.last_seq
  }
}
createInterface(process.stdin).on('line', (it) => console.log(denied(JSON.parse(it)))).on('close', process.exit)
const servers = process.argv.slice(3), { username: user, password: pass } = new URL(servers[0]) // not read by connect
const nc = await connect({ servers, user, pass, waitOnFirstConnect: true, maxReconnectAttempts: -1 })
for (;; await delay(100)) await follow(await jetstreamManager(nc, { checkAPI: false })).catch(console.error)
