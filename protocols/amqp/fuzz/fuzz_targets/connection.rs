//! See `dassie_amqp::fuzz::connection`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_amqp::fuzz::connection(data));
