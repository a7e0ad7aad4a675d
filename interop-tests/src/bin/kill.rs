//! Kills a real broker again and again under load, and judges what its clients saw:
//! `kill --broker PATH --kills N --seconds-between LO..HI --out HISTORY [--protocol amqp|rocketmq|both] [--seed N]`.
//!
//! The process is killed without warning, now and then once more while it recovers. At the end every AMQP queue is
//! drained until it is empty twice, and every topic is read from its first message to its last.
//!
//! Owns: the killing. Promises: see [`dassie_interop::harm`]. Exit status: 0 passed, 1 a promise is broken or the
//! broker failed, 2 no verdict. What failed keeps its directory. Does not know: the rules, the traffic.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use dassie_interop::harm::{Arguments, Broker, Load, Words, Worlds};
use dassie_interop::history::event::Op;
use dassie_interop::sim::dice::Dice;

const USAGE: &str = "usage: kill --broker PATH --kills N --seconds-between LO..HI --out HISTORY \
                     [--protocol amqp|rocketmq|both] [--seed N] [--dir DIRECTORY]";
/// One kill in so many is followed by another one during recovery.
const KILL_RECOVERY: u64 = 4;

const WORDS: Words = Words { harm: "kill", times: "--kills", own: &[], worlds: Worlds::Amqp, between: None };

fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(&WORDS, std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let harm = |load: &Load, broker: &mut Broker, dice: &Dice| kill(&arguments, load, broker, dice);
    match arguments.trial.run(|_| Ok(()), harm, || ()) {
        Ok(verdict) if verdict.passed => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("no verdict: {error}");
            ExitCode::from(2)
        }
    }
}

fn kill(arguments: &Arguments, load: &Load, broker: &mut Broker, dice: &Dice) -> Result<(), String> {
    let mut kills = 0;
    while kills < arguments.trial.times {
        let pause = arguments.between.0 + dice.below(arguments.between.1 - arguments.between.0);
        thread::sleep(Duration::from_millis(pause));
        broker.alive()?;
        load.well()?;
        let begin = load.tape.now();
        broker.kill();
        kills += 1;
        if kills < arguments.trial.times && dice.below(KILL_RECOVERY) == 0 {
            let again = load.tape.now();
            broker.start_for(Duration::from_millis(dice.below(120)))?;
            broker.kill();
            kills += 1;
            load.tape.harness(again, load.tape.now(), |names| Op::Fault { name: names.name("kill") });
        }
        broker.start()?;
        let end = load.tape.now();
        load.tape.harness(begin, end, |names| Op::Fault { name: names.name("kill") });
        load.tape.harness(begin, end, |_| Op::Crash);
    }
    thread::sleep(Duration::from_millis(arguments.between.1));
    Ok(())
}
