package interop.rabbitmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.waitUntil;
import static interop.rabbitmq.Amqp.got;
import static interop.rabbitmq.Amqp.publish;
import static interop.rabbitmq.Amqp.ready;
import static interop.rabbitmq.Amqp.refusedLater;
import static interop.rabbitmq.Amqp.scenario;
import static interop.rabbitmq.Amqp.sequence;
import static interop.rabbitmq.Amqp.waitReady;
import static interop.rabbitmq.Inbox.outline;

import com.rabbitmq.client.Channel;
import com.rabbitmq.client.GetResponse;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import java.util.stream.Stream;

/** Getting, acknowledging, refusing, recovering, prefetch, purge and the end of consumers. */
final class Consuming {
    private Consuming() {}

    static void register() {
        scenario("get", Consuming::get);
        scenario("ack-multiple", Consuming::ackMultiple);
        scenario("nack-requeue", Consuming::nackRequeue);
        scenario("reject-discard", Consuming::rejectDiscard);
        scenario("unknown-delivery-tag", Consuming::unknownDeliveryTag);
        scenario("recover", Consuming::recover);
        scenario("qos-per-consumer", Consuming::qosPerConsumer);
        scenario("qos-global", Consuming::qosGlobal);
        scenario("purge-and-delete", Consuming::purgeAndDelete);
        scenario("cancel", Consuming::cancel);
        scenario("cancel-notify", Consuming::cancelNotify);
        scenario("consumer-exclusive", Consuming::consumerExclusive);
        scenario("consumer-duplicate-tag", Consuming::consumerDuplicateTag);
    }

    /** A new queue with m0, m1, … */
    private static String filled(Amqp amqp, Channel channel, int count) throws Exception {
        String queue = amqp.queue(channel, "queue");
        publish(channel, "", queue, null, sequence(count));
        return queue;
    }

    /** Delivery tags of `count` messages taken without an ack. */
    private static List<Long> hold(Channel channel, String queue, int count) throws Exception {
        List<Long> tags = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            tags.add(channel.basicGet(queue, false).getEnvelope().getDeliveryTag());
        }
        return tags;
    }

    private static void get(Amqp amqp) throws Exception {
        Channel watcher = amqp.confirming();
        String queue = filled(amqp, watcher, 3);
        Channel channel = amqp.channel();
        GetResponse first = channel.basicGet(queue, false);
        equal(List.of(got(first), first.getMessageCount(), first.getEnvelope().getExchange(), first.getEnvelope().getRoutingKey()),
            List.of(Map.entry("m0", false), 2, "", queue), "get-ok");
        equal(channel.basicGet(queue, true).getMessageCount(), 1, "messages left");
        channel.close(); // the first was not acknowledged, the second needed no ack
        waitReady(watcher, queue, 2);
        equal(List.of(got(watcher.basicGet(queue, true)), got(watcher.basicGet(queue, true))),
            List.of(Map.entry("m0", true), Map.entry("m2", false)), "after the channel closed");
        equal(watcher.basicGet(queue, true), null, "get on an empty queue");
    }

    private static void ackMultiple(Amqp amqp) throws Exception {
        Channel watcher = amqp.confirming();
        String queue = filled(amqp, watcher, 10);
        Channel consumer = amqp.channel();
        List<Long> tags = Inbox.consume(consumer, queue).await(10).stream().map(Inbox.Message::tag).toList();
        equal(tags, LongStream.rangeClosed(1, 10).boxed().toList(), "delivery tags");
        consumer.basicAck(tags.get(1), false);
        consumer.basicAck(tags.get(4), true);
        consumer.close();
        waitReady(watcher, queue, 5);
        Channel second = amqp.channel();
        equal(outline(Inbox.consume(second, queue).await(5)),
            IntStream.range(5, 10).mapToObj(n -> Map.entry("m" + n, true)).toList(), "what the multiple ack left");
        second.basicAck(0, true);
        second.close();
        equal(ready(watcher, queue), 0, "ready messages after an ack of all");
    }

    private static void nackRequeue(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String queue = filled(amqp, channel, 6);
        List<Long> tags = hold(channel, queue, 4);
        channel.basicAck(tags.get(0), false);
        channel.basicNack(tags.get(2), true, true);
        channel.basicReject(tags.get(3), true);
        waitReady(channel, queue, 5);
        equal(outline(Inbox.consume(channel, queue).await(5)), List.of(Map.entry("m1", true), Map.entry("m2", true),
            Map.entry("m3", true), Map.entry("m4", false), Map.entry("m5", false)), "order and flags");
    }

    private static void rejectDiscard(Amqp amqp) throws Exception {
        Channel watcher = amqp.confirming();
        String queue = filled(amqp, watcher, 6);
        Channel channel = amqp.channel();
        List<Long> tags = hold(channel, queue, 5);
        channel.basicReject(tags.get(1), false);
        channel.basicNack(tags.get(0), false, false);
        channel.basicNack(tags.get(3), true, false);
        channel.close();
        waitReady(watcher, queue, 2);
        equal(List.of(got(watcher.basicGet(queue, true)), got(watcher.basicGet(queue, true))),
            List.of(Map.entry("m4", true), Map.entry("m5", false)), "what was not discarded");
    }

    private static void unknownDeliveryTag(Amqp amqp) throws Exception {
        List<Amqp.Attempt> answers = List.of(channel -> channel.basicAck(77, false), channel -> channel.basicNack(77, false, true),
            channel -> channel.basicReject(77, true));
        for (Amqp.Attempt answer : answers) {
            Channel channel = amqp.channel();
            answer.on(channel);
            refusedLater(channel, 406, "PRECONDITION_FAILED", "unknown delivery tag 77");
        }
        Channel channel = amqp.confirming();
        long tag = hold(channel, filled(amqp, channel, 1), 1).get(0);
        channel.basicAck(tag, false);
        channel.basicAck(tag, false);
        refusedLater(channel, 406, "PRECONDITION_FAILED", "unknown delivery tag " + tag);
        check(channel.getConnection().isOpen(), "the connection stays open");
    }

    private static void recover(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        Inbox inbox = Inbox.consume(channel, filled(amqp, channel, 4));
        channel.basicAck(inbox.await(4).get(1).tag(), false);
        channel.basicRecover(true);
        equal(outline(inbox.await(7).subList(4, 7)), List.of(Map.entry("m0", true), Map.entry("m2", true), Map.entry("m3", true)),
            "recovered");
    }

    private static int received(Inbox... inboxes) {
        return Stream.of(inboxes).mapToInt(inbox -> inbox.messages().size()).sum();
    }

    private static void qosPerConsumer(Amqp amqp) throws Exception {
        Channel watcher = amqp.confirming();
        String queue = filled(amqp, watcher, 20);
        Channel channel = amqp.channel();
        channel.basicQos(3);
        Inbox three = Inbox.consume(channel, queue);
        channel.basicQos(5);
        Inbox five = Inbox.consume(channel, queue);
        waitUntil(() -> received(three, five) >= 8, () -> "3 + 5 messages");
        equal(List.of(received(three), received(five), ready(watcher, queue)), List.of(3, 5, 12), "held, held, ready");
        channel.basicAck(three.messages().get(0).tag(), false);
        waitUntil(() -> received(three) == 4, () -> "one more for one ack");
        equal(List.of(received(five), ready(watcher, queue)), List.of(5, 11), "the other consumer's and the ready ones");
        channel.basicAck(0, true);
        waitUntil(() -> received(three, five) == 17, () -> "a full window each");
    }

    private static void qosGlobal(Amqp amqp) throws Exception {
        Channel watcher = amqp.confirming();
        String queue = filled(amqp, watcher, 10);
        Channel channel = amqp.channel();
        channel.basicQos(4, true);
        Inbox first = Inbox.consume(channel, queue);
        Inbox second = Inbox.consume(channel, queue);
        waitUntil(() -> received(first, second) >= 4, () -> "4 messages");
        equal(List.of(ready(watcher, queue), received(first, second)), List.of(6, 4), "ready and held");
        List<Long> tags = Stream.of(first, second).flatMap(inbox -> inbox.messages().stream()).map(Inbox.Message::tag).sorted().toList();
        channel.basicAck(tags.get(1), true);
        waitUntil(() -> received(first, second) >= 6, () -> "two more for two acks");
        equal(List.of(ready(watcher, queue), received(first, second)), List.of(4, 6), "ready and received");
    }

    private static void purgeAndDelete(Amqp amqp) throws Exception {
        Channel channel = amqp.confirming();
        String queue = filled(amqp, channel, 5);
        hold(channel, queue, 1);
        equal(channel.queuePurge(queue).getMessageCount(), 4, "purged: ready ones only");
        equal(channel.queuePurge(queue).getMessageCount(), 0, "purged again");
        publish(channel, "", queue, "one", "two");
        amqp.refused(406, List.of("PRECONDITION_FAILED", "queue '" + queue + "' in vhost '/' not empty"),
            other -> other.queueDelete(queue, false, true));
        Inbox inbox = Inbox.autoAck(channel, queue);
        inbox.await(2);
        amqp.refused(406, List.of("PRECONDITION_FAILED", "queue '" + queue + "' in vhost '/' in use"),
            other -> other.queueDelete(queue, true, false));
        inbox.cancel();
        publish(channel, "", queue, "three");
        equal(channel.queueDelete(queue, true, false).getMessageCount(), 1, "messages deleted with the queue");
        equal(channel.queueDelete(queue).getMessageCount(), 0, "deleting a missing queue");
        check(!amqp.queueExists(queue), "the queue is gone");
    }

    private static void cancel(Amqp amqp) throws Exception {
        Channel watcher = amqp.confirming();
        String queue = filled(amqp, watcher, 2);
        Channel channel = amqp.channel();
        Inbox inbox = Inbox.consume(channel, queue);
        inbox.await(2);
        inbox.cancel();
        publish(watcher, "", queue, "later");
        equal(ready(watcher, queue), 1, "ready messages: the later one waits");
        equal(received(inbox), 2, "deliveries after the cancel");
        channel.basicAck(inbox.messages().get(0).tag(), false);
        channel.close();
        waitReady(watcher, queue, 2);
        equal(List.of(got(watcher.basicGet(queue, true)), got(watcher.basicGet(queue, true))),
            List.of(Map.entry("m1", true), Map.entry("later", false)), "the unacked one came back when the channel closed");
    }

    private static void cancelNotify(Amqp amqp) throws Exception {
        Channel watcher = amqp.channel();
        String queue = amqp.queue(watcher, "queue");
        Inbox inbox = Inbox.consume(amqp.channel(), queue);
        watcher.queueDelete(queue);
        waitUntil(inbox::cancelledByBroker, () -> "basic.cancel");
        check(inbox.getChannel().isOpen(), "the channel stays open");
    }

    private static void consumerExclusive(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        String queue = amqp.queue(channel, "queue");
        Inbox only = Inbox.consume(channel, queue, false, true);
        List<String> text = List.of("ACCESS_REFUSED", "queue '" + queue + "' in vhost '/' in exclusive use");
        amqp.refused(403, text, other -> Inbox.consume(other, queue), other -> Inbox.consume(other, queue, false, true));
        only.cancel();
        Inbox.consume(channel, queue);
        amqp.refused(403, text, other -> Inbox.consume(other, queue, false, true));
    }

    private static void consumerDuplicateTag(Amqp amqp) throws Exception {
        Channel channel = amqp.channel();
        String queue = amqp.queue(channel, "queue");
        channel.basicConsume(queue, true, "same", (tag, delivery) -> { }, tag -> { });
        Amqp.refused(530, List.of("NOT_ALLOWED", "attempt to reuse consumer tag 'same'"),
            () -> channel.basicConsume(queue, true, "same", (tag, delivery) -> { }, tag -> { }));
        check(!channel.getConnection().isOpen(), "the connection is closed");
    }
}
