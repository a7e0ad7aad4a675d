package interop.kit;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.BooleanSupplier;
import java.util.function.Supplier;

/**
 * What every Java program of the client tests needs: the registry of scenarios, the environment, deadlines and checks.
 * A scenario passes by returning, fails by throwing, skips by throwing {@link Skip}. It knows no broker and no client.
 */
public final class Kit {
    /** A scenario: everything it opens it hands to the closer, which closes in reverse order. */
    public interface Scenario {
        void run(Closer closer) throws Exception;
    }

    public interface Action {
        void run() throws Exception;
    }

    /** The scenario can not run here; the text says why. */
    public static final class Skip extends RuntimeException {
        private static final long serialVersionUID = 1;

        public Skip(String reason) {
            super(reason);
        }
    }

    /** Things to close when a scenario is over, whatever its end. */
    public static final class Closer {
        private final List<Action> actions = new ArrayList<>();

        public synchronized void defer(Action action) {
            actions.add(0, action);
        }

        private synchronized void close() throws Exception {
            Exception first = null;
            for (Action action : actions) {
                try {
                    action.run();
                } catch (Exception e) {
                    first = first == null ? e : first;
                }
            }
            if (first != null) {
                throw first;
            }
        }
    }

    private record Registered(Scenario scenario, int seconds) {}

    private static final int SCENARIO_SECONDS = 60;
    public static final int RESTART_SECONDS = 180;
    /** Apache's brokers let a new group wait for 20 s and more; that must not fail the control. */
    private static final int CONTROL_PATIENCE = 60;

    private static final Map<String, Registered> SCENARIOS = new LinkedHashMap<>();

    private Kit() {}

    public static void scenario(String name, Scenario scenario) {
        scenario(name, SCENARIO_SECONDS, scenario);
    }

    public static void scenario(String name, int seconds, Scenario scenario) {
        SCENARIOS.put(name, new Registered(scenario, seconds));
    }

    /** Runs the scenarios named in INTEROP_ONLY (all when it is not set) and ends the process. */
    public static void main() {
        String only = System.getenv("INTEROP_ONLY");
        boolean allWell = true;
        for (String name : only == null || only.isEmpty() ? SCENARIOS.keySet() : List.of(only.split(","))) {
            String line = runOne(name);
            System.out.println(line);
            allWell &= !line.startsWith("FAIL");
        }
        // The clients leave threads behind that would keep the process alive.
        System.exit(allWell ? 0 : 1);
    }

    private static final ThreadLocal<String> NOTE = new ThreadLocal<>();

    /** A measured value or the like, printed behind the scenario's name when it passes. */
    public static void note(String text) {
        NOTE.set(text);
    }

    private static String runOne(String name) {
        Registered registered = SCENARIOS.get(name);
        if (registered == null) {
            return "FAIL " + name + ": this client has no such scenario";
        }
        FutureTask<String> task = new FutureTask<>(() -> {
            Closer closer = new Closer();
            try {
                registered.scenario.run(closer);
            } finally {
                closer.close();
            }
            return NOTE.get();
        });
        Thread thread = new Thread(task, name);
        thread.setDaemon(true);
        thread.start();
        int seconds = registered.seconds * (onControl() ? 3 : 1);
        try {
            String note = task.get(seconds, TimeUnit.SECONDS);
            return "ok " + name + (note == null ? "" : ": " + note);
        } catch (ExecutionException e) {
            if (e.getCause() instanceof Skip skip) {
                return "skip " + name + ": " + skip.getMessage();
            }
            e.getCause().printStackTrace();
            return "FAIL " + name + ": " + describe(e.getCause());
        } catch (TimeoutException e) {
            for (StackTraceElement frame : thread.getStackTrace()) {
                System.err.println("    at " + frame);
            }
            return "FAIL " + name + ": not done after " + seconds + " s";
        } catch (InterruptedException e) {
            return "FAIL " + name + ": interrupted";
        }
    }

    /** The whole chain of causes in one line. */
    public static String describe(Throwable thrown) {
        StringBuilder text = new StringBuilder();
        for (Throwable t = thrown; t != null; t = t.getCause()) {
            text.append(text.length() == 0 ? "" : " <- ").append(t.getClass().getSimpleName()).append(": ").append(t.getMessage());
        }
        return text.toString().replaceAll("\\s+", " ");
    }

    public static String amqpHost() {
        return address("INTEROP_AMQP")[0];
    }

    public static int amqpPort() {
        return Integer.parseInt(address("INTEROP_AMQP")[1]);
    }

    public static String nameServer() {
        return String.join(":", address("INTEROP_NAME_SERVER"));
    }

    /** The PEM file with the authority that signed the broker's certificate, or null: then everything is plaintext. */
    public static String authority() {
        return System.getenv("INTEROP_TLS_CA");
    }

    private static String[] address(String variable) {
        String value = System.getenv(variable);
        check(value != null && value.contains(":"), variable + " must be host:port");
        int colon = value.lastIndexOf(':');
        return new String[] {value.substring(0, colon), value.substring(colon + 1)};
    }

    /** How long delay level 1, 2, … of this broker waits, in ms. */
    public static long delay(int level) {
        return seconds("INTEROP_DELAY_SECONDS", "1 5 10 30 60 120")[level - 1] * 1000L;
    }

    /** After how many ms this broker asks about a transaction first (0), and how many ms later again (1). */
    public static long check(int which) {
        return seconds("INTEROP_CHECK_SECONDS", "6 30")[which] * 1000L;
    }

    private static int[] seconds(String variable, String otherwise) {
        String value = System.getenv(variable);
        return Arrays.stream((value == null ? otherwise : value).split(" ")).mapToInt(Integer::parseInt).toArray();
    }

    /** True when the broker is a peer that Dassie is compared with. */
    public static boolean onControl() {
        return "control".equals(System.getenv("INTEROP_TARGET"));
    }

    /** Restarts the broker by "term" or "kill"; it is ready again on return. */
    public static void restart(String how) throws IOException, InterruptedException {
        Process hook = new ProcessBuilder("sh", "-c", System.getenv("DASSIE_RESTART") + " " + how).redirectErrorStream(true).start();
        String output = new String(hook.getInputStream().readAllBytes(), StandardCharsets.UTF_8).trim();
        check(hook.waitFor() == 0, "restart hook: " + output);
    }

    public static void needsRestart() {
        String hook = System.getenv("DASSIE_RESTART");
        if (hook == null || hook.isEmpty()) {
            throw new Skip("no restart hook (DASSIE_RESTART is not set)");
        }
    }

    public static void needsAccounts() {
        String accounts = System.getenv("INTEROP_ACCOUNTS");
        if (accounts == null || accounts.isEmpty()) {
            throw new Skip("the broker does not know the accounts (INTEROP_ACCOUNTS is not set)");
        }
    }

    public static String uniqueName(String kind) {
        return "interop-" + kind + "-" + UUID.randomUUID().toString().substring(0, 8);
    }

    /** A table shared with the clients in other languages: lines "key: word word", "" for an empty word. */
    public static Map<String, List<String>> table(String name) throws IOException {
        Map<String, List<String>> rows = new LinkedHashMap<>();
        for (String line : Files.readAllLines(Path.of(System.getenv("INTEROP_TABLES"), name))) {
            if (!line.isBlank() && !line.startsWith("#")) {
                String[] parts = line.split(":", 2);
                rows.put(word(parts[0].trim()), Arrays.stream(parts[1].trim().split("\\s+")).map(Kit::word).toList());
            }
        }
        return rows;
    }

    private static String word(String text) {
        return text.equals("\"\"") ? "" : text;
    }

    public static void check(boolean condition, String text) {
        if (!condition) {
            throw new AssertionError(text);
        }
    }

    /** Compares by value, arrays too. */
    public static void equal(Object actual, Object expected, String what) {
        if (!Objects.deepEquals(actual, expected)) {
            throw new AssertionError(what + ": expected " + shown(expected) + ", got " + shown(actual));
        }
    }

    private static String shown(Object value) {
        String text = value instanceof byte[] bytes ? new String(bytes, StandardCharsets.UTF_8)
            : value instanceof Object[] array ? Arrays.deepToString(array) : String.valueOf(value);
        return text.length() <= 300 ? text : text.substring(0, 300) + "… (" + text.length() + " characters)";
    }

    /** Waits for a condition that other threads bring about. */
    public static void waitUntil(BooleanSupplier condition, Supplier<String> what) throws InterruptedException {
        waitUntil(onControl() ? CONTROL_PATIENCE : 10, condition, what);
    }

    public static void waitUntil(int seconds, BooleanSupplier condition, Supplier<String> what) throws InterruptedException {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
        while (!condition.getAsBoolean()) {
            check(System.nanoTime() < deadline, "waited " + seconds + " s for " + what.get());
            Thread.sleep(5);
        }
    }
}
