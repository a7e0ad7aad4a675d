//! Runs `dassie_rocketmq::fuzz::json_bodies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_rocketmq::fuzz::json_bodies(data));
