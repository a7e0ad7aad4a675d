"""The six first programs of every newcomer."""

from kit import Inbox, drain, equal, get, publish, scenario, sequence, wait_until


@scenario("tutorial-hello")
def hello(context):
    queue = context.name("hello")
    sender, receiver = context.channel(), context.channel()
    for channel in (sender, receiver):  # both sides declare, as neither knows who is first
        channel.queue_declare(queue)
    publish(sender, queue, b"Hello, rock!")
    [message] = Inbox(receiver, queue, auto_ack=True).wait(1)
    equal(message.body, b"Hello, rock!", "body")
    equal((message.method.exchange, message.method.routing_key, message.redelivered), ("", queue, False), "delivery")
    equal(get(sender, queue), None, "queue after the delivery")


@scenario("tutorial-work-queues")
def work_queues(context):
    queue, tasks = context.name("tasks"), sequence(6, "task")
    sender = context.channel(confirms=True)
    sender.queue_declare(queue, durable=True)
    workers = [context.channel(), context.channel()]
    inboxes = []
    for worker in workers:
        worker.basic_qos(prefetch_count=1)
        inboxes.append(Inbox(worker, queue))
    publish(sender, queue, *tasks, delivery_mode=2)
    slow, quick = inboxes
    connections = [worker.connection for worker in workers]
    wait_until(lambda: slow.messages and quick.messages, "one task for each worker", *connections)
    done = []

    def quick_works(count):
        while len(done) < count:
            wait_until(lambda: len(quick.messages) > len(done), f"task {len(done) + 1}", *connections)
            message = quick.messages[len(done)]
            equal(message.properties.delivery_mode, 2, "delivery mode")
            done.append(message.body)
            quick.channel.basic_ack(message.tag)

    quick_works(5)
    equal(len(slow.messages), 1, "tasks held by the worker that never finished its first")
    # The slow worker dies: its task goes to the other one.
    slow.channel.connection.close()
    connections.remove(slow.channel.connection)
    quick_works(6)
    equal(quick.messages[-1].redelivered, True, "redelivered flag of the abandoned task")
    equal(done[-1], slow.messages[0].body, "the abandoned task")
    equal(sorted(done), tasks, "tasks done")


@scenario("tutorial-publish-subscribe")
def publish_subscribe(context):
    logs, channel = context.name("logs"), context.channel()
    channel.exchange_declare(logs, "fanout")

    def subscribe():
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, logs)
        return queue

    early = [subscribe(), subscribe()]
    publish(channel, "", b"one", b"two", exchange=logs)
    late = subscribe()
    publish(channel, "", b"three", exchange=logs)
    for queue in early:
        equal(drain(channel, queue), [b"one", b"two", b"three"], "log of an early subscriber")
    equal(drain(channel, late), [b"three"], "log of a late subscriber")


@scenario("tutorial-routing")
def routing(context):
    exchange, channel = context.name("direct_logs"), context.channel()
    channel.exchange_declare(exchange, "direct")
    inboxes = {}
    for severities in ("info warning error", "error"):
        queue = channel.queue_declare("", exclusive=True).method.queue
        for severity in severities.split():
            channel.queue_bind(queue, exchange, severity)
        inboxes[severities] = Inbox(channel, queue, auto_ack=True)
    for severity in ("info", "debug", "error", "warning"):
        publish(channel, severity, severity.encode(), exchange=exchange)
    equal([message.method.routing_key for message in inboxes["info warning error"].wait(3)],
          ["info", "error", "warning"], "routing keys")
    inboxes["error"].wait(1)
    equal(inboxes["error"].bodies, [b"error"], "errors only")


@scenario("tutorial-topics")
def topics(context):
    exchange, channel = context.name("topic_logs"), context.channel()
    channel.exchange_declare(exchange, "topic")
    subscriptions = {("#",): 4, ("kern.*",): 2, ("*.critical",): 2, ("kern.*", "*.critical"): 3}
    inboxes = {}
    for patterns in subscriptions:
        queue = channel.queue_declare("", exclusive=True).method.queue
        for pattern in patterns:
            channel.queue_bind(queue, exchange, pattern)
        inboxes[patterns] = Inbox(channel, queue, auto_ack=True)
    for key in ("kern.critical", "kern.info", "cron.critical", "cron.info.more"):
        publish(channel, key, key.encode(), exchange=exchange)
    for patterns, count in subscriptions.items():
        inboxes[patterns].wait(count)
    equal(inboxes["kern.*", "*.critical"].bodies, [b"kern.critical", b"kern.info", b"cron.critical"],
          "two patterns, each message once")


@scenario("tutorial-rpc")
def rpc(context):
    requests = context.name("rpc")
    server, client = context.channel(), context.channel()
    server.queue_declare(requests)
    server.basic_qos(prefetch_count=1)
    work = Inbox(server, requests)
    replies_to = client.queue_declare("", exclusive=True).method.queue
    replies = Inbox(client, replies_to, auto_ack=True)
    for number in (3, 30):
        publish(client, requests, b"%d" % number, reply_to=replies_to, correlation_id=f"call-{number}")
    for call in range(2):
        wait_until(lambda: len(work.messages) > call, "a request", server.connection)
        request = work.messages[call]
        publish(server, request.properties.reply_to, b"%d" % (2 * int(request.body)),
                correlation_id=request.properties.correlation_id)
        server.basic_ack(request.tag)
    answers = {message.properties.correlation_id: message.body for message in replies.wait(2)}
    equal(answers, {"call-3": b"6", "call-30": b"60"}, "answers by correlation id")
