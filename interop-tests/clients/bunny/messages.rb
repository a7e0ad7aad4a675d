# Publishing, confirms, getting, consuming, acknowledging, transactions.

# A channel and a queue with m0, m1, …
def filled(count)
  queue, c = name("queue"), channel.confirms
  c.queue(queue)
  c.put("", queue, *sequence(count))
  [c, queue]
end

scenario "tutorial-hello" do
  queue, sender, receiver = name("hello"), channel, channel
  [sender, receiver].each { |c| c.queue(queue) } # neither knows who is first
  sender.put("", queue, "Hello, rock!")
  message, = receiver.inbox(queue).wait(1)
  equal "delivery", [message.outline, message.info.exchange, message.info.routing_key], ["Hello, rock!", "", queue]
  equal "queue after the delivery", sender.take(queue), nil
end

scenario "tutorial-work-queues" do
  queue, sender = name("tasks"), channel.confirms
  sender.queue(queue, durable: true)
  workers = Array.new(2) { channel }
  slow, quick = workers.map do |worker|
    worker.basic_qos(1)
    worker.inbox(queue, no_ack: false)
  end
  sender.put("", queue, *sequence(6), persistent: true)
  wait_until("one task for each worker") { slow.messages.any? && quick.messages.any? }
  done = []
  quick_works = lambda do |count|
    while done.length < count
      wait_until("the next task") { quick.messages.length > done.length }
      done << quick.messages[done.length]
      equal "delivery mode", done.last.properties[:delivery_mode], 2
      workers[1].basic_ack(done.last.tag)
    end
  end
  quick_works.call(5)
  equal "tasks held by the worker that never finished its first", slow.messages.length, 1
  workers[0].connection.close # the slow worker dies: its task goes to the other one
  quick_works.call(6)
  equal "the abandoned task", done.last.outline, "#{slow.bodies.first}+"
  equal "tasks done", done.map(&:body).sort, sequence(6)
end

scenario "tutorial-rpc" do
  requests, server, client = name("rpc"), channel, channel
  server.queue(requests)
  reply_to = client.queue("", exclusive: true)
  replies = client.inbox(reply_to)
  %w[3 30].each { |number| client.put("", requests, number, reply_to: reply_to, correlation_id: "call-#{number}") }
  server.inbox(requests, no_ack: false).wait(2).each do |request|
    server.put("", request.properties[:reply_to], (2 * request.body.to_i).to_s, correlation_id: request.properties[:correlation_id])
    server.basic_ack(request.tag)
  end
  equal "answers", replies.wait(2).map { |reply| [reply.properties[:correlation_id], reply.body] }, [%w[call-3 6], %w[call-30 60]]
end

scenario "mandatory-return" do
  missing, c, returned = name("missing"), channel.confirms, []
  c.default_exchange.on_return { |info, properties, body| returned << [info, properties, body] }
  c.put("", missing, "come back", mandatory: true, persistent: true)
  # The client tells of a return in a thread of its own.
  wait_until("the return") { returned.any? }
  info, properties, body = returned.pop
  equal "basic.return", [info.reply_code, info.reply_text, info.exchange, info.routing_key, body, properties.delivery_mode],
        [312, "NO_ROUTE", "", missing, "come back", 2]
  c.put("", c.queue(name("present")), "routed", mandatory: true)
  equal "returns of a routed message", returned, []
end

scenario "confirm-single" do
  queue, c = name("confirm"), channel.confirms
  c.queue(queue, durable: true)
  c.put("", queue, "safe", persistent: true)
  equal "ready messages after the confirm", c.ready(queue), 1
  c.put("", name("missing"), "dropped") # unroutable and not mandatory: dropped, and confirmed
end

{ "confirm-batch" => 100, "confirm-in-flight" => 1000 }.each do |title, count|
  scenario title do
    queue, c, confirmed = name("confirm"), channel, Hash.new(0)
    c.queue(queue, durable: true)
    first = 1
    c.confirm_select(lambda do |tag, multiple, nack|
      check !nack, "nack of #{tag}"
      (multiple ? first..tag : tag..tag).each { |one| confirmed[one] += 1 }
      first = tag + 1 if multiple
    end)
    c.put("", queue, *sequence(count), persistent: true)
    equal "confirmed tags", confirmed.keys.sort, (1..count).to_a
    equal "each exactly once", confirmed.values.uniq, [1]
    equal "bodies", c.inbox(queue).wait(count).map(&:body), sequence(count)
  end
end

scenario "bodies" do
  queue, c = name("bodies"), channel.confirms
  c.queue(queue, durable: true)
  frame = 131_072 - 8 # the largest body frame under the default limit
  [0, 1, frame - 1, frame, frame + 1, 2 * frame, 1 << 20, 5 << 20].each do |size|
    body = Random.bytes(size)
    c.put("", queue, body, persistent: true)
    check c.take(queue).body.b == body, "a body of #{size} bytes came back different"
  end
end

scenario "properties" do
  queue, c = name("properties"), channel.confirms
  c.queue(queue)
  full = { content_type: "text/plain", content_encoding: "utf-8", headers: { "key" => "value" }, delivery_mode: 2, priority: 7,
           correlation_id: "correlation", reply_to: "reply.to", message_id: "message", timestamp: 1_700_000_000,
           type: "kind", user_id: "guest", app_id: "interop" }
  c.put("", queue, "", **full)
  got = c.take(queue).properties
  equal "properties", plain(full.to_h { |key, _| [key, got[key]] }), plain(full.merge(timestamp: Time.at(1_700_000_000)))
end

scenario "property-expiration" do
  queue, c = name("expiration"), channel.confirms
  c.queue(queue)
  c.put("", queue, "", expiration: "600000")
  equal "expiration", c.take(queue).properties[:expiration], "600000"
end

scenario "header-types" do
  queue, c = name("headers"), channel.confirms
  c.queue(queue)
  simple = { "text" => "ünïcode", "empty" => "", "true" => true, "false" => false, "int" => -(2**31), "long" => 2**62,
             "double" => 2.5e300, "at" => Time.at(1_700_000_000), "void" => nil }
  headers = { **simple, "table" => { **simple, "inner" => { "deep" => [1, { "x" => "y" }] }, "none" => {} },
              "array" => [1, "two", true, nil, {}, "a" * 20_000] }
  c.put("", queue, "", headers: headers)
  equal "headers", plain(c.take(queue).properties[:headers]), plain(headers)
end

scenario "publish-then-count" do
  queue, c = name("own"), channel
  c.queue(queue, durable: true)
  20.times do
    c.put("", queue, "one", "two", "three", persistent: true)
    equal "basic.get", c.take(queue).body, "one"
    equal "passive declare", c.ready(queue), 2
    equal "purge", c.queue_purge(queue).message_count, 2
  end
end

scenario "get" do
  c, queue = filled(3)
  first = c.take(queue, manual_ack: true)
  equal "get-ok", [first.outline, first.info.message_count, first.info.exchange, first.info.routing_key], ["m0", 2, "", queue]
  equal "messages left", c.take(queue).info.message_count, 1
  c.close # the first was not acknowledged, the second needed no ack
  c = channel
  c.wait_ready(queue, 2)
  equal "after the channel closed", [c.take(queue).outline, c.take(queue).outline], %w[m0+ m2]
  equal "get on an empty queue", c.take(queue), nil
end

scenario "ack-multiple" do
  c, queue = filled(10)
  consumer = channel
  equal "delivery tags", consumer.inbox(queue, no_ack: false).wait(10).map { |message| message.tag }, (1..10).to_a
  consumer.basic_ack(2, false)
  consumer.basic_ack(5, true)
  consumer.close
  c.wait_ready(queue, 5)
  equal "what the multiple ack left", c.inbox(queue).wait(5).map(&:outline), %w[m5+ m6+ m7+ m8+ m9+]
end

scenario "nack-requeue" do
  c, queue = filled(6)
  held = c.hold(queue, 4).map(&:tag)
  c.basic_ack(held[0], false)
  c.basic_nack(held[2], true, true)
  c.basic_reject(held[3], true)
  c.wait_ready(queue, 5)
  equal "order and flags", c.inbox(queue).wait(5).map(&:outline), %w[m1+ m2+ m3+ m4 m5]
end

scenario "reject-discard" do
  c, queue = filled(6)
  held = c.hold(queue, 5).map(&:tag)
  c.basic_reject(held[1], false)
  c.basic_nack(held[0], false, false)
  c.basic_nack(held[3], true, false)
  c.close
  watcher = channel
  watcher.wait_ready(queue, 2)
  equal "what was not discarded", watcher.inbox(queue).wait(2).map(&:outline), %w[m4+ m5]
end

scenario "unknown-delivery-tag" do
  channel.refused(406, "PRECONDITION_FAILED - unknown delivery tag 77") { |c| c.basic_ack(77, false) }
  channel.refused(406, "PRECONDITION_FAILED - unknown delivery tag 77") { |c| c.basic_reject(77, true) }
end

scenario "recover" do
  c, queue = filled(4)
  box = c.inbox(queue, no_ack: false)
  c.basic_ack(box.wait(4)[1].tag, false)
  c.basic_recover(true)
  equal "recovered", box.wait(7).drop(4).map(&:outline), %w[m0+ m2+ m3+]
end

scenario "qos-per-consumer" do
  watcher, queue = filled(20)
  c = channel
  three, five = [3, 5].map do |count|
    c.basic_qos(count)
    c.inbox(queue, no_ack: false)
  end
  wait_until("3 + 5 messages") { three.messages.length + five.messages.length >= 8 }
  equal "held, held, ready", [three.messages.length, five.messages.length, watcher.ready(queue)], [3, 5, 12]
  c.basic_ack(three.messages[0].tag, false)
  wait_until("one more for one ack") { three.messages.length == 4 }
  equal "the other consumer's and the ready ones", [five.messages.length, watcher.ready(queue)], [5, 11]
end

scenario "purge-and-delete" do
  c, queue = filled(5)
  c.hold(queue, 1)
  equal "purged: ready ones only", [c.queue_purge(queue).message_count, c.queue_purge(queue).message_count], [4, 0]
  c.put("", queue, "one")
  channel.refused(406, "PRECONDITION_FAILED - queue '#{queue}' in vhost '/' not empty") { |other| other.queue_delete(queue, if_empty: true) }
  box = c.inbox(queue)
  channel.refused(406, "PRECONDITION_FAILED - queue '#{queue}' in vhost '/' in use") { |other| other.queue_delete(queue, if_unused: true) }
  c.basic_cancel(box.tag)
  c.put("", queue, "two")
  equal "deleted with the queue, and when it is missing", Array.new(2) { c.queue_delete(queue).message_count }, [1, 0]
end

scenario "cancel" do
  watcher, queue = filled(2)
  c = channel
  box = c.inbox(queue, no_ack: false)
  box.wait(2)
  c.basic_cancel(box.tag)
  watcher.put("", queue, "later")
  equal "ready messages: the later one waits", watcher.ready(queue), 1
  c.basic_ack(box.wait(2)[0].tag, false)
  c.close
  watcher.wait_ready(queue, 2)
  equal "the unacked one came back", watcher.inbox(queue).wait(2).map(&:outline), %w[m1+ later]
end

scenario "cancel-notify" do
  watcher, queue = filled(0)
  c = channel
  box = c.inbox(queue)
  watcher.queue_delete(queue)
  wait_until("basic.cancel") { box.cancelled.any? }
  equal "cancelled consumers", box.cancelled, [box.tag]
  check c.raw.open?, "the channel stays open"
end

scenario "consumer-exclusive" do
  c, queue = filled(0)
  c.inbox(queue, exclusive: true)
  [false, true].each do |exclusive|
    channel.refused(403, "ACCESS_REFUSED - queue '#{queue}' in vhost '/' in exclusive use") { |other| other.inbox(queue, exclusive: exclusive) }
  end
end

scenario "tx-commit" do
  c, observer, queue = channel, channel, name("tx")
  c.queue(queue, durable: true)
  c.tx_select
  c.put("", queue, "one", "two", persistent: true)
  equal "ready messages before the commit", observer.ready(queue), 0
  c.tx_commit
  equal "ready messages after the commit", observer.ready(queue), 2
  c.basic_ack(c.hold(queue, 1)[0].tag, false)
  c.tx_commit
  c.close
  equal "what was not acknowledged", observer.drain(queue), ["two"]
end

scenario "tx-rollback" do
  c, observer, queue = channel, channel, name("tx")
  c.queue(queue, durable: true)
  c.put("", queue, "one")
  c.tx_select
  tag = c.hold(queue, 1)[0].tag
  c.put("", queue, "never")
  c.basic_ack(tag, false)
  c.tx_rollback
  equal "ready messages after the rollback", observer.ready(queue), 0
  c.close
  observer.wait_ready(queue, 1)
  equal "what comes back", observer.take(queue).outline, "one+"
end

scenario "tx-errors" do
  channel.refused(406, "channel is not transactional", &:tx_commit)
  channel.confirms.refused(406, "cannot switch from confirm to tx mode", &:tx_select)
end
