package interop.rabbitmq;

import static interop.kit.Kit.equal;
import static interop.kit.Kit.waitUntil;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.DefaultConsumer;
import com.rabbitmq.client.Envelope;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** A consumer and what it has received so far. */
public final class Inbox extends DefaultConsumer {
    public record Message(Envelope envelope, AMQP.BasicProperties properties, byte[] body) {
        public String text() {
            return Amqp.text(body);
        }

        public long tag() {
            return envelope.getDeliveryTag();
        }

        public boolean redelivered() {
            return envelope.isRedeliver();
        }
    }

    private final List<Message> messages = new ArrayList<>();
    private volatile boolean cancelled;
    private String tag;

    private Inbox(Channel channel) {
        super(channel);
    }

    public static Inbox consume(Channel channel, String queue) throws IOException {
        return consume(channel, queue, false, false);
    }

    public static Inbox autoAck(Channel channel, String queue) throws IOException {
        return consume(channel, queue, true, false);
    }

    public static Inbox consume(Channel channel, String queue, boolean autoAck, boolean exclusive) throws IOException {
        Inbox inbox = new Inbox(channel);
        inbox.tag = channel.basicConsume(queue, autoAck, "", false, exclusive, null, inbox);
        return inbox;
    }

    public void cancel() throws IOException {
        getChannel().basicCancel(tag); // the superclass learns the tag on another thread, later
    }

    @Override
    public synchronized void handleDelivery(String tag, Envelope envelope, AMQP.BasicProperties properties, byte[] body) {
        messages.add(new Message(envelope, properties, body));
    }

    @Override
    public void handleCancel(String tag) {
        cancelled = true;
    }

    public boolean cancelledByBroker() {
        return cancelled;
    }

    public synchronized List<Message> messages() {
        return List.copyOf(messages);
    }

    public List<String> texts() {
        return messages().stream().map(Message::text).toList();
    }

    /** Bodies with their redelivered flags. */
    public static List<Map.Entry<String, Boolean>> outline(List<Message> messages) {
        return messages.stream().map(message -> Map.entry(message.text(), message.redelivered())).toList();
    }

    /** Waits for `count` messages in all and returns them. */
    public List<Message> await(int count) throws InterruptedException {
        waitUntil(() -> messages().size() >= count, () -> count + " messages, have " + texts());
        equal(messages().size(), count, "number of messages received");
        return messages();
    }

    public Message awaitOne() throws InterruptedException {
        return await(1).get(0);
    }
}
