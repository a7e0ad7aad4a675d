package interop.rocketmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.scenario;
import static interop.kit.Kit.uniqueName;
import static interop.kit.Kit.waitUntil;
import static interop.rocketmq.Rocket.bytes;
import static interop.rocketmq.Rocket.consume;
import static interop.rocketmq.Rocket.newPushConsumer;
import static interop.rocketmq.Rocket.newTopic;
import static interop.rocketmq.Rocket.producer;
import static interop.rocketmq.Rocket.queues;
import static interop.rocketmq.Rocket.sendMany;
import static interop.rocketmq.Rocket.sendOk;
import static interop.rocketmq.Rocket.started;

import interop.kit.Kit;
import interop.kit.Kit.Closer;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.stream.Stream;
import org.apache.rocketmq.client.consumer.AllocateMessageQueueStrategy;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueAveragely;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Push consumers: groups, tags, who gets which queue, and where a group goes on. */
final class PushConsuming {
    /** The broker's share of the time to a new group's first message. */
    private static final int FIRST_MESSAGE_MILLIS = 1000;

    private PushConsuming() {}

    static void register() {
        scenario("push-clustering", PushConsuming::clustering);
        scenario("push-tag-filter", PushConsuming::tagFilter);
        scenario("push-broadcasting", PushConsuming::broadcasting);
        scenario("consume-from-first", PushConsuming::fromFirst);
        scenario("first-message", PushConsuming::firstMessage);
        scenario("rebalance", PushConsuming::rebalance);
        scenario("offsets-survive", PushConsuming::offsetsSurvive);
        scenario("group-independence", PushConsuming::independence);
    }

    /** Sends one message to every queue of the topic and returns the bodies. */
    private static List<String> sendToEach(DefaultMQProducer producer, String topic, String tag, String prefix) throws Exception {
        List<String> bodies = new ArrayList<>();
        for (MessageQueue queue : queues(producer, topic)) {
            bodies.add(prefix + queue.getQueueId());
            sendOk(producer, new Message(topic, tag, bytes(prefix + queue.getQueueId())), queue);
        }
        return bodies;
    }

    private static List<String> joined(List<String> first, List<String> second) {
        return Stream.concat(first.stream(), second.stream()).toList();
    }

    private static void clustering(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "clustering");
        Received inbox = consume(closer, topic, "*");
        List<String> bodies = sendMany(producer, topic, "m", 100);
        inbox.awaitExactly(bodies);
        equal(inbox.messages().stream().map(MessageExt::getQueueId).distinct().count(), 4L, "queues with messages");
        // Whatever came twice or out of the blue would be here before these.
        inbox.awaitExactly(joined(bodies, sendToEach(producer, topic, "", "last")));
    }

    private static void tagFilter(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "tags");
        Received inbox = consume(closer, topic, "A || B");
        List<String> wanted = new ArrayList<>();
        for (String tag : List.of("A", "B", "C", "AB", "a", "")) {
            List<String> bodies = sendToEach(producer, topic, tag, "tag " + tag + " ");
            if (tag.equals("A") || tag.equals("B")) {
                wanted.addAll(bodies);
            }
        }
        // A queue is consumed in order: when these are here, nothing before them can still come.
        wanted.addAll(sendToEach(producer, topic, "A", "last"));
        inbox.awaitExactly(wanted);
    }

    private static void broadcasting(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "broadcast");
        String group = uniqueName("group");
        List<Received> inboxes = List.of(new Received(), new Received());
        for (Received inbox : inboxes) {
            DefaultMQPushConsumer consumer = newPushConsumer(group, topic, "*", inbox);
            Compat.broadcasting(consumer);
            started(closer, consumer);
        }
        List<String> bodies = sendMany(producer, topic, "all", 20);
        for (Received inbox : inboxes) {
            inbox.awaitExactly(bodies);
        }
    }

    private static void fromFirst(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "first");
        List<String> bodies = sendMany(producer, topic, "before", 20);
        Received inbox = consume(closer, topic, "*");
        inbox.awaitExactly(bodies);
    }

    private static void firstMessage(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        List<Long> waiting = new ArrayList<>();
        List<Long> fresh = new ArrayList<>();
        for (int round = 0; round < 3; round++) {
            String topic = newTopic(producer, "latency");
            sendToEach(producer, topic, "", "waiting");
            long started = System.nanoTime();
            Received inbox = consume(closer, topic, "*");
            waitUntil(() -> !inbox.messages().isEmpty(), () -> "the first message of a new group");
            waiting.add((System.nanoTime() - started) / 1_000_000);

            String quiet = newTopic(producer, "latency");
            started = System.nanoTime();
            Received late = consume(closer, quiet, "*");
            sendToEach(producer, quiet, "", "fresh");
            waitUntil(() -> late.messages().size() == 4, () -> "a fresh message in each queue");
            fresh.add((System.nanoTime() - started) / 1_000_000);
        }
        String times = "from start: waiting message after " + waiting + " ms, one sent after the start " + fresh + " ms";
        int limit = FIRST_MESSAGE_MILLIS + Compat.OWN_WAIT_MILLIS;
        check(Kit.onControl() || Stream.concat(waiting.stream(), fresh.stream()).allMatch(millis -> millis <= limit), times);
        Kit.note(times);
    }

    /** Remembers which queues of a topic its consumer was given last. */
    private static final class Watched implements AllocateMessageQueueStrategy {
        private final AllocateMessageQueueStrategy strategy = new AllocateMessageQueueAveragely();
        private final String topic;
        private volatile Set<MessageQueue> given = Set.of();

        private Watched(String topic) {
            this.topic = topic;
        }

        @Override
        public List<MessageQueue> allocate(String group, String client, List<MessageQueue> queues, List<String> clients) {
            List<MessageQueue> mine = strategy.allocate(group, client, queues, clients);
            if (queues.get(0).getTopic().equals(topic)) {
                given = Set.copyOf(mine);
            }
            return mine;
        }

        @Override
        public String getName() {
            return strategy.getName();
        }
    }

    private static void rebalance(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "rebalance");
        String group = uniqueName("group");
        List<Received> inboxes = List.of(new Received(), new Received());
        List<Watched> shares = List.of(new Watched(topic), new Watched(topic));
        List<DefaultMQPushConsumer> members = new ArrayList<>();
        for (int i = 0; i < 2; i++) {
            DefaultMQPushConsumer member = newPushConsumer(group, topic, "*", inboxes.get(i));
            member.setAllocateMessageQueueStrategy(shares.get(i));
            members.add(started(closer, member));
        }
        long joined = System.nanoTime();
        waitUntil(() -> shares.stream().allMatch(share -> share.given.size() == 2), () -> "two queues for each member");
        long shared = System.nanoTime();
        Set<MessageQueue> all = new HashSet<>(shares.get(0).given);
        all.addAll(shares.get(1).given);
        equal(all.size(), 4, "queues given to somebody");
        List<String> bodies = new ArrayList<>(sendMany(producer, topic, "two", 40));
        waitUntil(() -> inboxes.stream().mapToInt(inbox -> inbox.messages().size()).sum() >= 40, () -> "40 messages");
        for (int i = 0; i < 2; i++) {
            Set<Integer> ids = new HashSet<>();
            shares.get(i).given.forEach(queue -> ids.add(queue.getQueueId()));
            inboxes.get(i).messages().forEach(message -> check(ids.contains(message.getQueueId()), "a message of another member's queue"));
            equal(inboxes.get(i).messages().size(), 20, "messages of one member");
        }
        members.get(0).shutdown();
        long left = System.nanoTime();
        waitUntil(() -> shares.get(1).given.size() == 4, () -> "all queues for the last member");
        Kit.note("shared after " + (shared - joined) / 1_000_000 + " ms, taken over after " + (System.nanoTime() - left) / 1_000_000 + " ms");
        bodies.addAll(sendMany(producer, topic, "one", 20));
        inboxes.get(1).await(40);
        equal(joined(inboxes.get(0).bodies(), inboxes.get(1).bodies()).stream().sorted().toList(), bodies.stream().sorted().toList(),
            "all messages, each once");
    }

    private static void offsetsSurvive(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "offsets");
        String group = uniqueName("group");
        Received first = new Received();
        DefaultMQPushConsumer consumer = started(closer, newPushConsumer(group, topic, "*", first));
        first.awaitExactly(sendMany(producer, topic, "before", 20));
        consumer.shutdown(); // writes its offsets
        List<String> later = sendMany(producer, topic, "while away", 10);
        Received second = new Received();
        started(closer, newPushConsumer(group, topic, "*", second));
        second.awaitExactly(joined(later, sendToEach(producer, topic, "", "last")));
    }

    private static void independence(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "groups");
        Received first = consume(closer, topic, "*");
        Received second = consume(closer, topic, "*");
        List<String> bodies = sendMany(producer, topic, "m", 20);
        first.awaitExactly(bodies);
        second.awaitExactly(bodies);
    }
}
