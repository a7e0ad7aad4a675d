package interop.rabbitmq;

import interop.kit.Kit;

/** RabbitMQ's Java client against an AMQP broker: see ../README.md for the environment and the output. */
public final class Main {
    private Main() {}

    public static void main(String[] arguments) {
        Tutorials.register();
        Connections.register();
        Topology.register();
        Routing.register();
        Publishing.register();
        Consuming.register();
        Features.register();
        Transactions.register();
        Durability.register();
        Kit.main();
    }
}
