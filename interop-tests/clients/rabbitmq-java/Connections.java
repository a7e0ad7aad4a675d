package interop.rabbitmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.waitUntil;
import static interop.rabbitmq.Amqp.drain;
import static interop.rabbitmq.Amqp.publish;
import static interop.rabbitmq.Amqp.refused;
import static interop.rabbitmq.Amqp.scenario;
import static interop.rabbitmq.Amqp.sequence;
import static interop.rabbitmq.Amqp.waitReady;

import com.rabbitmq.client.AuthenticationFailureException;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import interop.kit.Kit;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.stream.IntStream;

/** Handshake, refusals at login, heartbeats, channels and what is left of a connection that was cut. */
final class Connections {
    private static final List<String> CORE_CAPABILITIES = List.of("publisher_confirms", "exchange_exchange_bindings", "basic.nack",
        "consumer_cancel_notify", "per_consumer_qos", "authentication_failure_close");

    private Connections() {}

    static void register() {
        scenario("handshake", Connections::handshake);
        scenario("wrong-password", Connections::wrongPassword);
        scenario("unknown-vhost", Connections::unknownVhost);
        scenario("heartbeat-idle", Connections::heartbeatIdle);
        scenario("channel-lifecycle", Connections::channelLifecycle);
        scenario("channel-error-isolation", Connections::channelErrorIsolation);
        scenario("delivery-after-lost-connection", Connections::deliveryAfterLostConnection);
        scenario("connection-blocked", Connections::connectionBlocked);
    }

    private static void connectionBlocked(Amqp amqp) throws Exception {
        Kit.needsRestart();
        List<String> seen = java.util.Collections.synchronizedList(new ArrayList<>());
        Connection publisher = amqp.connect(amqp.factory());
        publisher.addBlockedListener(reason -> seen.add("blocked: " + reason), () -> seen.add("unblocked"));
        Channel channel = publisher.createChannel();
        String queue = amqp.queue(channel, "queue");
        publish(channel, "", queue, "before");
        channel.queueDeclarePassive(queue);
        Channel other = amqp.connect(amqp.factory()).createChannel();
        Kit.restart("alarm");
        try {
            publish(channel, "", queue, "under the alarm");
            waitUntil(() -> !seen.isEmpty(), () -> "connection.blocked");
            equal(List.copyOf(seen), List.of("blocked: low on memory"), "events under the alarm");
            equal(drain(other, queue), List.of("before"), "what can be got under the alarm");
        } finally {
            Kit.restart("calm");
        }
        waitUntil(() -> seen.size() > 1, () -> "connection.unblocked");
        equal(seen.get(1), "unblocked", "event after the alarm");
        channel.queueDeclarePassive(queue);
        equal(drain(channel, queue), List.of("under the alarm"), "the queue after the alarm");
    }

    private static void handshake(Amqp amqp) throws Exception {
        ConnectionFactory factory = amqp.factory();
        factory.setRequestedChannelMax(100);
        factory.setRequestedFrameMax(8192);
        factory.setRequestedHeartbeat(7);
        Connection connection = amqp.connect(factory);
        Map<String, Object> server = connection.getServerProperties();
        for (String key : List.of("product", "version", "platform")) {
            check(server.get(key) != null && !server.get(key).toString().isEmpty(), "server property " + key + " is " + server.get(key));
        }
        Map<?, ?> capabilities = (Map<?, ?>) server.get("capabilities");
        CORE_CAPABILITIES.forEach(capability -> equal(capabilities.get(capability), true, "capability " + capability));
        equal(List.of(connection.getChannelMax(), connection.getFrameMax(), connection.getHeartbeat()), List.of(100, 8192, 7),
            "negotiated limits");
    }

    private static void wrongPassword(Amqp amqp) throws Exception {
        ConnectionFactory factory = amqp.factory();
        factory.setPassword("wrong");
        try {
            amqp.connect(factory);
        } catch (AuthenticationFailureException e) { // the client's name for 403 before the connection is open
            check(e.getMessage().contains("ACCESS_REFUSED") && e.getMessage().contains("Login was refused"), "text: " + e.getMessage());
            return;
        }
        throw new AssertionError("a wrong password was accepted");
    }

    private static void unknownVhost(Amqp amqp) throws Exception {
        ConnectionFactory factory = amqp.factory();
        factory.setVirtualHost("no-such-vhost");
        refused(530, List.of("NOT_ALLOWED", "no-such-vhost"), () -> amqp.connect(factory));
    }

    private static void heartbeatIdle(Amqp amqp) throws Exception {
        ConnectionFactory factory = amqp.factory();
        factory.setRequestedHeartbeat(1);
        Connection connection = amqp.connect(factory);
        CompletableFuture<Object> closed = new CompletableFuture<>();
        connection.addShutdownListener(closed::complete);
        try { // The time is the subject here. Either side gives up after two silent intervals.
            throw new AssertionError("an idle connection was closed: " + closed.get(5, TimeUnit.SECONDS));
        } catch (TimeoutException quiet) {
            Channel channel = connection.createChannel();
            String queue = channel.queueDeclare().getQueue();
            publish(channel, "", queue, "still here");
            equal(drain(channel, queue), List.of("still here"), "queue after the idle time");
        }
    }

    private static void channelLifecycle(Amqp amqp) throws Exception {
        Connection connection = amqp.connect();
        List<Channel> channels = new ArrayList<>();
        for (int i = 0; i < 50; i++) {
            channels.add(connection.createChannel());
        }
        equal(channels.stream().map(Channel::getChannelNumber).distinct().count(), 50L, "different channel numbers");
        Channel first = channels.get(0);
        String queue = first.queueDeclare().getQueue();
        for (int i = 0; i < 50; i++) {
            publish(channels.get(i), "", queue, "" + i);
        }
        for (Channel channel : channels.subList(1, 50)) {
            channel.close();
        }
        // Every closed channel's publishes were processed before its close was answered.
        equal(drain(first, queue).stream().map(Integer::valueOf).sorted().toList(), IntStream.range(0, 50).boxed().toList(),
            "one message of each channel");
        Channel again = connection.createChannel(channels.get(7).getChannelNumber());
        publish(again, "", queue, "again");
        again.close();
        equal(drain(first, queue), List.of("again"), "message by a reused channel number");
    }

    private static void channelErrorIsolation(Amqp amqp) throws Exception {
        Connection connection = amqp.connect();
        Channel healthy = connection.createChannel();
        Channel failing = connection.createChannel();
        String queue = amqp.queue(healthy, "isolation");
        Inbox.consume(failing, queue);
        equal(healthy.queueDeclarePassive(queue).getConsumerCount(), 1, "consumers before the error");
        refused(404, List.of(), () -> failing.queueDeclarePassive(amqp.name("missing")));
        check(!failing.isOpen() && healthy.isOpen() && connection.isOpen(), "only the failing channel is closed");
        waitUntil(() -> consumers(healthy, queue) == 0, () -> "the closed channel's consumer to go");
        publish(healthy, "", queue, "fine");
        Channel fresh = connection.createChannel(failing.getChannelNumber());
        waitReady(fresh, queue, 1);
        equal(drain(fresh, queue), List.of("fine"), "message read on the same channel number");
    }

    private static int consumers(Channel channel, String queue) {
        try {
            return channel.queueDeclarePassive(queue).getConsumerCount();
        } catch (IOException e) {
            throw new AssertionError(Kit.describe(e), e);
        }
    }

    private static void deliveryAfterLostConnection(Amqp amqp) throws Exception {
        Channel watcher = amqp.confirming();
        String queue = amqp.queue(watcher, "lost");
        publish(watcher, "", queue, null, sequence(5));
        Channel doomed = amqp.channel();
        doomed.basicQos(3);
        Inbox held = Inbox.consume(doomed, queue);
        doomed.basicAck(held.await(3).get(0).tag(), false);
        held.await(4); // the ack has arrived: a fourth message came for it
        amqp.cut();
        waitReady(watcher, queue, 4);
        equal(Inbox.outline(Inbox.autoAck(watcher, queue).await(4)),
            List.of(Map.entry("m1", true), Map.entry("m2", true), Map.entry("m3", true), Map.entry("m4", false)), "what came back");
    }
}
