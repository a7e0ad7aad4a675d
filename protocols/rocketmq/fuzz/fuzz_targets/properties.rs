//! Runs `dassie_rocketmq::fuzz::properties`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_rocketmq::fuzz::properties(data));
