package interop.rabbitmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.rabbitmq.Amqp.PERSISTENT;
import static interop.rabbitmq.Amqp.drain;
import static interop.rabbitmq.Amqp.got;
import static interop.rabbitmq.Amqp.publish;
import static interop.rabbitmq.Amqp.ready;
import static interop.rabbitmq.Amqp.refused;
import static interop.rabbitmq.Amqp.refusedLater;
import static interop.rabbitmq.Amqp.scenario;
import static interop.rabbitmq.Amqp.sequence;
import static interop.rabbitmq.Amqp.text;
import static interop.rabbitmq.Amqp.waitReady;

import com.rabbitmq.client.Channel;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.Return;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;

/** Transactions: what a commit and a rollback do to publishes and acknowledgements. */
final class Transactions {
    private Transactions() {}

    static void register() {
        scenario("tx-commit", Transactions::commit);
        scenario("tx-rollback", Transactions::rollback);
        scenario("tx-large", Transactions::large);
        scenario("tx-mandatory", Transactions::mandatory);
        scenario("tx-errors", Transactions::errors);
    }

    private static String durable(Amqp amqp, Channel channel) throws Exception {
        String queue = amqp.name("tx");
        channel.queueDeclare(queue, true, false, false, null);
        return queue;
    }

    private static void commit(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        Channel observer = amqp.channel();
        String queue = durable(amqp, channel);
        String other = amqp.queue(channel, "tx");
        channel.txSelect();
        publish(channel, "", queue, PERSISTENT, List.of("one", "two"));
        publish(channel, "", other, "three");
        equal(List.of(ready(observer, queue), ready(observer, other)), List.of(0, 0), "ready messages before the commit");
        channel.txCommit();
        equal(List.of(ready(observer, queue), ready(observer, other)), List.of(2, 1), "ready messages after the commit");
        // An ack counts when it is committed, together with what is published.
        GetResponse message = channel.basicGet(queue, false);
        equal(text(message.getBody()), "one", "body");
        channel.basicAck(message.getEnvelope().getDeliveryTag(), false);
        publish(channel, "", other, "four");
        channel.txCommit();
        channel.close();
        equal(drain(observer, queue), List.of("two"), "what was not acknowledged");
        equal(drain(observer, other), List.of("three", "four"), "what was published");
    }

    private static void rollback(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        Channel observer = amqp.channel();
        String queue = durable(amqp, channel);
        publish(channel, "", queue, "one", "two");
        waitReady(observer, queue, 2);
        channel.txSelect();
        long first = channel.basicGet(queue, false).getEnvelope().getDeliveryTag();
        long second = channel.basicGet(queue, false).getEnvelope().getDeliveryTag();
        publish(channel, "", queue, "never");
        channel.basicAck(first, false);
        channel.basicReject(second, true);
        channel.txRollback();
        equal(ready(observer, queue), 0, "ready messages after the rollback");
        // After a rollback the deliveries are open again under their tags.
        channel.basicAck(first, false);
        channel.txCommit();
        channel.basicNack(second, false, true);
        channel.close(); // nothing of an open transaction happens
        waitReady(observer, queue, 1);
        equal(got(observer.basicGet(queue, true)), Map.entry("two", true), "what comes back");
    }

    private static void large(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        String queue = durable(amqp, channel);
        channel.txSelect();
        List<Integer> sizes = List.of(1, 3 << 20, 700_000, 0, 900_000, 5);
        for (int size : sizes) {
            channel.basicPublish("", queue, PERSISTENT, new byte[size]);
        }
        channel.txCommit();
        equal(drain(channel, queue).stream().map(String::length).toList(), sizes, "sizes in order");
        publish(channel, "", queue, PERSISTENT, sequence(500));
        channel.txCommit();
        equal(drain(channel, queue), sequence(500), "bodies in order");
    }

    private static void mandatory(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        String missing = amqp.name("missing");
        List<String> returned = Collections.synchronizedList(new ArrayList<>());
        channel.addReturnListener((Return back) ->
            returned.add(back.getReplyCode() + " " + back.getRoutingKey() + " " + text(back.getBody())));
        channel.txSelect();
        channel.basicPublish("", missing, true, null, "back".getBytes());
        channel.queueDeclare(); // a round trip
        check(returned.isEmpty(), "returned before the commit");
        channel.txCommit();
        equal(returned, List.of("312 " + missing + " back"), "returned at the commit");
    }

    private static void errors(Amqp amqp) throws Exception {
        amqp.refused(406, List.of("channel is not transactional"), Channel::txCommit, Channel::txRollback);
        amqp.refused(406, List.of("cannot switch from confirm to tx mode"), channel -> {
            channel.confirmSelect();
            channel.txSelect();
        });
        amqp.refused(406, List.of("cannot switch from tx to confirm mode"), channel -> {
            channel.txSelect();
            channel.txSelect(); // again is fine
            channel.confirmSelect();
        });
        // Known before the commit: an exchange that is not there, a tag that is not open.
        Channel publisher = amqp.channel();
        publisher.txSelect();
        publish(publisher, amqp.name("missing"), "key", "lost");
        refusedLater(publisher, 404, "no exchange");
        Channel consumer = amqp.channel();
        consumer.txSelect();
        refused(406, List.of("unknown delivery tag 7"), () -> {
            consumer.basicAck(7, false);
            consumer.txRollback();
        });
    }
}
