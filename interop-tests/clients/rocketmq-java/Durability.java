package interop.rocketmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.scenario;
import static interop.kit.Kit.waitUntil;
import static interop.rocketmq.Rocket.bytes;
import static interop.rocketmq.Rocket.newPushConsumer;
import static interop.rocketmq.Rocket.newTopic;
import static interop.rocketmq.Rocket.producer;
import static interop.rocketmq.Rocket.pullConsumer;
import static interop.rocketmq.Rocket.sendMany;
import static interop.rocketmq.Rocket.sendOk;
import static interop.rocketmq.Rocket.started;
import static interop.rocketmq.Rocket.text;

import interop.kit.Kit;
import interop.kit.Kit.Closer;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** What survives a restart of the broker, and that running clients find back by themselves. */
final class Durability {
    private Durability() {}

    static void register() {
        scenario("restart-graceful", Kit.RESTART_SECONDS, closer -> restart(closer, "term"));
        scenario("restart-kill", Kit.RESTART_SECONDS, closer -> restart(closer, "kill"));
    }

    private static void restart(Closer closer, String how) throws Exception {
        Kit.needsRestart();
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "restart");
        String group = Kit.uniqueName("group");
        Received running = new Received();
        started(closer, newPushConsumer(Kit.uniqueName("group"), topic, "*", running));
        Received before = new Received();
        DefaultMQPushConsumer stopped = started(closer, newPushConsumer(group, topic, "*", before));
        List<String> consumed = sendMany(producer, topic, "consumed", 20);
        before.awaitExactly(consumed);
        stopped.shutdown(); // writes its offsets
        Map<String, SendResult> results = new LinkedHashMap<>();
        for (int i = 0; i < 20; i++) {
            results.put("kept" + i, sendOk(producer, new Message(topic, "T", "key" + i, bytes("kept" + i))));
        }
        waitUntil(() -> running.bodies().containsAll(results.keySet()), () -> "the running consumer, has " + running.bodies());
        Kit.restart(how);

        // Every message is where SEND_OK said.
        DefaultMQPullConsumer reader = pullConsumer(closer, Kit.uniqueName("group"));
        for (Map.Entry<String, SendResult> entry : results.entrySet()) {
            SendResult result = entry.getValue();
            MessageExt message = reader.pull(result.getMessageQueue(), "*", result.getQueueOffset(), 1).getMsgFoundList().get(0);
            equal(List.of(text(message.getBody()), message.getMsgId(), message.getTags(), message.getQueueOffset()),
                List.of(entry.getKey(), result.getMsgId(), "T", result.getQueueOffset()), "message after the restart");
        }
        // The producer and the consumer that ran all the time go on.
        List<String> fresh = new ArrayList<>();
        for (int i = 0; i < 10; i++) {
            String body = "fresh" + i;
            waitUntil(30, () -> sent(producer, topic, body), () -> "the producer to be back");
            fresh.add(body);
        }
        waitUntil(60, () -> running.bodies().containsAll(fresh), () -> "the consumer to be back, has " + running.bodies());
        // The group goes on after its offsets.
        Received after = new Received();
        started(closer, newPushConsumer(group, topic, "*", after));
        Set<String> expected = new HashSet<>(results.keySet());
        expected.addAll(fresh);
        waitUntil(() -> after.bodies().containsAll(expected), () -> "the stopped group's messages, has " + after.bodies());
        if (how.equals("term")) {
            check(after.bodies().stream().noneMatch(consumed::contains), "a message came again, though its offset was written");
        }
        expected.addAll(consumed);
        check(expected.containsAll(after.bodies()), "messages that nobody sent: " + after.bodies());
    }

    private static boolean sent(DefaultMQProducer producer, String topic, String body) {
        try {
            sendOk(producer, new Message(topic, bytes(body)));
            return true;
        } catch (Exception e) {
            return false; // connections are still being made
        }
    }
}
