# Connections, channels, queues, exchanges.

scenario "handshake" do
  connection = connect(channel_max: 100, frame_max: 8192, heartbeat: 7)
  %w[product version platform].each { |key| check !connection.server_properties[key].to_s.empty?, "server property #{key}" }
  %w[publisher_confirms exchange_exchange_bindings basic.nack consumer_cancel_notify per_consumer_qos
     authentication_failure_close].each do |name|
    equal "capability #{name}", connection.server_capabilities[name], true
  end
  equal "negotiated limits", [connection.channel_max, connection.frame_max, connection.heartbeat], [100, 8192, 7]
end

scenario "wrong-password" do
  connect(password: "wrong")
  raise Failure, "a wrong password was accepted"
rescue Bunny::AuthenticationFailureError => e
  check e.message.include?("Authentication with RabbitMQ failed"), "unexpected text #{e.message}" # bunny's own
end

scenario "unknown-vhost" do
  closed = connect(vhost: "no-such-vhost").instance_variable_get(:@interop_closed)
  check !closed.empty?, "an unknown vhost was accepted"
  close = closed.pop
  equal "connection.close", [close.reply_code, close.reply_text], [530, "NOT_ALLOWED - vhost no-such-vhost not found"]
end

scenario "heartbeat-idle" do
  connection = connect(heartbeat: 1)
  sleep 5 # the time is the subject: either side gives up after two silent intervals
  check connection.open?, "an idle connection was closed"
  c = Chan.new(connection)
  queue = c.queue("", exclusive: true)
  c.put("", queue, "still here")
  equal "queue after the idle time", c.drain(queue), ["still here"]
end

scenario "channel-lifecycle" do
  connection = connect
  channels = Array.new(50) { Chan.new(connection) }
  equal "different channel numbers", channels.map(&:id).uniq.length, 50
  queue = channels[0].queue("", exclusive: true)
  channels.each_with_index { |c, number| c.put("", queue, "m#{number}") }
  channels.drop(1).each(&:close)
  # Every closed channel's publishes were processed before its close was answered.
  equal "one message of each channel", channels[0].drain(queue).sort, sequence(50).sort
  again = Chan.new(connection)
  again.put("", queue, "again")
  again.close
  equal "message by a new channel", channels[0].drain(queue), ["again"]
end

scenario "channel-error-isolation" do
  queue, connection = name("isolation"), connect
  healthy, failing = Chan.new(connection), Chan.new(connection)
  healthy.queue(queue)
  failing.inbox(queue)
  consumers = -> { healthy.queue_declare(queue, passive: true).consumer_count }
  equal "consumers before the error", consumers.call, 1
  missing = name("missing")
  failing.refused(404, "NOT_FOUND - no queue '#{missing}' in vhost '/'") { |c| c.ready(missing) }
  check failing.raw.closed? && healthy.raw.open? && connection.open?, "only the failing channel is closed"
  wait_until("its consumer to go") { consumers.call.zero? }
  healthy.put("", queue, "fine")
  equal "message read on a new channel", Chan.new(connection).drain(queue), ["fine"]
end

scenario "queue-declare" do
  queue, c = name("declare"), channel.confirms
  counts = lambda do |**options|
    declared = c.queue_declare(queue, options)
    [declared.queue, declared.message_count, declared.consumer_count]
  end
  equal "a new queue", counts.call(durable: true), [queue, 0, 0]
  c.put("", queue, "one", "two")
  equal "declared again", counts.call(durable: true), [queue, 2, 0]
  c.inbox(queue, no_ack: false).wait(2)
  equal "with a consumer that holds all: only ready ones count", counts.call(passive: true), [queue, 0, 1]
end

scenario "queue-declare-mismatch" do
  queue = channel.queue(name("mismatch"), durable: true)
  { "durable" => {}, "auto_delete" => { durable: true, auto_delete: true } }.each do |argument, options|
    channel.refused(406, "PRECONDITION_FAILED - inequivalent arg '#{argument}' for queue '#{queue}' in vhost '/'") do |c|
      c.queue(queue, **options)
    end
  end
  channel.refused(405, "RESOURCE_LOCKED") { |c| c.queue(queue, durable: true, exclusive: true) }
  check exists?(queue), "the queue is untouched"
end

scenario "not-found" do
  missing, present = name("missing"), channel.queue(name("present"))
  no_queue, no_exchange = ["queue", "exchange"].map { |kind| "NOT_FOUND - no #{kind} '#{missing}' in vhost '/'" }
  channel.refused(404, no_queue) { |c| c.ready(missing) }
  channel.refused(404, no_queue) { |c| c.inbox(missing) }
  channel.refused(404, no_queue) { |c| c.queue_purge(missing) }
  channel.refused(404, no_queue) { |c| c.queue_bind(missing, "amq.direct", routing_key: "key") }
  channel.refused(404, no_exchange) { |c| c.queue_bind(present, missing, routing_key: "key") }
  channel.refused(404, no_exchange) { |c| c.exchange_bind(missing, "amq.fanout") }
  channel.refused(404, no_exchange) { |c| c.put(missing, "key", "lost") }
end

scenario "exclusive-queue" do
  queue, owner = name("exclusive"), channel
  owner.queue(queue, exclusive: true)
  [->(c) { c.ready(queue) }, ->(c) { c.queue(queue) }, ->(c) { c.inbox(queue) },
   ->(c) { c.queue_purge(queue) }, ->(c) { c.queue_delete(queue) }].each do |attempt|
    channel.refused(405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '#{queue}'", &attempt)
  end
  owner.connection.close
  wait_until("the queue to go with its owner") { !exists?(queue) }
end

scenario "server-named-queue" do
  c = channel
  names = Array.new(3) { c.queue("", exclusive: true) }
  check names.all? { |queue| queue.start_with?("amq.gen-") }, "names #{names} begin with amq.gen-"
  equal "different names", names.uniq.length, 3
  c.queue_bind("", "amq.direct", routing_key: names.last)
  c.put("amq.direct", names.last, "to the last")
  equal "message read by the empty name", c.drain(""), ["to the last"]
end

scenario "auto-delete-queue" do
  queue, c = name("auto-delete"), channel
  c.queue(queue, auto_delete: true)
  boxes = [c.inbox(queue), c.inbox(queue)]
  c.basic_cancel(boxes[0].tag)
  check exists?(queue), "the queue stays while one consumer is left"
  c.basic_cancel(boxes[1].tag)
  wait_until("the queue to go with its last consumer") { !exists?(queue) }
end

scenario "reserved-names" do
  channel.refused(403, "reserved prefix 'amq.*'") { |c| c.queue("amq.interop") }
  channel.refused(403, "reserved prefix 'amq.*'") { |c| c.exchange("amq.interop", "direct") }
  channel.refused(403, "amq.direct") { |c| c.exchange_delete("amq.direct") }
end

scenario "default-exchange" do
  queue = channel.queue(name("default"))
  text = "ACCESS_REFUSED - operation not permitted on the default exchange"
  channel.refused(403, text) { |c| c.queue_bind(queue, "", routing_key: "key") }
  channel.refused(403, text) { |c| c.exchange_bind("", "amq.fanout") }
  channel.refused(403, text) { |c| c.exchange_delete("") }
end

scenario "exchange-declare" do
  exchange, queue, c = name("exchange"), name("queue"), channel
  2.times { c.exchange(exchange, "direct", durable: true) }
  { "type" => ["topic", { durable: true }], "durable" => ["direct", {}],
    "internal" => ["direct", { durable: true, internal: true }] }.each do |argument, (type, options)|
    channel.refused(406, "PRECONDITION_FAILED - inequivalent arg '#{argument}' for exchange '#{exchange}' in vhost '/'") do |other|
      other.exchange(exchange, type, **options)
    end
  end
  c.queue(queue)
  c.queue_bind(queue, exchange, routing_key: "key")
  channel.refused(406, "PRECONDITION_FAILED - exchange '#{exchange}' in vhost '/' in use") do |other|
    other.exchange_delete(exchange, if_unused: true)
  end
  c.queue_unbind(queue, exchange, routing_key: "key")
  2.times { c.exchange_delete(exchange, if_unused: false) } # the second time it is missing
end

# {queue => bodies} after publishes by these keys
def routed(exchange, bindings, keys)
  c = channel.confirms
  queues = bindings.map do |patterns|
    queue = c.queue(name("queue"))
    patterns.each { |pattern| c.queue_bind(queue, exchange, routing_key: pattern) }
    queue
  end
  keys.each { |key| c.put(exchange, key, key) }
  queues.map { |queue| c.drain(queue) }
end

scenario "exchange-direct" do
  exchange = channel.exchange(name("direct"), "direct")
  equal "queues", routed(exchange, [%w[both], %w[both one]], ["both", "one", "none", "BOTH", ""]), [%w[both], %w[both one]]
end

scenario "exchange-fanout" do
  exchange = channel.exchange(name("fanout"), "fanout")
  equal "queues", routed(exchange, [%w[ignored], %w[x]], ["ignored", ""]), [["ignored", ""], ["ignored", ""]]
end

scenario "exchange-topic" do
  exchange = channel.exchange(name("topic"), "topic")
  word = ->(text) { text.gsub('""', "") }
  rows = File.readlines(File.join(ENV.fetch("INTEROP_TABLES"), "topic"), chomp: true).grep_v(/^#|^$/).map do |line|
    key, words = line.split(":")
    [word[key], words.split.map(&word)]
  end
  (_, patterns), *rows = rows
  expected = patterns.map { |pattern| rows.select { |_, matching| matching.include?(pattern) }.map(&:first) }
  equal "keys by pattern", routed(exchange, patterns.map { |pattern| [pattern] }, rows.map(&:first)), expected
end

scenario "exchange-headers" do
  c = channel.confirms
  exchange = c.exchange(name("headers"), "headers")
  queues = %w[all any].map do |match|
    queue = c.queue(name(match))
    c.queue_bind(queue, exchange, arguments: { "x-match" => match, "colour" => "red", "size" => 5 })
    queue
  end
  { "both" => { "colour" => "red", "size" => 5 }, "colour" => { "colour" => "red" }, "text" => { "size" => "5" },
    "nothing" => {} }.each { |body, headers| c.put(exchange, "", body, headers: headers) }
  equal "all, any", queues.map { |queue| c.drain(queue) }, [%w[both], %w[both colour]]
end

scenario "exchange-to-exchange" do
  c = channel.confirms
  source, middle, queue = c.exchange(name("source"), "topic"), c.exchange(name("middle"), "direct"), c.queue(name("queue"))
  c.exchange_bind(source, middle, routing_key: "orders.#")
  c.queue_bind(queue, middle, routing_key: "orders.new")
  %w[orders.new orders.old bills.new].each { |key| c.put(source, key, key) }
  equal "the key must pass both exchanges", c.drain(queue), ["orders.new"]
  c.exchange_unbind(source, middle, routing_key: "orders.#")
  c.put(source, "orders.new", "unrouted")
  equal "after the unbind", c.drain(queue), []
end

scenario "unbind" do
  c = channel.confirms
  exchange, queue = c.exchange(name("direct"), "direct"), c.queue(name("queue"))
  %w[stays goes goes].each { |key| c.queue_bind(queue, exchange, routing_key: key) }
  c.put(exchange, "goes", "before")
  c.queue_unbind(queue, exchange, routing_key: "goes")
  c.put(exchange, "goes", "after")
  c.put(exchange, "stays", "stays")
  equal "queue", c.drain(queue), %w[before stays]
end
