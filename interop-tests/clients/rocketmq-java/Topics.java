package interop.rocketmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.scenario;
import static interop.kit.Kit.waitUntil;
import static interop.rocketmq.Rocket.bytes;
import static interop.rocketmq.Rocket.consume;
import static interop.rocketmq.Rocket.newTopic;
import static interop.rocketmq.Rocket.producer;
import static interop.rocketmq.Rocket.queues;
import static interop.rocketmq.Rocket.sendOk;

import interop.kit.Kit;
import interop.kit.Kit.Closer;
import java.util.List;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageQueue;

/** Topics: made by a send, made by request, not made at all. */
final class Topics {
    private Topics() {}

    static void register() {
        scenario("auto-created-topic", Topics::autoCreated);
        scenario("create-topic", Topics::created);
        scenario("unknown-topic", Topics::unknown);
    }

    private static void autoCreated(Closer closer) throws Exception {
        String topic = Kit.uniqueName("auto");
        DefaultMQProducer producer = producer(closer);
        DefaultMQProducer other = producer(closer);
        sendOk(producer, new Message(topic, bytes("first")));
        long answered = System.nanoTime();
        if (Kit.onControl()) { // Apache's name server learns of it a moment later
            waitUntil(() -> !queues(other, topic).isEmpty(), () -> "the route of " + topic);
        }
        List<Integer> ids = queues(other, topic).stream().map(MessageQueue::getQueueId).toList();
        equal(ids, List.of(0, 1, 2, 3), "queues that another client sees after the first SEND_OK");
        Kit.note("routable after " + (System.nanoTime() - answered) / 1_000_000 + " ms");
        sendOk(other, new Message(topic, bytes("second")));
        consume(closer, topic, "*").awaitExactly(List.of("first", "second"));
    }

    private static void created(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String template = newTopic(producer, "template");
        String topic = Kit.uniqueName("created");
        Compat.createTopic(producer, template, topic, 6);
        waitUntil(() -> !queues(producer, topic).isEmpty(), () -> "the route of " + topic);
        List<MessageQueue> queues = queues(producer, topic);
        equal(queues.stream().map(MessageQueue::getQueueId).toList(), List.of(0, 1, 2, 3, 4, 5), "queues");
        for (MessageQueue queue : queues) {
            equal(sendOk(producer, new Message(topic, bytes("to " + queue.getQueueId())), queue).getQueueOffset(), 0L, "first offset");
        }
        consume(closer, topic, "*").awaitExactly(List.of("to 0", "to 1", "to 2", "to 3", "to 4", "to 5"));
    }

    private static void unknown(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = Kit.uniqueName("unknown");
        for (int i = 0; i < 2; i++) { // asking must not make it
            try {
                producer.fetchPublishMessageQueues(topic);
                throw new AssertionError("an unknown topic has queues");
            } catch (MQClientException e) {
                check(Kit.describe(e).contains(topic), "the refusal names the topic: " + Kit.describe(e));
            }
        }
    }
}
