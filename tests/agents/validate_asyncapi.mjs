// What the official parser says of an AsyncAPI document, and what it finds in it once references are resolved.
import { fromFile, Parser } from '@asyncapi/parser'

const { document, diagnostics } = await fromFile(new Parser(), process.argv[2]).parse()
const messages = (document?.operations().all() ?? []).flatMap((operation) =>
  operation.messages().all().map((message) => ({
    operation: operation.id(),
    subject: operation.channels().all()[0].address(),
    type: message.name(),
    headers: Object.keys(message.headers().allOf()[0].properties()),
    payload: Object.keys(message.payload().properties() ?? {}),
    examples: message.examples().all().length,
  })))
console.log(JSON.stringify({ diagnostics, messages }))
