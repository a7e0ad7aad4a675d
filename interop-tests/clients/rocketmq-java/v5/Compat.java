package interop.rocketmq;

import java.util.Map;import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.remoting.protocol.heartbeat.MessageModel;

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

    static void delay(Message message, long millis) {
        message.setDelayTimeMs(millis);
    }
}
