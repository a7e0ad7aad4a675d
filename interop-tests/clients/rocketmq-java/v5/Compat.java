package interop.rocketmq;

import interop.kit.Kit;
import java.util.Map;import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.impl.MQClientAPIImpl;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.remoting.protocol.heartbeat.MessageModel;
import org.apache.rocketmq.remoting.protocol.subscription.SubscriptionGroupConfig;

/** What the 5.x client spells differently. */
final class Compat {
    /** A new consumer of this line does not rebalance in its first second and pulls half a second after that. */
    static final int OWN_WAIT_MILLIS = 1500;

    private Compat() {}

    static void broadcasting(DefaultMQPushConsumer consumer) {
        consumer.setMessageModel(MessageModel.BROADCASTING);
    }

    /** `template` is an existing topic, which tells the client where to send the request. */
    static void createTopic(DefaultMQProducer producer, String template, String topic, int queues) throws MQClientException {
        producer.createTopic(template, topic, queues, Map.of());
    }

    static void consumeEnable(MQClientAPIImpl api, String address, String group, boolean enabled) throws Exception {
        SubscriptionGroupConfig config = new SubscriptionGroupConfig();
        config.setGroupName(group);
        config.setConsumeEnable(enabled);
        api.createSubscriptionGroup(address, config, 10_000);
    }

    static void deleteRoute(MQClientAPIImpl api, String topic) throws Exception {
        api.deleteTopicInNameServer(Kit.nameServer(), topic, 10_000);
    }

    static void delay(Message message, long millis) {
        message.setDelayTimeMs(millis);
    }
}
