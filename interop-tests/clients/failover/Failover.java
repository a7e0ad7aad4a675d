import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/**
 * Producers and consumers of every kind, with their defaults, while somebody kills brokers. A send that ends with an exception is sent
 * again, the same Message object, until it succeeds. In the end every message must stand in its topic exactly once, and must have
 * reached every group.
 *
 * <p>Arguments: name servers, name of the run. Commands on standard input: {@code twice} (sends messages twice on purpose; answered
 * with {@code twice N}), {@code ok} (answered with the number of sends that succeeded, and the longest time that none did since it
 * was asked last, ms), {@code end}. The last line is {@code passed ...} or {@code FAILED ...}.
 */
public final class Failover {
    private static final int DEADLINE_MS = 60_000;
    private static String servers;
    private static String run;
    private static volatile boolean running = true;

    /** Body of each message that must arrive, and how often it must stand in its topic. */
    private static final Map<String, Map<String, Integer>> wanted = new ConcurrentHashMap<>();

    /** By group and topic: bodies that came. */
    private static final Map<String, Set<String>> came = new ConcurrentHashMap<>();

    private static final List<String> faults = new ArrayList<>();
    private static final AtomicLong sent = new AtomicLong();
    private static final AtomicLong again = new AtomicLong();
    private static final AtomicLong lastOk = new AtomicLong(System.nanoTime());
    private static final AtomicLong longest = new AtomicLong();
    private static final List<Thread> threads = new ArrayList<>();
    private static final List<AutoCloseable> closers = new ArrayList<>();

    interface Sender {
        SendStatus send(Message message) throws Exception;
    }

    interface Maker {
        Message make(String body);
    }

    public static void main(String[] args) throws Exception {
        servers = args[0];
        run = args[1];
        int code = 1;
        try {
            code = work() ? 0 : 1;
        } catch (Throwable e) {
            e.printStackTrace();
            System.out.println("FAILED " + e);
        }
        System.out.flush();
        System.exit(code);
    }

    private static boolean work() throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer(run + "-P");
        start(producer);
        TransactionMQProducer transactional = new TransactionMQProducer(run + "-T");
        transactional.setTransactionListener(new Decider());
        start(transactional);
        for (String kind : List.of("sync", "async", "batch", "delay", "half", "order", "twice")) {
            first(producer, kind);
        }
        consume("cluster", false, List.of("sync", "async", "batch", "delay", "half"), 2);
        consume("broadcast", true, List.of("sync"), 1);
        consumeInOrder();

        for (int n = 0; n < 3; n++) {
            loop("sync", "s" + n, 3, Failover::message, message -> producer.send(message).getSendStatus());
        }
        loop("async", "a", 3, Failover::message, message -> async(producer, message));
        loop("delay", "d", 20, Failover::delayed, message -> producer.send(message).getSendStatus());
        loop("half", "h", 15, Failover::half,
                message -> transactional.sendMessageInTransaction(message, null).getSendStatus());
        loop("order", "o", 5, Failover::ordered, message -> producer.send(message,
                (queues, ignored, key) -> queues.stream().filter(q -> q.getQueueId() == 1).findFirst().orElseThrow(),
                "o").getSendStatus());
        batches(producer);
        System.out.println("ready");
        commands(producer);
        running = false;
        for (Thread thread : threads) {
            thread.join(DEADLINE_MS);
            if (thread.isAlive()) {
                fault("a sender never ended: " + thread.getName());
            }
        }
        judge();
        for (AutoCloseable closer : closers) {
            closer.close();
        }
        synchronized (faults) {
            faults.forEach(fault -> System.out.println("  " + fault));
            System.out.println((faults.isEmpty() ? "passed" : "FAILED") + " sent " + sent + ", sent again by the program "
                    + again + ", faults " + faults.size());
            return faults.isEmpty();
        }
    }

    private static void start(DefaultMQProducer producer) throws MQClientException {
        producer.setNamesrvAddr(servers);
        producer.setInstanceName(run + "-" + producer.getProducerGroup());
        producer.start();
        closers.add(producer::shutdown);
    }

    private static void commands(DefaultMQProducer producer) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null && !line.equals("end"); line = in.readLine()) {
            if (line.equals("ok")) {
                pause();
                System.out.println("ok " + sent.get() + " " + longest.getAndSet(0) / 1_000_000);
            } else if (line.startsWith("twice")) {
                twice(producer, line);
            }
        }
    }

    /** The same object again after its SEND_OK: two messages, by whichever nodes they go. */
    private static void twice(DefaultMQProducer producer, String name) throws Exception {
        for (int n = 0; n < 12; n++) {
            String body = name + "-" + n;
            Message message = message(topic("twice"), body);
            try {
                for (int times = 0; times < 2; times++) {
                    producer.send(message);
                }
                want("twice", body, 2);
            } catch (Exception e) {
                // Nobody can say how often that one is there.
                System.err.println("not judged: " + body + ": " + e);
            }
        }
        System.out.println("twice " + name);
    }

    private static void pause() {
        longest.accumulateAndGet(System.nanoTime() - lastOk.get(), Math::max);
    }

    private static String topic(String kind) {
        return run + "-" + kind;
    }

    private static Message message(String topic, String body) {
        return new Message(topic, "T", body, body.getBytes(StandardCharsets.UTF_8));
    }

    private static Message message(String body) {
        return message(topic("sync"), body);
    }

    private static Message delayed(String body) {
        Message message = message(topic("delay"), body);
        message.setDelayTimeLevel(1);
        return message;
    }

    private static Message half(String body) {
        return message(topic("half"), body);
    }

    private static Message ordered(String body) {
        return message(topic("order"), body);
    }

    private static void first(DefaultMQProducer producer, String kind) throws Exception {
        store(kind, message(topic(kind), "first"), message -> producer.send(message).getSendStatus());
    }

    private static SendStatus async(DefaultMQProducer producer, Message message) throws Exception {
        message.setTopic(topic("async"));
        CountDownLatch done = new CountDownLatch(1);
        Object[] result = new Object[1];
        producer.send(message, new SendCallback() {
            @Override
            public void onSuccess(SendResult sendResult) {
                result[0] = sendResult.getSendStatus();
                done.countDown();
            }

            @Override
            public void onException(Throwable e) {
                result[0] = e;
                done.countDown();
            }
        });
        if (!done.await(30, TimeUnit.SECONDS)) {
            fault("a callback never came");
            throw new IllegalStateException("no callback");
        }
        if (result[0] instanceof Exception e) {
            throw e;
        }
        return (SendStatus) result[0];
    }

    private static void batches(DefaultMQProducer producer) {
        spawn("b", n -> {
            List<Message> batch = new ArrayList<>();
            for (int k = 0; k < 5; k++) {
                batch.add(message(topic("batch"), "b-" + n + "-" + k));
            }
            long begun = System.nanoTime();
            while (true) {
                try {
                    // The messages keep their unique keys, whoever sends them again.
                    if (producer.send(batch).getSendStatus() == SendStatus.SEND_OK) {
                        break;
                    }
                } catch (Exception e) {
                    failed("batch", e, begun);
                }
            }
            batch.forEach(message -> want("batch", text(message), 1));
            succeeded();
            Thread.sleep(10);
        });
    }

    interface Step {
        void run(int n) throws Exception;
    }

    private static void spawn(String name, Step step) {
        Thread thread = new Thread(() -> {
            try {
                for (int n = 0; running; n++) {
                    step.run(n);
                }
            } catch (Exception e) {
                fault(name + ": " + e);
            }
        }, name);
        threads.add(thread);
        thread.start();
    }

    private static void loop(String kind, String name, int pause, Maker maker, Sender sender) {
        spawn(name, n -> {
            // Digits, so that order can be seen.
            store(kind, maker.make(name + "-" + String.format("%06d", n)), sender);
            Thread.sleep(pause);
        });
    }

    private static void store(String kind, Message message, Sender sender) throws Exception {
        long begun = System.nanoTime();
        while (true) {
            try {
                if (sender.send(message) == SendStatus.SEND_OK) {
                    break;
                }
                failed(kind, new IllegalStateException("not SEND_OK"), begun);
            } catch (Exception e) {
                failed(kind, e, begun);
            }
        }
        want(kind, text(message), 1);
        succeeded();
    }

    private static void succeeded() {
        sent.incrementAndGet();
        long now = System.nanoTime();
        longest.accumulateAndGet(now - lastOk.getAndSet(now), Math::max);
    }

    private static void failed(String kind, Exception e, long begun) throws Exception {
        again.incrementAndGet();
        System.err.println("send again: " + kind + ": " + e);
        if ((System.nanoTime() - begun) / 1_000_000 > DEADLINE_MS) {
            throw e;
        }
        Thread.sleep(100);
    }

    private static String text(Message message) {
        return new String(message.getBody(), StandardCharsets.UTF_8);
    }

    private static void want(String kind, String body, int times) {
        wanted.computeIfAbsent(kind, any -> new ConcurrentHashMap<>()).put(body, times);
    }

    private static void fault(String text) {
        synchronized (faults) {
            faults.add(text);
        }
    }

    /** Every second one is ended at once, the others when the broker asks. */
    private static final class Decider implements TransactionListener {
        @Override
        public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
            return text(message).hashCode() % 2 == 0 ? LocalTransactionState.COMMIT_MESSAGE : LocalTransactionState.UNKNOW;
        }

        @Override
        public LocalTransactionState checkLocalTransaction(MessageExt message) {
            return LocalTransactionState.COMMIT_MESSAGE;
        }
    }

    private static Set<String> sink(String group, String kind) {
        return came.computeIfAbsent(group + " " + kind, any -> ConcurrentHashMap.newKeySet());
    }

    private static void consume(String group, boolean broadcasting, List<String> kinds, int members) throws Exception {
        for (int n = 0; n < members; n++) {
            DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(run + "-" + group);
            consumer.setNamesrvAddr(servers);
            consumer.setInstanceName(run + "-" + group + n);
            if (broadcasting) {
                broadcast(consumer);
            }
            consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
            for (String kind : kinds) {
                consumer.subscribe(topic(kind), "*");
                sink(group, kind);
            }
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                for (MessageExt message : messages) {
                    sink(group, message.getTopic().substring(run.length() + 1)).add(text(message));
                }
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
            consumer.start();
            closers.add(consumer::shutdown);
        }
    }

    /** The enum has another package in 5.x. */
    @SuppressWarnings({"unchecked", "rawtypes"})
    private static void broadcast(DefaultMQPushConsumer consumer) throws Exception {
        Class model = consumer.getMessageModel().getClass();
        consumer.getClass().getMethod("setMessageModel", model).invoke(consumer, Enum.valueOf(model, "BROADCASTING"));
    }

    private static void consumeInOrder() throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(run + "-orderly");
        consumer.setNamesrvAddr(servers);
        consumer.setInstanceName(run + "-orderly");
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic("order"), "*");
        Set<String> sink = sink("orderly", "order");
        String[] last = {""};
        consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
            for (MessageExt message : messages) {
                String body = text(message);
                // One that came already may come again, with all that followed it; a new one stands behind all others.
                if (sink.add(body) && !body.equals("first")) {
                    if (body.compareTo(last[0]) < 0) {
                        fault("out of order: " + body + " behind " + last[0]);
                    }
                    last[0] = body;
                }
            }
            return ConsumeOrderlyStatus.SUCCESS;
        });
        consumer.start();
        closers.add(consumer::shutdown);
    }

    private static void judge() throws Exception {
        DefaultMQPullConsumer reader = new DefaultMQPullConsumer(run + "-reader");
        reader.setNamesrvAddr(servers);
        reader.setInstanceName(run + "-reader");
        reader.start();
        closers.add(reader::shutdown);
        for (Map.Entry<String, Map<String, Integer>> of : new TreeMap<>(wanted).entrySet()) {
            String kind = of.getKey();
            long deadline = System.nanoTime() + DEADLINE_MS * 1_000_000L;
            Map<String, Integer> stored = stored(reader, topic(kind));
            // Delays pass and transactions are asked about.
            while (!stored.keySet().containsAll(of.getValue().keySet()) && System.nanoTime() < deadline) {
                Thread.sleep(500);
                stored = stored(reader, topic(kind));
            }
            int lost = 0;
            int more = 0;
            for (Map.Entry<String, Integer> message : of.getValue().entrySet()) {
                int times = stored.getOrDefault(message.getKey(), 0);
                if (times != message.getValue()) {
                    lost += times < message.getValue() ? 1 : 0;
                    more += times > message.getValue() ? 1 : 0;
                    if (lost + more < 5) {
                        fault(kind + ": " + message.getKey() + " is there " + times + " times");
                    }
                }
            }
            System.out.println(kind + ": " + of.getValue().size() + " messages, too few " + lost + ", too many " + more);
            if (lost + more > 0) {
                fault(kind + ": too few " + lost + ", too many " + more);
            }
        }
        long deadline = System.nanoTime() + DEADLINE_MS * 1_000_000L;
        for (Map.Entry<String, Set<String>> group : came.entrySet()) {
            String kind = group.getKey().split(" ")[1];
            Set<String> all = wanted.get(kind).keySet();
            while (!group.getValue().containsAll(all) && System.nanoTime() < deadline) {
                Thread.sleep(200);
            }
            List<String> missing = new ArrayList<>(all);
            missing.removeAll(group.getValue());
            System.out.println("group " + group.getKey() + ": missing " + missing.size());
            if (!missing.isEmpty()) {
                fault("group " + group.getKey() + ": missing " + missing.size() + ", such as " + missing.get(0));
            }
        }
    }

    /** How often each body stands in the topic. */
    private static Map<String, Integer> stored(DefaultMQPullConsumer reader, String topic) throws Exception {
        Map<String, Integer> stored = new TreeMap<>();
        // A node that is asked under another name shows queues to write to; each queue is read by one way.
        for (MessageQueue queue : reader.fetchSubscribeMessageQueues(topic)) {
            long end = reader.maxOffset(queue);
            for (long offset = reader.minOffset(queue); offset < end; ) {
                PullResult result = reader.pull(queue, "*", offset, 1000);
                if (result.getPullStatus() == PullStatus.FOUND) {
                    result.getMsgFoundList().forEach(message -> stored.merge(text(message), 1, Integer::sum));
                }
                offset = Math.max(offset + 1, result.getNextBeginOffset());
            }
        }
        return stored;
    }
}
