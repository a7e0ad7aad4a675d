//! Runs `dassie_rocketmq::fuzz::subscription`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_rocketmq::fuzz::subscription(data));
