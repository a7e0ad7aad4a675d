// What every amqplib scenario needs: connections, waiting, refusals, the lines on standard output.
'use strict';

const { randomBytes } = require('node:crypto');
const { execFile } = require('node:child_process');
const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { isDeepStrictEqual, inspect, promisify } = require('node:util');
const amqp = require('amqplib');

const WAIT = 10_000;
const USUAL = 60_000;
const RESTARTING = 180_000;

class Skip extends Error {}

const shortened = (value) => {
  const text = typeof value === 'string' ? value : inspect(value, { depth: 6, breakLength: Infinity });
  return text.length <= 300 ? text : `${text.slice(0, 300)}… (${text.length} characters)`;
};

function check(condition, text) {
  if (!condition) throw new Error(text);
}

function equal(what, actual, expected) {
  check(isDeepStrictEqual(actual, expected), `${what}: expected ${shortened(expected)}, got ${shortened(actual)}`);
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function within(milliseconds, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${milliseconds / 1000} s for ${what}`)), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function waitUntil(what, condition, milliseconds = WAIT) {
  for (const deadline = Date.now() + milliseconds; !(await condition()); await pause(5)) {
    check(Date.now() < deadline, `waited ${milliseconds / 1000} s for ${what}`);
  }
}

const sequence = (count) => Array.from({ length: count }, (_, number) => `m${number}`);

const [host, port] = process.env.INTEROP_AMQP.split(':');

/** One scenario's connections and names. A queue and an exchange of each name are deleted at its end. */
class Scene {
  names = [];
  connections = [];

  name(kind) {
    const name = `interop.js.${kind}.${randomBytes(4).toString('hex')}`;
    this.names.push(name);
    return name;
  }

  async connect(options = {}) {
    const authority = process.env.INTEROP_TLS_CA;
    const connection = await amqp.connect(
      { protocol: authority ? 'amqps' : 'amqp', hostname: host, port: Number(port), username: 'guest', password: 'guest',
        vhost: '/', ...options },
      { timeout: WAIT, ...(authority && { ca: [fs.readFileSync(authority)], servername: 'localhost' }) });
    connection.setMaxListeners(0);
    connection.failure = new Promise((resolve) => {
      connection.on('error', resolve);
    });
    connection.ended = false;
    connection.on('close', () => { connection.ended = true; });
    this.connections.push(connection);
    return connection;
  }

  /** A channel on a connection of its own. */
  async channel() {
    return open(await this.connect());
  }

  /** A channel whose publishes wait for their confirm. */
  async confirmed() {
    return open(await this.connect(), 'createConfirmChannel');
  }

  async exists(kind, name) {
    const channel = await this.channel();
    try {
      await channel[`check${kind}`](name);
      await channel.connection_.close();
      return true;
    } catch (error) {
      equal('reply code', error.code, 404);
      return false;
    }
  }

  queueExists(queue) { return this.exists('Queue', queue); }
  exchangeExists(exchange) { return this.exists('Exchange', exchange); }

  needsRestart() {
    if (!process.env.DASSIE_RESTART) throw new Skip('no restart hook (DASSIE_RESTART is not set)');
  }

  async restart(how) {
    await promisify(execFile)('sh', ['-c', `${process.env.DASSIE_RESTART} ${how}`]);
    this.connections = [];
  }

  async cleanUp() {
    await Promise.all(this.connections.filter((connection) => !connection.ended).map((connection) => connection.close().catch(() => {})));
    if (this.names.length === 0) return;
    const last = new Scene();
    const channel = await last.channel();
    for (const name of this.names) {
      await channel.deleteQueue(name);
      await channel.deleteExchange(name);
    }
    await last.connections[0].close();
  }
}

/** Opens a channel and gives it what the scenarios do all the time. */
async function open(connection, how = 'createChannel') {
  const channel = await connection[how]();
  const confirms = how === 'createConfirmChannel';
  return Object.assign(channel, {
    connection_: connection,
    failure: Promise.race([connection.failure, new Promise((resolve) => { channel.on('error', resolve); })]),

    async queue(name, options = { durable: false }) {
      return (await channel.assertQueue(name, options)).queue;
    },
    async exchange(name, kind, options = { durable: false }) {
      await channel.assertExchange(name, kind, options);
      return name;
    },
    async send(exchange, key, body, options) {
      channel.publish(exchange, key, Buffer.from(body), options);
      if (confirms) await within(WAIT, 'a confirm', channel.waitForConfirms());
    },
    async put(queue, ...bodies) {
      for (const body of bodies) await channel.send('', queue, body);
    },
    /** The message, false when the queue is empty. */
    take(queue, options = { noAck: true }) { return channel.get(queue, options); },
    async hold(queue, count) {
      const held = [];
      while (held.length < count) held.push(await channel.get(queue, { noAck: false }));
      return held;
    },
    /** Removes everything ready and returns the bodies. */
    async drain(queue) {
      const bodies = [];
      for (let message; (message = await channel.take(queue));) bodies.push(message.content.toString());
      return bodies;
    },
    async ready(queue) { return (await channel.checkQueue(queue)).messageCount; },
    waitReady(queue, count) {
      return waitUntil(`${count} ready messages in ${queue}`, async () => (await channel.ready(queue)) === count);
    },
    /** A consumer and what it has received so far; a null among them is the broker's basic.cancel. */
    async inbox(queue, options = { noAck: true }) {
      const messages = [];
      const { consumerTag } = await channel.consume(queue, (message) => messages.push(message), options);
      return {
        messages, consumerTag,
        async wait(count) {
          await waitUntil(`${count} messages`, () => messages.length >= count);
          equal('number of messages received', messages.length, count);
          return messages;
        },
      };
    },
    /** Runs what the broker must answer by closing the channel (or its connection) with this code and text. */
    async refused(code, text, attempt) {
      const tried = Promise.resolve(attempt(channel)).catch(() => {});
      const error = await within(WAIT, `${code} ${text}`, channel.failure);
      check(error.code === code && error.message.includes(text), `expected ${code} ${text}, got ${error.code} ${error.message}`);
      await tried;
    },
  });
}

const bodies = (messages) => messages.map((message) => message.content.toString());
/** The bodies, those delivered again with a mark. */
const outline = (messages) => messages.map((message) => message.content.toString() + (message.fields.redelivered ? '+' : ''));
/** Enough of a message to answer it. */
const tagged = (deliveryTag) => ({ fields: { deliveryTag } });

/** Forwards one connection, so that it can be cut as a failing network would. */
async function proxy() {
  const ends = [];
  const server = net.createServer((client) => {
    const upstream = net.connect(Number(port), host);
    ends.push(client, upstream);
    for (const [from, to] of [[client, upstream], [upstream, client]]) {
      from.on('error', () => {});
      from.pipe(to);
    }
  });
  await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
  return {
    port: server.address().port,
    cut() {
      server.close();
      for (const end of ends) end.destroy();
    },
  };
}

/** A table that all clients share: lines `key: value value`, `""` for an empty word. */
function table(name) {
  const word = (text) => text.replaceAll('""', '');
  return fs.readFileSync(path.join(process.env.INTEROP_TABLES, name), 'utf8').split('\n')
    .filter((line) => line && !line.startsWith('#'))
    .map((line) => line.split(':'))
    .map(([key, words]) => [word(key.trim()), words.trim().split(/\s+/).map(word)]);
}

async function runOne(name, scenarios) {
  const found = scenarios[name];
  if (!found) return `FAIL ${name}: this client has no such scenario`;
  if (typeof found === 'string') return `skip ${name}: ${found}`;
  const scene = new Scene();
  const told = (error) => `FAIL ${name}: ${shortened(String(error.message || error).replace(/\s+/g, ' '))}`;
  let line = `ok ${name}`;
  try {
    await within(name.startsWith('restart') ? RESTARTING : USUAL, 'the scenario', found(scene));
  } catch (error) {
    console.error(name, error);
    line = error instanceof Skip ? `skip ${name}: ${error.message}` : told(error);
  }
  try {
    await within(2 * WAIT, 'cleaning up', scene.cleanUp());
  } catch (error) {
    if (line.startsWith('ok')) line = told(error);
  }
  return line;
}

/** A scenario is a function of a Scene, or the reason why this client has none. */
async function runAll(scenarios) {
  let status = 0;
  for (const name of process.env.INTEROP_ONLY ? process.env.INTEROP_ONLY.split(',') : Object.keys(scenarios)) {
    const line = await runOne(name, scenarios);
    fs.writeSync(1, `${line}\n`);
    if (line.startsWith('FAIL')) status = 1;
  }
  process.exit(status);
}

module.exports = { WAIT, bodies, check, equal, open, outline, pause, proxy, runAll, sequence, table, tagged, waitUntil, within };
