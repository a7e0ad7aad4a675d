package interop.rabbitmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.rabbitmq.Amqp.bytes;
import static interop.rabbitmq.Amqp.drain;
import static interop.rabbitmq.Amqp.publish;
import static interop.rabbitmq.Amqp.ready;
import static interop.rabbitmq.Amqp.refusedLater;
import static interop.rabbitmq.Amqp.scenario;
import static interop.rabbitmq.Amqp.text;
import static interop.rabbitmq.Amqp.waitReady;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.RpcClient;
import com.rabbitmq.client.RpcClientParams;
import com.rabbitmq.client.RpcServer;
import java.util.List;
import java.util.Map;

/** RabbitMQ's extensions of publishing and consuming: time to live, sender-selected distribution, direct reply-to. */
final class Features {
    private static final String REPLIES = "amq.rabbitmq.reply-to";

    private Features() {}

    static void register() {
        scenario("publish-then-count", Features::publishThenCount);
        scenario("expiration", Features::expiration);
        scenario("expiration-zero", Features::expirationZero);
        scenario("expiration-invalid", Features::expirationInvalid);
        scenario("queue-times", Features::queueTimes);
        scenario("cc-bcc", Features::copies);
        scenario("direct-reply-to", Features::directReplyTo);
        scenario("direct-reply-to-errors", Features::directReplyToErrors);
    }

    private static AMQP.BasicProperties lasting(String milliseconds) {
        return new AMQP.BasicProperties.Builder().deliveryMode(2).expiration(milliseconds).build();
    }

    private static AMQP.BasicProperties headers(Map<String, Object> headers) {
        return new AMQP.BasicProperties.Builder().headers(headers).build();
    }

    private static void publishThenCount(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        String queue = amqp.name("own");
        channel.queueDeclare(queue, true, false, false, null);
        for (int i = 0; i < 20; i++) {
            publish(channel, "", queue, Amqp.PERSISTENT, List.of("one", "two", "three"));
            equal(text(channel.basicGet(queue, true).getBody()), "one", "basic.get");
            equal(ready(channel, queue), 2, "passive declare");
            equal(channel.queuePurge(queue).getMessageCount(), 2, "purge");
            equal(channel.basicGet(queue, true), null, "after the purge");
        }
    }

    private static void expiration(Amqp amqp) throws Exception {
        for (boolean durable : new boolean[] {false, true}) {
            Channel channel = amqp.confirming();
            String queue = amqp.name("ttl");
            channel.queueDeclare(queue, durable, false, false, null);
            publish(channel, "", queue, lasting("200"), List.of("short"));
            publish(channel, "", queue, Amqp.PERSISTENT, List.of("lasting"));
            publish(channel, "", queue, lasting("1"), List.of("behind"));
            publish(channel, "", queue, lasting("3600000"), List.of("later"));
            waitReady(channel, queue, 3); // the head goes without a consumer, what stands behind a lasting one stays
            equal(text(channel.basicGet(queue, true).getBody()), "lasting", "head");
            GetResponse next = channel.basicGet(queue, true);
            equal(Map.entry(text(next.getBody()), next.getProps().getExpiration()), Map.entry("later", "3600000"), "next");
            // A message that expires while a consumer holds it does not come back.
            publish(channel, "", queue, lasting("300"), List.of("held"));
            publish(channel, "", queue, Amqp.PERSISTENT, List.of("next"));
            GetResponse held = channel.basicGet(queue, false);
            equal(text(held.getBody()), "held", "held");
            Thread.sleep(500); // the time that passes is the subject
            channel.basicReject(held.getEnvelope().getDeliveryTag(), true);
            equal(drain(channel, queue), List.of("next"), "after the requeue");
        }
    }

    private static void expirationZero(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String queue = amqp.name("ttl");
        channel.queueDeclare(queue, true, false, false, null);
        publish(channel, "", queue, lasting("0"), List.of("lost"));
        waitReady(channel, queue, 0);
        Inbox inbox = Inbox.consume(channel, queue);
        publish(channel, "", queue, lasting("0"), List.of("now"));
        equal(inbox.await(1).stream().map(Inbox.Message::text).toList(), List.of("now"), "what a waiting consumer gets");
    }

    private static void queueTimes(Amqp amqp) throws Exception {
        for (boolean durable : new boolean[] {false, true}) {
            Channel channel = amqp.confirming();
            String queue = amqp.name("times");
            channel.queueDeclare(queue, durable, false, false, Map.of("x-message-ttl", 300, "x-expires", 3_600_000));
            publish(channel, "", queue, Amqp.PERSISTENT, List.of("the queue's time"));
            publish(channel, "", queue, lasting("3600000"), List.of("longer"));
            waitReady(channel, queue, 0);
            amqp.refused(406, List.of("inequivalent arg 'x-message-ttl'", "received '301' but current is '300'"), c ->
                c.queueDeclare(queue, durable, false, false, Map.of("x-message-ttl", 301, "x-expires", 3_600_000)));
            String idle = amqp.name("idle");
            channel.queueDeclare(idle, durable, false, false, Map.of("x-expires", 300L));
            Thread.sleep(2000); // the time that passes is the subject
            amqp.refused(404, List.of("no queue"), c -> c.queueDeclarePassive(idle));
        }
    }

    private static void expirationInvalid(Amqp amqp) throws Exception {
        Map<String, String> reasons = Map.of("", "no_integer", "ten", "no_integer", "-1", "{value_negative,-1}",
            "1.5", "{leftover_string,\".5\"}", "315360000001", "{value_too_large,315360000001}");
        for (Map.Entry<String, String> reason : reasons.entrySet()) {
            Channel channel = amqp.channel();
            channel.basicPublish("", "anything", lasting(reason.getKey()), new byte[0]);
            refusedLater(channel, 406, "invalid expiration '" + reason.getKey() + "': " + reason.getValue());
        }
    }

    private static void copies(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String first = amqp.queue(channel, "cc");
        String second = amqp.queue(channel, "cc");
        String third = amqp.queue(channel, "cc");
        publish(channel, "", first, headers(Map.of("CC", List.of(second, first), "BCC", List.of(third), "other", 1)), List.of("all"));
        for (String queue : List.of(first, second, third)) {
            GetResponse message = channel.basicGet(queue, true);
            equal(text(message.getBody()), "all", "body");
            equal(message.getProps().getHeaders().keySet(), java.util.Set.of("CC", "other"), "headers");
            equal(channel.basicGet(queue, true), null, "each queue once");
        }
        String exchange = amqp.exchange(channel, "topic");
        channel.queueBind(first, exchange, "a.*");
        publish(channel, exchange, "no.match", headers(Map.of("CC", List.of("a.b", "a.c"))), List.of("topic"));
        equal(drain(channel, first), List.of("topic"), "by a copy's key");
        for (String name : List.of("CC", "BCC")) {
            Channel refusing = amqp.channel();
            refusing.basicPublish("", first, headers(Map.of(name, second)), new byte[0]);
            refusedLater(refusing, 406, "{unacceptable_type_in_header,\"" + name + "\",longstr}");
        }
    }

    /** The client's own RPC pair: its client uses direct reply-to unless told otherwise. */
    private static void directReplyTo(Amqp amqp) throws Exception {
        Channel serving = amqp.channel();
        String queue = amqp.queue(serving, "rpc");
        RpcServer server = new RpcServer(serving, queue) {
            @Override
            public byte[] handleCall(byte[] request, AMQP.BasicProperties reply) {
                return bytes("answer to " + text(request));
            }
        };
        Thread loop = new Thread(() -> {
            try {
                server.mainloop();
            } catch (Exception e) {
                // The connection was closed: the scenario is over.
            }
        });
        loop.setDaemon(true);
        loop.start();
        Channel asking = amqp.channel();
        RpcClient client = new RpcClient(new RpcClientParams().channel(asking).exchange("").routingKey(queue).timeout(10_000));
        for (int i = 0; i < 3; i++) {
            equal(client.stringCall("q" + i), "answer to q" + i, "the reply");
        }
        check(asking.queueDeclarePassive(REPLIES).getConsumerCount() == 1, "the reply queue has a consumer");
    }

    private static void directReplyToErrors(Amqp amqp) throws Exception {
        amqp.refused(406, List.of("reply consumer cannot acknowledge"),
            channel -> channel.basicConsume(REPLIES, false, (tag, message) -> {}, tag -> {}));
        amqp.refused(406, List.of("reply consumer already set"), channel -> {
            channel.basicConsume(REPLIES, true, (tag, message) -> {}, tag -> {});
            channel.basicConsume(REPLIES, true, (tag, message) -> {}, tag -> {});
        });
        Channel channel = amqp.channel();
        channel.basicPublish("", "anything", new AMQP.BasicProperties.Builder().replyTo(REPLIES).build(), new byte[0]);
        refusedLater(channel, 406, "fast reply consumer does not exist");
        amqp.refused(404, List.of("no queue"), getting -> getting.basicGet(REPLIES, true));
    }
}
