//! Runs `dassie_rocketmq::fuzz::frame_stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_rocketmq::fuzz::frame_stream(data));
