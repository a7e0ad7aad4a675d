package interop.rocketmq;

import interop.kit.Kit;

/** Apache's Java client against a RocketMQ broker: see ../README.md for the environment and the output. */
public final class Main {
    private Main() {}

    public static void main(String[] arguments) {
        Producing.register();
        Topics.register();
        PushConsuming.register();
        PullConsuming.register();
        Ordered.register();
        Administering.register();
        Later.register();
        Durability.register();
        Kit.main();
    }
}
