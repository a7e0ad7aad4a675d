# What every bunny scenario needs: connections, waiting, refusals, the lines on standard output.

require "bunny"
require "logger"
require "securerandom"
require "timeout"

HOST, PORT = ENV.fetch("INTEROP_AMQP").split(":")
WAIT = 10

class Failure < StandardError; end

def check(condition, text)
  raise Failure, text unless condition
end

def shortened(value)
  text = value.inspect
  text.length <= 300 ? text : "#{text[0, 300]}… (#{text.length} characters)"
end

def equal(what, actual, expected)
  check actual == expected, "#{what}: expected #{shortened(expected)}, got #{shortened(actual)}"
end

# bunny gives texts no encoding.
def plain(value)
  case value
  when String then value.b
  when Hash then value.to_h { |key, inner| [plain(key), plain(inner)] }
  when Array then value.map { |inner| plain(inner) }
  else value
  end
end

def wait_until(what)
  deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + WAIT
  until yield
    check Process.clock_gettime(Process::CLOCK_MONOTONIC) < deadline, "waited #{WAIT} s for #{what}"
    sleep 0.005
  end
end

def sequence(count) = Array.new(count) { |number| "m#{number}" }

Message = Struct.new(:info, :properties, :body) do
  def tag = info.delivery_tag.to_i
  # The body, with a mark when it is delivered again.
  def outline = info.redelivered ? "#{body}+" : body
end

# A channel with what the scenarios do all the time. Every other call goes to bunny's own.
class Chan
  attr_reader :raw, :closed

  def initialize(connection)
    @raw = connection.create_channel
    @closed = connection.instance_variable_get(:@interop_closed) || Queue.new
    @raw.on_error { |_, close| @closed << close }
  end

  def method_missing(name, ...) = @raw.public_send(name, ...)
  def respond_to_missing?(...) = true

  def confirms
    confirm_select
    self
  end

  def queue(name, **options) = queue_declare(name, options).queue

  def exchange(name, type, **options)
    exchange_declare(name, type, options)
    name
  end

  # Waits for the confirms of all of them when the channel is in that mode.
  def put(exchange, key, *bodies, **options)
    bodies.each { |body| basic_publish(body, exchange, key, options) }
    check wait_for_confirms, "nacked" if using_publisher_confirmations?
  end

  # nil when the queue is empty
  def take(queue, manual_ack: false)
    info, properties, body = basic_get(queue, manual_ack: manual_ack)
    info && Message.new(info, properties, body)
  end

  def hold(queue, count) = Array.new(count) { take(queue, manual_ack: true) }

  def drain(queue)
    bodies = []
    while (message = take(queue))
      bodies << message.body
    end
    bodies
  end

  def ready(queue) = queue_declare(queue, passive: true).message_count
  def wait_ready(queue, count) = wait_until("#{count} ready messages in #{queue}") { ready(queue) == count }

  def inbox(queue, no_ack: true, exclusive: false) = Inbox.new(self, queue, no_ack, exclusive)

  # The block must be answered by the end of the channel or its connection, with this code and text.
  def refused(code, text)
    begin
      yield self
    rescue Bunny::Exception
      nil # what bunny has noted tells
    end
    # It calls back for acknowledgements, and keeps the error of any other call.
    last_error = -> { @raw.instance_variable_get(:@last_channel_error) }
    wait_until("#{code} #{text}") { !closed.empty? || last_error.call }
    close = closed.empty? ? last_error.call.channel_close : closed.pop
    check close.reply_code == code && close.reply_text.include?(text),
          "expected #{code} #{text}, got #{close.reply_code} #{close.reply_text}"
  end
end

# A consumer and what it has received so far.
class Inbox
  attr_reader :messages, :tag, :cancelled

  def initialize(channel, queue, no_ack, exclusive)
    @messages, @cancelled, @tag = [], [], "consumer-#{SecureRandom.hex(4)}"
    consumer = Bunny::Consumer.new(channel.raw, queue, @tag, no_ack, exclusive)
    consumer.on_delivery { |info, properties, body| @messages << Message.new(info, properties, body) }
    consumer.on_cancellation { |cancel| @cancelled << cancel.consumer_tag }
    channel.basic_consume_with(consumer)
  end

  def wait(count)
    wait_until("#{count} messages (have #{shortened(bodies)})") { messages.length >= count }
    equal "number of messages received", messages.length, count
    messages.dup
  end

  def bodies = messages.map(&:body)
  def outline = messages.map(&:outline)
end

# One scenario's connections and names. A queue and an exchange of each name are deleted at its end.
class Scene
  def initialize
    @names, @connections = [], []
  end

  def name(kind)
    @names << "interop.rb.#{kind}.#{SecureRandom.hex(4)}"
    @names.last
  end

  def connect(**options)
    authority = ENV["INTEROP_TLS_CA"]
    secured = authority ? { tls: true, tls_ca_certificates: [authority], verify_peer: true } : {}
    closed = Queue.new
    connection = Bunny.new({ host: HOST, port: PORT.to_i, automatically_recover: false, continuation_timeout: WAIT * 1000,
                             connection_timeout: WAIT, logger: Logger.new($stderr, level: Logger::FATAL),
                             session_error_handler: Reports.new(closed), **secured, **options })
    connection.instance_variable_set(:@interop_closed, closed)
    @connections << connection
    connection.start
  end

  # A channel on a connection of its own.
  def channel = Chan.new(connect)

  def exists?(queue)
    channel.ready(queue)
    true
  rescue Bunny::NotFound
    false
  end

  def clean_up
    @connections.each { |connection| connection.close if connection.open? }
    return if @names.empty?

    last = channel
    @names.each do |name|
      last.queue_delete(name)
      last.exchange_delete(name)
    end
    @connections.last.close
  end
end

# bunny raises what ends a connection in a thread of its choice: here it is only noted.
class Reports
  Close = Struct.new(:reply_code, :reply_text)

  def initialize(closed) = @closed = closed

  def raise(error)
    close = error.respond_to?(:connection_close) && error.connection_close
    @closed << (close || Close.new(0, error.message))
  end
end

SCENARIOS = {}

def scenario(name, &block) = SCENARIOS[name] = block

def run_one(name)
  # The list is shared with clients whose programs have all of it.
  return "skip #{name}: not part of this smaller program" unless SCENARIOS.key?(name)

  scene = Scene.new
  begin
    Timeout.timeout(60) { scene.instance_eval(&SCENARIOS[name]) }
    line = "ok #{name}"
  rescue StandardError => e
    warn e.full_message
    line = "FAIL #{name}: #{"#{e.class}: #{e.message}".split.join(" ")}"
  end
  begin
    Timeout.timeout(20) { scene.clean_up }
  rescue StandardError => e
    line = "FAIL #{name}: cleaning up: #{e.class}: #{e.message}" if line.start_with?("ok")
  end
  line
end

def run_all
  names = ENV.fetch("INTEROP_ONLY", "").split(",")
  names = SCENARIOS.keys if names.empty?
  lines = names.map do |name|
    line = run_one(name)
    $stdout.puts line
    $stdout.flush
    line
  end
  exit!(lines.any? { |line| line.start_with?("FAIL") } ? 1 : 0)
end
