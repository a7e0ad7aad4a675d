package interop.rabbitmq;

import static interop.kit.Kit.check;
import static interop.kit.Kit.equal;
import static interop.kit.Kit.waitUntil;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.Method;
import com.rabbitmq.client.ShutdownSignalException;
import interop.kit.Kit.Action;
import interop.kit.Kit.Closer;
import interop.kit.Kit;
import java.io.IOException;
import java.io.InputStream;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/**
 * One scenario's view of the broker: connections that are closed and names that are deleted afterwards, so that
 * scenarios can share one long-lived broker, and short ways to publish, read and be refused.
 */
public final class Amqp {
    public static final AMQP.BasicProperties PERSISTENT = new AMQP.BasicProperties.Builder().deliveryMode(2).build();

    private final Closer closer;
    private final List<String> names = new ArrayList<>();
    /** The sockets below the connections, to cut them as a failing network would. */
    private final List<Socket> sockets = new ArrayList<>();

    public interface Scenario {
        void run(Amqp amqp) throws Exception;
    }

    public static void scenario(String name, Scenario scenario) {
        Kit.scenario(name, closer -> scenario.run(new Amqp(closer)));
    }

    public Amqp(Closer closer) {
        this.closer = closer;
        closer.defer(this::deleteNames); // runs last, when the connections are gone
    }

    private void deleteNames() throws Exception {
        if (!names.isEmpty()) {
            try (Connection connection = factory().newConnection(); Channel channel = connection.createChannel()) {
                for (String name : names) {
                    channel.queueDelete(name);
                    channel.exchangeDelete(name);
                }
            }
        }
    }

    /** A name nobody else uses. A queue and an exchange of that name are deleted after the scenario. */
    public String name(String kind) {
        String name = Kit.uniqueName(kind);
        names.add(name);
        return name;
    }

    public ConnectionFactory factory() {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setHost(Kit.amqpHost());
        factory.setPort(Kit.amqpPort());
        factory.setAutomaticRecoveryEnabled(false); // it would hide what the broker did
        factory.setConnectionTimeout(10_000);
        factory.setSocketConfigurator(sockets::add);
        if (Kit.authority() != null) {
            factory.useSslProtocol(trusting(Kit.authority()));
            factory.enableHostnameVerification();
        }
        return factory;
    }

    private static SSLContext trusting(String authority) {
        try (InputStream pem = Files.newInputStream(Path.of(authority))) {
            KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
            store.load(null, null);
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(pem));
            TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
            trust.init(store);
            SSLContext context = SSLContext.getInstance("TLS");
            context.init(null, trust.getTrustManagers(), null);
            return context;
        } catch (IOException | GeneralSecurityException error) {
            throw new IllegalStateException(error);
        }
    }

    public Connection connect() throws Exception {
        return connect(factory());
    }

    public Connection connect(ConnectionFactory factory) throws Exception {
        Connection connection = factory.newConnection();
        closer.defer(connection::abort);
        return connection;
    }

    /** A channel on a connection of its own. */
    public Channel channel() throws Exception {
        return connect().createChannel();
    }

    public Channel confirming() throws Exception {
        Channel channel = channel();
        channel.confirmSelect();
        return channel;
    }

    /** A queue with a unique name, neither durable nor exclusive nor auto-delete. */
    public String queue(Channel channel, String kind) throws IOException {
        String queue = name(kind);
        channel.queueDeclare(queue, false, false, false, null);
        return queue;
    }

    public String exchange(Channel channel, String type) throws IOException {
        String exchange = name(type);
        channel.exchangeDeclare(exchange, type);
        return exchange;
    }

    /** Cuts the newest connection without a word. */
    public void cut() throws IOException {
        Socket socket = sockets.get(sockets.size() - 1);
        socket.setSoLinger(true, 0);
        socket.close();
    }

    public boolean queueExists(String queue) throws Exception {
        return exists(channel -> channel.queueDeclarePassive(queue));
    }

    public boolean exchangeExists(String exchange) throws Exception {
        return exists(channel -> channel.exchangeDeclarePassive(exchange));
    }

    public interface Attempt {
        void on(Channel channel) throws Exception;
    }

    private boolean exists(Attempt passive) throws Exception {
        try (Connection connection = factory().newConnection()) {
            passive.on(connection.createChannel());
            return true;
        } catch (IOException e) {
            equal(closeOf(e).code, 404, "reply code");
            return false;
        }
    }

    /** Each attempt, on a channel of its own, must be refused with this code and text. */
    public void refused(int code, List<String> fragments, Attempt... attempts) throws Exception {
        for (Attempt attempt : attempts) {
            Channel channel = channel();
            refused(code, fragments, () -> attempt.on(channel));
            check(channel.getConnection().isOpen(), "a channel error closed the connection");
        }
    }

    public static void refused(int code, List<String> fragments, Action action) throws Exception {
        try {
            action.run();
        } catch (IOException | ShutdownSignalException e) {
            closeOf(e).mustSay(code, fragments);
            return;
        }
        throw new AssertionError("expected " + code + " " + fragments + ", but nothing was refused");
    }

    /** Waits for the close that answers something without an answer of its own. */
    public static void refusedLater(Channel channel, int code, String... fragments) throws InterruptedException {
        waitUntil(() -> !channel.isOpen(), () -> "the channel to be closed with " + code);
        Close.of(channel.getCloseReason()).mustSay(code, List.of(fragments));
    }

    public record Close(int code, String text) {
        public static Close of(ShutdownSignalException signal) {
            Method reason = signal.getReason();
            if (reason instanceof AMQP.Channel.Close close) {
                return new Close(close.getReplyCode(), close.getReplyText());
            }
            if (reason instanceof AMQP.Connection.Close close) {
                return new Close(close.getReplyCode(), close.getReplyText());
            }
            throw new AssertionError("closed without a reason from the broker: " + signal);
        }

        public void mustSay(int expected, List<String> fragments) {
            equal(code, expected, "reply code (" + text + ")");
            fragments.forEach(fragment -> check(text.contains(fragment), "'" + fragment + "' is not in the reply text '" + text + "'"));
        }
    }

    private static Close closeOf(Throwable thrown) {
        for (Throwable t = thrown; t != null; t = t.getCause()) {
            if (t instanceof ShutdownSignalException signal) {
                return Close.of(signal);
            }
        }
        throw new AssertionError("no close from the broker: " + Kit.describe(thrown), thrown);
    }

    public static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    public static String text(byte[] body) {
        return new String(body, StandardCharsets.UTF_8);
    }

    /** m0, m1, … */
    public static List<String> sequence(int count) {
        return IntStream.range(0, count).mapToObj(i -> "m" + i).toList();
    }

    /** Publishes and, on a confirming channel, waits for the confirms. */
    public static void publish(Channel channel, String exchange, String key, AMQP.BasicProperties properties, List<String> bodies) throws Exception {
        long confirmsBefore = channel.getNextPublishSeqNo();
        for (String body : bodies) {
            channel.basicPublish(exchange, key, properties, bytes(body));
        }
        if (confirmsBefore > 0) {
            channel.waitForConfirmsOrDie(10_000);
        }
    }

    public static void publish(Channel channel, String exchange, String key, String... bodies) throws Exception {
        publish(channel, exchange, key, null, List.of(bodies));
    }

    public static int ready(Channel channel, String queue) throws IOException {
        return channel.queueDeclarePassive(queue).getMessageCount();
    }

    /** Requeues are not answered: this is how they are seen. */
    public static void waitReady(Channel channel, String queue, int count) throws InterruptedException {
        waitUntil(() -> {
            try {
                return ready(channel, queue) == count;
            } catch (IOException e) {
                throw new AssertionError(Kit.describe(e), e);
            }
        }, () -> count + " ready messages in " + queue);
    }

    /** The bodies of everything ready, removed. */
    public static List<String> drain(Channel channel, String queue) throws IOException {
        List<String> bodies = new ArrayList<>();
        GetResponse response;
        while ((response = channel.basicGet(queue, true)) != null) {
            bodies.add(text(response.getBody()));
        }
        return bodies;
    }

    /** Body and redelivered flag of what basic.get returns. */
    public static Map.Entry<String, Boolean> got(GetResponse response) {
        return Map.entry(text(response.getBody()), response.getEnvelope().isRedeliver());
    }
}
