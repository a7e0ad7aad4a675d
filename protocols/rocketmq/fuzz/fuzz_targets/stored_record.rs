//! Runs `dassie_rocketmq::fuzz::stored_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_rocketmq::fuzz::stored_record(data));
