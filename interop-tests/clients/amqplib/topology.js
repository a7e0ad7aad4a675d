// Declaring, comparing, refusing and removing queues and exchanges; the exchange types.
'use strict';

const { check, equal, table, waitUntil } = require('./kit');

const transient = { durable: false };

async function queues(s, channel, count) {
  const names = [];
  while (names.length < count) names.push(await channel.queue(s.name('queue')));
  return names;
}

module.exports = {
  'queue-declare': async (s) => {
    const [queue, channel] = [s.name('declare'), await s.confirmed()];
    const declared = (messageCount, consumerCount) => ({ queue, messageCount, consumerCount });
    equal('a new queue', { ...(await channel.assertQueue(queue)) }, declared(0, 0));
    await channel.put(queue, 'one', 'two');
    equal('declared again', { ...(await channel.assertQueue(queue)) }, declared(2, 0));
    await (await channel.inbox(queue, { noAck: false })).wait(2);
    equal('with a consumer that holds all: only ready ones count', { ...(await channel.checkQueue(queue)) }, declared(0, 1));
  },

  'queue-declare-mismatch': async (s) => {
    const queue = await (await s.channel()).queue(s.name('mismatch'), {});
    for (const [argument, options] of [['durable', transient], ['auto_delete', { autoDelete: true }]]) {
      await (await s.channel()).refused(406, `PRECONDITION_FAILED - inequivalent arg '${argument}' for queue '${queue}' in vhost '/'`,
        (channel) => channel.assertQueue(queue, options));
    }
    await (await s.channel()).refused(405, 'RESOURCE_LOCKED', (channel) => channel.assertQueue(queue, { exclusive: true }));
    check(await s.queueExists(queue), 'the queue is untouched');
  },

  'queue-types': async (s) => {
    const typed = (kind, options) => ({ durable: true, arguments: { 'x-queue-type': kind }, ...options });
    for (const [kind, other] of [['classic', 'quorum'], ['quorum', 'classic']]) {
      const [queue, channel] = [s.name(kind), await s.confirmed()];
      await channel.queue(queue, typed(kind));
      await channel.queue(queue, typed(kind));
      for (const body of ['one', 'two']) await channel.send('', queue, body, { persistent: true });
      channel.nack((await channel.hold(queue, 1))[0]);
      await channel.waitReady(queue, 2);
      const both = [await channel.take(queue), await channel.take(queue)];
      // A quorum queue may put it behind the other (RabbitMQ before 4.0 does).
      equal(`messages of a ${kind} queue after a requeue`,
        both.map((message) => `${message.content} ${message.fields.redelivered}`).sort(), ['one true', 'two false']);
      await (await s.channel()).refused(406, `inequivalent arg 'x-queue-type' for queue '${queue}'`,
        (channel) => channel.assertQueue(queue, typed(other)));
    }
    await (await s.channel()).refused(406, 'x-queue-type', (channel) => channel.assertQueue(s.name('nonsense'), typed('nonsense')));
    await (await s.channel()).refused(406, 'non-durable',
      (channel) => channel.assertQueue(s.name('transient'), typed('quorum', transient)));
  },

  'not-found': async (s) => {
    const [missing, present] = [s.name('missing'), await (await s.channel()).queue(s.name('present'))];
    for (const [kind, attempt] of [
      ['queue', (channel) => channel.checkQueue(missing)],
      ['queue', (channel) => channel.consume(missing, () => {})],
      ['queue', (channel) => channel.get(missing)],
      ['queue', (channel) => channel.purgeQueue(missing)],
      ['queue', (channel) => channel.bindQueue(missing, 'amq.direct', 'key')],
      ['exchange', (channel) => channel.checkExchange(missing)],
      ['exchange', (channel) => channel.bindQueue(present, missing, 'key')],
      ['exchange', (channel) => channel.bindExchange('amq.fanout', missing, '')],
      ['exchange', (channel) => channel.send(missing, 'key', 'lost')],
    ]) {
      await (await s.channel()).refused(404, `NOT_FOUND - no ${kind} '${missing}' in vhost '/'`, attempt);
    }
  },

  'exclusive-queue': async (s) => {
    const [queue, owner] = [s.name('exclusive'), await s.channel()];
    const exclusive = { exclusive: true, durable: false };
    await owner.queue(queue, exclusive);
    await owner.put(queue, 'mine');
    for (const attempt of [
      (channel) => channel.checkQueue(queue),
      (channel) => channel.assertQueue(queue, transient),
      (channel) => channel.assertQueue(queue, exclusive),
      (channel) => channel.consume(queue, () => {}),
      (channel) => channel.get(queue),
      (channel) => channel.bindQueue(queue, 'amq.direct', 'key'),
      (channel) => channel.purgeQueue(queue),
      (channel) => channel.deleteQueue(queue),
    ]) {
      await (await s.channel()).refused(405, `RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '${queue}'`, attempt);
    }
    await owner.connection_.close();
    await waitUntil('the queue to go with its owner', async () => !(await s.queueExists(queue)));
    const successor = await s.channel();
    equal('messages of its successor', (await successor.assertQueue(queue, exclusive)).messageCount, 0);
    await successor.connection_.close();
  },

  'server-named-queue': async (s) => {
    const channel = await s.channel();
    const names = new Set();
    let last;
    for (let i = 0; i < 3; i++) names.add(last = await channel.queue('', { exclusive: true, durable: false }));
    check([...names].every((name) => name.startsWith('amq.gen-')), `names ${[...names]} begin with amq.gen-`);
    equal('different names', names.size, 3);
    await channel.bindQueue('', 'amq.direct', `${last}.key`);
    await channel.send('amq.direct', `${last}.key`, 'to the last');
    equal('message read by the empty name', await channel.drain(''), ['to the last']);
    // Empty queue name and empty key together: the queue's own name is the key.
    await channel.bindQueue('', 'amq.direct', '');
    await channel.send('amq.direct', last, 'by its name');
    equal("message by the queue's name as key", await channel.drain(last), ['by its name']);
    await (await s.channel()).refused(404, 'NOT_FOUND', (fresh) => fresh.bindQueue('', 'amq.direct', 'key'));
  },

  'auto-delete-queue': async (s) => {
    const [queue, channel] = [s.name('auto-delete'), await s.channel()];
    await channel.queue(queue, { autoDelete: true, durable: false });
    await channel.put(queue, 'one');
    equal('basic.get before the first consumer', await channel.drain(queue), ['one']);
    check(await s.queueExists(queue), 'the queue stays before its first consumer');
    const [first, second] = [await channel.inbox(queue), await channel.inbox(queue)];
    await channel.cancel(first.consumerTag);
    check(await s.queueExists(queue), 'the queue stays while one consumer is left');
    await channel.cancel(second.consumerTag);
    await waitUntil('the queue to go with its last consumer', async () => !(await s.queueExists(queue)));
  },

  'auto-delete-exchange': async (s) => {
    const channel = await s.channel();
    const source = await channel.exchange(s.name('source'), 'fanout', { autoDelete: true, durable: false });
    const target = await channel.exchange(s.name('target'), 'fanout');
    const [queue] = await queues(s, channel, 1);
    await channel.bindExchange(target, source, '');
    await channel.bindQueue(queue, source, '');
    await channel.unbindQueue(queue, source, '');
    check(await s.exchangeExists(source), 'the exchange stays while something is bound to it');
    await channel.unbindExchange(target, source, '');
    check(!(await s.exchangeExists(source)), 'the exchange goes with its last binding');
    check(await s.exchangeExists(target), 'the other exchange stays');
  },

  'reserved-names': async (s) => {
    for (const attempt of [(channel) => channel.assertQueue('amq.interop'), (channel) => channel.assertExchange('amq.interop', 'direct')]) {
      await (await s.channel()).refused(403, "reserved prefix 'amq.*'", attempt);
    }
    check(!(await s.queueExists('amq.interop')), 'amq.interop does not exist');
    const channel = await s.channel();
    for (const [exchange, kind] of [['amq.direct', 'direct'], ['amq.fanout', 'fanout'], ['amq.topic', 'topic'],
      ['amq.headers', 'headers'], ['amq.match', 'headers']]) {
      await channel.checkExchange(exchange);
      await channel.exchange(exchange, kind, {});
    }
    await channel.refused(403, 'amq.direct', () => channel.deleteExchange('amq.direct'));
  },

  'default-exchange': async (s) => {
    const [queue] = await queues(s, await s.channel(), 1);
    for (const attempt of [
      (channel) => channel.bindQueue(queue, '', 'key'),
      (channel) => channel.unbindQueue(queue, '', queue),
      (channel) => channel.bindExchange('amq.fanout', '', ''),
      (channel) => channel.bindExchange('', 'amq.fanout', ''),
      (channel) => channel.deleteExchange(''),
    ]) {
      await (await s.channel()).refused(403, 'ACCESS_REFUSED - operation not permitted on the default exchange', attempt);
    }
    const channel = await s.confirmed();
    await channel.put(queue, 'still routed');
    equal('queue after the refusals', await channel.drain(queue), ['still routed']);
  },

  'exchange-declare': async (s) => {
    const [exchange, channel] = [s.name('exchange'), await s.channel()];
    await channel.exchange(exchange, 'direct', {});
    await channel.exchange(exchange, 'direct', {});
    for (const [argument, kind, options] of [['type', 'topic', {}], ['durable', 'direct', transient],
      ['auto_delete', 'direct', { autoDelete: true }], ['internal', 'direct', { internal: true }]]) {
      await (await s.channel()).refused(406,
        `PRECONDITION_FAILED - inequivalent arg '${argument}' for exchange '${exchange}' in vhost '/'`,
        (other) => other.assertExchange(exchange, kind, options));
    }
    const [queue] = await queues(s, channel, 1);
    await channel.bindQueue(queue, exchange, 'key');
    await (await s.channel()).refused(406, `PRECONDITION_FAILED - exchange '${exchange}' in vhost '/' in use`,
      (other) => other.deleteExchange(exchange, { ifUnused: true }));
    await channel.unbindQueue(queue, exchange, 'key');
    await channel.deleteExchange(exchange, { ifUnused: true });
    check(!(await s.exchangeExists(exchange)), 'the exchange is gone');
    await channel.deleteExchange(exchange);
  },

  'internal-exchange': async (s) => {
    const channel = await s.confirmed();
    const front = await channel.exchange(s.name('front'), 'fanout');
    const internal = await channel.exchange(s.name('internal'), 'fanout', { internal: true, durable: false });
    const [queue] = await queues(s, channel, 1);
    await channel.bindExchange(internal, front, '');
    await channel.bindQueue(queue, internal, '');
    await channel.send(front, '', 'through');
    await (await s.channel()).refused(403, `ACCESS_REFUSED - cannot publish to internal exchange '${internal}'`,
      (other) => other.send(internal, '', 'directly'));
    equal('queue behind the internal exchange', await channel.drain(queue), ['through']);
  },

  'exchange-direct': async (s) => {
    const channel = await s.confirmed();
    const exchange = await channel.exchange(s.name('direct'), 'direct');
    const [first, second] = await queues(s, channel, 2);
    for (const [queue, key] of [[first, 'both'], [second, 'both'], [second, 'one']]) await channel.bindQueue(queue, exchange, key);
    for (const key of ['both', 'one', 'none', 'BOTH', '']) await channel.send(exchange, key, key);
    equal('first queue', await channel.drain(first), ['both']);
    equal('second queue', await channel.drain(second), ['both', 'one']);
  },

  'exchange-fanout': async (s) => {
    const channel = await s.confirmed();
    const exchange = await channel.exchange(s.name('fanout'), 'fanout');
    const bound = await queues(s, channel, 3);
    for (const queue of bound) await channel.bindQueue(queue, exchange, 'ignored');
    await channel.send(exchange, 'ignored', '1');
    await channel.send(exchange, '', '2');
    for (const queue of bound) equal(queue, await channel.drain(queue), ['1', '2']);
  },

  'exchange-topic': async (s) => {
    const channel = await s.confirmed();
    const exchange = await channel.exchange(s.name('topic'), 'topic');
    const [[, patterns], ...rows] = table('topic');
    const bound = new Map();
    for (const pattern of patterns) {
      bound.set(pattern, await channel.queue(s.name('pattern')));
      await channel.bindQueue(bound.get(pattern), exchange, pattern);
    }
    for (const [key] of rows) await channel.send(exchange, key, key);
    for (const [pattern, queue] of bound) {
      equal(`keys that match '${pattern}'`, await channel.drain(queue),
        rows.filter(([, matching]) => matching.includes(pattern)).map(([key]) => key));
    }
  },

  'exchange-headers': async (s) => {
    const channel = await s.confirmed();
    const exchange = await channel.exchange(s.name('headers'), 'headers');
    const bound = async (headers) => {
      const [queue] = await queues(s, channel, 1);
      await channel.bindQueue(queue, exchange, '', headers);
      return queue;
    };
    const all = await bound({ 'x-match': 'all', colour: 'red', size: 5 });
    const some = await bound({ 'x-match': 'any', colour: 'red', size: 5 });
    const implied = await bound({ colour: 'red', size: 5 });
    const present = await bound({ 'x-match': 'all', colour: null }); // void: any value will do
    for (const [body, headers] of Object.entries({
      both: { colour: 'red', size: 5, other: true },
      colour: { colour: 'red' },
      'wrong size': { colour: 'red', size: 6 },
      'text size': { size: '5' },
      blue: { colour: 'blue' },
      nothing: {},
    })) {
      await channel.send(exchange, 'ignored', body, { headers });
    }
    equal('x-match all', await channel.drain(all), ['both']);
    equal('no x-match means all', await channel.drain(implied), ['both']);
    equal('x-match any', await channel.drain(some), ['both', 'colour', 'wrong size']);
    equal('a header that only must be present', await channel.drain(present), ['both', 'colour', 'wrong size', 'blue']);
  },

  'exchange-to-exchange': async (s) => {
    const channel = await s.confirmed();
    const source = await channel.exchange(s.name('source'), 'topic');
    const middle = await channel.exchange(s.name('middle'), 'direct');
    const [queue] = await queues(s, channel, 1);
    await channel.bindExchange(middle, source, 'orders.#');
    await channel.bindQueue(queue, middle, 'orders.new');
    for (const key of ['orders.new', 'orders.old', 'bills.new']) await channel.send(source, key, key);
    equal('the key must pass both exchanges', await channel.drain(queue), ['orders.new']);
    // A second way to the same queue and a cycle back: still one copy.
    await channel.bindQueue(queue, source, '#');
    await channel.bindExchange(source, middle, 'orders.new');
    await channel.send(source, 'orders.new', 'once');
    equal('two ways and a cycle', await channel.drain(queue), ['once']);
    await channel.unbindQueue(queue, source, '#');
    await channel.unbindExchange(middle, source, 'orders.#');
    await channel.send(source, 'orders.new', 'unrouted');
    await channel.send(middle, 'orders.new', 'direct');
    equal('after the unbind', await channel.drain(queue), ['direct']);
  },

  unbind: async (s) => {
    const channel = await s.confirmed();
    const exchange = await channel.exchange(s.name('direct'), 'direct');
    const [queue] = await queues(s, channel, 1);
    for (const key of ['stays', 'goes', 'goes']) await channel.bindQueue(queue, exchange, key);
    await channel.send(exchange, 'goes', 'before');
    await channel.unbindQueue(queue, exchange, 'goes');
    await channel.send(exchange, 'goes', 'after');
    await channel.send(exchange, 'stays', 'stays');
    equal('queue', await channel.drain(queue), ['before', 'stays']);
    await channel.unbindQueue(queue, exchange, 'never bound');
  },
};
