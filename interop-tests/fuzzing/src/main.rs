//! One program for all fuzz targets: `DASSIE_FUZZ_TARGET` names the one that it runs, as its folder is named in a corpus.
//!
//! Owns: the names. Promises: a name that is unknown ends it. Does not know: what is checked; each crate tells its own promises.
#![no_main]

use std::sync::OnceLock;

type Target = fn(&[u8]);

fn target() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("DASSIE_FUZZ_TARGET").expect("DASSIE_FUZZ_TARGET names a target");
        let all = [
            ("amqp-", dassie_amqp::fuzz::TARGETS),
            ("rocketmq-", dassie_rocketmq::fuzz::TARGETS),
            ("storage-", dassie_storage::fuzz::TARGETS),
        ];
        let found = all.iter().find_map(|(room, targets)| {
            let short = name.strip_prefix(room)?;
            targets.iter().find(|(target, _)| *target == short).map(|(_, target)| *target)
        });
        found.unwrap_or_else(|| panic!("there is no fuzz target {name:?}"))
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| target()(data));
