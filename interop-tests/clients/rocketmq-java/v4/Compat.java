package interop.rocketmq;

import interop.kit.Kit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.impl.MQClientAPIImpl;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.protocol.heartbeat.MessageModel;
import org.apache.rocketmq.common.subscription.SubscriptionGroupConfig;
import org.apache.rocketmq.remoting.RPCHook;

/** What the 4.x client spells differently. */
final class Compat {
    /** Before its first pull a new consumer of this line waits for nothing but the broker. */
    static final int OWN_WAIT_MILLIS = 0;

    private Compat() {}

    static void broadcasting(DefaultMQPushConsumer consumer) {
        consumer.setMessageModel(MessageModel.BROADCASTING);
    }

    /** `template` is an existing topic, which tells the client where to send the request. */
    static void createTopic(DefaultMQProducer producer, String template, String topic, int queues) throws MQClientException {
        producer.createTopic(template, topic, queues);
    }

    static void consumeEnable(MQClientAPIImpl api, String address, String group, boolean enabled) throws Exception {
        SubscriptionGroupConfig config = new SubscriptionGroupConfig();
        config.setGroupName(group);
        config.setConsumeEnable(enabled);
        api.createSubscriptionGroup(address, config, 10_000);
    }

    static void deleteRoute(MQClientAPIImpl api, String topic) throws Exception {
        api.deleteTopicInNameServer(Kit.nameServer(), topic, null, 10_000);
    }

    static String consumeDirectly(MQClientAPIImpl api, String address, String group, String client, String topic, String id) throws Exception {
        return String.valueOf(api.consumeMessageDirectly(address, group, client, id, 10_000).getConsumeResult());
    }

    /** This line's client has no calls for the rest. */
    static void moreTools(MQClientAPIImpl api, String address, String group, String topic) {}

    static RPCHook signer(String name, String secret) {
        throw new Kit.Skip("this client line signs with a library of its own");
    }

    static void delay(Message message, long millis) {
        throw new Kit.Skip("this client line has no timer messages");
    }
}
