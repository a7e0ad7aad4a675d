//! Commands: one request or answer, its head, its extension fields and its body.
//!
//! Owns what both header codecs have in common: the value they decode to, the error they share, and the way out. A
//! decoded [`Command`] borrows from its frame; only escaped texts are copied. Does not know what any code means.

mod binary;
mod ext;
mod json;
mod write;

pub use ext::{ExtFields, FieldReader, MAX_EXT_FIELDS};
pub use write::{EncodeError, FieldWriter, Fields, encode, encode_head};

use crate::code::{FLAG_ONE_WAY, FLAG_RESPONSE, Language, RequestCode, ResponseCode};
use crate::frame::{Frame, HeaderCodec};
use crate::header::{Header, HeaderError};
use std::borrow::Cow;
use std::fmt;

/// What every command carries, whatever it asks or answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head<'a> {
    /// A request code, or a response code when [`Head::is_response`].
    pub code: i32,
    /// The sender's language.
    pub language: Language,
    /// The sender's version ([`crate::code::version`]).
    pub version: i32,
    /// Pairs an answer with its request; each direction of a connection counts for itself.
    pub opaque: i32,
    /// [`FLAG_RESPONSE`] and [`FLAG_ONE_WAY`].
    pub flag: i32,
    /// Text for people, mostly with errors.
    pub remark: Option<Cow<'a, str>>,
}

impl<'a> Head<'a> {
    /// A request in the name of a client.
    pub fn request(code: RequestCode, language: Language, version: i32, opaque: i32) -> Self {
        Self { code: code.code(), language, version, opaque, flag: 0, remark: None }
    }

    /// The head of an answer to this request, as every client understands it: `version` is a promise
    /// (see [`crate::code::version`]), the language is Java.
    pub fn answer(&self, code: ResponseCode, version: i32) -> Head<'static> {
        Head {
            code: code.code(),
            language: Language::Java,
            version,
            opaque: self.opaque,
            flag: FLAG_RESPONSE,
            remark: None,
        }
    }

    /// The same head with a remark.
    pub fn with_remark(self, remark: impl Into<Cow<'a, str>>) -> Self {
        Self { remark: Some(remark.into()), ..self }
    }

    /// The same head, asking for no answer.
    pub fn one_way(self) -> Self {
        Self { flag: self.flag | FLAG_ONE_WAY, ..self }
    }

    /// Whether this answers a request of ours.
    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }

    /// Whether an answer must not be written.
    pub fn is_one_way(&self) -> bool {
        self.flag & FLAG_ONE_WAY != 0
    }

    /// What is asked, if it is a request with a known code.
    pub fn request_code(&self) -> Option<RequestCode> {
        if self.is_response() { None } else { RequestCode::from_code(self.code) }
    }

    /// How it ended, if it is an answer with a known code.
    pub fn response_code(&self) -> Option<ResponseCode> {
        if self.is_response() { ResponseCode::from_code(self.code) } else { None }
    }
}

/// One decoded command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command<'a> {
    /// Code, version, flags and so on.
    pub head: Head<'a>,
    /// The extension fields, by name.
    pub ext: ExtFields<'a>,
    /// The bytes after the header.
    pub body: &'a [u8],
    /// How the header was written; answer in the same codec.
    pub codec: HeaderCodec,
}

impl<'a> Command<'a> {
    /// Decodes the header of a frame.
    pub fn decode(frame: &Frame<'a>) -> Result<Self, CommandError> {
        let unread =
            Head { code: 0, language: Language::Other, version: 0, opaque: 0, flag: 0, remark: None };
        let mut command = Self { head: unread, ext: ExtFields::new(), body: frame.body, codec: frame.codec };
        command.head = match frame.codec {
            HeaderCodec::Json => json::decode(frame.header, &mut command.ext)?,
            HeaderCodec::Binary => binary::decode(frame.header, &mut command.ext)?,
        };
        Ok(command)
    }

    /// Reads the extension fields as the typed header `H`.
    pub fn header<'c, H: Header<'c>>(&'c self) -> Result<H, HeaderError> {
        H::read(&mut self.ext.reader())
    }
}

/// Why a header is no command. The peer does not speak the protocol: close the connection, as Apache does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandError {
    /// A JSON header breaks the syntax.
    Json {
        /// Byte of the header.
        at: usize,
        /// What should have stood there.
        wanted: &'static str,
    },
    /// A binary header ends too early, or claims a negative length.
    Binary {
        /// Byte of the header.
        at: usize,
        /// What should have stood there.
        wanted: &'static str,
    },
    /// A text is not UTF-8.
    NotUtf8,
    /// A head field is not a 32-bit integer.
    NotAnInteger {
        /// `code`, `version`, `opaque` or `flag`.
        field: &'static str,
    },
    /// There is no code.
    NoCode,
    /// A field stands twice. Its two values would be read differently by a signature check and by a handler.
    Duplicate,
    /// More than [`MAX_EXT_FIELDS`] extension fields.
    TooManyFields,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json { at, wanted } => write!(f, "JSON header: expected {wanted} at byte {at}"),
            Self::Binary { at, wanted } => write!(f, "binary header: expected {wanted} at byte {at}"),
            Self::NotUtf8 => f.write_str("header is not UTF-8"),
            Self::NotAnInteger { field } => write!(f, "header field {field} is not a 32-bit integer"),
            Self::NoCode => f.write_str("header without a code"),
            Self::Duplicate => f.write_str("header with a duplicate field"),
            Self::TooManyFields => write!(f, "header with more than {MAX_EXT_FIELDS} extension fields"),
        }
    }
}

impl std::error::Error for CommandError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{MAX_FRAME, Split, split};
    use proptest::prelude::*;

    fn whole(bytes: &[u8]) -> Command<'_> {
        match split(bytes, MAX_FRAME).unwrap() {
            Split::Frame { frame, consumed } => {
                assert_eq!(consumed, bytes.len());
                Command::decode(&frame).unwrap()
            }
            Split::Incomplete { missing } => panic!("{missing} bytes missing"),
        }
    }

    fn decode(codec: HeaderCodec, header: &[u8]) -> Result<Command<'_>, CommandError> {
        Command::decode(&Frame { codec, header, body: b"" })
    }

    fn json(header: &str) -> Result<Command<'_>, CommandError> {
        decode(HeaderCodec::Json, header.as_bytes())
    }

    #[test]
    fn every_frame_of_java_is_read_and_written_again_with_the_same_meaning() {
        let mut frames = 0;
        for (name, codec, bytes) in crate::golden::commands() {
            let command = whole(&bytes);
            assert_eq!(command.codec == HeaderCodec::Json, codec == "JSON", "{name}");
            assert_eq!((command.head.language, command.head.version), (Language::Java, 479), "{name}");
            for codec in [HeaderCodec::Json, HeaderCodec::Binary] {
                let mut out = Vec::new();
                encode(&mut out, codec, &command.head, &command.ext, command.body).unwrap();
                let again = whole(&out);
                assert_eq!(
                    (&again.head, &again.ext, again.body),
                    (&command.head, &command.ext, command.body),
                    "{name}"
                );
            }
            frames += 1;
        }
        assert_eq!(frames, 94);
    }

    #[test]
    fn both_codecs_of_java_say_the_same() {
        for (name, codec, bytes) in crate::golden::commands() {
            if codec == "JSON" {
                let binary = crate::golden::command(name, "ROCKETMQ");
                let (json, binary) = (whole(&bytes), whole(&binary));
                assert_eq!(
                    (json.head, json.ext, json.body),
                    (binary.head, binary.ext, binary.body),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn javas_refusal_carries_its_remark_with_escapes_and_without_fields() {
        let bytes = crate::golden::command("refusal", "JSON");
        let refusal = whole(&bytes);
        assert_eq!(refusal.head.response_code(), Some(ResponseCode::RequestCodeNotSupported));
        assert_eq!(refusal.head.request_code(), None);
        let remark = " request type 200070 not supported \"quoted\" \\ \u{1} é 😀";
        assert_eq!(refusal.head.remark.as_deref(), Some(remark));
        assert!(refusal.ext.is_empty());
    }

    #[test]
    fn the_cpp_clients_numbers_and_booleans_become_text() {
        // As jsoncpp's FastWriter prints it: sorted keys and a newline at the end.
        let header = concat!(
            r#"{"code":310,"extFields":{"AccessKey":"","OnsChannel":"","Signature":"","a":"PG","b":"T","c":"TBW102","#,
            r#""d":4,"e":3,"f":0,"g":"1700000000123","h":0,"i":"TAGS\u0001A\u0002","j":"0","k":"false","l":-1,"m":true,"#,
            r#""z":1.5},"flag":0,"language":"CPP","opaque":7,"remark":"","version":333}"#,
            "\n"
        );
        let command = json(header).unwrap();
        assert_eq!(command.head.language, Language::Cpp);
        assert_eq!(command.head.remark.as_deref(), Some(""));
        let value = |name| command.ext.get(name);
        assert_eq!(
            (value("d"), value("l"), value("m"), value("z")),
            (Some("4"), Some("-1"), Some("true"), Some("1.5"))
        );
        assert_eq!(value("i"), Some("TAGS\u{1}A\u{2}"));
        assert_eq!(command.ext.get_nonblank("Signature"), None);
    }

    #[test]
    fn the_go_clients_header_is_read() {
        let header = r#"{"code":105,"language":"GO","version":317,"opaque":1,"flag":0,"remark":"","extFields":{"topic":"T"}}"#;
        let command = json(header).unwrap();
        assert_eq!((command.head.language, command.head.version), (Language::Go, 317));
        assert_eq!(command.head.request_code(), Some(RequestCode::GetRouteinfoByTopic));
        assert!(!command.head.is_one_way());
    }

    #[test]
    fn head_fields_may_be_quoted_missing_or_unknown_but_for_the_code() {
        let command =
            json(r#" { "code" : "-5" , "language" : 9 , "what" : [ { "ever" : [ ] } ] } "#).unwrap();
        assert_eq!((command.head.code, command.head.language, command.head.opaque), (-5, Language::Go, 0));
        assert_eq!(
            json(r#"{"code":1,"extFields":null,"remark":null,"language":null}"#).unwrap().head.remark,
            None
        );
        assert_eq!(json(r#"{"opaque":1}"#), Err(CommandError::NoCode));
        assert_eq!(json("{}"), Err(CommandError::NoCode));
    }

    #[test]
    fn flags_and_codes_change_nothing_in_how_a_command_is_read() {
        for (flag, one_way, response) in
            [(0, false, false), (1, false, true), (2, true, false), (-1, true, true)]
        {
            for code in [310, -1, 16, i32::MAX] {
                let header = format!(r#"{{"code":{code},"flag":{flag},"opaque":-7}}"#);
                let frame = Frame { codec: HeaderCodec::Json, header: header.as_bytes(), body: b"body" };
                let command = Command::decode(&frame).unwrap();
                assert_eq!((command.head.is_one_way(), command.head.is_response()), (one_way, response));
                assert_eq!((command.head.opaque, command.body), (-7, &b"body"[..]));
                assert_eq!(command.head.request_code().is_some(), code == 310 && !response);
            }
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused_in_the_head_and_text_in_the_fields() {
        for number in
            ["2147483648", "1e400", "1.5", "999999999999999999999999", "\"x\"", "\"\"", "true", "null"]
        {
            let refused = Err(CommandError::NotAnInteger { field: "code" });
            assert_eq!(json(&format!(r#"{{"code":{number}}}"#)), refused, "{number}");
        }
        let command = json(r#"{"code":1,"extFields":{"queueId":1e400}}"#).unwrap();
        assert_eq!(command.ext.get("queueId"), Some("1e400"));
    }

    #[test]
    fn a_null_field_is_absent() {
        let command = json(r#"{"code":1,"extFields":{"a":null,"b":""}}"#).unwrap();
        assert_eq!((command.ext.get("a"), command.ext.get("b"), command.ext.len()), (None, Some(""), 1));
    }

    #[test]
    fn duplicate_keys_are_refused_even_if_spelled_differently() {
        for header in [
            r#"{"code":1,"code":1}"#,
            r#"{"code":1,"\u0063ode":1}"#,
            r#"{"code":1,"remark":null,"remark":"x"}"#,
            r#"{"code":1,"extFields":{},"extFields":{}}"#,
            r#"{"code":1,"extFields":{"Signature":"a","Signature":"b"}}"#,
            r#"{"code":1,"extFields":{"Signature":"a","S\u0069gnature":"b"}}"#,
        ] {
            assert_eq!(json(header), Err(CommandError::Duplicate), "{header}");
        }
    }

    #[test]
    fn broken_json_is_refused() {
        for header in [
            "",
            " ",
            "{",
            "}",
            "[]",
            "null",
            "\"x\"",
            "{\"code\":1",
            "{\"code\":1,}",
            "{\"code\" 1}",
            "{code:1}",
            "{'code':1}",
            "{\"code\":1}{",
            "{\"code\":1} x",
            "{\"code\":1,\"extFields\":[]}",
            "{\"code\":1,\"extFields\":{\"a\":{}}}",
            "{\"code\":1,\"extFields\":{\"a\":[1]}}",
            "{\"code\":1,\"extFields\":{\"a\":\"\\ud800\"}}",
            "{\"code\":1,\"extFields\":{\"a\":\"\\q\"}}",
            "{\"code\":1,\"extFields\":{\"a\"}}",
            "{\"code\":1,\"extFields\":{\"a\":}}",
            "{\"code\":1,\"remark\":{}}",
        ] {
            assert!(matches!(json(header), Err(CommandError::Json { .. })), "{header}: {:?}", json(header));
        }
        assert_eq!(
            decode(HeaderCodec::Json, b"{\"code\":1,\"remark\":\"\xff\"}"),
            Err(CommandError::NotUtf8)
        );
    }

    #[test]
    fn depth_and_number_of_fields_are_bounded() {
        let deep = format!("{{\"code\":1,\"x\":{}", "[".repeat(60_000));
        assert!(matches!(json(&deep), Err(CommandError::Json { .. })));
        let fields = |count: usize| {
            let fields: Vec<String> = (0..count).map(|at| format!("\"f{at}\":\"{at}\"")).collect();
            format!("{{\"code\":1,\"extFields\":{{{}}}}}", fields.join(","))
        };
        let most = fields(MAX_EXT_FIELDS);
        assert_eq!(json(&most).unwrap().ext.get("f255"), Some("255"));
        assert_eq!(json(&fields(MAX_EXT_FIELDS + 1)), Err(CommandError::TooManyFields));
    }

    #[test]
    fn a_binary_header_cut_anywhere_is_refused() {
        let frame = crate::golden::command("send_v2", "ROCKETMQ");
        let Ok(Split::Frame { frame, .. }) = split(&frame, MAX_FRAME) else { panic!("no frame") };
        for cut in 0..frame.header.len() {
            let result = decode(HeaderCodec::Binary, &frame.header[..cut]);
            assert!(matches!(result, Err(CommandError::Binary { .. })), "cut at {cut}");
        }
        assert!(decode(HeaderCodec::Binary, frame.header).is_ok());
    }

    /// A binary header of a remark and fields with any claimed lengths.
    fn binary(remark: (i32, &[u8]), fields: (i32, &[u8])) -> Vec<u8> {
        let mut header = vec![0, 11, 0, 1, 223, 0, 0, 0, 5, 0, 0, 0, 0];
        header.extend_from_slice(&remark.0.to_be_bytes());
        header.extend_from_slice(remark.1);
        header.extend_from_slice(&fields.0.to_be_bytes());
        header.extend_from_slice(fields.1);
        header
    }

    #[test]
    fn lengths_of_a_binary_header_that_are_negative_too_long_or_too_short_are_refused() {
        let one = [0, 1, b'a', 0, 0, 0, 1, b'1'];
        assert_eq!(
            decode(HeaderCodec::Binary, &binary((0, b""), (8, &one))).unwrap().ext.get("a"),
            Some("1")
        );
        for (remark, fields) in [
            ((-1, &b""[..]), (8, &one[..])),
            ((i32::MAX, b""), (8, &one)),
            ((i32::MIN, b""), (8, &one)),
            ((0, b""), (-1, &one)),
            ((0, b""), (i32::MAX, &one)),
            ((0, b""), (9, &one)),
            ((0, b""), (7, &one)),
            ((0, b""), (0, &one)),
            ((0, b""), (8, &[0xff, 0xff, b'a', 0, 0, 0, 1, b'1'])),
            ((0, b""), (8, &[0x7f, 0xff, b'a', 0, 0, 0, 1, b'1'])),
            ((0, b""), (8, &[0, 1, b'a', 0xff, 0xff, 0xff, 0xff, b'1'])),
            ((0, b""), (8, &[0, 1, b'a', 0x7f, 0xff, 0xff, 0xff, b'1'])),
            ((0, b""), (8, &[0, 1, b'a', 0, 0, 0, 0, b'1'])),
            ((0, b""), (3, &[0, 1, b'a'])),
        ] {
            let header = binary(remark, fields);
            let result = decode(HeaderCodec::Binary, &header);
            assert!(matches!(result, Err(CommandError::Binary { .. })), "{remark:?} {fields:?} {result:?}");
        }
    }

    #[test]
    fn texts_of_a_binary_header_must_be_utf8_and_names_unique() {
        assert_eq!(decode(HeaderCodec::Binary, &binary((1, b"\xff"), (0, b""))), Err(CommandError::NotUtf8));
        let twice = [0, 1, b'a', 0, 0, 0, 0, 0, 1, b'a', 0, 0, 0, 0];
        assert_eq!(
            decode(HeaderCodec::Binary, &binary((0, b""), (14, &twice))),
            Err(CommandError::Duplicate)
        );
    }

    #[test]
    fn an_answer_has_the_requests_opaque_and_an_object_of_fields_even_if_empty() {
        let bytes = crate::golden::command("route", "JSON");
        let request = whole(&bytes);
        let answer = request.head.answer(ResponseCode::TopicNotExist, 409).with_remark("no \"route\"");
        let mut out = Vec::new();
        encode(&mut out, HeaderCodec::Json, &answer, &(), b"").unwrap();
        let text = format!(
            r#"{{"code":17,"language":"JAVA","version":409,"opaque":{},"flag":1,"remark":"no \"route\"","extFields":{{}}}}"#,
            request.head.opaque
        );
        assert_eq!(std::str::from_utf8(&out[8..]).unwrap(), text);
    }

    #[test]
    fn every_extension_value_is_written_as_a_string() {
        let mut out = Vec::new();
        let head = Head::request(RequestCode::PullMessage, Language::Rust, 409, -1).one_way();
        let pull = crate::header::PullAnswer { next_begin_offset: i64::MIN, ..Default::default() };
        encode(&mut out, HeaderCodec::Json, &head, &(pull, [("b\"", "\u{1}")].as_slice()), b"").unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out[8..]).unwrap();
        let fields = value["extFields"].as_object().unwrap();
        assert!(fields.values().all(serde_json::Value::is_string));
        assert_eq!(fields["nextBeginOffset"], i64::MIN.to_string());
        assert_eq!(fields["b\""], "\u{1}");
        assert_eq!((value["flag"].as_i64(), value["opaque"].as_i64()), (Some(2), Some(-1)));
    }

    #[test]
    fn an_answers_code_above_sixteen_bits_is_not_written() {
        let pop = Head::request(RequestCode::PopMessage, Language::Rust, 479, 1);
        let mut out = b"before".to_vec();
        encode(&mut out, HeaderCodec::Json, &pop, &(), b"").unwrap();
        out.truncate(6);
        let too_large = Err(EncodeError::CodeTooLarge { code: 200_050 });
        assert_eq!(encode(&mut out, HeaderCodec::Binary, &pop, &(), b""), too_large);
        let answer = Head { flag: FLAG_RESPONSE, ..pop };
        assert_eq!(encode(&mut out, HeaderCodec::Json, &answer, &(), b""), too_large);
        assert_eq!(out, b"before");
    }

    #[test]
    fn what_exceeds_header_or_frame_is_not_written() {
        let head = Head::request(RequestCode::HeartBeat, Language::Rust, 409, 1);
        let mut out = Vec::new();
        let long = "x".repeat(140_000);
        for codec in [HeaderCodec::Json, HeaderCodec::Binary] {
            let result = encode(&mut out, codec, &head, [("a", long.as_str())].as_slice(), b"");
            assert!(matches!(result, Err(EncodeError::HeaderTooLarge { .. })), "{result:?}");
            let result = encode_head(&mut out, codec, &head, &(), usize::MAX);
            assert!(matches!(result, Err(EncodeError::FrameTooLarge { .. })), "{result:?}");
        }
        let result = encode(&mut out, HeaderCodec::Binary, &head, [(long.as_str(), "")].as_slice(), b"");
        assert_eq!(result, Err(EncodeError::NameTooLong));
        assert!(out.is_empty());
    }

    proptest! {
        #[test]
        fn commands_survive_the_trip_in_both_codecs(
            code in any::<i16>(), version in any::<i16>(), opaque in any::<i32>(), flag in any::<i32>(),
            language in 0u8..14,
            remark in proptest::option::of("[^\0]{1,20}"),
            fields in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..30),
            body in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let head = Head {
                code: code.into(), language: Language::from_ordinal(language), version: version.into(), opaque, flag,
                remark: remark.as_deref().map(Cow::Borrowed),
            };
            let pairs: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            for codec in [HeaderCodec::Json, HeaderCodec::Binary] {
                let mut out = Vec::new();
                encode(&mut out, codec, &head, pairs.as_slice(), &body).unwrap();
                let command = whole(&out);
                prop_assert_eq!(&command.head, &head);
                prop_assert!(command.ext.iter().eq(pairs.iter().copied()));
                prop_assert_eq!((command.body, command.codec), (&body[..], codec));
                if codec == HeaderCodec::Json {
                    prop_assert!(serde_json::from_slice::<serde_json::Value>(&out[8..out.len() - body.len()]).is_ok());
                }
            }
        }

        #[test]
        fn no_header_makes_decoding_panic(header in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(HeaderCodec::Json, &header);
            let _ = decode(HeaderCodec::Binary, &header);
        }

        #[test]
        fn no_almost_json_makes_decoding_panic(header in "\\{(\"(code|flag|extFields|remark|x)\":[\\[\\]{}:,\"\\\\a-z0-9é-]{0,12},?){0,6}\\}?") {
            let _ = json(&header);
        }
    }
}
