package interop.rocketmq;

import static interop.kit.Kit.equal;
import static interop.kit.Kit.waitUntil;

import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyContext;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.common.message.MessageExt;

/** Collects what a push consumer is given, in the order of the calls. Seeds are consumed and forgotten. */
public final class Received implements MessageListenerConcurrently {
    private final List<MessageExt> messages = new ArrayList<>();

    @Override
    public synchronized ConsumeConcurrentlyStatus consumeMessage(List<MessageExt> batch, ConsumeConcurrentlyContext context) {
        batch.stream().filter(message -> !Rocket.SEED.equals(message.getTags())).forEach(messages::add);
        return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
    }

    public synchronized List<MessageExt> messages() {
        return List.copyOf(messages);
    }

    public List<String> bodies() {
        return messages().stream().map(message -> Rocket.text(message.getBody())).toList();
    }

    /** Waits for `count` messages in all and returns them. */
    public List<MessageExt> await(int count) throws InterruptedException {
        waitUntil(() -> messages().size() >= count, () -> count + " messages, have " + bodies());
        equal(messages().size(), count, "number of messages");
        return messages();
    }

    /** Waits until exactly these bodies have come, in any order, each as often as it is named. */
    public void awaitExactly(Collection<String> expected) throws InterruptedException {
        await(expected.size());
        equal(bodies().stream().sorted().toList(), expected.stream().sorted().toList(), "bodies");
    }
}
