package interop.rocketmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.scenario;
import static interop.kit.Kit.uniqueName;
import static interop.kit.Kit.waitUntil;
import static interop.rocketmq.Rocket.bytes;
import static interop.rocketmq.Rocket.consume;
import static interop.rocketmq.Rocket.newTopic;
import static interop.rocketmq.Rocket.ok;
import static interop.rocketmq.Rocket.producer;
import static interop.rocketmq.Rocket.sendOk;
import static interop.rocketmq.Rocket.started;
import static interop.rocketmq.Rocket.stored;
import static interop.rocketmq.Rocket.text;

import interop.kit.Kit;
import interop.kit.Kit.Closer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Function;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.store.OffsetStore;
import org.apache.rocketmq.client.consumer.store.ReadOffsetType;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageClientExt;
import org.apache.rocketmq.common.message.MessageExt;

/** What comes later: delay levels, retries and dead letters, transactions that nobody ended at once. */
final class Later {
    /** Set by brokers and clients on the way; what else a message carries is the sender's. */
    private static final List<String> PASSING = List.of("MIN_OFFSET", "MAX_OFFSET", "CONSUME_START_TIME", "UNIQ_KEY", "CLUSTER",
        "MSG_REGION", "TRACE_ON", "WAIT", "ORIGIN_MESSAGE_ID", "INSTANCE_ID", "PGROUP", "__transactionId__");

    private Later() {}

    static void register() {
        scenario("delay-levels", Later::delayLevels);
        scenario("delay-properties", Later::delayProperties);
        scenario("delay-restart", Kit.RESTART_SECONDS, Later::delayRestart);
        scenario("retry", Later::retry);
        scenario("retry-level", Later::retryLevel);
        scenario("retry-restart", Kit.RESTART_SECONDS, Later::retryRestart);
        scenario("dead-letters", Later::deadLetters);
        scenario("view-message", Later::viewMessage);
        scenario("transaction-properties", Later::transactionProperties);
        scenario("transaction-check", 180, Later::transactionCheck);
        scenario("transaction-restart", 240, Later::transactionRestart);
    }

    // ---- delays

    private static void delayLevels(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "levels");
        Map<String, Long> came = new ConcurrentHashMap<>();
        listen(closer, uniqueName("group"), topic, message -> {
            came.putIfAbsent(text(message.getBody()), System.currentTimeMillis());
            return true;
        });
        Map<String, Long> sent = new TreeMap<>();
        Map<String, Long> waits = Map.of("two-0", Kit.delay(2), "one-0", Kit.delay(1), "one-1", Kit.delay(1), "one-2", Kit.delay(1));
        for (String body : List.of("two-0", "one-0", "one-1", "one-2")) {
            Message message = new Message(topic, bytes(body));
            message.setDelayTimeLevel(body.startsWith("one") ? 1 : 2);
            sendOk(producer, message);
            sent.put(body, System.currentTimeMillis());
        }
        waitUntil(() -> came.size() == 4, () -> "four delayed messages, have " + came.keySet());
        StringBuilder times = new StringBuilder("late by");
        for (String body : sent.keySet()) {
            long late = came.get(body) - sent.get(body) - waits.get(body);
            check(late >= -100 && (Kit.onControl() || late <= 500), body + " came " + late + " ms after its time");
            times.append(' ').append(late).append(" ms");
        }
        Kit.note(times.toString());
    }

    private static void delayProperties(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "delayed");
        Received inbox = consume(closer, topic, "A");
        Message message = new Message(topic, "A", "k1 k2", 7, bytes("later"), true);
        message.putUserProperty("kept", "yes");
        message.setDelayTimeLevel(1);
        SendResult result = sendOk(producer, message);
        check(result.getOffsetMsgId().matches("[0-9A-F]{32}"), "offset message id " + result.getOffsetMsgId());
        MessageExt got = inbox.await(1).get(0);
        equal(List.of(got.getTopic(), got.getTags(), got.getKeys(), got.getFlag(), got.getReconsumeTimes(), got.getQueueId()),
            List.of(topic, "A", "k1 k2", 7, 0, result.getMessageQueue().getQueueId()), "header");
        equal(got.getMsgId(), result.getMsgId(), "unique key");
        Kit.note(shown(got));
        equal(shown(got), "DELAY=1 KEYS=k1 k2 REAL_QID=" + got.getQueueId() + " REAL_TOPIC=TOPIC TAGS=A kept=yes", "properties");
    }

    private static void delayRestart(Closer closer) throws Exception {
        Kit.needsRestart();
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "delayed");
        List<String> bodies = new ArrayList<>();
        for (int i = 0; i < 20; i++) {
            Message message = new Message(topic, bytes("later" + i + (i % 2 == 0 ? "" : "x".repeat(20_000))));
            message.setDelayTimeLevel(2 + i % 2);
            sendOk(producer, message);
            bodies.add(text(message.getBody()));
        }
        Kit.restart("kill");
        // Consumers of 4.9 wait 30 s for the answer to a pull that the restart cut off: none is there before it.
        Received inbox = consume(closer, topic, "*");
        waitUntil(60, () -> inbox.messages().size() >= 20, () -> "delayed messages after a restart, have " + inbox.messages().size());
        inbox.awaitExactly(bodies);
    }

    // ---- retries

    private static void retry(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "retry");
        String group = uniqueName("group");
        List<MessageExt> attempts = new ArrayList<>();
        List<Long> times = new ArrayList<>();
        listen(closer, group, topic, message -> {
            synchronized (attempts) {
                attempts.add(message);
                times.add(System.currentTimeMillis());
                return attempts.size() == 3;
            }
        });
        Message message = new Message(topic, "T", "key", 3, bytes("stubborn" + "y".repeat(6000)), true);
        message.putUserProperty("kept", "yes");
        SendResult sent = sendOk(producer, message);
        waitUntil(60, () -> attempts.size() == 3, () -> "three attempts, have " + attempts.size());
        String first = null;
        for (int i = 0; i < 3; i++) {
            MessageExt attempt = attempts.get(i);
            equal(text(attempt.getBody()), text(message.getBody()), "body");
            // What the application sees is its own topic again.
            equal(List.of(attempt.getTopic(), attempt.getReconsumeTimes(), attempt.getTags(), attempt.getKeys(), attempt.getMsgId()),
                List.of(topic, i, "T", "key", sent.getMsgId()), "attempt " + i);
            if (i == 0) {
                first = ((MessageClientExt) attempt).getOffsetMsgId();
            } else {
                equal(attempt.getProperty("ORIGIN_MESSAGE_ID"), first, "id of the first");
                equal(attempt.getProperty("RETRY_TOPIC"), topic, "retry topic");
            }
        }
        long late1 = times.get(1) - times.get(0) - Kit.delay(3);
        long late2 = times.get(2) - times.get(1) - Kit.delay(4);
        Kit.note("retries late by " + late1 + " ms and " + late2 + " ms; " + shown(attempts.get(2)));
        check(Kit.onControl() || Math.abs(late1) <= 500 && Math.abs(late2) <= 500, "retries off by " + late1 + " and " + late2 + " ms");
        equal(shown(attempts.get(2)), "DELAY=4 KEYS=key REAL_QID=0 REAL_TOPIC=%RETRY%GROUP RETRY_TOPIC=TOPIC TAGS=T kept=yes", "properties");
    }

    /** A new group's first retry is on time, when the consumer names the level. */
    private static void retryLevel(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "retry");
        List<Long> times = new ArrayList<>();
        List<Integer> counts = new ArrayList<>();
        DefaultMQPushConsumer consumer = Rocket.at(new DefaultMQPushConsumer(uniqueName("group")));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            synchronized (times) {
                if (Rocket.SEED.equals(messages.get(0).getTags())) {
                    return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
                }
                times.add(System.currentTimeMillis());
                counts.add(messages.get(0).getReconsumeTimes());
                context.setDelayLevelWhenNextConsume(1);
                return times.size() == 4 ? ConsumeConcurrentlyStatus.CONSUME_SUCCESS : ConsumeConcurrentlyStatus.RECONSUME_LATER;
            }
        });
        started(closer, consumer);
        sendOk(producer, new Message(topic, "T", bytes("soon")));
        waitUntil(60, () -> times.size() == 4, () -> "four attempts, have " + counts);
        equal(counts, List.of(0, 1, 2, 3), "reconsume times");
        StringBuilder late = new StringBuilder("late by");
        for (int i = 1; i < 4; i++) {
            long by = times.get(i) - times.get(i - 1) - Kit.delay(1);
            late.append(' ').append(by).append(" ms");
            check(Kit.onControl() || by >= -100 && by <= 500, "retry " + i + " is off by " + by + " ms");
        }
        Kit.note(late.toString());
    }

    private static void retryRestart(Closer closer) throws Exception {
        Kit.needsRestart();
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "retry");
        List<Integer> counts = new ArrayList<>();
        String group = uniqueName("group");
        Listener listener = message -> {
            synchronized (counts) {
                counts.add(message.getReconsumeTimes());
                return message.getReconsumeTimes() > 0;
            }
        };
        DefaultMQPushConsumer first = listen(closer, group, topic, listener);
        SendResult sent = sendOk(producer, new Message(topic, "T", bytes("later")));
        // The client goes on behind a message only when the broker has taken it back.
        OffsetStore offsets = first.getDefaultMQPushConsumerImpl().getOffsetStore();
        waitUntil(() -> offsets.readOffset(sent.getMessageQueue(), ReadOffsetType.READ_FROM_MEMORY) > sent.getQueueOffset(),
            () -> "the first attempt to be handed back, have " + counts);
        Kit.restart("kill");
        first.shutdown();
        listen(closer, group, topic, listener);
        waitUntil(90, () -> counts.contains(1), () -> "the retry after a restart, have " + counts);
        // A client whose offset was not written yet may see the first attempt again, but no retry is lost or doubled.
        equal(counts.stream().filter(count -> count == 1).count(), 1L, "second attempts");
    }

    private static void deadLetters(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "deadly");
        String group = uniqueName("group");
        List<Integer> counts = new ArrayList<>();
        DefaultMQPushConsumer consumer = Rocket.at(new DefaultMQPushConsumer(group));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setMaxReconsumeTimes(2);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            if (Rocket.SEED.equals(messages.get(0).getTags())) {
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            }
            synchronized (counts) {
                counts.add(messages.get(0).getReconsumeTimes());
            }
            // "now" dies at once, the other after two retries.
            context.setDelayLevelWhenNextConsume(text(messages.get(0).getBody()).equals("now") ? -1 : 1);
            return ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        started(closer, consumer);
        sendOk(producer, new Message(topic, "T", bytes("now")));
        sendOk(producer, new Message(topic, "T", bytes("in the end")));
        String dead = "%DLQ%" + group;
        waitUntil(60, () -> letters(producer, dead) == 2, () -> "two dead letters, attempts " + counts);
        equal(counts.stream().sorted().toList(), List.of(0, 0, 1, 2), "attempts");
        Received letters = consume(closer, dead, "*");
        letters.awaitExactly(List.of("now", "in the end"));
        for (MessageExt letter : letters.messages()) {
            boolean now = text(letter.getBody()).equals("now");
            equal(List.of(letter.getTopic(), letter.getReconsumeTimes(), letter.getTags()), List.of(dead, now ? 1 : 3, "T"), "dead letter");
            Kit.note(shown(letter));
            equal(letter.getProperty("RETRY_TOPIC"), topic, "retry topic");
        }
    }

    private static long letters(DefaultMQProducer producer, String dead) {
        try {
            return Rocket.queues(producer, dead).size() == 1 ? stored(producer, dead) : 0;
        } catch (Exception e) {
            return 0; // no route yet
        }
    }

    private static void viewMessage(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "view");
        SendResult sent = sendOk(producer, new Message(topic, "T", "key", 5, bytes("look at me"), true));
        MessageExt seen = producer.viewMessage(topic, sent.getOffsetMsgId());
        equal(List.of(seen.getTopic(), text(seen.getBody()), seen.getTags(), seen.getFlag(), seen.getQueueId(), seen.getQueueOffset()),
            List.of(topic, "look at me", "T", 5, sent.getMessageQueue().getQueueId(), sent.getQueueOffset()), "message");
        String id = sent.getOffsetMsgId();
        long position = Long.parseLong(id.substring(16), 16);
        for (long wrong : new long[] {position + 1, position - 1, 0, Long.MAX_VALUE}) {
            String other = id.substring(0, 16) + String.format("%016X", wrong);
            try {
                MessageExt found = producer.viewMessage(topic, other);
                check(found == null || !topic.equals(found.getTopic()), "a message at " + wrong + ": " + found);
            } catch (Exception e) {
                // refused, as it must be
            }
        }
    }

    // ---- transactions

    /** A producer whose transactions end as `decide` says at once, and as `check` says when the broker asks. */
    private static TransactionMQProducer transactions(Closer closer, Function<Message, LocalTransactionState> decide,
        Function<MessageExt, LocalTransactionState> check) throws Exception {
        return transactions(closer, uniqueName("producers"), decide, check);
    }

    private static TransactionMQProducer transactions(Closer closer, String group, Function<Message, LocalTransactionState> decide,
        Function<MessageExt, LocalTransactionState> check) throws Exception {
        TransactionMQProducer producer = Rocket.at(new TransactionMQProducer(group));
        producer.setSendMsgTimeout(10_000);
        producer.setRetryTimesWhenSendFailed(0);
        producer.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
                return decide.apply(message);
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                return check.apply(message);
            }
        });
        return started(closer, producer);
    }

    private static void transactionProperties(Closer closer) throws Exception {
        TransactionMQProducer producer = transactions(closer, message -> LocalTransactionState.COMMIT_MESSAGE, message -> null);
        String topic = newTopic(producer, "transaction");
        Received inbox = consume(closer, topic, "A");
        Message message = new Message(topic, "A", "key", 9, bytes("committed"), true);
        message.putUserProperty("kept", "yes");
        SendResult result = ok(producer.sendMessageInTransaction(message, null));
        MessageExt got = inbox.await(1).get(0);
        equal(List.of(got.getTopic(), got.getTags(), got.getKeys(), got.getFlag(), got.getMsgId()), List.of(topic, "A", "key", 9, result.getMsgId()), "header");
        equal(got.getSysFlag() & 0xC, 8, "transaction bits of the system flag");
        check(got.getPreparedTransactionOffset() > 0, "prepared transaction offset " + got.getPreparedTransactionOffset());
        Kit.note(shown(got));
        equal(shown(got), "KEYS=key TAGS=A TRAN_MSG=true kept=yes", "properties");
    }

    private static void transactionCheck(Closer closer) throws Exception {
        Map<String, Integer> asked = new ConcurrentHashMap<>();
        List<String> wrong = new ArrayList<>();
        String[] topic = new String[1];
        TransactionMQProducer producer = transactions(closer, message -> LocalTransactionState.UNKNOW, message -> {
            String body = text(message.getBody());
            if (!message.getTopic().equals(topic[0]) || !"yes".equals(message.getUserProperty("kept"))) {
                wrong.add("asked about " + message);
            }
            int times = asked.merge(body, 1, Integer::sum);
            if (body.equals("committed late")) {
                return LocalTransactionState.COMMIT_MESSAGE;
            }
            return body.equals("twice") && times == 2 ? LocalTransactionState.COMMIT_MESSAGE
                : body.equals("rolled back late") ? LocalTransactionState.ROLLBACK_MESSAGE : LocalTransactionState.UNKNOW;
        });
        topic[0] = newTopic(producer, "transaction");
        Received inbox = consume(closer, topic[0], "*");
        long sent = System.currentTimeMillis();
        for (String body : List.of("committed late", "rolled back late", "twice", "immune")) {
            Message message = new Message(topic[0], bytes(body));
            message.putUserProperty("kept", "yes");
            if (body.equals("immune")) {
                message.putUserProperty("CHECK_IMMUNITY_TIME_IN_SECONDS", "3600");
            }
            ok(producer.sendMessageInTransaction(message, null));
        }
        equal(inbox.bodies(), List.of(), "messages before anybody was asked");
        waitUntil(120, () -> inbox.bodies().contains("committed late"), () -> "the message that was committed late, asked " + asked);
        long first = System.currentTimeMillis() - sent;
        waitUntil(120, () -> inbox.bodies().contains("twice"), () -> "the message that was asked about twice, asked " + asked);
        long second = System.currentTimeMillis() - sent;
        inbox.awaitExactly(List.of("committed late", "twice"));
        equal(asked, Map.of("committed late", 1, "rolled back late", 1, "twice", 2), "questions");
        equal(wrong, List.of(), "what was asked");
        Kit.note("committed after " + first + " ms and " + second + " ms");
        check(Kit.onControl() || first >= Kit.check(0) - 100 && first <= Kit.check(0) + 1500 && second - first <= Kit.check(1) + 1500, "asked after " + first + " and " + second + " ms");
    }

    /** Half messages survive a restart, and a producer that was not there before is asked. */
    private static void transactionRestart(Closer closer) throws Exception {
        Kit.needsRestart();
        String group = uniqueName("producers");
        TransactionMQProducer producer = transactions(closer, group, message -> LocalTransactionState.UNKNOW,
            message -> LocalTransactionState.UNKNOW);
        String topic = newTopic(producer, "transaction");
        List<String> bodies = new ArrayList<>();
        for (int i = 0; i < 5; i++) {
            bodies.add("half" + i + "z".repeat(i * 3000));
            ok(producer.sendMessageInTransaction(new Message(topic, bytes(bodies.get(i))), null));
        }
        producer.shutdown();
        Kit.restart("kill");
        TransactionMQProducer other = transactions(closer, group, message -> LocalTransactionState.UNKNOW,
            message -> LocalTransactionState.COMMIT_MESSAGE);
        // Since 5.x a producer knows no broker until it sends; and it would tell of itself 30 s later only.
        Received inbox = consume(closer, topic, "*");
        sendOk(other, new Message(topic, Rocket.SEED, bytes("here I am")));
        other.getDefaultMQProducerImpl().getMqClientFactory().sendHeartbeatToAllBrokerWithLock();
        waitUntil(180, () -> inbox.messages().size() >= 5, () -> "five transactions committed after a restart, have " + inbox.messages().size());
        inbox.awaitExactly(bodies);
    }

    // ---- helpers

    private interface Listener {
        /** True: consumed. */
        boolean on(MessageExt message);
    }

    private static DefaultMQPushConsumer listen(Closer closer, String group, String topic, Listener listener) throws Exception {
        DefaultMQPushConsumer consumer = Rocket.at(new DefaultMQPushConsumer(group));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            MessageExt message = messages.get(0);
            return Rocket.SEED.equals(message.getTags()) || listener.on(message)
                ? ConsumeConcurrentlyStatus.CONSUME_SUCCESS : ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        return started(closer, consumer);
    }

    /** The properties that tell a message's way, in order; names of this run replaced. */
    private static String shown(MessageExt message) {
        StringBuilder shown = new StringBuilder();
        new TreeMap<>(message.getProperties()).forEach((name, value) -> {
            if (!PASSING.contains(name)) {
                String plain = value.startsWith("%RETRY%") ? "%RETRY%GROUP" : name.endsWith("_TOPIC") ? "TOPIC" : value;
                shown.append(shown.length() == 0 ? "" : " ").append(name).append('=').append(plain);
            }
        });
        return shown.toString();
    }
}
