//! See `dassie_amqp::fuzz::method`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_amqp::fuzz::method(data));
