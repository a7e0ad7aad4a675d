//! See `dassie_amqp::fuzz::content_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dassie_amqp::fuzz::content_header(data));
