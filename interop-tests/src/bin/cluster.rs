//! Does harm to three processes that are one broker, under load, and judges what clients saw:
//! `cluster --broker PATH --faults N --out HISTORY [--protocol amqp|rocketmq|both] [--seconds-between LO..HI] [--seed N] [--through all|leader] [--only FAULT,FAULT...]`.
//!
//! By seed: the leader or a follower is killed, frozen, cut off in both directions or in one, the leader from one follower alone; the network
//! is slow or loses three of ten packets; one after the other all are told to end; a follower stays away until the others have given
//! up what it lacks; one node's disk is full (as root only), one's syncs take 10 ms each, or fail (with strace). After each fault all three
//! must come to the same entries; at the end their logs are compared byte by byte.
//!
//! Through the leader, clients follow it, and a fault may cost them what any crash may. Through all nodes, clients of nodes without harm keep
//! their connections and what they hold, whoever leads: only clients of harmed nodes get messages again, and others what those held.
//!
//! Owns: the harm. Promises: see [`dassie_interop::harm`]. Exit status: 0 passed, 1 a promise is broken or a node failed, 2 no verdict.
//! Does not know: the rules, the traffic.

use std::collections::BTreeMap;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use dassie_interop::harm::cluster::{Cluster, run};
use dassie_interop::harm::links::{Harm, NODES, pairs};
use dassie_interop::harm::{Arguments, Load, Words, Worlds};
use dassie_interop::history::event::Op;
use dassie_interop::sim::dice::Dice;
use rustix::process::Signal;

const USAGE: &str = "usage: cluster --broker PATH --faults N --out HISTORY [--protocol amqp|rocketmq|both] \
                     [--seconds-between LO..HI] [--seed N] [--dir DIRECTORY] [--through all|leader] [--only FAULT,FAULT...]";
const WORDS: Words = Words {
    harm: "fault",
    times: "--faults",
    own: &["--through", "--only"],
    worlds: Worlds::Both,
    between: Some((200, 1_500)),
};
/// How long a first confirm may take after a leader was killed before the run has failed: the bar is 5 s, on a machine that does
/// nothing else.
const RESUMES_WITHIN: Duration = Duration::from_secs(60);

/// How long a node may take to end after its disk failed.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// What a leader said before it was killed has come by then.
const HEARD: Duration = Duration::from_millis(150);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillLeader,
    KillFollower,
    FreezeLeader,
    FreezeFollower,
    CutLeader,
    CutFollower,
    CutFromLeader,
    CutToLeader,
    CutPair,
    Slow,
    Loss,
    RollingRestart,
    FollowerAway,
    FullDisk,
    SlowDisk,
    SyncError,
}

/// Each of them comes up in the first round, in an order that the seed decides; then whatever the dice say.
const FAULTS: [Fault; 16] = [
    Fault::KillLeader,
    Fault::KillFollower,
    Fault::FreezeLeader,
    Fault::FreezeFollower,
    Fault::CutLeader,
    Fault::CutFollower,
    Fault::CutFromLeader,
    Fault::CutToLeader,
    Fault::CutPair,
    Fault::Slow,
    Fault::Loss,
    Fault::RollingRestart,
    Fault::FollowerAway,
    Fault::FullDisk,
    Fault::SlowDisk,
    Fault::SyncError,
];

#[derive(Default)]
struct Figures {
    faults: BTreeMap<Fault, u64>,
    /// From the kill of a leader to the next confirm.
    resumed: Vec<Duration>,
    /// The longest time without a confirm in each kind of fault.
    gaps: BTreeMap<Fault, Duration>,
    /// Connections that ended without a reason.
    lost: usize,
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(&WORDS, std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let through = arguments.own.get("--through").map_or("leader", String::as_str);
    let only =
        arguments.own.get("--only").map(|only| only.split(',').collect::<Vec<_>>()).unwrap_or_default();
    let mut kinds = FAULTS.to_vec();
    kinds.retain(|fault| only.is_empty() || only.contains(&format!("{fault:?}").as_str()));
    if !["all", "leader"].contains(&through) || kinds.len() < only.len() || kinds.is_empty() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    let through_all = through == "all";
    let (mut figures, mut made) = (Figures::default(), 0);
    let harm = |load: &Load, cluster: &mut Cluster, dice: &Dice| {
        let done = faults(&arguments, kinds, load, cluster, dice, &mut figures);
        made = cluster.desk.made.load(Ordering::SeqCst);
        done
    };
    let outcome = match run(&arguments.trial, through_all, harm) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("no verdict: {error}");
            return ExitCode::from(2);
        }
    };
    println!("{}", outcome.report);
    for line in &outcome.panics {
        println!("a node panicked: {line}");
    }
    if let Some(early) = &outcome.early {
        println!("the run ended early: {early}");
    }
    figures.resumed.sort_unstable();
    let resumed = &figures.resumed;
    let at = |percent: usize| {
        resumed.get(resumed.len().saturating_sub(1) * percent / 100).map_or(0, Duration::as_millis)
    };
    for (fault, count) in &figures.faults {
        let gap = figures.gaps.get(fault).map_or(0, Duration::as_millis);
        println!("{count} times {fault:?}, at most {gap} ms without a confirm");
    }
    let copies = outcome.said.matches("starting again with it").count();
    let total: u64 = figures.faults.values().sum();
    let lost = figures.lost;
    let passed = outcome.passed() && lost == 0;
    println!(
        "{total} faults of {} kinds, {} confirms; first confirm after a killed leader p50 {} ms, max {} ms; \
         {lost} of {made} connections lost on nodes without harm; {copies} copies of a store; {} bytes of log compared",
        figures.faults.len(),
        outcome.confirmed,
        at(50),
        at(100),
        outcome.compared.unwrap_or(0),
    );
    println!(
        "{{\"cluster\":{{\"passed\":{},\"seed\":{},\"faults\":{total},\"kinds\":{},\"confirms\":{},\"resume_p50_ms\":{},\
         \"resume_max_ms\":{},\"connections\":{made},\"lost\":{lost},\"copies\":{copies},\"report\":{}}}}}",
        passed,
        arguments.trial.seed,
        figures.faults.len(),
        outcome.confirmed,
        at(50),
        at(100),
        outcome.report.json(),
    );
    if passed {
        let _ = std::fs::remove_dir_all(&arguments.trial.directory);
        ExitCode::SUCCESS
    } else {
        println!("kept: {}", arguments.trial.directory.display());
        ExitCode::from(1)
    }
}

fn faults(
    arguments: &Arguments,
    mut kinds: Vec<Fault>,
    load: &Load,
    cluster: &mut Cluster,
    dice: &Dice,
    figures: &mut Figures,
) -> Result<(), String> {
    if cluster.disk.is_none() {
        println!("no file system can be made here: no full disk");
        kinds.retain(|fault| *fault != Fault::FullDisk);
    }
    if !traced("true", &[]).is_ok_and(|mut child| child.wait().is_ok_and(|status| status.success())) {
        println!("no strace here: no slow and no broken disk");
        kinds.retain(|fault| ![Fault::SlowDisk, Fault::SyncError].contains(fault));
    }
    let mut first = kinds.clone();
    for done in 0..arguments.trial.times {
        let (low, high) = arguments.between;
        thread::sleep(Duration::from_millis(low + dice.below(high - low)));
        load.well()?;
        let fault = if first.is_empty() {
            kinds[index(dice, kinds.len())]
        } else {
            first.swap_remove(index(dice, first.len()))
        };
        let began = load.tape.now();
        let (term, copies) = (cluster.term(), cluster.copies());
        let gap = one(fault, load, cluster, dice, figures)
            .map_err(|error| format!("{done}, {fault:?}: {error}"))?;
        cluster.links.clear();
        let level = cluster.level().map_err(|error| format!("{done}, after {fault:?}: {error}"));
        let (ended, harmed) = (load.tape.now(), cluster.desk.harmed_ports());
        (0..NODES).for_each(|node| cluster.desk.harm(node, Harm::None));
        level?;
        load.tape.harness(began, ended, |names| Op::Fault { name: names.name("fault") });
        let (after, now) = (cluster.term(), cluster.copies());
        let replaced: Vec<usize> = (0..NODES).filter(|node| now[*node] > copies[*node]).collect();
        let lost = cluster.desk.lost(&replaced);
        figures.lost += lost;
        if lost > 0 {
            println!("{done}: {fault:?}: {lost} connections lost on nodes without harm");
        }
        if cluster.desk.through_all {
            load.may_have_lost(&harmed, (began, ended));
            if after > term {
                load.tape.harness(began, ended, |_| Op::Leader { term: after });
            }
        } else {
            // Whoever led before may lead no more: what was handed out, and acknowledged on its way, comes again.
            load.tape.harness(began, ended, |_| Op::Crash);
        }
        *figures.faults.entry(fault).or_default() += 1;
        let longest = figures.gaps.entry(fault).or_default();
        *longest = gap.max(*longest);
        println!(
            "{done}: {fault:?}, {} ms without a confirm, {} confirms so far",
            gap.as_millis(),
            load.confirmed()
        );
    }
    Ok(())
}

fn index(dice: &Dice, below: usize) -> usize {
    usize::try_from(dice.below(below as u64)).expect("a small number")
}

/// Watches confirms for so long, then until there is one; gives the longest time without any.
fn watch(load: &Load, time: Duration) -> Result<Duration, String> {
    let (began, mut confirmed, mut last) = (Instant::now(), load.confirmed(), Instant::now());
    let mut longest = Duration::ZERO;
    let mut any = false;
    while began.elapsed() < time || !any {
        thread::sleep(Duration::from_millis(2));
        let now = load.confirmed();
        if now != confirmed {
            any |= began.elapsed() >= time || last.elapsed() < Duration::from_millis(200);
            longest = longest.max(last.elapsed());
            (confirmed, last) = (now, Instant::now());
        }
        if last.elapsed() > RESUMES_WITHIN {
            return Err(format!("no confirm for {} s", RESUMES_WITHIN.as_secs()));
        }
    }
    Ok(longest.max(last.elapsed()))
}

fn one(
    fault: Fault,
    load: &Load,
    cluster: &mut Cluster,
    dice: &Dice,
    figures: &mut Figures,
) -> Result<Duration, String> {
    let leader = cluster.led()?;
    let follower = (leader + 1 + index(dice, NODES - 1)) % NODES;
    let time = Duration::from_millis(500 + dice.below(4_000));
    let ends = |cluster: &Cluster, node: usize| cluster.desk.harm(node, Harm::Ends);
    let stands = |cluster: &Cluster, node: usize| cluster.desk.harm(node, Harm::Stands);
    let others = |node: usize| (0..NODES).filter(move |other| *other != node);
    match fault {
        Fault::KillLeader => {
            ends(cluster, leader);
            cluster.nodes[leader].kill();
            // What was on its way to the clients has come by then.
            thread::sleep(HEARD);
            let gap = watch(load, Duration::ZERO)? + HEARD;
            figures.resumed.push(gap);
            let longest = watch(load, time)?;
            cluster.nodes[leader].spawn()?;
            Ok(gap.max(longest))
        }
        Fault::KillFollower => {
            ends(cluster, follower);
            cluster.nodes[follower].kill();
            let gap = watch(load, time)?;
            cluster.nodes[follower].spawn()?;
            Ok(gap)
        }
        Fault::FreezeLeader | Fault::FreezeFollower => {
            let node = if fault == Fault::FreezeLeader { leader } else { follower };
            stands(cluster, node);
            cluster.signal(node, Signal::STOP);
            let gap = watch(load, time);
            cluster.signal(node, Signal::CONT);
            Ok(gap?)
        }
        Fault::CutLeader | Fault::CutFollower => {
            let node = if fault == Fault::CutLeader { leader } else { follower };
            stands(cluster, node);
            for other in others(node) {
                cluster.links.hold(node, other);
                cluster.links.hold(other, node);
            }
            watch(load, time)
        }
        Fault::CutFromLeader | Fault::CutToLeader => {
            stands(cluster, leader);
            for other in others(leader) {
                match fault {
                    Fault::CutFromLeader => cluster.links.hold(leader, other),
                    _ => cluster.links.hold(other, leader),
                }
            }
            watch(load, time)
        }
        Fault::Slow => {
            for (from, to) in pairs() {
                cluster.links.slow(from, to, Duration::from_millis(1 + dice.below(40)));
            }
            watch(load, time)
        }
        // Both see the third, which must not let them take the lead from each other for ever.
        Fault::CutPair => {
            stands(cluster, leader);
            stands(cluster, follower);
            cluster.links.hold(leader, follower);
            cluster.links.hold(follower, leader);
            watch(load, time)
        }
        Fault::Loss => {
            // Every node may seem dead to another one.
            (0..NODES).for_each(|node| stands(cluster, node));
            pairs().for_each(|(from, to)| cluster.links.lose(from, to));
            watch(load, time)
        }
        Fault::SlowDisk => {
            let node = if dice.below(2) == 0 { leader } else { follower };
            let id = cluster.nodes[node].id().unwrap_or(0).to_string();
            let mut trace = traced("fdatasync,pwritev2:delay_exit=10000", &["-p", &id])?;
            let gap = watch(load, time);
            let _ = trace.kill();
            let _ = trace.wait();
            gap
        }
        Fault::SyncError => {
            let node = if dice.below(2) == 0 { leader } else { follower };
            ends(cluster, node);
            let id = cluster.nodes[node].id().unwrap_or(0).to_string();
            let mut trace = traced("fdatasync,pwritev2:error=EIO:when=1", &["-p", &id])?;
            // It ends itself: what it confirmed it must not forget, and what is not synced it must not confirm.
            let status = cluster.nodes[node].ended_within(ENDS_WITHIN);
            let _ = trace.kill();
            let _ = trace.wait();
            match status {
                Some(status) if !status.success() => {}
                status => return Err(format!("node {} and a failed sync: {status:?}", node + 1)),
            }
            let gap = watch(load, time)?;
            cluster.nodes[node].spawn()?;
            Ok(gap)
        }
        Fault::RollingRestart => {
            let mut longest = Duration::ZERO;
            for node in 0..NODES {
                ends(cluster, node);
                cluster.end(node)?;
                cluster.nodes[node].spawn()?;
                longest = longest.max(watch(load, Duration::from_millis(200))?);
                cluster.level()?;
                cluster.desk.harm(node, Harm::None);
            }
            Ok(longest)
        }
        Fault::FullDisk => {
            let Some(disk) = &cluster.disk else { return Ok(Duration::ZERO) };
            disk.fill()?;
            let full = Instant::now();
            while full.elapsed() < time {
                thread::sleep(Duration::from_millis(50));
                load.well()?;
            }
            disk.empty()?;
            watch(load, Duration::from_millis(500))
        }
        Fault::FollowerAway => {
            ends(cluster, follower);
            cluster.nodes[follower].kill();
            // Beyond what the others keep: 64 MiB, and checkpoints are 32 apart.
            let goal = position(cluster, leader) + (144 << 20);
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut longest = Duration::ZERO;
            while Instant::now() < deadline && position(cluster, cluster.led()?) < goal {
                longest = longest.max(watch(load, Duration::from_millis(500))?);
            }
            cluster.nodes[follower].spawn()?;
            Ok(longest)
        }
    }
}

/// strace that injects into calls as `words` say.
fn traced(words: &str, whom: &[&str]) -> Result<Child, String> {
    let call = words.split(':').next().unwrap_or_default();
    let mut command = Command::new("strace");
    if whom.is_empty() {
        command.args(["-qq", words]);
    } else {
        command.args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={call}"),
            "-e",
            &format!("inject={words}"),
        ]);
    }
    command.args(whom).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|error| format!("strace: {error}"))
}

/// Bytes of a node's log, by its files.
fn position(cluster: &Cluster, node: usize) -> u64 {
    let dir = cluster.nodes[node].data.join("log");
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).max().unwrap_or(0)
}
