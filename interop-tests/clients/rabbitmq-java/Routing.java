package interop.rabbitmq;

import static interop.kit.Kit.equal;
import static interop.rabbitmq.Amqp.drain;
import static interop.rabbitmq.Amqp.publish;
import static interop.rabbitmq.Amqp.scenario;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import interop.kit.Kit;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The four exchange types and bindings between exchanges. */
final class Routing {
    private Routing() {}

    static void register() {
        scenario("exchange-direct", Routing::direct);
        scenario("exchange-fanout", Routing::fanout);
        scenario("exchange-topic", Routing::topic);
        scenario("exchange-headers", Routing::headers);
        scenario("exchange-to-exchange", Routing::exchangeToExchange);
        scenario("unbind", Routing::unbind);
    }

    private static void direct(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String exchange = amqp.exchange(channel, "direct");
        String first = amqp.queue(channel, "first");
        String second = amqp.queue(channel, "second");
        channel.queueBind(first, exchange, "both");
        channel.queueBind(second, exchange, "both");
        channel.queueBind(second, exchange, "one");
        for (String key : List.of("both", "one", "none", "BOTH", "")) {
            publish(channel, exchange, key, key);
        }
        equal(drain(channel, first), List.of("both"), "first queue");
        equal(drain(channel, second), List.of("both", "one"), "second queue");
    }

    private static void fanout(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String exchange = amqp.exchange(channel, "fanout");
        List<String> queues = List.of(amqp.queue(channel, "first"), amqp.queue(channel, "second"), amqp.queue(channel, "third"));
        for (String queue : queues) {
            channel.queueBind(queue, exchange, "ignored");
        }
        publish(channel, exchange, "ignored", "1");
        publish(channel, exchange, "", "2");
        for (String queue : queues) {
            equal(drain(channel, queue), List.of("1", "2"), queue);
        }
    }

    private static void topic(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String exchange = amqp.exchange(channel, "topic");
        Map<String, List<String>> rows = Kit.table("topic");
        Map<String, String> queues = new LinkedHashMap<>();
        for (String pattern : rows.remove("patterns")) {
            queues.put(pattern, amqp.queue(channel, "pattern"));
            channel.queueBind(queues.get(pattern), exchange, pattern);
        }
        for (String key : rows.keySet()) {
            publish(channel, exchange, key, key);
        }
        for (Map.Entry<String, String> queue : queues.entrySet()) {
            List<String> expected = rows.keySet().stream().filter(key -> rows.get(key).contains(queue.getKey())).toList();
            equal(drain(channel, queue.getValue()), expected, "keys that match '" + queue.getKey() + "'");
        }
    }

    private static void headers(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String exchange = amqp.exchange(channel, "headers");
        Map<String, Object> present = new HashMap<>(Map.of("x-match", "all"));
        present.put("colour", null); // void: any value will do
        Map<String, Map<String, Object>> bindings = Map.of(
            "all", Map.of("x-match", "all", "colour", "red", "size", 5),
            "any", Map.of("x-match", "any", "colour", "red", "size", 5),
            "default", Map.of("colour", "red", "size", 5),
            "present", present);
        Map<String, String> queues = new HashMap<>();
        for (String kind : bindings.keySet()) {
            queues.put(kind, amqp.queue(channel, kind));
            channel.queueBind(queues.get(kind), exchange, "", bindings.get(kind));
        }
        Map<String, Map<String, Object>> messages = new LinkedHashMap<>();
        messages.put("both", Map.of("colour", "red", "size", 5, "other", true));
        messages.put("colour", Map.of("colour", "red"));
        messages.put("wrong size", Map.of("colour", "red", "size", 6));
        messages.put("text size", Map.of("size", "5"));
        messages.put("blue", Map.of("colour", "blue"));
        messages.put("nothing", Map.of());
        messages.put("no headers at all", null);
        for (Map.Entry<String, Map<String, Object>> message : messages.entrySet()) {
            AMQP.BasicProperties properties = new AMQP.BasicProperties.Builder().headers(message.getValue()).build();
            publish(channel, exchange, "ignored", properties, List.of(message.getKey()));
        }
        equal(drain(channel, queues.get("all")), List.of("both"), "x-match all");
        equal(drain(channel, queues.get("default")), List.of("both"), "no x-match means all");
        equal(drain(channel, queues.get("any")), List.of("both", "colour", "wrong size"), "x-match any");
        equal(drain(channel, queues.get("present")), List.of("both", "colour", "wrong size", "blue"), "a header that only must be present");
    }

    private static void exchangeToExchange(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String source = amqp.exchange(channel, "topic");
        String middle = amqp.exchange(channel, "direct");
        String queue = amqp.queue(channel, "queue");
        channel.exchangeBind(middle, source, "orders.#");
        channel.queueBind(queue, middle, "orders.new");
        for (String key : List.of("orders.new", "orders.old", "bills.new")) {
            publish(channel, source, key, key);
        }
        equal(drain(channel, queue), List.of("orders.new"), "the key must pass both exchanges");
        // A second way to the same queue and a cycle back: still one copy.
        channel.queueBind(queue, source, "#");
        channel.exchangeBind(source, middle, "orders.new");
        publish(channel, source, "orders.new", "once");
        equal(drain(channel, queue), List.of("once"), "two ways and a cycle");
        channel.queueUnbind(queue, source, "#");
        channel.exchangeUnbind(middle, source, "orders.#");
        publish(channel, source, "orders.new", "unrouted");
        publish(channel, middle, "orders.new", "direct");
        equal(drain(channel, queue), List.of("direct"), "after the unbind");
    }

    private static void unbind(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String exchange = amqp.exchange(channel, "direct");
        String queue = amqp.queue(channel, "queue");
        for (String key : List.of("stays", "goes", "goes")) {
            channel.queueBind(queue, exchange, key);
        }
        publish(channel, exchange, "goes", "before");
        channel.queueUnbind(queue, exchange, "goes");
        publish(channel, exchange, "goes", "after");
        publish(channel, exchange, "stays", "stays");
        equal(drain(channel, queue), List.of("before", "stays"), "queue");
        channel.queueUnbind(queue, exchange, "never bound");
    }
}
