package interop.across;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.waitUntil;
import static interop.rabbitmq.Amqp.bytes;
import static interop.rabbitmq.Amqp.drain;
import static interop.rabbitmq.Amqp.publish;
import static interop.rabbitmq.Amqp.sequence;
import static interop.rocketmq.Rocket.newTopic;
import static interop.rocketmq.Rocket.producer;
import static interop.rocketmq.Rocket.sendMany;
import static interop.rocketmq.Rocket.sendOk;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.GetResponse;
import interop.kit.Kit;
import interop.kit.Kit.Closer;
import interop.rabbitmq.Amqp;
import interop.rabbitmq.Inbox;
import interop.rocketmq.Received;
import interop.rocketmq.Rocket;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.compression.CompressionType;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Both Java clients against one broker: see ../README.md for the environment and the output. */
public final class Main {
    private Main() {}

    /** A scenario of both worlds. */
    private interface Scenario {
        void run(Amqp amqp, Closer closer) throws Exception;
    }

    public static void main(String[] arguments) {
        scenario("topic-to-queue", Main::topicToQueue);
        scenario("topic-to-queue-body", Main::topicToQueueBody);
        scenario("topic-to-queue-order", Main::topicToQueueOrder);
        scenario("topic-both", Main::topicBoth);
        scenario("exchange-to-topic", Main::exchangeToTopic);
        scenario("exchange-makes-topic", Main::exchangeMakesTopic);
        scenario("exchange-tag-filter", Main::exchangeTagFilter);
        scenario("binding-to-topic", Main::bindingToTopic);
        scenario("topic-to-exchange", Main::topicToExchange);
        scenario("exchange-as-topic", Main::exchangeAsTopic);
        scenario("transaction-to-queue", Main::transactionToQueue);
        scenario("delay-to-queue", Main::delayToQueue);
        scenario("dead-letters-both", Main::deadLettersBoth);
        scenario("amqp-retry", Main::amqpRetry);
        scenario("queue-as-topic", Main::queueAsTopic);
        scenario("lz4-and-zstd", Main::lz4AndZstd);
        scenario("request-to-queue", Main::requestToQueue);
        scenario("request-to-topic", Main::requestToTopic);
        Kit.scenario("across-restart", Kit.RESTART_SECONDS, closer -> restart(new Amqp(closer), closer));
        Kit.main();
    }

    private static void scenario(String name, Scenario scenario) {
        Kit.scenario(name, closer -> scenario.run(new Amqp(closer), closer));
    }

    private static String exchangeOf(String topic) {
        return "amq.rmq." + topic;
    }

    /** A durable queue bound to the topic's exchange. */
    private static String boundQueue(Amqp amqp, Channel channel, String topic, String key) throws Exception {
        String queue = amqp.name("bound");
        channel.queueDeclare(queue, true, false, false, null);
        channel.queueBind(queue, exchangeOf(topic), key);
        return queue;
    }

    private static Map<String, String> headers(AMQP.BasicProperties properties) {
        Map<String, String> headers = new TreeMap<>();
        properties.getHeaders().forEach((key, value) -> headers.put(key, String.valueOf(value)));
        return headers;
    }

    /** A durable queue is the topic AMQP-Q-<queue>: a send publishes to it, a pull looks and settles nothing. */
    private static void queueAsTopic(Amqp amqp, Closer closer) throws Exception {
        Channel channel = amqp.channel();
        String queue = amqp.name("looked.at");
        channel.queueDeclare(queue, true, false, false, null);
        String topic = "AMQP-Q-" + queue.replace(".", "|2E");
        DefaultMQProducer producer = producer(closer);
        waitUntil(() -> Rocket.queues(producer, topic).size() == 1, () -> "the route of the queue");
        Message sent = new Message(topic, "T", bytes("sent"));
        sent.putUserProperty("colour", "red");
        sendOk(producer, sent);
        publish(channel, "", queue, "published");
        MessageQueue only = Rocket.queues(producer, topic).get(0);
        DefaultMQPullConsumer consumer = Rocket.pullConsumer(closer, Kit.uniqueName("group"));
        for (int look = 0; look < 2; look++) {
            PullResult found = consumer.pull(only, "*", consumer.minOffset(only), 32);
            equal(found.getMsgFoundList().stream().map(message -> Rocket.text(message.getBody())).toList(), List.of("sent", "published"), "bodies looked at");
            equal(found.getNextBeginOffset(), consumer.maxOffset(only), "where to go on");
        }
        equal(channel.messageCount(queue), 2L, "messages in the queue after the looks");
        GetResponse first = channel.basicGet(queue, false);
        equal(List.of(new String(first.getBody(), StandardCharsets.UTF_8), first.getEnvelope().getExchange(), first.getEnvelope().getRoutingKey(),
            headers(first.getProps()).get("colour")), List.of("sent", "", queue, "red"), "what was sent, as AMQP sees it");
        channel.basicAck(first.getEnvelope().getDeliveryTag(), false);
        waitUntil(() -> minOffset(consumer, only) == 1, () -> "the consumed head to go");
        PullResult left = consumer.pull(only, "*", 1, 32);
        equal(left.getMsgFoundList().stream().map(message -> Rocket.text(message.getBody())).toList(), List.of("published"), "what is left");
        channel.queueDelete(queue);
        try {
            producer.send(new Message(topic, bytes("to nobody")));
            throw new AssertionError("a send to a queue that is gone was taken");
        } catch (MQBrokerException e) {
            equal(e.getResponseCode(), 17, "code: " + e.getErrorMessage());
        } catch (MQClientException e) {
            equal(e.getResponseCode(), 17, "code: " + e);
        }
    }

    private static long minOffset(DefaultMQPullConsumer consumer, MessageQueue queue) {
        try {
            return consumer.minOffset(queue);
        } catch (MQClientException e) {
            throw new IllegalStateException(e);
        }
    }

    /** Bodies that a 5.x producer packed by other means than zlib are open for AMQP, too. */
    private static void lz4AndZstd(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer first = producer(closer);
        String topic = newTopic(first, "packed");
        Channel channel = amqp.channel();
        Inbox inbox = Inbox.autoAck(channel, boundQueue(amqp, channel, topic, "#"));
        byte[] body = bytes("rock ".repeat(20_000));
        int came = 0;
        for (CompressionType type : List.of(CompressionType.LZ4, CompressionType.ZSTD, CompressionType.ZLIB)) {
            DefaultMQProducer producer = Rocket.newProducer();
            producer.setCompressType(type);
            sendOk(Rocket.started(closer, producer), new Message(topic, body));
            Inbox.Message got = inbox.await(++came).get(came - 1);
            check(Arrays.equals(got.body(), body), type + ": the body came different");
            equal(got.properties().getContentEncoding(), null, "content-encoding");
        }
    }

    /** A RocketMQ producer asks, an AMQP consumer of a bound queue answers as it answers anybody. */
    private static void requestToQueue(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "requests");
        Channel channel = amqp.channel();
        channel.basicConsume(boundQueue(amqp, channel, topic, "#"), true, (tag, delivery) -> {
            AMQP.BasicProperties asked = delivery.getProperties();
            AMQP.BasicProperties properties = new AMQP.BasicProperties.Builder().correlationId(asked.getCorrelationId()).headers(Map.of("lang", "en")).build();
            channel.basicPublish("", asked.getReplyTo(), properties, bytes("answer to " + new String(delivery.getBody(), StandardCharsets.UTF_8)));
        }, tag -> { });
        for (String text : List.of("one", "two")) {
            Message answer = producer.request(new Message(topic, "T", bytes(text)), 20_000);
            equal(Rocket.text(answer.getBody()), "answer to " + text, "the answer");
            equal(answer.getUserProperty("lang"), "en", "a header of the answer");
        }
    }

    /** An AMQP client asks through the topic's exchange, a RocketMQ consumer answers as it answers anybody. */
    private static void requestToTopic(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer answering = producer(closer);
        String topic = newTopic(answering, "requests");
        List<MessageExt> asked = Rocket.answer(closer, topic, answering, body -> "answer to " + body);
        Channel channel = amqp.channel();
        String queue = channel.queueDeclare().getQueue();
        for (String replyTo : List.of(queue, "amq.rabbitmq.reply-to")) {
            Inbox inbox = Inbox.autoAck(channel, replyTo);
            AMQP.BasicProperties properties = new AMQP.BasicProperties.Builder().correlationId("c-" + replyTo).replyTo(replyTo).build();
            channel.basicPublish(exchangeOf(topic), "T", properties, bytes("question"));
            Inbox.Message answer = inbox.await(1).get(0);
            equal(List.of(answer.text(), answer.properties().getCorrelationId()), List.of("answer to question", "c-" + replyTo), "the answer");
        }
        equal(asked.size(), 2, "requests");
    }

    private static void topicToQueue(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "topic"); // what made the topic came before the bindings: no queue gets it
        Channel channel = amqp.channel();
        Map<String, List<String>> expected = Map.of(
            "#", List.of("new", "old", "bill", "untagged"),
            "orders.*", List.of("new", "old"),
            "bills", List.of("bill"),
            "", List.of("untagged"));
        Map<String, Inbox> inboxes = new HashMap<>();
        for (String key : expected.keySet()) {
            inboxes.put(key, Inbox.autoAck(channel, boundQueue(amqp, channel, topic, key)));
        }
        for (String[] tagAndBody : new String[][] {{"orders.new", "new"}, {"orders.old", "old"}, {"bills", "bill"}, {"", "untagged"}}) {
            Message message = new Message(topic, tagAndBody[0], bytes(tagAndBody[1]));
            message.putUserProperty("colour", "grün " + tagAndBody[1]);
            sendOk(producer, message, Rocket.queues(producer, topic).get(1)); // one message queue: one order
        }
        for (Map.Entry<String, List<String>> entry : expected.entrySet()) {
            inboxes.get(entry.getKey()).await(entry.getValue().size());
            equal(inboxes.get(entry.getKey()).texts(), entry.getValue(), "bodies for the binding key '" + entry.getKey() + "'");
        }
        List<Inbox.Message> all = inboxes.get("#").messages();
        equal(all.stream().map(message -> message.envelope().getRoutingKey()).toList(), List.of("orders.new", "orders.old", "bills", ""),
            "tags as routing keys");
        for (Inbox.Message message : all) {
            equal(message.envelope().getExchange(), exchangeOf(topic), "exchange");
            equal(headers(message.properties()).get("colour"), "grün " + message.text(), "user property as header");
        }
    }

    private static void topicToQueueBody(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer); // compresses from 4 KiB on
        String topic = newTopic(producer, "bodies");
        Channel channel = amqp.channel();
        Inbox inbox = Inbox.autoAck(channel, boundQueue(amqp, channel, topic, "#"));
        byte[] random = new byte[1 << 20];
        new Random(1).nextBytes(random);
        List<byte[]> bodies = List.of(bytes("small"), bytes("rock ".repeat(20_000)), random);
        for (byte[] body : bodies) {
            sendOk(producer, new Message(topic, body), Rocket.queues(producer, topic).get(2));
        }
        List<Inbox.Message> got = inbox.await(3);
        for (int i = 0; i < 3; i++) {
            check(Arrays.equals(got.get(i).body(), bodies.get(i)), "a body of " + bodies.get(i).length + " bytes came different");
        }
        Rocket.ok(producer.send(List.of(new Message(topic, bytes("first of a batch")), new Message(topic, bytes("second")))));
        inbox.await(5);
        equal(inbox.texts().subList(3, 5), List.of("first of a batch", "second"), "messages of a batch");
    }

    private static void topicToQueueOrder(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "order");
        Channel channel = amqp.channel();
        Inbox inbox = Inbox.autoAck(channel, boundQueue(amqp, channel, topic, "#"));
        for (String body : sequence(200)) {
            Rocket.ok(producer.send(new Message(topic, bytes(body)), (all, message, key) -> all.get(0), null));
        }
        inbox.await(200);
        equal(inbox.texts(), sequence(200), "messages of one message queue");
    }

    private static void topicBoth(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "both");
        Channel channel = amqp.channel();
        String queue = boundQueue(amqp, channel, topic, "#");
        Received group = Rocket.consume(closer, topic, "*");
        List<String> first = sendMany(producer, topic, "first", 20);
        group.awaitExactly(first);
        Inbox inbox = Inbox.consume(channel, queue);
        inbox.await(20);
        equal(inbox.texts().stream().sorted().toList(), first.stream().sorted().toList(), "bodies in the queue");
        channel.basicAck(0, true);
        inbox.cancel();
        // A group that comes after the acks still finds everything, the queue nothing more.
        Received late = Rocket.consume(closer, topic, "*");
        late.awaitExactly(first);
        List<String> second = sendMany(producer, topic, "second", 5);
        late.awaitExactly(Stream.concat(first.stream(), second.stream()).toList());
        Amqp.waitReady(channel, queue, 5);
        equal(drain(channel, queue).stream().sorted().toList(), second, "bodies after the acks");
    }

    private static void exchangeToTopic(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "publish");
        Channel channel = amqp.confirming();
        String queue = boundQueue(amqp, channel, topic, "orders.#");
        Received group = Rocket.consume(closer, topic, "*");
        AMQP.BasicProperties properties = Amqp.PERSISTENT.builder().headers(Map.of("colour", "grün", "size", 5)).build();
        publish(channel, exchangeOf(topic), "orders.new", properties, List.of("by AMQP"));
        publish(channel, exchangeOf(topic), "bills", properties, List.of("unbound"));
        List<MessageExt> got = new ArrayList<>(group.await(2));
        got.sort((a, b) -> b.getTags().compareTo(a.getTags()));
        equal(got.stream().map(message -> Rocket.text(message.getBody())).toList(), List.of("by AMQP", "unbound"), "bodies");
        equal(got.stream().map(MessageExt::getTags).toList(), List.of("orders.new", "bills"), "routing keys as tags");
        for (MessageExt message : got) {
            equal(List.of(message.getTopic(), message.getUserProperty("colour"), message.getUserProperty("size")),
                List.of(topic, "grün", "5"), "topic and headers as user properties");
            check(message.getMsgId() != null && message.getQueueOffset() >= 0, "an id and an offset");
        }
        equal(drain(channel, queue), List.of("by AMQP"), "a queue bound to the topic, once");
    }

    private static void exchangeMakesTopic(Amqp amqp, Closer closer) throws Exception {
        String topic = Kit.uniqueName("made-by-amqp");
        Channel channel = amqp.confirming();
        publish(channel, exchangeOf(topic), "tag", Amqp.PERSISTENT, List.of("first"));
        DefaultMQProducer producer = producer(closer);
        check(!Rocket.queues(producer, topic).isEmpty(), "the topic is routable once its first message is confirmed");
        sendOk(producer, new Message(topic, bytes("second")));
        Rocket.consume(closer, topic, "*").awaitExactly(List.of("first", "second"));
    }

    private static void exchangeTagFilter(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "filter");
        Channel channel = amqp.confirming();
        Received wanted = Rocket.consume(closer, topic, "A || B");
        for (String key : List.of("A", "C", "B", "a.b", "A")) {
            publish(channel, exchangeOf(topic), key, "to " + key);
        }
        wanted.awaitExactly(List.of("to A", "to B", "to A"));
    }

    private static void bindingToTopic(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "binding");
        Channel channel = amqp.confirming();
        String exchange = amqp.exchange(channel, "topic");
        String queue = amqp.queue(channel, "own");
        channel.queueBind(queue, exchange, "#");
        channel.exchangeBind(exchangeOf(topic), exchange, "orders.#");
        Received group = Rocket.consume(closer, topic, "*");
        for (String key : List.of("orders.new", "bills", "orders.old.one")) {
            publish(channel, exchange, key, key);
        }
        group.awaitExactly(List.of("orders.new", "orders.old.one"));
        equal(group.messages().stream().map(MessageExt::getTags).sorted().toList(), List.of("orders.new", "orders.old.one"), "tags");
        equal(drain(channel, queue), List.of("orders.new", "bills", "orders.old.one"), "the exchange's own queue");
        channel.exchangeUnbind(exchangeOf(topic), exchange, "orders.#");
        publish(channel, exchange, "orders.late", "late");
        publish(channel, exchangeOf(topic), "end", "end");
        waitUntil(() -> group.bodies().contains("end"), () -> "the last message, have " + group.bodies());
        group.awaitExactly(List.of("orders.new", "orders.old.one", "end"));
    }

    private static void topicToExchange(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "to-exchange");
        Channel channel = amqp.channel();
        String exchange = amqp.exchange(channel, "direct");
        String queue = amqp.queue(channel, "own");
        channel.queueBind(queue, exchange, "paid");
        channel.exchangeBind(exchange, exchangeOf(topic), "#");
        for (String tag : List.of("paid", "late", "paid")) {
            sendOk(producer, new Message(topic, tag, bytes("was " + tag)), Rocket.queues(producer, topic).get(0));
        }
        Amqp.waitReady(channel, queue, 2);
        equal(drain(channel, queue), List.of("was paid", "was paid"), "what the exchange routes by tag");
        channel.exchangeUnbind(exchange, exchangeOf(topic), "#");
        sendOk(producer, new Message(topic, "paid", bytes("afterwards")));
        equal(drain(channel, queue), List.of(), "messages after the binding");
    }

    /** A RocketMQ producer sends to an exchange by its name. */
    private static void exchangeAsTopic(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        Channel channel = amqp.channel();
        String exchange = amqp.exchange(channel, "topic");
        String queue = amqp.queue(channel, "own");
        channel.queueBind(queue, exchange, "orders.*");
        StringBuilder topic = new StringBuilder("AMQP-X-");
        for (byte b : bytes(exchange)) {
            topic.append(Character.isLetterOrDigit(b) || b == '-' || b == '_' ? String.valueOf((char) b) : String.format("|%02X", b));
        }
        for (String tag : List.of("orders", "orders.new")) {
            sendOk(producer, new Message(topic.toString(), tag, bytes("tag " + tag)));
        }
        Message named = new Message(topic.toString(), "bills", bytes("by property"));
        named.putUserProperty("AMQP_ROUTING_KEY", "orders.old");
        sendOk(producer, named);
        Amqp.waitReady(channel, queue, 2);
        GetResponse first = channel.basicGet(queue, true);
        equal(List.of(Amqp.text(first.getBody()), first.getEnvelope().getExchange(), first.getEnvelope().getRoutingKey()),
            List.of("tag orders.new", exchange, "orders.new"), "first message");
        equal(drain(channel, queue), List.of("by property"), "the rest");
        try {
            producer.send(new Message("AMQP-X-" + Kit.uniqueName("nowhere"), bytes("lost")));
            throw new AssertionError("a send to an exchange that does not exist was taken");
        } catch (MQClientException | MQBrokerException e) {
            check(Kit.describe(e).contains("there is no exchange"), Kit.describe(e));
        }
    }

    private static void transactionToQueue(Amqp amqp, Closer closer) throws Exception {
        TransactionMQProducer producer = Rocket.at(new TransactionMQProducer(Kit.uniqueName("producers")));
        Map<String, Integer> early = new HashMap<>();
        Channel channel = amqp.channel();
        List<String> queues = new ArrayList<>();
        producer.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
                try {
                    for (String queue : queues) {
                        early.merge(queue, (int) channel.messageCount(queue), Integer::sum);
                    }
                } catch (IOException e) {
                    throw new UncheckedIOException(e);
                }
                return LocalTransactionState.valueOf((String) argument);
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                return LocalTransactionState.COMMIT_MESSAGE;
            }
        });
        Rocket.started(closer, producer);
        String topic = newTopic(producer, "transaction");
        for (String key : List.of("#", "orders", "bills")) {
            queues.add(boundQueue(amqp, channel, topic, key));
        }
        Received group = Rocket.consume(closer, topic, "*");
        for (String[] tagBodyAndEnd : new String[][] {
            {"orders", "rolled back", "ROLLBACK_MESSAGE"}, {"orders", "z".repeat(30_000), "COMMIT_MESSAGE"},
            {"bills", "bill", "COMMIT_MESSAGE"}, {"orders", "asked", "UNKNOW"}}) {
            Message message = new Message(topic, tagBodyAndEnd[0], bytes(tagBodyAndEnd[1]));
            message.putUserProperty("colour", "red");
            producer.sendMessageInTransaction(message, tagBodyAndEnd[2]);
            if (tagBodyAndEnd[2].equals("COMMIT_MESSAGE")) {
                // One batch: where one queue has it, all have it.
                Amqp.waitReady(channel, queues.get(tagBodyAndEnd[0].equals("orders") ? 1 : 2), 1);
                check(channel.messageCount(queues.get(0)) >= 1, "a queue of two has the message");
            }
        }
        waitUntil(30, () -> group.messages().size() >= 3, () -> "three committed messages, have " + group.messages().size());
        group.awaitExactly(List.of("z".repeat(30_000), "bill", "asked"));
        equal(drain(channel, queues.get(0)), List.of("z".repeat(30_000), "bill", "asked"), "bodies for #");
        equal(drain(channel, queues.get(2)), List.of("bill"), "bodies for bills");
        GetResponse first = channel.basicGet(queues.get(1), true);
        equal(headers(first.getProps()).get("colour"), "red", "user property as header");
        check(headers(first.getProps()).keySet().stream().noneMatch(name -> name.startsWith("REAL_") || name.equals("TRAN_MSG")),
            "headers of the broker's own: " + first.getProps().getHeaders());
        equal(headers(first.getProps()).get("x-rmq-topic"), topic, "topic");
        equal(drain(channel, queues.get(1)), List.of("asked"), "bodies for orders");
        equal(early.get(queues.get(0)), 3, "messages in the queue of all, counted during each transaction");
    }

    private static void delayToQueue(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "delayed");
        Channel channel = amqp.channel();
        Inbox inbox = Inbox.autoAck(channel, boundQueue(amqp, channel, topic, "later"));
        long sent = System.currentTimeMillis();
        for (String body : List.of("small", "x".repeat(20_000))) {
            Message message = new Message(topic, "later", bytes(body));
            message.setDelayTimeLevel(1);
            message.putUserProperty("colour", "red");
            sendOk(producer, message);
        }
        List<Inbox.Message> got = inbox.await(2);
        check(System.currentTimeMillis() - sent >= Kit.delay(1) - 100, "came before its time");
        equal(inbox.texts(), List.of("small", "x".repeat(20_000)), "bodies");
        for (Inbox.Message message : got) {
            equal(message.envelope().getExchange(), exchangeOf(topic), "exchange");
            Map<String, String> headers = headers(message.properties());
            equal(List.of(headers.get("x-rmq-topic"), headers.get("colour")), List.of(topic, "red"), "headers");
            check(!headers.containsKey("DELAY") && !headers.containsKey("REAL_TOPIC"), "headers of the broker's own: " + headers);
        }
    }

    /** A consumer that never consumes; attempts are counted by body. */
    private static void never(Closer closer, String group, String topic, int retries, List<MessageExt> attempts) throws Exception {
        DefaultMQPushConsumer consumer = Rocket.at(new DefaultMQPushConsumer(group));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setMaxReconsumeTimes(retries);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            if (Rocket.SEED.equals(messages.get(0).getTags())) {
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            }
            synchronized (attempts) {
                attempts.add(messages.get(0));
            }
            context.setDelayLevelWhenNextConsume(1);
            return ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        Rocket.started(closer, consumer);
    }

    private static void deadLettersBoth(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "deadly");
        String group = Kit.uniqueName("group");
        String dead = "%DLQ%" + group;
        Channel channel = amqp.channel();
        // The topic of a group's dead letters can be made, and bound, before there is one.
        producer.createTopic(topic, dead, 1, Map.of());
        Inbox inbox = Inbox.autoAck(channel, boundQueue(amqp, channel, dead, "#"));
        List<MessageExt> attempts = new ArrayList<>();
        never(closer, group, topic, 1, attempts);
        Message message = new Message(topic, "bills", bytes("dead " + "x".repeat(9000)));
        message.putUserProperty("colour", "red");
        SendResult sent = sendOk(producer, message);
        Inbox.Message letter = inbox.await(1).get(0);
        equal(letter.text(), "dead " + "x".repeat(9000), "body");
        equal(List.of(letter.envelope().getExchange(), letter.envelope().getRoutingKey(), letter.properties().getMessageId()),
            List.of(exchangeOf(dead), "bills", sent.getMsgId()), "exchange, key and id");
        Map<?, ?> death = (Map<?, ?>) ((List<?>) letter.properties().getHeaders().get("x-death")).get(0);
        equal(List.of(String.valueOf(death.get("reason")), String.valueOf(death.get("queue")), String.valueOf(death.get("exchange")),
            String.valueOf(death.get("routing-keys")), death.get("count")),
            List.of("delivery_limit", group, exchangeOf(topic), "[bills]", 1L), "x-death");
        equal(headers(letter.properties()).get("colour"), "red", "user property as header");
        equal(headers(letter.properties()).get("x-delivery-count"), "2", "deliveries");
        equal(attempts.size(), 2, "attempts");
        // And RocketMQ's own tools see it, too.
        Rocket.consume(closer, dead, "*").awaitExactly(List.of(letter.text()));
    }

    private static void amqpRetry(Amqp amqp, Closer closer) throws Exception {
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "amqp-retry");
        String group = Kit.uniqueName("group");
        String dead = "%DLQ%" + group;
        Channel channel = amqp.confirming();
        producer.createTopic(topic, dead, 1, Map.of());
        Inbox inbox = Inbox.autoAck(channel, boundQueue(amqp, channel, dead, "#"));
        List<MessageExt> attempts = new ArrayList<>();
        never(closer, group, topic, 2, attempts);
        AMQP.BasicProperties properties = Amqp.PERSISTENT.builder().headers(Map.of("colour", "grün", "KEYS", "theirs", "size", 5))
            .messageId("m-1").type("order").contentType("text/plain").build();
        publish(channel, exchangeOf(topic), "orders.new", properties, List.of("by AMQP"));
        Inbox.Message letter = inbox.await(1).get(0);
        for (int i = 0; i < 3; i++) {
            MessageExt attempt = attempts.get(i);
            equal(List.of(attempt.getTopic(), attempt.getTags(), attempt.getKeys(), attempt.getReconsumeTimes(), attempt.getUserProperty("colour")),
                List.of(topic, "orders.new", "m-1", i, "grün"), "attempt " + i);
            equal(attempt.getMsgId(), attempts.get(0).getMsgId(), "one id for all attempts");
        }
        equal(letter.text(), "by AMQP", "body");
        AMQP.BasicProperties seen = letter.properties();
        equal(List.of(seen.getMessageId(), seen.getType(), seen.getContentType(), letter.envelope().getRoutingKey()),
            List.of("m-1", "order", "text/plain", "orders.new"), "properties");
        Map<String, String> headers = headers(seen);
        equal(List.of(headers.get("colour"), headers.get("KEYS"), headers.get("size")), List.of("grün", "theirs", "5"), "headers");
        equal(headers.get("x-first-death-exchange"), exchangeOf(topic), "exchange that it was published to");
    }

    private static void restart(Amqp amqp, Closer closer) throws Exception {
        Kit.needsRestart();
        DefaultMQProducer producer = producer(closer);
        String topic = newTopic(producer, "restart");
        Channel channel = amqp.confirming();
        String queue = boundQueue(amqp, channel, topic, "#");
        List<String> sent = sendMany(producer, topic, "by RocketMQ ", 10);
        List<String> published = Stream.iterate(0, i -> i + 1).limit(10).map(i -> "by AMQP " + i).toList();
        publish(channel, exchangeOf(topic), "tag", Amqp.PERSISTENT, published);
        Kit.restart("kill");
        List<String> all = Stream.concat(sent.stream(), published.stream()).sorted().toList();
        Channel again = amqp.confirming();
        equal(drain(again, queue).stream().sorted().toList(), all, "the queue after the restart");
        Rocket.consume(closer, topic, "*").awaitExactly(all);
        // The binding lives.
        publish(again, exchangeOf(topic), "tag", "afterwards");
        GetResponse response = again.basicGet(queue, true);
        equal(response == null ? null : Amqp.text(response.getBody()), "afterwards", "message after the restart");
    }
}
