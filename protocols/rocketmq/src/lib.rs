//! The Apache RocketMQ remoting protocol without sockets: bytes in, values out, and back.
//!
//! ```text
//!  socket bytes ─▶ frame::split ─▶ Command::decode ─▶ command.header::<PullMessage>() ─▶ (the broker)
//!  socket bytes ◀─ command::encode(head, typed header, body)                          ◀─
//!                                                     body::*     JSON bodies of heartbeats, routes, locks ...
//!                                                     message::*  the stored record, properties, ids, names
//! ```
//!
//! Owns the shape of the protocol: frames, the two header codecs, codes, typed headers, bodies, and the record layout
//! that doubles as the body of a pull answer. Both directions are served, so that a server, a load generator and
//! tests share one codec.
//!
//! Promises: no byte from the wire causes a panic; lengths are checked against what has arrived before anything is
//! allocated; a value that cannot be represented is an error and never silently changed. Every source of entropy
//! (time, process id, addresses) is an argument.
//!
//! Does not know: sockets, tasks, brokers, permissions, what any request *does*.
//!
//! A connection's task, without its socket:
//!
//! ```
//! use dassie_rocketmq::code::version;
//! use dassie_rocketmq::header::{GetMaxOffset, OffsetAnswer};
//! use dassie_rocketmq::{Command, RequestCode, ResponseCode, Split, encode, frame, split};
//!
//! /// Serves every whole command of `input`; answers how many bytes that were.
//! fn serve(input: &[u8], output: &mut Vec<u8>) -> Result<usize, Box<dyn std::error::Error>> {
//!     let mut served = 0;
//!     while let Split::Frame { frame, consumed } = split(&input[served..], frame::MAX_FRAME)? {
//!         let command = Command::decode(&frame)?; // both errors close the connection
//!         served += consumed;
//!         if command.head.is_one_way() {
//!             continue; // would be obeyed, and never answered
//!         }
//!         let answer = |code| command.head.answer(code, version::V4_9_8);
//!         match command.head.request_code() {
//!             Some(RequestCode::GetMaxOffset) => match command.header::<GetMaxOffset>() {
//!                 Ok(_queue) => {
//!                     let found = OffsetAnswer { offset: 42 };
//!                     encode(output, command.codec, &answer(ResponseCode::Success), &found, b"")?;
//!                 }
//!                 Err(error) => {
//!                     let refusal = answer(ResponseCode::SystemError).with_remark(error.to_string());
//!                     encode(output, command.codec, &refusal, &(), b"")?;
//!                 }
//!             },
//!             _ => {
//!                 let remark = format!(" request type {} not supported", command.head.code);
//!                 let refusal = answer(ResponseCode::RequestCodeNotSupported).with_remark(remark);
//!                 encode(output, command.codec, &refusal, &(), b"")?;
//!             }
//!         }
//!     }
//!     Ok(served)
//! }
//! # let mut request = Vec::new();
//! # let head = dassie_rocketmq::Head::request(RequestCode::GetMaxOffset, dassie_rocketmq::Language::Rust, 409, 7);
//! # let queue = GetMaxOffset { topic: "T", ..GetMaxOffset::default() };
//! # encode(&mut request, dassie_rocketmq::HeaderCodec::Json, &head, &queue, b"").unwrap();
//! # let mut output = Vec::new();
//! # assert_eq!(serve(&request, &mut output).unwrap(), request.len());
//! # let Ok(Split::Frame { frame, .. }) = split(&output, frame::MAX_FRAME) else { panic!() };
//! # let answer = Command::decode(&frame).unwrap();
//! # assert_eq!((answer.head.opaque, answer.header()), (7, Ok(OffsetAnswer { offset: 42 })));
//! ```
//!
//! The facts behind the code are those of Apache RocketMQ 4.9 to 5.5 and its Java, Go and C++ clients.

#![forbid(unsafe_code)]

pub mod body;
pub mod code;
pub mod command;
pub mod frame;
pub mod header;
pub mod message;

#[doc(hidden)]
pub mod fuzz;

mod json;

#[cfg(test)]
mod golden;

pub use code::{Language, RequestCode, ResponseCode};
pub use command::{Command, Head, encode, encode_head};
pub use frame::{Frame, HeaderCodec, Split, split};
