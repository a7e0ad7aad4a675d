package interop.rocketmq;

import interop.kit.Kit;
import java.util.List;
import java.util.Map;
import org.apache.rocketmq.acl.common.AclClientRPCHook;
import org.apache.rocketmq.acl.common.SessionCredentials;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.impl.MQClientAPIImpl;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.remoting.RPCHook;
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

    static String consumeDirectly(MQClientAPIImpl api, String address, String group, String client, String topic, String id) throws Exception {
        return String.valueOf(api.consumeMessageDirectly(address, group, client, topic, id, 10_000).getConsumeResult());
    }

    /** What only this line can ask. */
    static void moreTools(MQClientAPIImpl api, String address, String group, String topic) throws Exception {
        Kit.check(api.queryTopicsByConsumer(address, group, 10_000).getTopicList().contains(topic), "topics of the group");
        Kit.equal(api.querySubscriptionByConsumer(address, group, topic, 10_000).getSubString(), "*", "subscription");
        List<String> names = List.of(Kit.uniqueName("list"), Kit.uniqueName("list"));
        api.createTopicList(address, names.stream().map(name -> new TopicConfig(name, 2, 3, 6)).toList(), 10_000);
        api.createSubscriptionGroupList(address, names.stream().map(name -> {
            SubscriptionGroupConfig config = new SubscriptionGroupConfig();
            config.setGroupName(name);
            config.setRetryMaxTimes(7);
            return config;
        }).toList(), 10_000);
        for (String name : names) {
            Kit.equal(api.getTopicConfig(address, name, 10_000).getWriteQueueNums(), 3, "queues of a topic of the list");
            Kit.equal(api.getSubscriptionGroupConfig(address, name, 10_000).getRetryMaxTimes(), 7, "retries of a group of the list");
        }
    }

    static RPCHook signer(String name, String secret) {
        return new AclClientRPCHook(new SessionCredentials(name, secret));
    }

    static void delay(Message message, long millis) {
        message.setDelayTimeMs(millis);
    }
}
