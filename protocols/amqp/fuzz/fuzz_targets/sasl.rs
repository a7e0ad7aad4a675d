//! See `dassie_amqp::fuzz::sasl`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_amqp::fuzz::sasl(data));
