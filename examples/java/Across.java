import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.GetResponse;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;

/** The exchange amq.rmq.TOPIC is the RocketMQ topic as AMQP sees it: what a RocketMQ producer sends lands in a bound queue. */
public final class Across {
    public static void main(String[] arguments) throws Exception {
        String nameServer = arguments.length > 0 ? arguments[0] : "127.0.0.1:9876";
        String amqp = arguments.length > 1 ? arguments[1] : "amqp://guest:guest@127.0.0.1:5672";
        String topic = "Orders";

        DefaultMQProducer producer = new DefaultMQProducer("across-producers");
        producer.setNamesrvAddr(nameServer);
        producer.start();
        producer.send(new Message(topic, "paid", "makes the topic".getBytes(StandardCharsets.UTF_8)));

        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(amqp);
        try (Connection connection = factory.newConnection(); Channel channel = connection.createChannel()) {
            channel.queueDeclare("paid-orders", true, false, false, Map.of());
            channel.queueBind("paid-orders", "amq.rmq." + topic, "paid"); // the binding key is matched with the tag

            producer.send(new Message(topic, "paid", "order 1".getBytes(StandardCharsets.UTF_8)));
            producer.send(new Message(topic, "cancelled", "order 2".getBytes(StandardCharsets.UTF_8)));

            // SEND_OK: it is in all its queues already, also in those of the other world.
            GetResponse got = channel.basicGet("paid-orders", true);
            System.out.println("got: " + (got == null ? "nothing" : new String(got.getBody(), StandardCharsets.UTF_8)));
            System.out.println("left: " + channel.messageCount("paid-orders"));
            producer.shutdown();
            System.exit(got != null && new String(got.getBody(), StandardCharsets.UTF_8).equals("order 1") ? 0 : 1);
        }
    }
}
