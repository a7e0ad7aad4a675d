package interop.rocketmq;

import static interop.kit.Kit.waitUntil;

import interop.kit.Kit;
import interop.kit.Kit.Closer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.function.UnaryOperator;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Clients with the settings every scenario wants, topics of their own, and short ways to send. */
public final class Rocket {
    /** Marks the message that made a topic; nobody counts it. */
    public static final String SEED = "seed";

    static {
        // Apache's client reads these once, when its first connection is made.
        if (Kit.authority() != null) {
            System.setProperty("tls.enable", "true");
            System.setProperty("tls.client.authServer", "true");
            System.setProperty("tls.client.trustCertPath", Kit.authority());
        }
    }

    private Rocket() {}

    public static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    public static String text(byte[] body) {
        return new String(body, StandardCharsets.UTF_8);
    }

    /** Points a client at the broker; one instance name each, so that two members of a group in one process differ. */
    public static <C extends ClientConfig> C at(C client) {
        client.setNamesrvAddr(Kit.nameServer());
        client.setInstanceName(Kit.uniqueName("instance"));
        return client;
    }

    public static DefaultMQProducer newProducer() {
        DefaultMQProducer producer = at(new DefaultMQProducer(Kit.uniqueName("producers")));
        producer.setSendMsgTimeout(10_000);
        // A refusal is the subject of some scenarios and must not be retried away in the others.
        producer.setRetryTimesWhenSendFailed(0);
        producer.setRetryTimesWhenSendAsyncFailed(0);
        return producer;
    }

    public static <P extends DefaultMQProducer> P started(Closer closer, P producer) throws MQClientException {
        producer.start();
        closer.defer(producer::shutdown);
        return producer;
    }

    public static DefaultMQProducer producer(Closer closer) throws MQClientException {
        return started(closer, newProducer());
    }

    /** A topic made by a first send, with its route visible to everybody. */
    public static String newTopic(DefaultMQProducer producer, String kind) throws Exception {
        String topic = Kit.uniqueName(kind);
        sendOk(producer, new Message(topic, SEED, bytes("made " + topic)));
        waitUntil(() -> !queues(producer, topic).isEmpty(), () -> "the route of " + topic);
        return topic;
    }

    /** The topic's queues as the name server tells them now, in order; none when it does not know the topic. */
    public static List<MessageQueue> queues(DefaultMQProducer producer, String topic) {
        try {
            List<MessageQueue> queues = new ArrayList<>(producer.fetchPublishMessageQueues(topic));
            queues.sort(Comparator.comparingInt(MessageQueue::getQueueId));
            return queues;
        } catch (MQClientException e) {
            return List.of();
        }
    }

    /** How many messages the topic's queues have taken so far. */
    public static long stored(DefaultMQProducer producer, String topic) throws MQClientException {
        long sum = 0;
        for (MessageQueue queue : queues(producer, topic)) {
            sum += producer.maxOffset(queue);
        }
        return sum;
    }

    public static SendResult sendOk(DefaultMQProducer producer, Message message) throws Exception {
        return ok(producer.send(message));
    }

    public static SendResult sendOk(DefaultMQProducer producer, Message message, MessageQueue queue) throws Exception {
        return ok(producer.send(message, queue));
    }

    public static SendResult ok(SendResult result) {
        Kit.equal(result.getSendStatus(), SendStatus.SEND_OK, "send status");
        return result;
    }

    /** Sends prefix0, prefix1, … and returns the bodies. */
    public static List<String> sendMany(DefaultMQProducer producer, String topic, String prefix, int count) throws Exception {
        List<String> bodies = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            bodies.add(prefix + i);
            sendOk(producer, new Message(topic, bytes(prefix + i)));
        }
        return bodies;
    }

    /** A push consumer that starts at the first message of its queues; not started. */
    public static DefaultMQPushConsumer newPushConsumer(String group, String topic, String tags, Received inbox) throws MQClientException {
        DefaultMQPushConsumer consumer = at(new DefaultMQPushConsumer(group));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, tags);
        consumer.registerMessageListener(inbox);
        return consumer;
    }

    public static DefaultMQPushConsumer started(Closer closer, DefaultMQPushConsumer consumer) throws MQClientException {
        consumer.start();
        closer.defer(consumer::shutdown);
        return consumer;
    }

    /** An inbox fed by a running push consumer of a group of its own. */
    public static Received consume(Closer closer, String topic, String tags) throws MQClientException {
        Received inbox = new Received();
        started(closer, newPushConsumer(Kit.uniqueName("group"), topic, tags, inbox));
        return inbox;
    }

    /** A consumer that answers every message through `producer`; gives what it was asked. */
    public static List<MessageExt> answer(Closer closer, String topic, DefaultMQProducer producer, UnaryOperator<String> say) throws MQClientException {
        List<MessageExt> asked = new CopyOnWriteArrayList<>();
        DefaultMQPushConsumer consumer = at(new DefaultMQPushConsumer(Kit.uniqueName("group")));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (MessageExt message : messages) {
                if (SEED.equals(message.getTags())) {
                    continue;
                }
                asked.add(message);
                try {
                    ok(producer.send(MessageUtil.createReplyMessage(message, bytes(say.apply(text(message.getBody()))))));
                } catch (Exception e) {
                    throw new IllegalStateException("the reply to " + message.getMsgId() + " failed", e);
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        started(closer, consumer);
        return asked;
    }

    public static DefaultMQPullConsumer pullConsumer(Closer closer, String group) throws MQClientException {
        DefaultMQPullConsumer consumer = at(new DefaultMQPullConsumer(group));
        consumer.start();
        closer.defer(consumer::shutdown);
        return consumer;
    }

    public static DefaultLitePullConsumer litePullConsumer(String group) {
        DefaultLitePullConsumer consumer = at(new DefaultLitePullConsumer(group));
        consumer.setAutoCommit(false);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        return consumer;
    }

    public static DefaultLitePullConsumer started(Closer closer, DefaultLitePullConsumer consumer) throws MQClientException {
        consumer.start();
        closer.defer(consumer::shutdown);
        return consumer;
    }
}
