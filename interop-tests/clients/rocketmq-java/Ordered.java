package interop.rocketmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.scenario;
import static interop.kit.Kit.uniqueName;
import static interop.kit.Kit.waitUntil;
import static interop.rocketmq.Rocket.bytes;
import static interop.rocketmq.Rocket.newTopic;
import static interop.rocketmq.Rocket.producer;
import static interop.rocketmq.Rocket.queues;
import static interop.rocketmq.Rocket.sendOk;
import static interop.rocketmq.Rocket.started;

import interop.kit.Kit;
import interop.kit.Kit.Closer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyContext;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Consumers that keep the order of each queue, whoever has it. */
final class Ordered {
    private Ordered() {}

    static void register() {
        scenario("push-orderly", Kit.RESTART_SECONDS, closer -> orderly(closer, null));
        scenario("orderly-dead-letters", Ordered::deadLetters);
        scenario("restart-orderly", Kit.RESTART_SECONDS, closer -> orderly(closer, "kill"));
    }

    /** What all members of a group are given, by queue, in the order of the calls. */
    private static final class Journal {
        private final Map<Integer, List<Long>> offsets = new TreeMap<>();
        private final Map<Integer, String> holders = new TreeMap<>();
        private String broken = "";

        private synchronized void enter(String member, int queue) {
            String other = holders.put(queue, member);
            if (other != null) {
                broken += "queue " + queue + " is with " + other + " and " + member + " at once; ";
            }
        }

        private synchronized void leave(int queue, List<MessageExt> batch) {
            holders.remove(queue);
            batch.forEach(message -> offsets.computeIfAbsent(queue, id -> new ArrayList<>()).add(message.getQueueOffset()));
        }

        private synchronized int distinct() {
            return offsets.values().stream().mapToInt(list -> (int) list.stream().distinct().count()).sum();
        }

        /** What was consumed may come again, from where it was committed (a consumer that gives a queue up while it consumes
         * does not commit that message), but never with a hole. */
        private synchronized void verify() {
            equal(broken, "", "one consumer a queue at a time");
            offsets.forEach((queue, list) -> {
                long reached = -1;
                for (long offset : list) {
                    check(offset <= reached + 1, "queue " + queue + " out of order: " + list);
                    reached = Math.max(reached, offset);
                }
            });
        }
    }

    private record Member(String name, Journal journal) implements MessageListenerOrderly {
        @Override
        public ConsumeOrderlyStatus consumeMessage(List<MessageExt> batch, ConsumeOrderlyContext context) {
            int queue = context.getMessageQueue().getQueueId();
            if (context.getMessageQueue().getTopic().startsWith("%RETRY%")) {
                return ConsumeOrderlyStatus.SUCCESS;
            }
            journal.enter(name, queue);
            try {
                Thread.sleep(2); // work that two consumers of one queue would be seen in
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
            journal.leave(queue, batch);
            return ConsumeOrderlyStatus.SUCCESS;
        }
    }

    private static DefaultMQPushConsumer member(Closer closer, String group, String topic, String name, Journal journal) throws Exception {
        DefaultMQPushConsumer consumer = Rocket.at(new DefaultMQPushConsumer(group));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setPersistConsumerOffsetInterval(500);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(new Member(name, journal));
        return started(closer, consumer);
    }

    private static void orderly(Closer closer, String restart) throws Exception {
        if (restart != null) {
            Kit.needsRestart();
        }
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "orderly");
        String group = uniqueName("group");
        Journal journal = new Journal();
        int sent = 1;
        DefaultMQPushConsumer first = member(closer, group, topic, "first", journal);
        sent += send(producer, topic, 40);
        awaitCount(journal, sent);
        DefaultMQPushConsumer second = member(closer, group, topic, "second", journal);
        sent += send(producer, topic, 40);
        if (restart != null) {
            Kit.restart(restart);
            waitUntil(60, () -> reachable(producer, topic), () -> "the producer to be back");
            sent += 1;
        }
        awaitCount(journal, sent);
        sent += send(producer, topic, 40);
        awaitCount(journal, sent);
        first.shutdown(); // gives its locks up
        sent += send(producer, topic, 40);
        awaitCount(journal, sent);
        second.shutdown();
        journal.verify();
    }

    /** What an ordered group gives up is a dead letter at once, and its queue goes on. */
    private static void deadLetters(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "orderly");
        String group = uniqueName("group");
        List<String> seen = new ArrayList<>();
        DefaultMQPushConsumer consumer = Rocket.at(new DefaultMQPushConsumer(group));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setMaxReconsumeTimes(2);
        consumer.setSuspendCurrentQueueTimeMillis(50);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
            String body = Rocket.text(messages.get(0).getBody());
            if (Rocket.SEED.equals(messages.get(0).getTags())) {
                return ConsumeOrderlyStatus.SUCCESS;
            }
            synchronized (seen) {
                seen.add(body);
            }
            return body.equals("bad") ? ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT : ConsumeOrderlyStatus.SUCCESS;
        });
        started(closer, consumer);
        MessageQueue queue = queues(producer, topic).get(0);
        for (String body : List.of("before", "bad", "after")) {
            sendOk(producer, new Message(topic, "T", "key", bytes(body)), queue);
        }
        waitUntil(30, () -> seen.contains("after"), () -> "the message behind the bad one, have " + seen);
        equal(seen, List.of("before", "bad", "bad", "bad", "after"), "attempts");
        MessageExt letter = Rocket.consume(closer, "%DLQ%" + group, "*").await(1).get(0);
        equal(List.of(Rocket.text(letter.getBody()), letter.getTags(), letter.getKeys(), letter.getProperty("RETRY_TOPIC")),
            List.of("bad", "T", "key", topic), "dead letter");
    }

    private static void awaitCount(Journal journal, int count) throws InterruptedException {
        waitUntil(90, () -> journal.distinct() >= count, () -> count + " messages, have " + journal.distinct());
    }

    /** Sends to all queues in turn; returns how many. */
    private static int send(DefaultMQProducer producer, String topic, int count) throws Exception {
        List<MessageQueue> queues = queues(producer, topic);
        for (int i = 0; i < count; i++) {
            sendOk(producer, new Message(topic, bytes("m" + i)), queues.get(i % queues.size()));
        }
        return count;
    }

    private static boolean reachable(DefaultMQProducer producer, String topic) {
        try {
            sendOk(producer, new Message(topic, bytes("back")), new MessageQueue(topic, Rocket.queues(producer, topic).get(0).getBrokerName(), 0));
            return true;
        } catch (Exception e) {
            return false;
        }
    }
}
