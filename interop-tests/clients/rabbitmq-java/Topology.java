package interop.rabbitmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.waitUntil;
import static interop.rabbitmq.Amqp.drain;
import static interop.rabbitmq.Amqp.got;
import static interop.rabbitmq.Amqp.publish;
import static interop.rabbitmq.Amqp.refusedLater;
import static interop.rabbitmq.Amqp.scenario;
import static interop.rabbitmq.Amqp.text;
import static interop.rabbitmq.Amqp.waitReady;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import interop.kit.Kit;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** Declaring, comparing, refusing and removing queues and exchanges. */
final class Topology {
    private Topology() {}

    static void register() {
        scenario("queue-declare", Topology::queueDeclare);
        scenario("queue-declare-mismatch", Topology::queueDeclareMismatch);
        scenario("queue-types", Topology::queueTypes);
        scenario("not-found", Topology::notFound);
        scenario("exclusive-queue", Topology::exclusiveQueue);
        scenario("server-named-queue", Topology::serverNamedQueue);
        scenario("auto-delete-queue", Topology::autoDeleteQueue);
        scenario("auto-delete-exchange", Topology::autoDeleteExchange);
        scenario("reserved-names", Topology::reservedNames);
        scenario("default-exchange", Topology::defaultExchange);
        scenario("exchange-declare", Topology::exchangeDeclare);
        scenario("internal-exchange", Topology::internalExchange);
    }

    private static void waitGone(Amqp amqp, String queue) throws InterruptedException {
        waitUntil(() -> {
            try {
                return !amqp.queueExists(queue);
            } catch (Exception e) {
                throw new AssertionError(Kit.describe(e), e);
            }
        }, () -> queue + " to go");
    }

    private static void queueDeclare(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String queue = amqp.name("declare");
        mustCount(channel.queueDeclare(queue, true, false, false, null), queue, 0, 0);
        publish(channel, "", queue, "one", "two");
        mustCount(channel.queueDeclare(queue, true, false, false, null), queue, 2, 0);
        Inbox.consume(channel, queue).await(2);
        mustCount(channel.queueDeclarePassive(queue), queue, 0, 1); // held ones do not count
    }

    private static void mustCount(AMQP.Queue.DeclareOk answer, String queue, int messages, int consumers) {
        equal(List.of(answer.getQueue(), answer.getMessageCount(), answer.getConsumerCount()), List.of(queue, messages, consumers),
            "name, messages and consumers in declare-ok");
    }

    private static void queueDeclareMismatch(Amqp amqp) throws Exception {
        String queue = amqp.name("mismatch");
        amqp.channel().queueDeclare(queue, true, false, false, null);
        String where = " for queue '" + queue + "' in vhost '/'";
        amqp.refused(406, List.of("PRECONDITION_FAILED", "inequivalent arg 'durable'" + where),
            channel -> channel.queueDeclare(queue, false, false, false, null));
        amqp.refused(406, List.of("PRECONDITION_FAILED", "inequivalent arg 'auto_delete'" + where),
            channel -> channel.queueDeclare(queue, true, false, true, null));
        amqp.refused(405, List.of("RESOURCE_LOCKED", queue), channel -> channel.queueDeclare(queue, true, true, false, null));
        check(amqp.queueExists(queue), "the queue is untouched");
    }

    private static void queueTypes(Amqp amqp) throws Exception {
        for (List<String> kinds : List.of(List.of("classic", "quorum"), List.of("quorum", "classic"))) {
            String kind = kinds.get(0);
            String queue = amqp.name(kind);
            Channel channel = amqp.confirming();
            for (int i = 0; i < 2; i++) {
                channel.queueDeclare(queue, true, false, false, Map.of("x-queue-type", kind));
            }
            publish(channel, "", queue, Amqp.PERSISTENT, List.of("one", "two"));
            channel.basicNack(channel.basicGet(queue, false).getEnvelope().getDeliveryTag(), false, true);
            waitReady(channel, queue, 2);
            // A quorum queue may put it behind the others (RabbitMQ before 4.0 does).
            equal(Set.of(got(channel.basicGet(queue, true)), got(channel.basicGet(queue, true))),
                Set.of(Map.entry("one", true), Map.entry("two", false)), "messages of a " + kind + " queue after a requeue");
            amqp.refused(406, List.of("inequivalent arg 'x-queue-type'", "'" + queue + "'"),
                other -> other.queueDeclare(queue, true, false, false, Map.of("x-queue-type", kinds.get(1))));
        }
        amqp.refused(406, List.of("PRECONDITION_FAILED", "x-queue-type"),
            channel -> channel.queueDeclare(amqp.name("nonsense"), true, false, false, Map.of("x-queue-type", "nonsense")));
        amqp.refused(406, List.of("PRECONDITION_FAILED", "non-durable"),
            channel -> channel.queueDeclare(amqp.name("transient"), false, false, false, Map.of("x-queue-type", "quorum")));
    }

    private static void notFound(Amqp amqp) throws Exception {
        String missing = amqp.name("missing");
        String present = amqp.queue(amqp.channel(), "present");
        amqp.refused(404, List.of("NOT_FOUND", "no queue '" + missing + "' in vhost '/'"),
            channel -> channel.queueDeclarePassive(missing),
            channel -> Inbox.consume(channel, missing),
            channel -> channel.basicGet(missing, true),
            channel -> channel.queuePurge(missing),
            channel -> channel.queueBind(missing, "amq.direct", "key"));
        String noExchange = "no exchange '" + missing + "' in vhost '/'";
        amqp.refused(404, List.of("NOT_FOUND", noExchange),
            channel -> channel.exchangeDeclarePassive(missing),
            channel -> channel.queueBind(present, missing, "key"),
            channel -> channel.exchangeBind("amq.fanout", missing, "key"));
        Channel channel = amqp.channel();
        publish(channel, missing, "key", "lost");
        refusedLater(channel, 404, "NOT_FOUND", noExchange);
    }

    private static void exclusiveQueue(Amqp amqp) throws Exception {
        String queue = amqp.name("exclusive");
        Channel owner = amqp.channel();
        owner.queueDeclare(queue, false, true, false, null);
        publish(owner, "", queue, "mine");
        amqp.refused(405, List.of("RESOURCE_LOCKED", "exclusive access to locked queue '" + queue + "'"),
            channel -> channel.queueDeclarePassive(queue),
            channel -> channel.queueDeclare(queue, false, false, false, null),
            channel -> channel.queueDeclare(queue, false, true, false, null),
            channel -> Inbox.consume(channel, queue),
            channel -> channel.basicGet(queue, true),
            channel -> channel.queueBind(queue, "amq.direct", "key"),
            channel -> channel.queuePurge(queue),
            channel -> channel.queueDelete(queue));
        equal(drain(owner.getConnection().createChannel(), queue), List.of("mine"), "queue, by another channel of its owner");
        owner.getConnection().close();
        waitGone(amqp, queue);
        equal(amqp.channel().queueDeclare(queue, false, true, false, null).getMessageCount(), 0, "messages of its successor");
    }

    private static void serverNamedQueue(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        Set<String> names = new HashSet<>();
        String last = null;
        for (int i = 0; i < 3; i++) {
            last = channel.queueDeclare("", false, true, false, null).getQueue();
            check(last.startsWith("amq.gen-"), "name " + last + " begins with amq.gen-");
            names.add(last);
        }
        equal(names.size(), 3, "different names");
        channel.queueBind("", "amq.direct", last + ".key");
        publish(channel, "amq.direct", last + ".key", "to the last");
        equal(text(channel.basicGet("", true).getBody()), "to the last", "message read by the empty name");
        // Empty queue name and empty key together: the queue's own name is the key.
        channel.queueBind("", "amq.direct", "");
        publish(channel, "amq.direct", last, "by its name");
        equal(drain(channel, last), List.of("by its name"), "message by the queue's name as key");
        amqp.refused(404, List.of("NOT_FOUND"), fresh -> fresh.queueBind("", "amq.direct", "key"));
    }

    private static void autoDeleteQueue(Amqp amqp) throws Exception {
        String queue = amqp.name("auto-delete");
        Channel channel = amqp.confirming();
        channel.queueDeclare(queue, false, false, true, null);
        publish(channel, "", queue, "one");
        equal(drain(channel, queue), List.of("one"), "basic.get before the first consumer");
        check(amqp.queueExists(queue), "the queue stays before its first consumer");
        Inbox first = Inbox.consume(channel, queue);
        Inbox second = Inbox.consume(channel, queue);
        first.cancel();
        check(amqp.queueExists(queue), "the queue stays while one consumer is left");
        second.cancel();
        waitGone(amqp, queue);
    }

    private static void autoDeleteExchange(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        String source = amqp.name("source");
        channel.exchangeDeclare(source, "fanout", false, true, null);
        String target = amqp.exchange(channel, "fanout");
        String queue = amqp.queue(channel, "queue");
        channel.exchangeBind(target, source, "");
        channel.queueBind(queue, source, "");
        channel.queueUnbind(queue, source, "");
        check(amqp.exchangeExists(source), "the exchange stays while something is bound to it");
        channel.exchangeUnbind(target, source, "");
        check(!amqp.exchangeExists(source), "the exchange goes with its last binding");
        check(amqp.exchangeExists(target), "the other exchange stays");
    }

    private static void reservedNames(Amqp amqp) throws Exception {
        amqp.refused(403, List.of("ACCESS_REFUSED", "amq.", "reserved prefix"),
            channel -> channel.queueDeclare("amq.interop", false, false, false, null),
            channel -> channel.exchangeDeclare("amq.interop", "direct"));
        amqp.refused(404, List.of("NOT_FOUND"), channel -> channel.queueDeclarePassive("amq.interop"));
        Map<String, String> predeclared = Map.of("amq.direct", "direct", "amq.fanout", "fanout", "amq.topic", "topic",
            "amq.headers", "headers", "amq.match", "headers");
        for (Map.Entry<String, String> exchange : predeclared.entrySet()) {
            Channel channel = amqp.channel();
            channel.exchangeDeclarePassive(exchange.getKey());
            channel.exchangeDeclare(exchange.getKey(), exchange.getValue(), true);
        }
        amqp.refused(403, List.of("ACCESS_REFUSED", "amq.direct"), channel -> channel.exchangeDelete("amq.direct"));
    }

    private static void defaultExchange(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String queue = amqp.queue(channel, "default");
        amqp.refused(403, List.of("ACCESS_REFUSED", "operation not permitted on the default exchange"),
            other -> other.queueBind(queue, "", "key"),
            other -> other.queueUnbind(queue, "", queue),
            other -> other.exchangeBind("amq.fanout", "", "key"),
            other -> other.exchangeBind("", "amq.fanout", "key"),
            other -> other.exchangeDelete(""));
        publish(channel, "", queue, "still routed");
        equal(drain(channel, queue), List.of("still routed"), "queue after the refusals");
    }

    private static void exchangeDeclare(Amqp amqp) throws Exception {
        String exchange = amqp.name("exchange");
        Channel channel = amqp.channel();
        channel.exchangeDeclare(exchange, "direct", true);
        channel.exchangeDeclare(exchange, "direct", true);
        channel.exchangeDeclarePassive(exchange);
        Map<String, Amqp.Attempt> mismatches = Map.of(
            "type", other -> other.exchangeDeclare(exchange, "topic", true),
            "durable", other -> other.exchangeDeclare(exchange, "direct", false),
            "auto_delete", other -> other.exchangeDeclare(exchange, "direct", true, true, null),
            "internal", other -> other.exchangeDeclare(exchange, "direct", true, false, true, null));
        for (Map.Entry<String, Amqp.Attempt> mismatch : mismatches.entrySet()) {
            String text = "inequivalent arg '" + mismatch.getKey() + "' for exchange '" + exchange + "' in vhost '/'";
            amqp.refused(406, List.of("PRECONDITION_FAILED", text), mismatch.getValue());
        }
        String queue = amqp.queue(channel, "queue");
        channel.queueBind(queue, exchange, "key");
        amqp.refused(406, List.of("PRECONDITION_FAILED", "exchange '" + exchange + "' in vhost '/' in use"),
            other -> other.exchangeDelete(exchange, true));
        channel.queueUnbind(queue, exchange, "key");
        channel.exchangeDelete(exchange, true);
        check(!amqp.exchangeExists(exchange), "the exchange is gone");
        channel.exchangeDelete(exchange);
    }

    private static void internalExchange(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String front = amqp.exchange(channel, "fanout");
        String internal = amqp.name("internal");
        channel.exchangeDeclare(internal, "fanout", false, false, true, null);
        String queue = amqp.queue(channel, "queue");
        channel.exchangeBind(internal, front, "");
        channel.queueBind(queue, internal, "");
        publish(channel, front, "", "through");
        Channel refused = amqp.channel();
        publish(refused, internal, "", "directly");
        refusedLater(refused, 403, "ACCESS_REFUSED", "internal exchange '" + internal + "'");
        equal(drain(channel, queue), List.of("through"), "queue behind the internal exchange");
    }
}
