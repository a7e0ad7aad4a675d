//! lapin against an AMQP broker: see ../../README.md for the environment it reads and the lines it prints.

mod connections;
mod consuming;
mod durability;
mod features;
mod kit;
mod publishing;
mod routing;
mod topology;
mod transactions;
mod tutorials;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let modules = [
        tutorials::scenarios(),
        connections::scenarios(),
        topology::scenarios(),
        routing::scenarios(),
        publishing::scenarios(),
        consuming::scenarios(),
        features::scenarios(),
        transactions::scenarios(),
        durability::scenarios(),
    ];
    kit::run(modules.into_iter().flatten().collect()).await
}
