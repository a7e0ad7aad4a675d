//! Runs `dassie_rocketmq::fuzz::json_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_rocketmq::fuzz::json_header(data));
