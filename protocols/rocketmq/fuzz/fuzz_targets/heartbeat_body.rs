//! Runs `dassie_rocketmq::fuzz::heartbeat_body`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_rocketmq::fuzz::heartbeat_body(data));
