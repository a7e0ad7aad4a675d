package interop.rabbitmq;

import static interop.kit.Kit.equal;
import static interop.kit.Kit.waitUntil;
import static interop.rabbitmq.Amqp.PERSISTENT;
import static interop.rabbitmq.Amqp.drain;
import static interop.rabbitmq.Amqp.publish;
import static interop.rabbitmq.Amqp.scenario;
import static interop.rabbitmq.Amqp.sequence;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import java.io.IOException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** The six first programs of every newcomer. */
final class Tutorials {
    private Tutorials() {}

    static void register() {
        scenario("tutorial-hello", Tutorials::hello);
        scenario("tutorial-work-queues", Tutorials::workQueues);
        scenario("tutorial-publish-subscribe", Tutorials::publishSubscribe);
        scenario("tutorial-routing", Tutorials::routing);
        scenario("tutorial-topics", Tutorials::topics);
        scenario("tutorial-rpc", Tutorials::rpc);
    }

    private static void hello(Amqp amqp) throws Exception {
        Channel sender = amqp.channel();
        Channel receiver = amqp.channel();
        String queue = amqp.queue(sender, "hello");
        receiver.queueDeclare(queue, false, false, false, null); // both sides declare, as neither knows who is first
        publish(sender, "", queue, "Hello, rock!");
        Inbox.Message message = Inbox.autoAck(receiver, queue).awaitOne();
        equal(message.text(), "Hello, rock!", "body");
        equal(List.of(message.envelope().getExchange(), message.envelope().getRoutingKey(), message.redelivered()),
            List.of("", queue, false), "delivery");
        equal(sender.basicGet(queue, true), null, "queue after the delivery");
    }

    private static void workQueues(Amqp amqp) throws Exception {
        Channel sender = amqp.confirming();
        String queue = amqp.name("tasks");
        sender.queueDeclare(queue, true, false, false, null);
        List<Inbox> inboxes = new ArrayList<>();
        for (int i = 0; i < 2; i++) {
            Channel worker = amqp.channel();
            worker.basicQos(1);
            inboxes.add(Inbox.consume(worker, queue));
        }
        Inbox slow = inboxes.get(0);
        Inbox quick = inboxes.get(1);
        publish(sender, "", queue, PERSISTENT, sequence(6));
        waitUntil(() -> !slow.messages().isEmpty() && !quick.messages().isEmpty(), () -> "one task for each worker");
        for (int done = 0; done < 5; done++) {
            Inbox.Message task = quick.await(done + 1).get(done);
            equal(task.properties().getDeliveryMode(), 2, "delivery mode");
            quick.getChannel().basicAck(task.tag(), false);
        }
        Inbox.Message abandoned = slow.awaitOne(); // the worker that never finished its first got no second
        // The slow worker dies: its task goes to the other one.
        slow.getChannel().getConnection().close();
        Inbox.Message moved = quick.await(6).get(5);
        equal(Map.entry(moved.text(), moved.redelivered()), Map.entry(abandoned.text(), true), "the abandoned task");
        quick.getChannel().basicAck(moved.tag(), false);
        equal(quick.texts().stream().sorted().toList(), sequence(6), "tasks done");
    }

    private static String subscribe(Channel channel, String exchange, String... keys) throws IOException {
        String queue = channel.queueDeclare().getQueue(); // named by the server, exclusive, auto-delete
        for (String key : keys) {
            channel.queueBind(queue, exchange, key);
        }
        return queue;
    }

    private static void publishSubscribe(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String logs = amqp.exchange(channel, "fanout");
        String first = subscribe(channel, logs, "");
        String second = subscribe(channel, logs, "");
        publish(channel, logs, "", "one", "two");
        String late = subscribe(channel, logs, "");
        publish(channel, logs, "", "three");
        equal(drain(channel, first), List.of("one", "two", "three"), "log of the first subscriber");
        equal(drain(channel, second), List.of("one", "two", "three"), "log of the second subscriber");
        equal(drain(channel, late), List.of("three"), "log of a late subscriber");
    }

    private static void routing(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        String exchange = amqp.exchange(channel, "direct");
        Inbox most = Inbox.autoAck(channel, subscribe(channel, exchange, "info", "warning", "error"));
        Inbox errors = Inbox.autoAck(channel, subscribe(channel, exchange, "error"));
        for (String severity : List.of("info", "debug", "error", "warning")) {
            publish(channel, exchange, severity, severity);
        }
        equal(most.await(3).stream().map(message -> message.envelope().getRoutingKey()).toList(),
            List.of("info", "error", "warning"), "routing keys");
        errors.await(1);
        equal(errors.texts(), List.of("error"), "errors only");
    }

    private static void topics(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        String exchange = amqp.exchange(channel, "topic");
        Map<List<String>, Inbox> inboxes = new HashMap<>();
        for (List<String> patterns : List.of(List.of("#"), List.of("kern.*"), List.of("*.critical"), List.of("kern.*", "*.critical"))) {
            inboxes.put(patterns, Inbox.autoAck(channel, subscribe(channel, exchange, patterns.toArray(String[]::new))));
        }
        List<String> keys = List.of("kern.critical", "kern.info", "cron.critical", "cron.info.more");
        for (String key : keys) {
            publish(channel, exchange, key, key);
        }
        Map<List<String>, List<String>> expected = Map.of(
            List.of("#"), keys,
            List.of("kern.*"), keys.subList(0, 2),
            List.of("*.critical"), List.of("kern.critical", "cron.critical"),
            List.of("kern.*", "*.critical"), keys.subList(0, 3));
        for (Map.Entry<List<String>, List<String>> entry : expected.entrySet()) {
            Inbox inbox = inboxes.get(entry.getKey());
            inbox.await(entry.getValue().size());
            equal(inbox.texts(), entry.getValue(), "messages for " + entry.getKey());
        }
    }

    private static void rpc(Amqp amqp) throws Exception {
        Channel server = amqp.channel();
        Channel client = amqp.channel();
        String requests = amqp.queue(server, "rpc");
        server.basicQos(1);
        Inbox work = Inbox.consume(server, requests);
        String repliesTo = client.queueDeclare().getQueue();
        Inbox replies = Inbox.autoAck(client, repliesTo);
        for (int number : List.of(3, 30)) {
            AMQP.BasicProperties properties =
                new AMQP.BasicProperties.Builder().replyTo(repliesTo).correlationId("call-" + number).build();
            publish(client, "", requests, properties, List.of("" + number));
        }
        for (int call = 0; call < 2; call++) {
            Inbox.Message request = work.await(call + 1).get(call);
            AMQP.BasicProperties properties =
                new AMQP.BasicProperties.Builder().correlationId(request.properties().getCorrelationId()).build();
            publish(server, "", request.properties().getReplyTo(), properties, List.of("" + 2 * Integer.parseInt(request.text())));
            server.basicAck(request.tag(), false);
        }
        Map<String, String> answers = new HashMap<>();
        replies.await(2).forEach(message -> answers.put(message.properties().getCorrelationId(), message.text()));
        equal(answers, Map.of("call-3", "6", "call-30", "60"), "answers by correlation id");
    }
}
