// Node's services client: `node node.mjs PACKAGES ROLE URL`. It is driven as benchmarks/role.py is, and the
// loads are those of benchmarks/work.py.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [packages, role, url] = process.argv.slice(2);
const require = createRequire(`${packages}/`);
const { connect } = require("@nats-io/transport-node");
const { Svcm } = require("@nats-io/services");

const connection = await connect({ servers: url });

async function call(n) {
  const reply = await connection.request("echo", JSON.stringify({ name: "world", n }), { timeout: 5000 });
  const answer = reply.json();
  if (answer.n !== n + 1) {
    throw new Error(`call ${n} got the answer ${answer.n}`);
  }
}

function percentiles(taken) {
  taken.sort((a, b) => a - b);
  const at = (part) => taken[Math.min(taken.length - 1, Math.floor(taken.length * part))] * 1000;
  return { p50: at(0.5), p99: at(0.99), "p99.9": at(0.999) };
}

async function load(count, inFlight) {
  const taken = [];
  let next = 0;
  async function caller() {
    while (next < count) {
      const n = next++;
      const began = performance.now();
      await call(n);
      taken.push(performance.now() - began);
    }
  }
  const processor = process.cpuUsage();
  const started = performance.now();
  await Promise.all(Array.from({ length: inFlight }, caller));
  const seconds = (performance.now() - started) / 1000;
  const { user, system } = process.cpuUsage(processor);
  return { calls: count, rate: count / seconds, processor: (user + system) / count, ...percentiles(taken) };
}

const commands = {
  sequential: ({ count }) => load(count, 1),
  concurrent: ({ count, in_flight }) => load(count, in_flight),
};

if (role === "serve") {
  const service = await new Svcm(connection).add({ name: "bench", version: "1.0.0" });
  service.addEndpoint("echo", {
    handler: (error, message) => {
      const ask = message.json();
      message.respond(JSON.stringify({ greeting: `hello ${ask.name}`, n: ask.n + 1 }));
    },
  });
  await connection.flush();
}

const tell = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
tell("ready");
for await (const line of createInterface({ input: process.stdin })) {
  const { command, arguments: given } = JSON.parse(line);
  try {
    tell({ result: await commands[command](given) });
  } catch (error) {
    tell({ error: error.stack });
  }
}
await connection.close();
