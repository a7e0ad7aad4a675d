//! See `dassie_amqp::fuzz::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_amqp::fuzz::frames(data));
