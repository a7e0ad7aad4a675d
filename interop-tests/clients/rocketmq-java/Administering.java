package interop.rocketmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.scenario;
import static interop.kit.Kit.uniqueName;
import static interop.kit.Kit.waitUntil;
import static interop.rocketmq.Rocket.bytes;
import static interop.rocketmq.Rocket.newPushConsumer;
import static interop.rocketmq.Rocket.newTopic;
import static interop.rocketmq.Rocket.producer;
import static interop.rocketmq.Rocket.queues;
import static interop.rocketmq.Rocket.sendMany;
import static interop.rocketmq.Rocket.sendOk;
import static interop.rocketmq.Rocket.started;

import interop.kit.Kit;
import interop.kit.Kit.Closer;
import java.util.List;
import java.util.Map;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.impl.MQClientAPIImpl;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** What tools ask, by the calls that the client library itself brings for them. */
final class Administering {
    private static final long MILLIS = 10_000;

    private Administering() {}

    static void register() {
        scenario("query-by-key", Administering::queryByKey);
        scenario("delete-topic", Administering::deleteTopic);
        scenario("topic-config", Administering::topicConfig);
        scenario("group-figures", Administering::groupFigures);
        scenario("reset-offset", Administering::resetOffset);
        scenario("group-config", Administering::groupConfig);
        scenario("group-tools", Administering::groupTools);
        scenario("key-values", Administering::keyValues);
        scenario("signed-requests", Administering::signedRequests);
    }

    private static MQClientAPIImpl api(DefaultMQProducer producer) {
        return producer.getDefaultMQProducerImpl().getMqClientFactory().getMQClientAPIImpl();
    }

    /** The broker's address, of a topic whose route this producer knows. */
    private static String broker(DefaultMQProducer producer, String topic) throws Exception {
        MessageQueue queue = queues(producer, topic).get(0);
        sendOk(producer, new Message(topic, Rocket.SEED, bytes("route")), queue);
        return producer.getDefaultMQProducerImpl().getMqClientFactory().findBrokerAddressInPublish(queue.getBrokerName());
    }

    private static void queryByKey(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "keys");
        long before = System.currentTimeMillis() - 1000;
        SendResult one = sendOk(producer, new Message(topic, "T", "order-1 shared", bytes("one")));
        sendOk(producer, new Message(topic, "T", "order-2 shared", bytes("two")));
        sendMany(producer, topic, "other", 20);
        long after = System.currentTimeMillis() + 60_000;
        // Apache's index follows a moment later.
        waitUntil(() -> bodies(producer, topic, "shared", before, after).size() == 2, () -> "both messages of a key");
        equal(bodies(producer, topic, "shared", before, after), List.of("one", "two"), "messages of a shared key");
        equal(bodies(producer, topic, "order-2", before, after), List.of("two"), "messages of a key");
        equal(bodies(producer, topic, "order", before, after), List.of(), "messages of a part of a key");
        equal(bodies(producer, topic, "shared", before - 7_200_000, before - 3_600_000), List.of(), "messages of an earlier time");
        MessageExt found = producer.viewMessage(topic, one.getMsgId());
        equal(List.of(Rocket.text(found.getBody()), found.getMsgId(), found.getQueueOffset(), found.getQueueId(), found.getKeys()),
            List.of("one", one.getMsgId(), one.getQueueOffset(), one.getMessageQueue().getQueueId(), "order-1 shared"), "message of a unique key");
    }

    /** Sorted; none when the client finds none. */
    private static List<String> bodies(DefaultMQProducer producer, String topic, String key, long begin, long end) {
        try {
            return producer.queryMessage(topic, key, 32, begin, end).getMessageList().stream().map(message -> Rocket.text(message.getBody())).sorted().toList();
        } catch (MQClientException e) {
            equal(e.getResponseCode(), 208, "code for nothing found: " + e.getErrorMessage());
            return List.of();
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        }
    }

    private static void deleteTopic(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String other = newTopic(producer, "other");
        String topic = newTopic(producer, "deleted");
        String address = broker(producer, topic);
        sendMany(producer, topic, "old", 20);
        api(producer).deleteTopicInBroker(address, topic, MILLIS);
        Compat.deleteRoute(api(producer), topic);
        DefaultMQProducer fresh = producer(closer);
        waitUntil(() -> queues(fresh, topic).isEmpty(), () -> "the route of a deleted topic to go");
        check(!queues(fresh, other).isEmpty(), "another topic lost its route");
        // A topic of that name begins anew.
        Compat.createTopic(fresh, other, topic, 2);
        waitUntil(() -> queues(fresh, topic).size() == 2, () -> "the new topic's two queues");
        for (MessageQueue queue : queues(fresh, topic)) {
            equal(sendOk(fresh, new Message(topic, bytes("new")), queue).getQueueOffset(), 0L, "first offset");
        }
    }

    private static void topicConfig(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String seed = newTopic(producer, "seed");
        String address = broker(producer, seed);
        String topic = uniqueName("config");
        TopicConfig config = new TopicConfig(topic, 3, 2, 6);
        config.setOrder(true);
        api(producer).createTopic(address, "TBW102", config, MILLIS);
        waitUntil(() -> queues(producer, topic).size() == 2, () -> "two queues to write to");
        var known = api(producer).getAllTopicConfig(address, MILLIS).getTopicConfigTable().get(topic);
        equal(List.of(known.getReadQueueNums(), known.getWriteQueueNums(), known.getPerm(), known.isOrder()), List.of(3, 2, 6, true), "topic");
        var stats = api(producer).getTopicStatsInfo(address, seed, MILLIS).getOffsetTable();
        equal(stats.size(), 4, "queues with figures");
        equal(stats.values().stream().mapToLong(queue -> queue.getMaxOffset() - queue.getMinOffset()).sum(), 2L, "messages");
        check(stats.values().stream().anyMatch(queue -> Math.abs(queue.getLastUpdateTimestamp() - System.currentTimeMillis()) < 60_000), "last update");
        for (String bad : List.of("a b", "TBW102", "")) {
            try {
                api(producer).createTopic(address, "TBW102", new TopicConfig(bad, 1, 1, 6), MILLIS);
                throw new AssertionError("a topic [" + bad + "] was made");
            } catch (MQClientException e) {
                equal(e.getResponseCode(), 29, "code for [" + bad + "]: " + e.getErrorMessage());
            } catch (MQBrokerException e) {
                equal(e.getResponseCode(), 29, "code for [" + bad + "]: " + e.getErrorMessage());
            }
        }
    }

    private static void groupFigures(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "figures");
        String address = broker(producer, topic);
        String group = uniqueName("group");
        Received inbox = new Received();
        DefaultMQPushConsumer consumer = started(closer, newPushConsumer(group, topic, "*", inbox));
        inbox.awaitExactly(sendMany(producer, topic, "m", 20));
        var connections = api(producer).getConsumerConnectionList(address, group, MILLIS);
        equal(connections.getConnectionSet().size(), 1, "connections");
        equal(connections.getConnectionSet().iterator().next().getClientId(), consumer.buildMQClientId(), "client");
        equal(connections.getSubscriptionTable().get(topic).getSubString(), "*", "subscription");
        equal(connections.getConsumeType().name() + " " + connections.getMessageModel().name(), "CONSUME_PASSIVELY CLUSTERING", "manner");
        var info = api(producer).getConsumerRunningInfo(address, group, consumer.buildMQClientId(), false, MILLIS);
        check(info.getMqTable().keySet().stream().anyMatch(queue -> queue.getTopic().equals(topic)), "the consumer's own state names its queues");
        check(api(producer).queryTopicConsumeByWho(address, topic, MILLIS).getGroupList().contains(group), "groups of the topic");
        try {
            api(producer).getConsumerConnectionList(address, uniqueName("nobody"), MILLIS);
            throw new AssertionError("a group without members has connections");
        } catch (MQBrokerException e) {
            equal(e.getResponseCode(), 206, "code for a group that is not online");
        }
        consumer.shutdown(); // writes its offsets
        var stats = api(producer).getConsumeStats(address, group, topic, MILLIS);
        equal(stats.getOffsetTable().values().stream().mapToLong(queue -> queue.getBrokerOffset()).sum(), 22L, "broker offsets");
        equal(stats.computeTotalDiff(), 0L, "what is left");
        // By itself a 4.x producer tells of itself after up to 30 s.
        producer.getDefaultMQProducerImpl().getMqClientFactory().sendHeartbeatToAllBrokerWithLock();
        var producers = api(producer).getProducerConnectionList(address, producer.getProducerGroup(), MILLIS);
        equal(producers.getConnectionSet().size(), 1, "producers");
    }

    private static void resetOffset(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "reset");
        String address = broker(producer, topic);
        String group = uniqueName("group");
        Received first = new Received();
        DefaultMQPushConsumer consumer = started(closer, newPushConsumer(group, topic, "*", first));
        List<String> bodies = sendMany(producer, topic, "m", 12);
        first.awaitExactly(bodies);
        consumer.shutdown(); // writes its offsets
        Map<MessageQueue, Long> moved = api(producer).invokeBrokerToResetOffset(address, topic, group, 0, true, MILLIS);
        equal(moved.size(), 4, "queues moved");
        check(moved.values().stream().allMatch(offset -> offset == 0), "all to the beginning: " + moved);
        Received again = new Received();
        started(closer, newPushConsumer(group, topic, "*", again));
        again.awaitExactly(bodies);
    }

    private static void groupConfig(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "allowed");
        String address = broker(producer, topic);
        String group = uniqueName("group");
        Compat.consumeEnable(api(producer), address, group, false);
        Received inbox = new Received();
        started(closer, newPushConsumer(group, topic, "*", inbox));
        String other = uniqueName("group");
        Received free = new Received();
        started(closer, newPushConsumer(other, topic, "*", free));
        List<String> bodies = sendMany(producer, topic, "m", 8);
        free.awaitExactly(bodies);
        equal(inbox.bodies(), List.of(), "messages of a group that may not consume");
        Compat.consumeEnable(api(producer), address, group, true);
        inbox.awaitExactly(bodies);
        api(producer).deleteSubscriptionGroup(address, group, true, MILLIS);
    }

    private static void groupTools(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "tools");
        String address = broker(producer, topic);
        String group = uniqueName("group");
        Received inbox = new Received();
        DefaultMQPushConsumer consumer = started(closer, newPushConsumer(group, topic, "*", inbox));
        inbox.awaitExactly(sendMany(producer, topic, "m", 8));
        waitUntil(() -> left(consumer, producer, address, group, topic) == 0, () -> "the group's offsets");

        var spans = api(producer).queryConsumeTimeSpan(address, topic, group, MILLIS);
        equal(spans.size(), 4, "queues with a time span");
        for (var span : spans) {
            check(span.getDelayTime() == 0 && span.getMinTimeStamp() <= span.getConsumeTimeStamp(), "span " + span);
        }
        String client = consumer.buildMQClientId();
        var held = api(producer).invokeBrokerToGetConsumerStatus(address, topic, group, "", MILLIS);
        equal(List.copyOf(held.keySet()), List.of(client), "clients that hold offsets");
        equal(held.get(client).values().stream().mapToLong(Long::longValue).sum(), 10L, "offsets they hold");

        Message message = new Message(topic, "T", bytes("straight"));
        SendResult sent = sendOk(producer, message);
        inbox.await(9);
        String outcome = Compat.consumeDirectly(api(producer), address, group, client, topic, sent.getOffsetMsgId());
        equal(outcome, "CR_SUCCESS", "outcome of a message consumed at once");
        equal(inbox.bodies().stream().filter("straight"::equals).count(), 2L, "times it was consumed");

        String heir = uniqueName("heir");
        api(producer).cloneGroupOffset(address, group, heir, topic, true, MILLIS);
        long copied = 0;
        for (var offset : api(producer).getConsumeStats(address, heir, topic, MILLIS).getOffsetTable().values()) {
            copied += offset.getConsumerOffset();
        }
        check(copied == 10 || copied == 11, "copied offsets: " + copied);
        producer.getDefaultMQProducerImpl().getMqClientFactory().sendHeartbeatToAllBrokerWithLock();
        check(api(producer).getAllProducerInfo(address, MILLIS).getData().containsKey(producer.getProducerGroup()), "all producers");
        equal(api(producer).wipeWritePermOfBroker(Kit.nameServer(), "no-such-broker", MILLIS), 0, "topics of a broker that nobody knows");
        Compat.moreTools(api(producer), address, group, topic);
    }

    /** What a group has not committed yet; the consumer is told to write what it has. */
    private static long left(DefaultMQPushConsumer consumer, DefaultMQProducer producer, String address, String group, String topic) {
        try {
            consumer.getDefaultMQPushConsumerImpl().persistConsumerOffset();
            return api(producer).getConsumeStats(address, group, topic, MILLIS).computeTotalDiff();
        } catch (Exception e) {
            throw new IllegalStateException(e);
        }
    }

    /** Requests signed as Apache's ACL signs them are those of the user; others' are refused. */
    private static void signedRequests(Closer closer) throws Exception {
        Kit.needsAccounts();
        DefaultMQProducer guest = producer(closer);
        String theirs = newTopic(guest, "unsigned");
        DefaultMQProducer signer = signing(closer, Compat.signer("signer", "a secret of the signer"));
        String topic = uniqueName("signed");
        sendOk(signer, new Message(topic, "T", bytes("mine")));
        waitUntil(() -> !queues(signer, topic).isEmpty(), () -> "the route of a signer's topic");
        // Its rights are its own, not those of requests without a signature.
        refused(signer, theirs);
        refused(signing(closer, Compat.signer("signer", "another secret")), topic);
        refused(signing(closer, Compat.signer("stranger", "a secret of the signer")), topic);
        sendOk(guest, new Message(topic, bytes("unsigned")));
    }

    private static DefaultMQProducer signing(Closer closer, org.apache.rocketmq.remoting.RPCHook hook) throws MQClientException {
        DefaultMQProducer producer = Rocket.at(new DefaultMQProducer(uniqueName("producers"), hook));
        producer.setRetryTimesWhenSendFailed(0);
        return started(closer, producer);
    }

    private static void refused(DefaultMQProducer producer, String topic) throws Exception {
        try {
            producer.send(new Message(topic, bytes("refused")));
            throw new AssertionError("a send to " + topic + " was taken");
        } catch (MQBrokerException e) {
            equal(e.getResponseCode(), 16, "code: " + e.getErrorMessage());
        } catch (MQClientException e) {
            // Whoever may nothing does not even learn where the topic is.
            check(List.of(16, 10005).contains(e.getResponseCode()), "code: " + e);
        }
    }

    private static void keyValues(Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String space = uniqueName("space");
        api(producer).putKVConfigValue(space, "a", "1", MILLIS);
        api(producer).putKVConfigValue(space, "b", "zwei ö", MILLIS);
        api(producer).putKVConfigValue(space, "a", "2", MILLIS);
        equal(api(producer).getKVConfigValue(space, "a", MILLIS), "2", "value");
        equal(Map.copyOf(api(producer).getKVListByNamespace(space, MILLIS).getTable()), Map.of("a", "2", "b", "zwei ö"), "list");
        api(producer).deleteKVConfigValue(space, "a", MILLIS);
        try {
            api(producer).getKVConfigValue(space, "a", MILLIS);
            throw new AssertionError("a deleted key has a value");
        } catch (MQClientException e) {
            equal(e.getResponseCode(), 22, "code for a missing key");
        }
    }
}
