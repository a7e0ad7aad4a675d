package interop.rocketmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.scenario;
import static interop.kit.Kit.waitUntil;
import static interop.rocketmq.Rocket.bytes;
import static interop.rocketmq.Rocket.consume;
import static interop.rocketmq.Rocket.newProducer;
import static interop.rocketmq.Rocket.newTopic;
import static interop.rocketmq.Rocket.ok;
import static interop.rocketmq.Rocket.producer;
import static interop.rocketmq.Rocket.queues;
import static interop.rocketmq.Rocket.sendOk;
import static interop.rocketmq.Rocket.started;
import static interop.rocketmq.Rocket.stored;
import static interop.rocketmq.Rocket.text;

import interop.kit.Kit;
import interop.kit.Kit.Closer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageAccessor;
import org.apache.rocketmq.common.message.MessageClientExt;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** What a producer is told of its messages, and that they arrive as they were sent. */
final class Producing {
    private static final int MESSAGE_ILLEGAL = 13;

    private Producing() {}

    static void register() {
        scenario("send-sync", Producing::sendSync);
        scenario("send-async", Producing::sendAsync);
        scenario("send-oneway", Producing::sendOneway);
        scenario("send-batch", Producing::sendBatch);
        scenario("send-vip", Producing::sendVip);
        scenario("ids-and-offsets", Producing::idsAndOffsets);
        scenario("ordered-by-selector", Producing::orderedBySelector);
        scenario("large-messages", Producing::largeMessages);
        scenario("compressed-bodies", Producing::compressedBodies);
        scenario("delay-level", closer -> delayed(closer, message -> message.setDelayTimeLevel(1), 1000));
        scenario("timer-delay", closer -> delayed(closer, message -> Compat.delay(message, 1500), 1500));
        scenario("transaction", Producing::transaction);
        scenario("request-reply", Producing::requestReply);
    }

    /** A producer asks, a consumer answers; an answer that nobody waits for is an error for who gives it. */
    private static void requestReply(Closer closer) throws Exception {
        DefaultMQProducer asking = producer(closer);
        DefaultMQProducer answering = producer(closer);
        String topic = newTopic(asking, "requests");
        List<MessageExt> asked = Rocket.answer(closer, topic, answering, body -> "answer to " + body);
        for (String text : List.of("one", "two", "x".repeat(20_000))) {
            Message answer = asking.request(new Message(topic, "T", bytes(text)), 20_000);
            equal(text(answer.getBody()), "answer to " + text, "the answer");
        }
        Message late = MessageUtil.createReplyMessage(asked.get(0), bytes("late"));
        MessageAccessor.putProperty(late, "REPLY_TO_CLIENT", Kit.uniqueName("nobody"));
        try {
            answering.send(late);
            throw new AssertionError("a reply to nobody was taken");
        } catch (MQBrokerException e) {
            equal(e.getResponseCode(), 1, "code: " + e.getErrorMessage());
        } catch (MQClientException e) {
            equal(e.getResponseCode(), 1, "code: " + e.getErrorMessage());
        }
    }

    private static void sendSync(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "sync");
        Message sent = new Message(topic, "tag-ü", "key1 key2", 77, bytes("Hello, rock!"), true);
        sent.putUserProperty("plain", "value");
        sent.putUserProperty("odd key=1", "wert mit ümlaut = \"quoted\", {json: [1]} \t€");
        long before = System.currentTimeMillis();
        SendResult result = sendOk(producer, sent);
        long after = System.currentTimeMillis();
        equal(result.getMessageQueue().getTopic(), topic, "topic of the answer");
        check(queues(producer, topic).contains(result.getMessageQueue()), "the queue of the answer is one of the topic");
        MessageExt got = consume(closer, topic, "*").await(1).get(0);
        equal(text(got.getBody()), "Hello, rock!", "body");
        equal(List.of(got.getTopic(), got.getTags(), got.getKeys(), got.getFlag()), List.of(topic, "tag-ü", "key1 key2", 77), "header");
        equal(got.getUserProperty("plain"), "value", "user property");
        equal(got.getUserProperty("odd key=1"), sent.getUserProperty("odd key=1"), "odd user property");
        equal(got.getReconsumeTimes(), 0, "reconsume times");
        check(before <= got.getBornTimestamp() && got.getBornTimestamp() <= after, "born between send and answer");
        check(before <= got.getStoreTimestamp() && got.getStoreTimestamp() <= after, "stored between send and answer");
        equal(got.getBornHostString(), "127.0.0.1", "born host");
    }

    private static void sendAsync(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "async");
        int count = 200;
        Map<String, Integer> answers = new ConcurrentHashMap<>();
        List<Throwable> failures = new ArrayList<>();
        List<String> bodies = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            bodies.add("async" + i);
            producer.send(new Message(topic, bytes("async" + i)), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    answers.merge(ok(result).getMsgId(), 1, Integer::sum);
                }

                @Override
                public void onException(Throwable thrown) {
                    synchronized (failures) {
                        failures.add(thrown);
                    }
                }
            });
        }
        waitUntil(() -> answers.size() + failures.size() >= count, () -> "callbacks, have " + answers.size() + " and " + failures);
        equal(failures, List.of(), "failed sends");
        check(answers.values().stream().allMatch(times -> times == 1), "each callback came once");
        consume(closer, topic, "*").awaitExactly(bodies);
    }

    private static void sendOneway(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "oneway");
        List<String> bodies = new ArrayList<>();
        for (int i = 0; i < 50; i++) {
            bodies.add("oneway" + i);
            producer.sendOneway(new Message(topic, bytes("oneway" + i)));
        }
        consume(closer, topic, "*").awaitExactly(bodies);
    }

    private static void sendBatch(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "batch");
        List<Message> batch = new ArrayList<>();
        for (int i = 0; i < 10; i++) {
            Message message = new Message(topic, "tag" + i % 2, "key" + i, bytes("batch".repeat(i) + i));
            message.putUserProperty("number", "" + i);
            batch.add(message);
        }
        SendResult result = ok(producer.send(batch));
        String[] ids = result.getMsgId().split(",");
        String[] offsetIds = result.getOffsetMsgId().split(",");
        equal(List.of(ids.length, offsetIds.length), List.of(10, 10), "ids in the answer");
        Map<String, MessageExt> got = new HashMap<>();
        consume(closer, topic, "*").await(10).forEach(message -> got.put(message.getMsgId(), message));
        for (int i = 0; i < 10; i++) {
            MessageExt message = got.get(ids[i]);
            check(message != null, "no message with id " + ids[i]);
            equal(text(message.getBody()), "batch".repeat(i) + i, "body");
            equal(List.of(message.getTags(), message.getKeys(), message.getUserProperty("number")),
                List.of("tag" + i % 2, "key" + i, "" + i), "properties");
            equal(List.of(message.getQueueId(), message.getQueueOffset()),
                List.of(result.getMessageQueue().getQueueId(), result.getQueueOffset() + i), "place");
            equal(((MessageClientExt) message).getOffsetMsgId(), offsetIds[i], "offset message id");
        }
    }

    private static void sendVip(Closer closer) throws Exception {
        DefaultMQProducer producer = newProducer();
        producer.setVipChannelEnabled(true);
        started(closer, producer);
        String topic = newTopic(producer, "vip");
        sendOk(producer, new Message(topic, bytes("through the other port")));
        equal(text(consume(closer, topic, "*").await(1).get(0).getBody()), "through the other port", "body");
    }

    private static void idsAndOffsets(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "ids");
        Map<MessageQueue, Long> next = new HashMap<>();
        for (MessageQueue queue : queues(producer, topic)) {
            next.put(queue, producer.maxOffset(queue));
        }
        Map<String, SendResult> results = new HashMap<>();
        for (int i = 0; i < 40; i++) {
            SendResult result = sendOk(producer, new Message(topic, bytes("id" + i)));
            equal(result.getQueueOffset(), next.merge(result.getMessageQueue(), 1L, Long::sum) - 1, "next offset of " + result.getMessageQueue());
            check(result.getOffsetMsgId().matches("[0-9A-F]{32}"), "offset message id " + result.getOffsetMsgId());
            results.put("id" + i, result);
        }
        equal(results.values().stream().map(SendResult::getMsgId).distinct().count(), 40L, "different message ids");
        equal(results.values().stream().map(SendResult::getOffsetMsgId).distinct().count(), 40L, "different offset message ids");
        for (MessageExt message : consume(closer, topic, "*").await(40)) {
            SendResult result = results.get(text(message.getBody()));
            equal(List.of(message.getMsgId(), ((MessageClientExt) message).getOffsetMsgId(), message.getQueueId(), message.getQueueOffset()),
                List.of(result.getMsgId(), result.getOffsetMsgId(), result.getMessageQueue().getQueueId(), result.getQueueOffset()),
                "what the consumer sees of " + text(message.getBody()));
            equal(message.getBrokerName(), result.getMessageQueue().getBrokerName(), "broker name");
        }
    }

    private static void orderedBySelector(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "ordered");
        Map<Integer, List<String>> expected = new HashMap<>();
        for (int step = 0; step < 10; step++) {
            for (int order = 0; order < 6; order++) {
                String body = "order " + order + " step " + step;
                SendResult result = ok(producer.send(new Message(topic, bytes(body)),
                    (all, message, key) -> all.get((Integer) key % all.size()), order));
                expected.computeIfAbsent(result.getMessageQueue().getQueueId(), id -> new ArrayList<>()).add(body);
            }
        }
        equal(expected.size(), queues(producer, topic).size(), "queues in use");
        // Concurrent consumers promise no order among the threads of one client: hold each queue's messages by offset.
        Map<Integer, List<String>> got = new HashMap<>();
        consume(closer, topic, "*").await(60).stream()
            .sorted((a, b) -> Long.compare(a.getQueueOffset(), b.getQueueOffset()))
            .forEach(message -> got.computeIfAbsent(message.getQueueId(), id -> new ArrayList<>()).add(text(message.getBody())));
        equal(got, expected, "messages of each queue");
    }

    private static void largeMessages(Closer closer) throws Exception {
        DefaultMQProducer producer = newProducer();
        producer.setMaxMessageSize(16 << 20); // the broker's limit is the subject, not the client's
        producer.setCompressMsgBodyOverHowmuch(Integer.MAX_VALUE);
        started(closer, producer);
        String topic = newTopic(producer, "large");
        byte[] body = new byte[4 << 20];
        new Random(1).nextBytes(body);
        sendOk(producer, new Message(topic, body));
        long stored = stored(producer, topic);
        try {
            producer.send(new Message(topic, new byte[5 << 20]));
            throw new AssertionError("a body of 5 MiB was accepted");
        } catch (MQBrokerException e) {
            equal(e.getResponseCode(), MESSAGE_ILLEGAL, "response code (" + e.getErrorMessage() + ")");
        }
        equal(stored(producer, topic), stored, "messages stored after the refusal");
        sendOk(producer, new Message(topic, bytes("afterwards")));
        List<MessageExt> got = consume(closer, topic, "*").await(2);
        MessageExt large = got.get(0).getBody().length > 100 ? got.get(0) : got.get(1);
        check(Arrays.equals(large.getBody(), body), "the large body came back different");
    }

    private static void compressedBodies(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "compressed");
        List<String> bodies = List.of("rock ".repeat(819) + "x", "rock ".repeat(20_000), "hyrax ".repeat(300_000));
        for (String body : bodies) {
            sendOk(producer, new Message(topic, bytes(body)));
        }
        Received inbox = consume(closer, topic, "*");
        inbox.awaitExactly(bodies);
        for (MessageExt message : inbox.messages()) {
            check(message.getStoreSize() < message.getBody().length, "stored as compressed as it was sent: " + message.getStoreSize());
        }
    }

    private interface Delay {
        void on(Message message);
    }

    private static void delayed(Closer closer, Delay delay, long millis) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "delayed");
        Received inbox = consume(closer, topic, "*");
        long stored = stored(producer, topic);
        Message message = new Message(topic, bytes("later"));
        message.putUserProperty("kept", "yes");
        delay.on(message);
        long sent = System.currentTimeMillis();
        refusedOrDone(producer, topic, () -> sendOk(producer, message));
        equal(stored(producer, topic), stored, "messages visible right after the send");
        MessageExt got = inbox.await(1).get(0);
        long waited = System.currentTimeMillis() - sent;
        equal(List.of(text(got.getBody()), got.getUserProperty("kept")), List.of("later", "yes"), "message");
        check(waited >= millis - 100, "came after " + waited + " ms, was to wait " + millis + " ms");
        Kit.note("came after " + waited + " ms");
    }

    /** A broker without the feature must refuse the send, and must not have stored a plain message. */
    private static void refusedOrDone(DefaultMQProducer producer, String topic, Kit.Action send) throws Exception {
        long stored = stored(producer, topic);
        try {
            send.run();
        } catch (MQBrokerException | MQClientException refusal) {
            equal(stored(producer, topic), stored, "messages stored by a refused send (" + Kit.describe(refusal) + ")");
            throw refusal;
        }
    }

    private static void transaction(Closer closer) throws Exception {
        TransactionMQProducer producer = Rocket.at(new TransactionMQProducer(Kit.uniqueName("producers")));
        producer.setSendMsgTimeout(10_000);
        producer.setRetryTimesWhenSendFailed(0);
        producer.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object end) {
                return (LocalTransactionState) end;
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                return LocalTransactionState.UNKNOW;
            }
        });
        started(closer, producer);
        String topic = newTopic(producer, "transaction");
        Received inbox = consume(closer, topic, "*");
        long stored = stored(producer, topic);
        LocalTransactionState rollback = LocalTransactionState.ROLLBACK_MESSAGE;
        LocalTransactionState commit = LocalTransactionState.COMMIT_MESSAGE;
        refusedOrDone(producer, topic, () -> ok(producer.sendMessageInTransaction(new Message(topic, bytes("never")), rollback)));
        for (int i = 0; i < 3; i++) {
            ok(producer.sendMessageInTransaction(new Message(topic, bytes("committed" + i)), commit));
        }
        inbox.awaitExactly(List.of("committed0", "committed1", "committed2"));
        equal(stored(producer, topic), stored + 3, "messages of the topic");
    }
}
