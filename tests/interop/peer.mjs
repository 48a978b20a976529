// The official JavaScript client, moved by the tests: each line of standard input is a command in JSON, each
// line of standard output its result.
import { createInterface } from "node:readline";
import { connect } from "@nats-io/transport-node";
import { ServiceError, Svcm } from "@nats-io/services";

const nc = await connect({ servers: process.argv[2] });
const services = new Svcm(nc);

const commands = {
  // What the services client finds: verb is ping, info or stats.
  async find({ verb, name, id }) {
    const found = [];
    for await (const answer of await services.client()[verb](name, id)) {
      found.push(answer);
    }
    return found;
  },

  async request({ subject, payload }) {
    const reply = await nc.request(subject, payload, { timeout: 5000 });
    const error = ServiceError.toServiceError(reply);
    return error ? { code: error.code, message: error.message } : { payload: reply.string() };
  },

  // Reads a stream: many replies, of which an empty one is the last.
  async read({ subject, payload }) {
    const items = [];
    for await (const reply of await nc.requestMany(subject, payload, { strategy: "sentinel", maxWait: 5000 })) {
      const error = ServiceError.toServiceError(reply);
      const end = reply.headers?.get("Mesh-End");
      if (error || end) {
        return { items, end, code: error?.code ?? null };
      }
      items.push(reply.json());
    }
    return { items };
  },

  // Reads so many items of a stream and then unsubscribes.
  async readSome({ subject, payload, most }) {
    const inbox = `_INBOX.${nc.info.client_id}.some`;
    const subscription = nc.subscribe(inbox, { max: most });
    nc.publish(subject, payload, { reply: inbox });
    const items = [];
    for await (const reply of subscription) {
      items.push(reply.json());
    }
    return items;
  },

  // A service as its documentation writes them; `name` keeps tests apart.
  async serve({ name }) {
    const service = await services.add({ name, version: "1.2.3", description: "sums", metadata: { from: "js" } });
    const math = service.addGroup(`${name}.math`);
    math.addEndpoint("sum", {
      metadata: { accepts: "numbers" },
      handler: (error, message) => message.respond(JSON.stringify(message.json().reduce((a, b) => a + b, 0))),
    });
    service.addEndpoint("refuse", {
      subject: `${name}.refuse`,
      handler: (error, message) => message.respondError(411, "not like this", "see the manual"),
    });
    service.addEndpoint("raise", {
      subject: `${name}.raise`,
      handler: () => {
        throw new Error("boom");
      },
    });
    service.addEndpoint("raise-with-code", {
      subject: `${name}.raise-with-code`,
      handler: () => {
        throw new ServiceError(1210, "something");
      },
    });
    await nc.flush();
    return service.ping();
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...parameters } = JSON.parse(line);
  let result;
  try {
    result = { result: await commands[command](parameters) };
  } catch (error) {
    result = { error: `${error.name}: ${error.message}` };
  }
  console.log(JSON.stringify(result));
}
await nc.close();
