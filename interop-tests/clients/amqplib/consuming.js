// Getting, acknowledging, refusing, recovering, prefetch, purge, the end of consumers; what survives a restart.
'use strict';

const { check, equal, outline, sequence, tagged, waitUntil } = require('./kit');

/** A channel and a queue with m0, m1, … */
async function filled(s, count) {
  const [queue, channel] = [s.name('queue'), await s.confirmed()];
  await channel.queue(queue);
  await channel.put(queue, ...sequence(count));
  return [channel, queue];
}

async function restart(s, how) {
  s.needsRestart();
  const [exchange, gone] = [s.name('exchange'), s.name('transient')];
  const kinds = { classic: s.name('classic'), quorum: s.name('quorum') };
  let channel = await s.confirmed();
  await channel.exchange(exchange, 'topic', {});
  await channel.exchange(gone, 'topic');
  await channel.queue(gone);
  for (const [kind, queue] of Object.entries(kinds)) {
    await channel.queue(queue, { arguments: { 'x-queue-type': kind } });
    await channel.bindQueue(queue, exchange, 'orders.#');
  }
  for (const body of sequence(20)) await channel.send(exchange, 'orders.new', body, { persistent: true, headers: { key: 'value' } });
  for (const queue of Object.values(kinds)) {
    const holder = await s.channel();
    const held = await holder.hold(queue, 7);
    holder.ack(held[4], true);
    holder.ack(held[6]);
    await holder.ready(queue); // the broker has read the acks when it answers
  }
  await s.restart(how);

  const settled = ['m0', 'm1', 'm2', 'm3', 'm4', 'm6'];
  const kept = sequence(20).filter((body) => !settled.includes(body));
  for (const [kind, queue] of Object.entries(kinds)) {
    let back = await consumeAll(s, queue, kept);
    for (const { properties } of back) equal('properties', [properties.deliveryMode, properties.headers.key], [2, 'value']);
    if (how === 'kill') {
      // Nobody promised that an ack is on disk the moment it was sent. What comes back of those must say so.
      const again = back.filter((message) => settled.includes(message.content.toString()));
      check(again.every((message) => message.fields.redelivered), 'settled messages that come back have their flag');
      back = back.filter((message) => !again.includes(message));
    } else {
      for (const message of back) equal('redelivered', message.fields.redelivered, message.content.toString() === 'm5');
    }
    const order = back.map((message) => message.content.toString());
    if (kind === 'quorum') order.sort((a, b) => a.slice(1) - b.slice(1)); // RabbitMQ before 4.0 puts m5 behind the others
    equal(`${kind} queue after the restart`, order, kept);
  }
  // Exchange, queues and bindings still work together.
  channel = await s.confirmed();
  await channel.send(exchange, 'orders.again', 'again', { persistent: true });
  for (const queue of Object.values(kinds)) equal('a new publish', await channel.drain(queue), ['again']);
  check(!(await s.queueExists(gone)) && !(await s.exchangeExists(gone)), 'what is not durable is gone');
}

/** Everything in the queue, all of `kept` at least. A quorum queue may be without a leader and refuse its first consumers. */
async function consumeAll(s, queue, kept) {
  let channel;
  let inbox;
  await waitUntil('a consumer', async () => {
    channel = await s.channel();
    try {
      inbox = await channel.inbox(queue, { noAck: false });
    } catch {
      equal('reply code', (await channel.failure).code, 541);
    }
    return inbox;
  }, 30_000);
  await waitUntil(`the messages of ${queue}`, async () => {
    const back = new Set(inbox.messages.map((message) => message.content.toString()));
    return kept.every((body) => back.has(body)) && (await channel.ready(queue)) === 0;
  }, 30_000);
  channel.ackAll();
  await channel.close(); // the end of the connection might overtake the ack in this client
  return inbox.messages;
}

const noTransactions = 'amqplib has no transactions';

module.exports = {
  get: async (s) => {
    const [channel, queue] = await filled(s, 3);
    const [first] = await channel.hold(queue, 1);
    const { messageCount, exchange, routingKey, redelivered } = first.fields;
    equal('get-ok', [first.content.toString(), messageCount, exchange, routingKey, redelivered], ['m0', 2, '', queue, false]);
    equal('messages left', (await channel.take(queue)).fields.messageCount, 1);
    await channel.close(); // the first was not acknowledged, the second needed no ack
    const watcher = await s.channel();
    await watcher.waitReady(queue, 2);
    equal('after the channel closed', outline([await watcher.take(queue), await watcher.take(queue)]), ['m0+', 'm2']);
    equal('get on an empty queue', await watcher.take(queue), false);
  },

  'ack-multiple': async (s) => {
    const [channel, queue] = await filled(s, 10);
    const consumer = await s.channel();
    const messages = await (await consumer.inbox(queue, {})).wait(10);
    equal('delivery tags', messages.map((message) => message.fields.deliveryTag), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    consumer.ack(messages[1]);
    consumer.ack(messages[4], true);
    await consumer.close();
    await channel.waitReady(queue, 5);
    const second = await s.channel();
    equal('what the multiple ack left', outline(await (await second.inbox(queue, {})).wait(5)), ['m5+', 'm6+', 'm7+', 'm8+', 'm9+']);
    second.ackAll();
    await second.close();
    equal('ready messages after an ack of all', await channel.ready(queue), 0);
  },

  'nack-requeue': async (s) => {
    const [channel, queue] = await filled(s, 6);
    const held = await channel.hold(queue, 4);
    channel.ack(held[0]);
    channel.nack(held[2], true, true);
    channel.reject(held[3], true);
    await channel.waitReady(queue, 5);
    equal('order and flags', outline(await (await channel.inbox(queue)).wait(5)), ['m1+', 'm2+', 'm3+', 'm4', 'm5']);
  },

  'reject-discard': async (s) => {
    const [channel, queue] = await filled(s, 6);
    const held = await channel.hold(queue, 5);
    channel.reject(held[1], false);
    channel.nack(held[0], false, false);
    channel.nack(held[3], true, false);
    await channel.close();
    const watcher = await s.channel();
    await watcher.waitReady(queue, 2);
    equal('what was not discarded', outline(await (await watcher.inbox(queue)).wait(2)), ['m4+', 'm5']);
  },

  'unknown-delivery-tag': async (s) => {
    const [channel, queue] = await filled(s, 1);
    const [message] = await channel.hold(queue, 1);
    channel.ack(message);
    for (const answer of ['ack', 'nack', 'reject']) {
      await (await s.channel()).refused(406, 'PRECONDITION_FAILED - unknown delivery tag 77', (broken) => broken[answer](tagged(77)));
    }
    await channel.refused(406, `PRECONDITION_FAILED - unknown delivery tag ${message.fields.deliveryTag}`, () => channel.ack(message));
  },

  recover: async (s) => {
    const [channel, queue] = await filled(s, 4);
    const inbox = await channel.inbox(queue, {});
    channel.ack((await inbox.wait(4))[1]);
    await channel.recover();
    equal('recovered', outline((await inbox.wait(7)).slice(4)), ['m0+', 'm2+', 'm3+']);
  },

  'qos-per-consumer': async (s) => {
    const [watcher, queue] = await filled(s, 20);
    const channel = await s.channel();
    await channel.prefetch(3);
    const three = (await channel.inbox(queue, {})).messages;
    await channel.prefetch(5);
    const five = (await channel.inbox(queue, {})).messages;
    await waitUntil('3 + 5 messages', () => three.length + five.length >= 8);
    equal('held, held, ready', [three.length, five.length, await watcher.ready(queue)], [3, 5, 12]);
    channel.ack(three[0]);
    await waitUntil('one more for one ack', () => three.length === 4);
    equal("the other consumer's and the ready ones", [five.length, await watcher.ready(queue)], [5, 11]);
    channel.ackAll();
    await waitUntil('a full window each', () => three.length + five.length === 17);
  },

  'qos-global': async (s) => {
    const [watcher, queue] = await filled(s, 10);
    const channel = await s.channel();
    await channel.prefetch(4, true);
    const boxes = [(await channel.inbox(queue, {})).messages, (await channel.inbox(queue, {})).messages];
    const received = () => boxes[0].length + boxes[1].length;
    await waitUntil('4 messages', () => received() >= 4);
    equal('ready and held', [await watcher.ready(queue), received()], [6, 4]);
    channel.ack(tagged(2), true);
    await waitUntil('two more for two acks', () => received() >= 6);
    equal('ready and received', [await watcher.ready(queue), received()], [4, 6]);
  },

  'purge-and-delete': async (s) => {
    const [channel, queue] = await filled(s, 5);
    await channel.hold(queue, 1);
    for (const count of [4, 0]) equal('purged: ready ones only', (await channel.purgeQueue(queue)).messageCount, count);
    await channel.put(queue, 'one', 'two');
    await (await s.channel()).refused(406, `PRECONDITION_FAILED - queue '${queue}' in vhost '/' not empty`,
      (other) => other.deleteQueue(queue, { ifEmpty: true }));
    const inbox = await channel.inbox(queue);
    await inbox.wait(2);
    await (await s.channel()).refused(406, `PRECONDITION_FAILED - queue '${queue}' in vhost '/' in use`,
      (other) => other.deleteQueue(queue, { ifUnused: true }));
    await channel.cancel(inbox.consumerTag);
    await channel.put(queue, 'three');
    for (const count of [1, 0]) { // the second time it is missing
      equal('messages deleted with the queue', (await channel.deleteQueue(queue, { ifUnused: true })).messageCount, count);
    }
    check(!(await s.queueExists(queue)), 'the queue is gone');
  },

  cancel: async (s) => {
    const [watcher, queue] = await filled(s, 2);
    const channel = await s.channel();
    const inbox = await channel.inbox(queue, {});
    await inbox.wait(2);
    await channel.cancel(inbox.consumerTag);
    await watcher.put(queue, 'later');
    equal('ready messages: the later one waits', await watcher.ready(queue), 1);
    channel.ack((await inbox.wait(2))[0]);
    await channel.close();
    await watcher.waitReady(queue, 2);
    equal('the unacked one came back when the channel closed', outline(await (await watcher.inbox(queue)).wait(2)), ['m1+', 'later']);
  },

  'cancel-notify': async (s) => {
    const [watcher, queue] = await filled(s, 0);
    const channel = await s.channel();
    const inbox = await channel.inbox(queue);
    await watcher.deleteQueue(queue);
    equal('what the consumer is told', await inbox.wait(1), [null]);
    await channel.checkExchange('amq.direct'); // the channel stays open
  },

  'consumer-exclusive': async (s) => {
    const [channel, queue] = await filled(s, 0);
    const only = await channel.inbox(queue, { exclusive: true });
    const attempt = async (exclusive) => (await s.channel()).refused(403,
      `ACCESS_REFUSED - queue '${queue}' in vhost '/' in exclusive use`, (other) => other.inbox(queue, { exclusive }));
    await attempt(false);
    await attempt(true);
    await channel.cancel(only.consumerTag);
    await channel.inbox(queue);
    await attempt(true);
  },

  'consumer-duplicate-tag': async (s) => {
    const [channel, queue] = await filled(s, 0);
    const { consumerTag } = await channel.inbox(queue);
    await channel.refused(530, `NOT_ALLOWED - attempt to reuse consumer tag '${consumerTag}'`, () => channel.inbox(queue, { consumerTag }));
    await waitUntil('the connection to close', () => channel.connection_.ended);
  },

  'tx-commit': noTransactions,
  'tx-rollback': noTransactions,
  'tx-large': noTransactions,
  'tx-mandatory': noTransactions,
  'tx-errors': noTransactions,

  'restart-graceful': (s) => restart(s, 'term'),
  'restart-kill': (s) => restart(s, 'kill'),
};
