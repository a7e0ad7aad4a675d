// What a publisher learns of its messages, that they arrive as they were sent, RabbitMQ's extensions of publishing.
'use strict';

const { randomBytes } = require('node:crypto');
const { bodies, check, equal, pause, sequence, within, WAIT } = require('./kit');

const REPLIES = 'amq.rabbitmq.reply-to';

/** Publishes without waiting in between; what came back in order: the returned message, or the number confirmed. */
async function publishAll(channel, queue, list, options) {
  const events = [];
  channel.on('return', (message) => events.push(message));
  await within(WAIT, 'all confirms', Promise.all(list.map((body, number) => new Promise((resolve, reject) => {
    channel.publish('', queue, Buffer.from(body), { persistent: true, ...options }, (error) => {
      events.push(number);
      (error ? reject : resolve)(error);
    });
  }))));
  return events;
}

async function confirmMany(s, count) {
  const [queue, channel] = [s.name('confirm'), await s.confirmed()];
  await channel.queue(queue, {});
  const confirmed = await publishAll(channel, queue, sequence(count));
  equal('each confirmed once', confirmed.sort((a, b) => a - b), [...Array(count).keys()]);
  equal('bodies', bodies(await (await channel.inbox(queue)).wait(count)), sequence(count));
}

/** All properties of the message that `options` make, absent ones left out. The client always sends headers. */
async function sameProperties(channel, queue, options) {
  await channel.send('', queue, '', options);
  const { properties } = await channel.take(queue);
  equal('properties', Object.fromEntries(Object.entries(properties).filter(([, value]) => value !== undefined)),
    { headers: {}, ...options });
}

async function brief(s, durable = true) {
  const channel = await s.confirmed();
  return [channel, await channel.queue(s.name('ttl'), { durable })];
}

module.exports = {
  'mandatory-return': async (s) => {
    const [missing, channel] = [s.name('missing'), await s.confirmed()];
    const [first, ...rest] = await publishAll(channel, missing, ['come back'], { mandatory: true, appId: 'interop' });
    const { replyCode, replyText, exchange, routingKey } = first.fields;
    equal('basic.return', [replyCode, replyText, exchange, routingKey, first.content.toString(),
      first.properties.deliveryMode, first.properties.appId], [312, 'NO_ROUTE', '', missing, 'come back', 2, 'interop']);
    equal('its confirm comes behind it', rest, [0]);
    const present = await s.confirmed();
    equal('what a routed mandatory message brings',
      await publishAll(present, await present.queue(s.name('present')), ['routed'], { mandatory: true }), [0]);
  },

  'confirm-single': async (s) => {
    const [queue, channel] = [s.name('confirm'), await s.confirmed()];
    await channel.queue(queue, {});
    await channel.send('', queue, 'safe', { persistent: true });
    equal('ready messages after the confirm', await channel.ready(queue), 1);
    await channel.put(s.name('missing'), 'dropped'); // unroutable and not mandatory: dropped, and confirmed
  },
  'confirm-batch': (s) => confirmMany(s, 100),
  'confirm-in-flight': (s) => confirmMany(s, 1000),

  immediate: 'amqplib has no immediate flag',
  'connection-blocked': 'not part of this program; pika, Java and lapin show it',

  bodies: async (s) => {
    const [queue, channel] = [s.name('bodies'), await s.confirmed()];
    await channel.queue(queue, {});
    const frame = channel.connection.frameMax - 8; // the largest body frame
    for (const size of [0, 1, frame - 1, frame, frame + 1, 2 * frame, 1 << 20, 5 << 20]) {
      const body = randomBytes(size);
      await channel.send('', queue, body, { persistent: true });
      check(body.equals((await channel.take(queue)).content), `a body of ${size} bytes came back different`);
      const inbox = await channel.inbox(queue);
      await channel.send('', queue, body);
      check(body.equals((await inbox.wait(1))[0].content), `a body of ${size} bytes was delivered different`);
      await channel.cancel(inbox.consumerTag);
    }
  },

  properties: async (s) => {
    const [queue, channel] = [s.name('properties'), await s.confirmed()];
    await channel.queue(queue);
    const full = { contentType: 'text/plain', contentEncoding: 'utf-8', headers: { key: 'value' }, deliveryMode: 2, priority: 7,
      correlationId: 'correlation', replyTo: 'reply.to', messageId: 'message-ü', timestamp: 1700000000, type: 'kind',
      userId: 'guest', appId: 'interop' };
    await sameProperties(channel, queue, full);
    // One at a time as well: an absent property must stay absent. The client has a default for the delivery mode.
    const { deliveryMode, ...others } = full;
    for (const [key, value] of Object.entries(others)) await sameProperties(channel, queue, { deliveryMode, [key]: value });
  },

  'property-expiration': async (s) => {
    const channel = await s.confirmed();
    await sameProperties(channel, await channel.queue(s.name('expiration')), { expiration: '600000', deliveryMode: 2 });
  },

  'header-types': async (s) => {
    const [queue, channel] = [s.name('headers'), await s.confirmed()];
    await channel.queue(queue);
    const typed = (type, value) => ({ '!': type, value });
    // Numbers and what this client makes of them again; the exotic ones come back as they were given.
    const sent = { text: 'ünïcode', empty: '', bytes: Buffer.from([0, 255]), yes: true, no: false, i8: typed('int8', -100),
      u8: typed('uint8', 200), i16: typed('int16', -30000), i32: -(2 ** 31), i64: 2 ** 40, float: typed('float', 1.5),
      double: 2.5e-300, decimal: typed('decimal', { places: 3, digits: 12345 }), at: typed('timestamp', 1700000000), nothing: null };
    const arrives = { ...sent, i8: -100, u8: 200, i16: -30000, float: 1.5 };
    const nested = (simple) => ({ ...simple, table: { ...simple, inner: { deep: [1, { x: 'y' }] }, none: {} },
      array: [...Object.values(simple), [], {}, 'a'.repeat(20000)] });
    await channel.send('', queue, '', { headers: nested(sent) });
    const { headers } = (await channel.take(queue)).properties;
    equal('order of the headers', Object.keys(headers), Object.keys(nested(sent)));
    for (const [key, value] of Object.entries(nested(arrives))) equal(`header ${key}`, headers[key], value);
  },

  'publish-then-count': async (s) => {
    const [queue, channel] = [s.name('own'), await s.channel()];
    await channel.queue(queue, {});
    for (let i = 0; i < 20; i++) {
      await channel.put(queue, 'one', 'two', 'three');
      equal('basic.get', (await channel.take(queue)).content.toString(), 'one');
      equal('passive declare', await channel.ready(queue), 2);
      equal('purge', (await channel.purgeQueue(queue)).messageCount, 2);
      equal('after the purge', await channel.take(queue), false);
    }
  },

  expiration: async (s) => {
    for (const durable of [false, true]) {
      const [channel, queue] = await brief(s, durable);
      const mortal = (body, expiration) => channel.send('', queue, body, { expiration, persistent: true });
      await mortal('short', '200');
      await mortal('lasting');
      await mortal('behind', '1');
      await mortal('later', '3600000');
      await channel.waitReady(queue, 3); // the head goes without a consumer, what stands behind a lasting one stays
      for (const expected of [['lasting', undefined], ['later', '3600000']]) {
        const message = await channel.take(queue);
        equal('next', [message.content.toString(), message.properties.expiration], expected);
      }
      // A message that expires while a consumer holds it can be acknowledged, but does not come back.
      await mortal('held', '300');
      await mortal('next');
      const [held] = await channel.hold(queue, 1);
      equal('held', held.content.toString(), 'held');
      await pause(500); // the time that passes is the subject
      channel.reject(held, true);
      equal('after the requeue', await channel.drain(queue), ['next']);
    }
  },

  'expiration-zero': async (s) => {
    const [channel, queue] = await brief(s);
    await channel.send('', queue, 'lost', { expiration: '0' });
    await channel.waitReady(queue, 0);
    const inbox = await channel.inbox(queue);
    await channel.send('', queue, 'now', { expiration: '0' });
    equal('what a waiting consumer gets', bodies(await inbox.wait(1)), ['now']);
  },

  'queue-times': async (s) => {
    for (const durable of [false, true]) {
      const [channel, queue, idle] = [await s.confirmed(), s.name('times'), s.name('idle')];
      await channel.queue(queue, { durable, messageTtl: 300, expires: 3600000 });
      await channel.send('', queue, "the queue's time", { persistent: true });
      await channel.send('', queue, 'longer', { persistent: true, expiration: '3600000' });
      await channel.waitReady(queue, 0);
      await channel.queue(idle, { durable, expires: 300 });
      await (await s.confirmed()).refused(406, "received '301' but current is '300'",
        (other) => other.assertQueue(queue, { durable, messageTtl: 301, expires: 3600000 }));
      await pause(2000); // the time that passes is the subject
      check(!await s.queueExists(idle), 'an unused queue is still there');
    }
  },

  'expiration-invalid': async (s) => {
    for (const [expiration, why] of [['', 'no_integer'], ['ten', 'no_integer'], ['-1', '{value_negative,-1}'],
      ['1.5', '{leftover_string,".5"}'], ['315360000001', '{value_too_large,315360000001}']]) {
      await (await s.confirmed()).refused(406, `invalid expiration '${expiration}': ${why}`,
        (channel) => channel.send('', 'anything', '', { expiration }));
    }
  },

  'cc-bcc': async (s) => {
    const channel = await s.confirmed();
    const [first, second, third] = [s.name('cc'), s.name('cc'), s.name('cc')];
    for (const queue of [first, second, third]) await channel.queue(queue);
    await channel.send('', first, 'all', { CC: [second, first], BCC: [third], headers: { other: 1 } });
    for (const queue of [first, second, third]) {
      const message = await channel.take(queue);
      equal('what each gets', [message.content.toString(), message.fields.routingKey, message.properties.headers],
        ['all', first, { CC: [second, first], other: 1 }]);
      equal('each queue once', await channel.take(queue), false);
    }
    const exchange = await channel.exchange(s.name('topic'), 'topic');
    await channel.bindQueue(first, exchange, 'a.*');
    await channel.send(exchange, 'no.match', 'topic', { CC: ['a.b', 'a.c'] });
    equal("by a copy's key", await channel.drain(first), ['topic']);
    await channel.send('', s.name('missing'), 'routed by its copy', { CC: [first], mandatory: true });
    equal('mandatory', await channel.drain(first), ['routed by its copy']);
    for (const name of ['CC', 'BCC']) {
      await (await s.confirmed()).refused(406, `{unacceptable_type_in_header,"${name}",longstr}`,
        (other) => other.send('', first, '', { headers: { [name]: second } }));
    }
  },

  'direct-reply-to': async (s) => {
    const [client, server, queue] = [await s.channel(), await s.channel(), s.name('rpc')];
    await server.queue(queue);
    const replies = await client.inbox(REPLIES);
    let replyTo;
    for (let number = 0; number < 3; number++) {
      await client.send('', queue, 'question', { replyTo: REPLIES, correlationId: `${number}` });
      await server.waitReady(queue, 1);
      const question = await server.take(queue);
      ({ replyTo } = question.properties);
      check(replyTo.startsWith(`${REPLIES}.`), `reply-to ${replyTo}`);
      equal('consumers seen by the server', (await server.checkQueue(replyTo)).consumerCount, 1);
      await server.send('', replyTo, 'answer', { correlationId: question.properties.correlationId });
      const message = (await replies.wait(number + 1))[number];
      equal('the reply', [message.content.toString(), message.properties.correlationId, message.fields.exchange,
        message.fields.routingKey], ['answer', `${number}`, '', replyTo]);
    }
    await client.checkQueue(REPLIES);
    await client.cancel(replies.consumerTag);
    await server.refused(404, 'no queue', () => server.checkQueue(replyTo));
    await (await s.confirmed()).put(replyTo, 'nobody hears');
  },

  'direct-reply-to-errors': async (s) => {
    await (await s.channel()).refused(406, 'reply consumer cannot acknowledge', (channel) => channel.inbox(REPLIES, {}));
    const second = await s.channel();
    await second.inbox(REPLIES);
    await second.refused(406, 'reply consumer already set', () => second.inbox(REPLIES));
    await (await s.channel()).refused(406, 'fast reply consumer does not exist',
      (channel) => channel.send('', 'anything', '', { replyTo: REPLIES }));
    await (await s.channel()).refused(404, 'no queue', (channel) => channel.get(REPLIES));
  },
};
