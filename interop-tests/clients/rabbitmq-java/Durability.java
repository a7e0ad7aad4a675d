package interop.rabbitmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.waitUntil;
import static interop.rabbitmq.Amqp.drain;
import static interop.rabbitmq.Amqp.publish;
import static interop.rabbitmq.Amqp.ready;
import static interop.rabbitmq.Amqp.sequence;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import interop.kit.Kit;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What survives a restart of the broker. */
final class Durability {
    private static final List<String> BODIES = sequence(20);
    private static final List<String> SETTLED = List.of("m0", "m1", "m2", "m3", "m4", "m6");
    private static final String UNACKED = "m5";
    private static final List<String> KEPT = BODIES.stream().filter(body -> !SETTLED.contains(body)).toList();

    private Durability() {}

    static void register() {
        Kit.scenario("restart-graceful", Kit.RESTART_SECONDS, closer -> restart(new Amqp(closer), "term"));
        Kit.scenario("restart-kill", Kit.RESTART_SECONDS, closer -> restart(new Amqp(closer), "kill"));
    }

    private static void restart(Amqp amqp, String how) throws Exception {
        Kit.needsRestart();
        Channel channel = amqp.confirming();
        String exchange = amqp.name("exchange");
        channel.exchangeDeclare(exchange, "topic", true);
        String goneExchange = amqp.exchange(channel, "topic");
        String goneQueue = amqp.queue(channel, "transient");
        Map<String, String> queues = new LinkedHashMap<>();
        for (String kind : List.of("classic", "quorum")) {
            queues.put(kind, amqp.name(kind));
            channel.queueDeclare(queues.get(kind), true, false, false, Map.of("x-queue-type", kind));
            channel.queueBind(queues.get(kind), exchange, "orders.#");
        }
        AMQP.BasicProperties properties = Amqp.PERSISTENT.builder().headers(Map.of("key", "value")).build();
        publish(channel, exchange, "orders.new", properties, BODIES);
        for (String queue : queues.values()) {
            Channel worker = amqp.channel();
            List<Long> tags = new ArrayList<>();
            for (int i = 0; i < 7; i++) {
                tags.add(worker.basicGet(queue, false).getEnvelope().getDeliveryTag());
            }
            worker.basicAck(tags.get(4), true);
            worker.basicAck(tags.get(6), false);
            worker.queueDeclarePassive(queue); // the broker has read the acks when it answers
        }
        Kit.restart(how);

        for (Map.Entry<String, String> queue : queues.entrySet()) {
            mustBeKept(consumeAll(amqp, queue.getValue()), queue.getKey(), how);
        }
        // Exchange, queues and bindings still work together.
        Channel again = amqp.confirming();
        publish(again, exchange, "orders.again", "again");
        for (String queue : queues.values()) {
            equal(drain(again, queue), List.of("again"), queue + " after a new publish");
        }
        check(!amqp.queueExists(goneQueue), "the transient queue is gone");
        check(!amqp.exchangeExists(goneExchange), "the transient exchange is gone");
    }

    private static void mustBeKept(List<Inbox.Message> back, String kind, String how) {
        List<String> bodies = new ArrayList<>();
        for (Inbox.Message message : back) {
            equal(message.properties().getDeliveryMode(), 2, "delivery mode");
            // A quorum queue adds x-delivery-count to what it delivers again.
            equal(message.properties().getHeaders().get("key").toString(), "value", "header");
            if (how.equals("kill") && SETTLED.contains(message.text())) {
                // Nobody promised that an ack is on disk the moment it was sent. What comes back of those must say so.
                check(message.redelivered(), "a settled message came back as if it were new");
                continue;
            }
            if (how.equals("term")) {
                equal(message.redelivered(), message.text().equals(UNACKED), "redelivered flag of " + message.text());
            }
            bodies.add(message.text());
        }
        if (kind.equals("quorum")) { // RabbitMQ before 4.0 puts the unacked one behind the others
            bodies.sort(Comparator.comparingInt(BODIES::indexOf));
        }
        equal(bodies, KEPT, kind + " queue after the restart");
    }

    /** Everything in the queue. A quorum queue may still be without a leader and refuse its first consumers. */
    private static List<Inbox.Message> consumeAll(Amqp amqp, String queue) throws Exception {
        long deadline = System.nanoTime() + 30_000_000_000L;
        Inbox inbox = null;
        while (inbox == null) {
            try {
                inbox = Inbox.consume(amqp.channel(), queue);
            } catch (IOException e) {
                check(System.nanoTime() < deadline, "no consumer 30 s after the restart: " + Kit.describe(e));
            }
        }
        Inbox consumer = inbox;
        waitUntil(() -> consumer.texts().containsAll(KEPT), () -> "the kept messages, have " + consumer.texts());
        waitUntil(() -> empty(consumer.getChannel(), queue), () -> queue + " to be empty");
        consumer.getChannel().basicAck(0, true);
        consumer.getChannel().getConnection().close();
        return consumer.messages();
    }

    private static boolean empty(Channel channel, String queue) {
        try {
            return ready(channel, queue) == 0;
        } catch (IOException e) {
            throw new AssertionError(Kit.describe(e), e);
        }
    }
}
