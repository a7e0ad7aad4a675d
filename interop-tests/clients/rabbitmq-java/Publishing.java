package interop.rabbitmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.waitUntil;
import static interop.rabbitmq.Amqp.PERSISTENT;
import static interop.rabbitmq.Amqp.bytes;
import static interop.rabbitmq.Amqp.publish;
import static interop.rabbitmq.Amqp.ready;
import static interop.rabbitmq.Amqp.refusedLater;
import static interop.rabbitmq.Amqp.scenario;
import static interop.rabbitmq.Amqp.sequence;
import static interop.rabbitmq.Amqp.text;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.LongString;
import com.rabbitmq.client.Return;
import java.math.BigDecimal;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Date;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.stream.LongStream;

/** What a publisher learns of its messages, and that they arrive as they were sent. */
final class Publishing {
    private Publishing() {}

    static void register() {
        scenario("mandatory-return", Publishing::mandatoryReturn);
        scenario("confirm-single", Publishing::confirmSingle);
        scenario("confirm-batch", amqp -> confirmMany(amqp, 100));
        scenario("confirm-in-flight", amqp -> confirmMany(amqp, 1000));
        scenario("immediate", Publishing::immediate);
        scenario("bodies", Publishing::bodies);
        scenario("properties", Publishing::properties);
        scenario("property-expiration", Publishing::propertyExpiration);
        scenario("header-types", Publishing::headerTypes);
    }

    /** A channel's returns and confirms in the order they came; confirms as one tag each. */
    private static final class Events {
        private final List<Object> events = Collections.synchronizedList(new ArrayList<>());
        private long confirmed;

        static Events of(Channel channel) throws Exception {
            Events all = new Events();
            channel.addReturnListener((Return returned) -> all.events.add(returned));
            channel.addConfirmListener(all::ack, (tag, multiple) -> all.events.add("nack " + tag));
            channel.confirmSelect();
            return all;
        }

        private void ack(long tag, boolean multiple) {
            // Out of order and doubled confirms are kept as they are; the scenarios compare the tags.
            LongStream tags = multiple ? LongStream.rangeClosed(confirmed + 1, tag).filter(t -> !events.contains(t)) : LongStream.of(tag);
            tags.forEach(events::add);
            if (multiple) {
                confirmed = Math.max(confirmed, tag);
            }
        }

        List<Object> await(int count) throws InterruptedException {
            waitUntil(() -> events.size() >= count, () -> count + " returns and confirms, have " + events);
            return List.copyOf(events);
        }
    }

    private static void mandatoryReturn(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        Events events = Events.of(channel);
        String missing = amqp.name("missing");
        channel.basicPublish("", missing, true, PERSISTENT, bytes("come back"));
        List<Object> first = events.await(2);
        check(first.get(0) instanceof Return && first.get(1).equals(1L), "a return, then its confirm: " + first);
        Return returned = (Return) first.get(0);
        equal(List.of(returned.getReplyCode(), returned.getReplyText(), returned.getExchange(), returned.getRoutingKey()),
            List.of(312, "NO_ROUTE", "", missing), "basic.return");
        equal(Map.entry(text(returned.getBody()), returned.getProperties().getDeliveryMode()), Map.entry("come back", 2), "returned message");
        String queue = amqp.queue(channel, "present");
        channel.basicPublish("", queue, true, PERSISTENT, bytes("routed"));
        channel.basicPublish("", missing, false, PERSISTENT, bytes("dropped"));
        equal(events.await(4).subList(2, 4), List.of(2L, 3L), "what a routed and a not mandatory message bring");
        equal(ready(channel, queue), 1, "ready messages");
    }

    private static void confirmSingle(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String queue = amqp.name("confirm");
        channel.queueDeclare(queue, true, false, false, null);
        publish(channel, "", queue, PERSISTENT, List.of("safe"));
        equal(ready(channel, queue), 1, "ready messages after the confirm");
        // Unroutable and not mandatory: dropped, and confirmed.
        publish(channel, "", amqp.name("missing"), PERSISTENT, List.of("dropped"));
    }

    private static void confirmMany(Amqp amqp, int count) throws Exception {
        Channel channel = amqp.channel();
        String queue = amqp.name("confirm");
        channel.queueDeclare(queue, true, false, false, null);
        Events events = Events.of(channel);
        for (String body : sequence(count)) {
            channel.basicPublish("", queue, PERSISTENT, bytes(body));
        }
        check(channel.waitForConfirms(10_000), "nothing was nacked");
        List<Object> tags = new ArrayList<>(events.await(count));
        tags.sort(null);
        equal(tags, LongStream.rangeClosed(1, count).boxed().toList(), "confirmed tags, each once");
        Inbox inbox = Inbox.autoAck(channel, queue);
        inbox.await(count);
        equal(inbox.texts(), sequence(count), "bodies in the queue");
    }

    private static void immediate(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        channel.basicPublish("", amqp.queue(channel, "immediate"), false, true, null, bytes("now"));
        refusedLater(channel, 540, "NOT_IMPLEMENTED", "immediate=true");
        waitUntil(() -> !channel.getConnection().isOpen(), () -> "the connection to be closed");
    }

    private static void bodies(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String queue = amqp.name("bodies");
        channel.queueDeclare(queue, true, false, false, null);
        int frame = channel.getConnection().getFrameMax() - 8; // the largest body frame
        Random numbers = new Random(1);
        for (int size : List.of(0, 1, frame - 1, frame, frame + 1, 2 * frame, 1 << 20, 5 << 20)) {
            byte[] body = new byte[size];
            numbers.nextBytes(body);
            channel.basicPublish("", queue, PERSISTENT, body);
            channel.basicPublish("", queue, null, body);
            channel.waitForConfirmsOrDie(10_000);
            check(Arrays.equals(channel.basicGet(queue, true).getBody(), body), "a body of " + size + " bytes came back different");
            Inbox inbox = Inbox.autoAck(channel, queue);
            check(Arrays.equals(inbox.awaitOne().body(), body), "a body of " + size + " bytes was delivered different");
            inbox.cancel();
        }
    }

    private static void properties(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String queue = amqp.queue(channel, "properties");
        // One at a time as well: an absent property must stay absent.
        List<AMQP.BasicProperties> all = new ArrayList<>(List.of(
            new AMQP.BasicProperties.Builder().contentType("text/plain").contentEncoding("utf-8").deliveryMode(2).priority(7)
                .correlationId("correlation").replyTo("reply.to").messageId("message-ü")
                .timestamp(new Date(1_700_000_000_000L)).type("kind").userId("guest").appId("interop").clusterId("cluster").build(),
            new AMQP.BasicProperties.Builder().build(),
            new AMQP.BasicProperties.Builder().contentType("text/plain").build(),
            new AMQP.BasicProperties.Builder().contentEncoding("utf-8").build(),
            new AMQP.BasicProperties.Builder().deliveryMode(1).build(),
            new AMQP.BasicProperties.Builder().priority(0).build(),
            new AMQP.BasicProperties.Builder().correlationId("").build(),
            new AMQP.BasicProperties.Builder().replyTo("reply.to").build(),
            new AMQP.BasicProperties.Builder().messageId("message-ü").build(),
            new AMQP.BasicProperties.Builder().timestamp(new Date(0)).build(),
            new AMQP.BasicProperties.Builder().type("kind").build(),
            new AMQP.BasicProperties.Builder().userId("guest").build(),
            new AMQP.BasicProperties.Builder().appId("interop").build(),
            new AMQP.BasicProperties.Builder().clusterId("cluster").build()));
        for (AMQP.BasicProperties sent : all) {
            sameProperties(channel, queue, sent);
        }
    }

    private static void sameProperties(Channel channel, String queue, AMQP.BasicProperties sent) throws Exception {
        publish(channel, "", queue, sent, List.of(""));
        equal(channel.basicGet(queue, true).getProps().toString(), sent.toString(), "properties");
    }

    private static void propertyExpiration(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        sameProperties(channel, amqp.queue(channel, "expiration"), PERSISTENT.builder().expiration("600000").build());
    }

    private static void headerTypes(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String queue = amqp.queue(channel, "headers");
        Map<String, Object> simple = new TreeMap<>();
        simple.put("text", "ünïcode");
        simple.put("empty", "");
        simple.put("long text", "a".repeat(20_000));
        simple.put("bytes", new byte[] {0, -1});
        simple.put("true", true);
        simple.put("false", false);
        simple.put("byte", (byte) -128);
        simple.put("short", (short) -32768);
        simple.put("int", Integer.MIN_VALUE);
        simple.put("long", Long.MAX_VALUE);
        simple.put("float", 1.5f);
        simple.put("double", -1e300);
        simple.put("decimal", new BigDecimal("-12.345"));
        simple.put("timestamp", new Date(1_709_210_000_000L));
        simple.put("void", null);
        Map<String, Object> headers = new TreeMap<>(simple);
        headers.put("table", Map.of("inner", simple, "empty", Map.of()));
        headers.put("array", Arrays.asList(simple, 1, "two", null, List.of(), List.of(3L)));
        publish(channel, "", queue, new AMQP.BasicProperties.Builder().headers(headers).build(), List.of(""));
        Map<String, Object> got = channel.basicGet(queue, true).getProps().getHeaders();
        equal(plain(got), plain(headers), "headers");
    }

    /** Strings for what the client decodes as LongString, type names beside numbers, lists for arrays: comparable trees. */
    private static Object plain(Object value) {
        if (value instanceof Map<?, ?> map) {
            Map<Object, Object> plain = new HashMap<>();
            map.forEach((key, inner) -> plain.put(key, plain(inner)));
            return plain;
        }
        if (value instanceof List<?> list) {
            return list.stream().map(Publishing::plain).toList();
        }
        if (value instanceof byte[] raw) {
            return "bytes " + Arrays.toString(raw);
        }
        if (value instanceof LongString || value instanceof String) {
            return "text " + value;
        }
        return value == null ? "void" : value.getClass().getSimpleName() + " " + value;
    }
}
