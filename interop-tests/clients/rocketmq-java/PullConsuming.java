package interop.rocketmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.scenario;
import static interop.kit.Kit.uniqueName;
import static interop.kit.Kit.waitUntil;
import static interop.rocketmq.Rocket.bytes;
import static interop.rocketmq.Rocket.litePullConsumer;
import static interop.rocketmq.Rocket.newTopic;
import static interop.rocketmq.Rocket.producer;
import static interop.rocketmq.Rocket.pullConsumer;
import static interop.rocketmq.Rocket.queues;
import static interop.rocketmq.Rocket.sendMany;
import static interop.rocketmq.Rocket.sendOk;
import static interop.rocketmq.Rocket.started;
import static interop.rocketmq.Rocket.text;

import interop.kit.Kit;
import interop.kit.Kit.Closer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Consumers that ask for themselves: single pulls, the lite pull consumer, and the questions about offsets. */
final class PullConsuming {
    private static final int MANY = 32;

    private PullConsuming() {}

    static void register() {
        scenario("pull", PullConsuming::pull);
        scenario("pull-long-poll", PullConsuming::longPoll);
        scenario("lite-pull-assign", PullConsuming::liteAssign);
        scenario("lite-pull-subscribe", PullConsuming::liteSubscribe);
        scenario("offset-queries", PullConsuming::offsetQueries);
        scenario("committed-offsets", PullConsuming::committedOffsets);
    }

    /** The last queue of a new topic. (The message that makes a topic may be in any.) */
    private static MessageQueue newQueue(DefaultMQProducer producer, String kind) throws Exception {
        List<MessageQueue> queues = queues(producer, newTopic(producer, kind));
        return queues.get(queues.size() - 1);
    }

    /** Sends prefix0, prefix1, … to one queue. */
    private static List<String> fill(DefaultMQProducer producer, MessageQueue queue, String prefix, String tag, int count) throws Exception {
        List<String> bodies = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            bodies.add(prefix + i);
            sendOk(producer, new Message(queue.getTopic(), tag, bytes(prefix + i)), queue);
        }
        return bodies;
    }

    private static List<String> bodies(List<MessageExt> messages) {
        return messages.stream().map(message -> text(message.getBody())).toList();
    }

    private static void pull(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        MessageQueue queue = newQueue(producer, "pull");
        long start = producer.maxOffset(queue);
        List<String> sent = fill(producer, queue, "m", "A", 10);
        DefaultMQPullConsumer consumer = pullConsumer(closer, uniqueName("group"));

        PullResult some = consumer.pull(queue, "*", start, 4);
        equal(some.getPullStatus(), PullStatus.FOUND, "status");
        equal(bodies(some.getMsgFoundList()), sent.subList(0, 4), "at most as many as asked for");
        equal(List.of(some.getNextBeginOffset(), some.getMinOffset(), some.getMaxOffset()), List.of(start + 4, 0L, start + 10), "offsets");
        PullResult rest = consumer.pull(queue, "*", some.getNextBeginOffset(), MANY);
        equal(bodies(rest.getMsgFoundList()), sent.subList(4, 10), "the rest");

        PullResult end = consumer.pull(queue, "*", start + 10, MANY);
        equal(List.of(end.getPullStatus(), end.getNextBeginOffset()), List.of(PullStatus.NO_NEW_MSG, start + 10), "pull at the end");
        PullResult beyond = consumer.pull(queue, "*", start + 1000, MANY);
        equal(List.of(beyond.getPullStatus(), beyond.getNextBeginOffset()), List.of(PullStatus.OFFSET_ILLEGAL, start + 10), "pull beyond the end");

        PullResult mismatch = consumer.pull(queue, "B", start, MANY);
        equal(List.of(mismatch.getPullStatus(), mismatch.getNextBeginOffset()), List.of(PullStatus.NO_MATCHED_MSG, start + 10), "tag mismatch");
        fill(producer, queue, "wanted", "B", 1);
        PullResult match = consumer.pull(queue, "B", start, MANY);
        equal(bodies(match.getMsgFoundList()), List.of("wanted0"), "the one match");
        equal(match.getMsgFoundList().get(0).getQueueOffset(), start + 10, "its offset");
    }

    private static void longPoll(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        MessageQueue queue = newQueue(producer, "long-poll");
        DefaultMQPullConsumer consumer = pullConsumer(closer, uniqueName("group"));
        consumer.fetchSubscribeMessageQueues(queue.getTopic()); // so that the pull itself needs no route first
        List<Long> waits = new ArrayList<>();
        for (int round = 0; round < 5; round++) {
            long offset = producer.maxOffset(queue);
            FutureTask<PullResult> pull = new FutureTask<>(() -> consumer.pullBlockIfNotFound(queue, "*", offset, MANY));
            Thread puller = new Thread(pull);
            puller.start();
            waitUntil(() -> puller.getState() == Thread.State.TIMED_WAITING, () -> "the pull to wait for its answer");
            long sent = System.nanoTime();
            fill(producer, queue, "arrival" + round + "-", "", 1);
            PullResult result = pull.get(20, TimeUnit.SECONDS);
            waits.add((System.nanoTime() - sent) / 1_000_000);
            equal(bodies(result.getMsgFoundList()), List.of("arrival" + round + "-0"), "what the pull returned");
        }
        check(waits.stream().allMatch(millis -> millis < 1000), "pulls answered after " + waits + " ms");
        Kit.note("answered after " + waits + " ms");
    }

    /** Polls until `count` messages have come. */
    private static List<MessageExt> poll(DefaultLitePullConsumer consumer, int count) throws Exception {
        List<MessageExt> messages = new ArrayList<>();
        waitUntil(() -> {
            for (MessageExt message : consumer.poll(100)) {
                if (!Rocket.SEED.equals(message.getTags())) {
                    messages.add(message);
                }
            }
            return messages.size() >= count;
        }, () -> count + " messages, have " + bodies(messages));
        equal(messages.size(), count, "number of messages polled");
        return messages;
    }

    private static void liteAssign(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        MessageQueue queue = newQueue(producer, "assign");
        long start = producer.maxOffset(queue);
        List<String> sent = fill(producer, queue, "m", "", 10);
        String group = uniqueName("group");
        DefaultLitePullConsumer consumer = started(closer, litePullConsumer(group));
        // No seek yet: with the first pull under way, the client itself may hand out messages twice.
        consumer.assign(List.of(queue));
        equal(bodies(poll(consumer, 10)), sent, "everything from the start");
        consumer.seek(queue, start + 7);
        equal(bodies(poll(consumer, 3)), sent.subList(7, 10), "after seek");
        consumer.seekToEnd(queue);
        sent.addAll(fill(producer, queue, "late", "", 1));
        equal(bodies(poll(consumer, 1)), List.of("late0"), "after seek to the end");
        consumer.seekToBegin(queue);
        equal(bodies(poll(consumer, 11)), sent, "after seek to the beginning");
        DefaultMQPullConsumer stored = pullConsumer(closer, group);
        equal(committed(stored, queue), 0L, "committed offset before any commit, on a young topic");
        consumer.commitSync(); // in spite of its name the client writes it within its next 10 s
        waitUntil(30, () -> committed(stored, queue) == start + 11, () -> "the commit of what was polled");
        equal(consumer.committed(queue), start + 11, "what the consumer itself says");
    }

    /** The broker's answer, not what the client remembers. */
    private static long committed(DefaultMQPullConsumer consumer, MessageQueue queue) {
        try {
            return consumer.fetchConsumeOffset(queue, true);
        } catch (MQClientException e) {
            throw new AssertionError("committed: " + Kit.describe(e), e);
        }
    }

    private static void liteSubscribe(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "subscribe");
        String group = uniqueName("group");
        List<String> before = sendMany(producer, topic, "before", 20);
        DefaultLitePullConsumer first = litePullConsumer(group);
        first.subscribe(topic, "*");
        started(closer, first);
        equal(bodies(poll(first, 20)).stream().sorted().toList(), before.stream().sorted().toList(), "first instance");
        first.commitSync();
        first.shutdown();
        List<String> later = sendMany(producer, topic, "later", 8);
        DefaultLitePullConsumer second = litePullConsumer(group);
        second.subscribe(topic, "*");
        started(closer, second);
        equal(bodies(poll(second, 8)).stream().sorted().toList(), later, "second instance");
    }

    private static void offsetQueries(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        MessageQueue queue = newQueue(producer, "queries");
        long start = producer.maxOffset(queue);
        for (int i = 0; i < 5; i++) {
            long before = System.currentTimeMillis();
            waitUntil(() -> System.currentTimeMillis() > before + 20, () -> "the clock to move on"); // distinct store times
            fill(producer, queue, "m" + i, "", 1);
        }
        equal(List.of(producer.minOffset(queue), producer.maxOffset(queue)), List.of(0L, start + 5), "min and max offset");
        List<MessageExt> messages = pullConsumer(closer, uniqueName("group")).pull(queue, "*", start, MANY).getMsgFoundList();
        equal(messages.size(), 5, "messages");
        List<Long> times = messages.stream().map(MessageExt::getStoreTimestamp).toList();
        for (MessageExt message : messages) {
            long time = message.getStoreTimestamp();
            long offset = message.getQueueOffset();
            equal(producer.searchOffset(queue, time), offset, "offset at the time of message " + offset + " of " + times);
            equal(producer.searchOffset(queue, time - 5), offset, "offset just before message " + offset + " of " + times);
            equal(producer.searchOffset(queue, time + 5), offset + 1, "offset just after message " + offset + " of " + times);
        }
        equal(producer.searchOffset(queue, 0), 0L, "offset at the beginning of time");
        equal(producer.searchOffset(queue, System.currentTimeMillis() + 3_600_000), start + 5, "offset in an hour");
        if (start == 0) {
            equal(producer.earliestMsgStoreTime(queue), messages.get(0).getStoreTimestamp(), "earliest store time");
        }
    }

    private static void committedOffsets(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "committed");
        List<MessageQueue> queues = queues(producer, topic);
        sendMany(producer, topic, "m", 40);
        String group = uniqueName("group");
        DefaultLitePullConsumer writer = started(closer, litePullConsumer(group));
        writer.assign(queues);
        poll(writer, 40); // before that, the client's own first look at the stored offsets may overwrite a commit
        writer.commitSync(Map.of(queues.get(0), 3L, queues.get(1), 5L), true);
        // Commits are not answered.
        DefaultMQPullConsumer reader = pullConsumer(closer, group);
        waitUntil(() -> committed(reader, queues.get(0)) == 3 && committed(reader, queues.get(1)) == 5, () -> "offsets 3 and 5, have " + committed(reader, queues.get(0)) + " and " + committed(reader, queues.get(1)));
        // None is stored for these; the topic still has its first message, so both start there.
        equal(committed(reader, queues.get(2)), 0L, "another queue");
        equal(committed(pullConsumer(closer, uniqueName("group")), queues.get(0)), 0L, "another group");
    }
}
