// The tutorials, handshake, refusals at login, heartbeats, channels, what is left of a connection that was cut.
'use strict';

const { check, equal, open, outline, pause, proxy, sequence, waitUntil } = require('./kit');

const keys = (messages) => messages.map((message) => message.fields.routingKey);

async function subscribed(channel, exchange, ...patterns) {
  const queue = await channel.queue('', { exclusive: true, durable: false });
  for (const pattern of patterns) await channel.bindQueue(queue, exchange, pattern);
  return channel.inbox(queue);
}

async function rejected(what, promise, ...fragments) {
  const error = await promise.then(() => { throw new Error(`${what} was accepted`); }, (reason) => reason);
  for (const fragment of fragments) check(error.message.includes(fragment), `'${fragment}' is not in '${error.message}'`);
}

module.exports = {
  'tutorial-hello': async (s) => {
    const [queue, sender, receiver] = [s.name('hello'), await s.channel(), await s.channel()];
    for (const channel of [sender, receiver]) await channel.queue(queue); // neither knows who is first
    await sender.put(queue, 'Hello, rock!');
    const [message] = await (await receiver.inbox(queue)).wait(1);
    const { exchange, routingKey, redelivered } = message.fields;
    equal('delivery', [message.content.toString(), exchange, routingKey, redelivered], ['Hello, rock!', '', queue, false]);
    equal('queue after the delivery', await sender.take(queue), false);
  },

  'tutorial-work-queues': async (s) => {
    const [queue, sender] = [s.name('tasks'), await s.confirmed()];
    await sender.queue(queue, { durable: true });
    const worker = async () => {
      const channel = await s.channel();
      await channel.prefetch(1);
      return { channel, ...(await channel.inbox(queue, { noAck: false })) };
    };
    const [slow, quick] = [await worker(), await worker()];
    for (const body of sequence(6)) await sender.send('', queue, body, { persistent: true });
    await waitUntil('one task for each worker', () => slow.messages.length && quick.messages.length);
    const done = [];
    const quickWorks = async (count) => {
      while (done.length < count) {
        await waitUntil('the next task', () => quick.messages.length > done.length);
        const message = quick.messages[done.length];
        equal('delivery mode', message.properties.deliveryMode, 2);
        done.push(message.content.toString());
        quick.channel.ack(message);
      }
    };
    await quickWorks(5);
    equal('tasks held by the worker that never finished its first', slow.messages.length, 1);
    await slow.channel.connection_.close(); // the slow worker dies: its task goes to the other one
    await quickWorks(6);
    equal('the abandoned task', outline(quick.messages)[5], `${slow.messages[0].content}+`);
    equal('tasks done', done.sort(), sequence(6));
  },

  'tutorial-publish-subscribe': async (s) => {
    const channel = await s.channel();
    const logs = await channel.exchange(s.name('logs'), 'fanout');
    const subscribe = async () => {
      const queue = await channel.queue('', { exclusive: true, durable: false });
      await channel.bindQueue(queue, logs, '');
      return queue;
    };
    const early = [await subscribe(), await subscribe()];
    await channel.send(logs, '', 'one');
    await channel.send(logs, '', 'two');
    const late = await subscribe();
    await channel.send(logs, '', 'three');
    for (const queue of early) equal('log of an early subscriber', await channel.drain(queue), ['one', 'two', 'three']);
    equal('log of a late subscriber', await channel.drain(late), ['three']);
  },

  'tutorial-routing': async (s) => {
    const channel = await s.channel();
    const exchange = await channel.exchange(s.name('direct_logs'), 'direct');
    const all = await subscribed(channel, exchange, 'info', 'warning', 'error');
    const errors = await subscribed(channel, exchange, 'error');
    for (const severity of ['info', 'debug', 'error', 'warning']) await channel.send(exchange, severity, severity);
    equal('routing keys', keys(await all.wait(3)), ['info', 'error', 'warning']);
    equal('errors only', keys(await errors.wait(1)), ['error']);
  },

  'tutorial-topics': async (s) => {
    const channel = await s.channel();
    const exchange = await channel.exchange(s.name('topic_logs'), 'topic');
    const boxes = [];
    for (const patterns of [['#'], ['kern.*'], ['*.critical'], ['kern.*', '*.critical']]) {
      boxes.push(await subscribed(channel, exchange, ...patterns));
    }
    for (const key of ['kern.critical', 'kern.info', 'cron.critical', 'cron.info.more']) await channel.send(exchange, key, key);
    for (const [i, count] of [4, 2, 2, 3].entries()) await boxes[i].wait(count);
    equal('two patterns, each message once', keys(boxes[3].messages), ['kern.critical', 'kern.info', 'cron.critical']);
  },

  'tutorial-rpc': async (s) => {
    const [requests, server, client] = [s.name('rpc'), await s.channel(), await s.channel()];
    await server.queue(requests);
    await server.prefetch(1);
    await server.consume(requests, (request) => {
      const { replyTo, correlationId } = request.properties;
      server.sendToQueue(replyTo, Buffer.from(String(2 * Number(request.content))), { correlationId });
      server.ack(request);
    });
    const replyTo = await client.queue('', { exclusive: true, durable: false });
    const replies = await client.inbox(replyTo);
    for (const number of ['3', '30']) await client.send('', requests, number, { replyTo, correlationId: `call-${number}` });
    const answers = await replies.wait(2);
    equal('answers', answers.map((answer) => [answer.properties.correlationId, answer.content.toString()]),
      [['call-3', '6'], ['call-30', '60']]);
  },

  handshake: async (s) => {
    const { connection } = await s.connect({ channelMax: 100, frameMax: 8192, heartbeat: 7 });
    for (const key of ['product', 'version', 'platform']) check(connection.serverProperties[key], `server property ${key}`);
    for (const name of ['publisher_confirms', 'exchange_exchange_bindings', 'basic.nack', 'consumer_cancel_notify',
      'per_consumer_qos', 'authentication_failure_close']) {
      equal(`capability ${name}`, connection.serverProperties.capabilities[name], true);
    }
    equal('negotiated limits', [connection.channelMax, connection.frameMax, connection.heartbeat], [100, 8192, 7]);
  },

  'wrong-password': (s) => rejected('a wrong password', s.connect({ password: 'wrong' }), '403', 'ACCESS_REFUSED - Login was refused'),

  // The client keeps the broker's reason to itself.
  'unknown-vhost': (s) => rejected('an unknown vhost', s.connect({ vhost: 'no-such-vhost' }), 'got <ConnectionClose channel:0>'),

  'heartbeat-idle': async (s) => {
    const connection = await s.connect({ heartbeat: 1 });
    await pause(5000); // the time is the subject: either side gives up after two silent intervals
    check(!connection.ended, 'an idle connection was closed');
    const channel = await open(connection);
    const queue = await channel.queue('', { exclusive: true, durable: false });
    await channel.put(queue, 'still here');
    equal('queue after the idle time', await channel.drain(queue), ['still here']);
  },

  'channel-lifecycle': async (s) => {
    const connection = await s.connect();
    const channels = [];
    while (channels.length < 50) channels.push(await open(connection));
    equal('channel numbers', channels.map((channel) => channel.ch), Array.from(channels, (_, i) => i + 1));
    const queue = await channels[0].queue('', { exclusive: true, durable: false });
    for (const channel of channels) await channel.put(queue, `m${channel.ch - 1}`);
    for (const channel of channels.slice(1)) await channel.close();
    // Every closed channel's publishes were processed before its close was answered.
    equal('one message of each channel', (await channels[0].drain(queue)).sort(), sequence(50).sort());
    const again = await open(connection);
    equal('number of the next channel', again.ch, 2);
    await again.put(queue, 'again');
    await again.close();
    equal('message by a reused channel number', await channels[0].drain(queue), ['again']);
  },

  'channel-error-isolation': async (s) => {
    const [queue, connection] = [s.name('isolation'), await s.connect()];
    const [healthy, failing] = [await open(connection), await open(connection)];
    await healthy.queue(queue);
    await failing.inbox(queue);
    const consumers = async () => (await healthy.checkQueue(queue)).consumerCount;
    equal('consumers before the error', await consumers(), 1);
    await failing.refused(404, 'no queue', (channel) => channel.checkQueue(s.name('missing')));
    await waitUntil('its consumer to go', async () => (await consumers()) === 0);
    await healthy.put(queue, 'fine');
    const fresh = await open(connection);
    equal('number of the next channel', fresh.ch, failing.ch);
    equal('message read on the same channel number', await fresh.drain(queue), ['fine']);
  },

  'delivery-after-lost-connection': async (s) => {
    const [queue, watcher, line] = [s.name('lost'), await s.channel(), await proxy()];
    await watcher.queue(queue);
    await watcher.put(queue, ...sequence(5));
    const doomed = await open(await s.connect({ hostname: '127.0.0.1', port: line.port }));
    await doomed.prefetch(3);
    const held = await doomed.inbox(queue, { noAck: false });
    doomed.ack((await held.wait(3))[0]);
    await held.wait(4); // the ack has arrived: a fourth message came for it
    line.cut();
    await watcher.waitReady(queue, 4);
    equal('what came back', outline(await (await watcher.inbox(queue)).wait(4)), ['m1+', 'm2+', 'm3+', 'm4']);
  },
};
