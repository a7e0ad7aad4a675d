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
final class Inbox extends DefaultConsumer {
    record Message(Envelope envelope, AMQP.BasicProperties properties, byte[] body) {
        String text() {
            return Amqp.text(body);
        }

        long tag() {
            return envelope.getDeliveryTag();
        }

        boolean redelivered() {
            return envelope.isRedeliver();
        }
    }

    private final List<Message> messages = new ArrayList<>();
    private volatile boolean cancelled;
    private String tag;

    private Inbox(Channel channel) {
        super(channel);
    }

    static Inbox consume(Channel channel, String queue) throws IOException {
        return consume(channel, queue, false, false);
    }

    static Inbox autoAck(Channel channel, String queue) throws IOException {
        return consume(channel, queue, true, false);
    }

    static Inbox consume(Channel channel, String queue, boolean autoAck, boolean exclusive) throws IOException {
        Inbox inbox = new Inbox(channel);
        inbox.tag = channel.basicConsume(queue, autoAck, "", false, exclusive, null, inbox);
        return inbox;
    }

    void cancel() throws IOException {
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

    boolean cancelledByBroker() {
        return cancelled;
    }

    synchronized List<Message> messages() {
        return List.copyOf(messages);
    }

    List<String> texts() {
        return messages().stream().map(Message::text).toList();
    }

    /** Bodies with their redelivered flags. */
    static List<Map.Entry<String, Boolean>> outline(List<Message> messages) {
        return messages.stream().map(message -> Map.entry(message.text(), message.redelivered())).toList();
    }

    /** Waits for `count` messages in all and returns them. */
    List<Message> await(int count) throws InterruptedException {
        waitUntil(() -> messages().size() >= count, () -> count + " messages, have " + texts());
        equal(messages().size(), count, "number of messages received");
        return messages();
    }

    Message awaitOne() throws InterruptedException {
        return await(1).get(0);
    }
}
