import java.nio.charset.StandardCharsets;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;

/** SEND_OK means that the message is on the disk, and a new group's first message comes within a second. */
public final class RocketmqHello {
    public static void main(String[] arguments) throws Exception {
        String nameServer = arguments.length > 0 ? arguments[0] : "127.0.0.1:9876";
        String topic = "Hello";

        DefaultMQProducer producer = new DefaultMQProducer("hello-producers");
        producer.setNamesrvAddr(nameServer);
        producer.start(); // the topic is made by the first send and known to consumers at once
        System.out.println("sent: " + producer.send(new Message(topic, "TagA", "Hello World!".getBytes(StandardCharsets.UTF_8))).getSendStatus());

        CountDownLatch received = new CountDownLatch(1);
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer("hello-consumers-" + System.nanoTime());
        consumer.setNamesrvAddr(nameServer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "TagA");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            messages.forEach(message -> System.out.println("got: " + new String(message.getBody(), StandardCharsets.UTF_8)));
            received.countDown();
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        boolean arrived = received.await(30, TimeUnit.SECONDS);
        consumer.shutdown();
        producer.shutdown();
        System.exit(arrived ? 0 : 1);
    }
}
