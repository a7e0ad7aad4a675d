//! The numbers of the protocol: request and response codes, languages, client versions, command flags.
//!
//! Owns their values and names. Does not know which of them a server supports.

mod request;
mod response;

pub use request::RequestCode;
pub use response::ResponseCode;

/// Declares an enum of wire codes: `Variant = number, "WIRE_NAME", "what it means";`.
macro_rules! codes {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $( $variant:ident = $code:literal, $wire:literal, $doc:literal; )* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(i32)]
        pub enum $name { $( #[doc = $doc] $variant = $code, )* }

        impl $name {
            /// Every code, in ascending order.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )*];

            /// The number on the wire.
            pub const fn code(self) -> i32 {
                self as i32
            }

            /// Apache's name of the code, as operators know it.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $wire, )* }
            }

            /// The code of a number, if Apache RocketMQ defines it.
            pub const fn from_code(code: i32) -> Option<Self> {
                match code { $( $code => Some(Self::$variant), )* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{} ({})", self.name(), self.code())
            }
        }
    };
}
use codes;

/// Bit of [`Head::flag`](crate::command::Head::flag): the command answers a request.
pub const FLAG_RESPONSE: i32 = 1;
/// Bit of [`Head::flag`](crate::command::Head::flag): nobody waits for an answer; none may be written.
/// Go clients never set it, even where they ignore the answer.
pub const FLAG_ONE_WAY: i32 = 2;

/// Client versions, as ordinals of Apache's list of releases. Clients take the version of a heartbeat's answer as the
/// broker's and switch features on it.
pub mod version {
    /// 3.0.11, the oldest that carries a version.
    pub const V3_0_11: i32 = 37;
    /// 3.4.9.
    pub const V3_4_9: i32 = 121;
    /// What the Go client sends, whatever its own version.
    pub const GO_CLIENT: i32 = 317;
    /// 4.6.0, also what the C++ client sends.
    pub const V4_6_0: i32 = 333;
    /// 4.9.3, the last whose signature leaves `_UNIQUE_KEY_QUERY` out.
    pub const V4_9_3: i32 = 399;
    /// 4.9.4, the first to be sent route data with quoted keys.
    pub const V4_9_4: i32 = 401;
    /// 4.9.8, the last of the 4 line: an answer with it promises nothing of the 5 line.
    pub const V4_9_8: i32 = 409;
    /// 5.0.0.
    pub const V5_0_0: i32 = 413;
    /// 5.3.1, the last that does not understand GO_AWAY.
    pub const V5_3_1: i32 = 475;
    /// 5.3.3.
    pub const V5_3_3: i32 = 479;
    /// 5.4.0.
    pub const V5_4_0: i32 = 493;
    /// 5.5.0.
    pub const V5_5_0: i32 = 513;
}

/// The language of a command's sender: a name in JSON headers, an ordinal in binary ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Language {
    /// Java, and what a server says of itself: every client knows it.
    Java = 0,
    /// C++, also below the old Python and Node clients.
    Cpp = 1,
    /// .NET.
    DotNet = 2,
    /// Python.
    Python = 3,
    /// Delphi.
    Delphi = 4,
    /// Erlang.
    Erlang = 5,
    /// Ruby.
    Ruby = 6,
    /// Anything else, and what an unknown name or ordinal is read as.
    Other = 7,
    /// An HTTP bridge.
    Http = 8,
    /// Go.
    Go = 9,
    /// PHP.
    Php = 10,
    /// OpenMessaging.
    Oms = 11,
    /// Rust.
    Rust = 12,
    /// Node.js.
    NodeJs = 13,
}

impl Language {
    /// Every language, by ordinal.
    pub const ALL: [Self; 14] = [
        Self::Java,
        Self::Cpp,
        Self::DotNet,
        Self::Python,
        Self::Delphi,
        Self::Erlang,
        Self::Ruby,
        Self::Other,
        Self::Http,
        Self::Go,
        Self::Php,
        Self::Oms,
        Self::Rust,
        Self::NodeJs,
    ];

    /// The ordinal in binary headers.
    pub const fn ordinal(self) -> u8 {
        self as u8
    }

    /// The name in JSON headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Java => "JAVA",
            Self::Cpp => "CPP",
            Self::DotNet => "DOTNET",
            Self::Python => "PYTHON",
            Self::Delphi => "DELPHI",
            Self::Erlang => "ERLANG",
            Self::Ruby => "RUBY",
            Self::Other => "OTHER",
            Self::Http => "HTTP",
            Self::Go => "GO",
            Self::Php => "PHP",
            Self::Oms => "OMS",
            Self::Rust => "RUST",
            Self::NodeJs => "NODE_JS",
        }
    }

    /// The language of an ordinal; unknown ones are [`Language::Other`].
    pub fn from_ordinal(ordinal: u8) -> Self {
        Self::ALL.get(usize::from(ordinal)).copied().unwrap_or(Self::Other)
    }

    /// The language of a name; unknown ones are [`Language::Other`].
    pub fn from_name(name: &str) -> Self {
        Self::ALL.into_iter().find(|language| language.name() == name).unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_code_survives_the_trip_to_its_number_and_back() {
        for &code in RequestCode::ALL {
            assert_eq!(RequestCode::from_code(code.code()), Some(code));
        }
        assert!(RequestCode::ALL.windows(2).all(|pair| pair[0].code() < pair[1].code()));
    }

    #[test]
    fn every_response_code_fits_the_go_clients_sixteen_bits() {
        for &code in ResponseCode::ALL {
            assert_eq!(ResponseCode::from_code(code.code()), Some(code));
            assert!(i16::try_from(code.code()).is_ok(), "{code}");
        }
    }

    #[test]
    fn a_refusal_can_name_the_request() {
        assert_eq!(RequestCode::PopMessage.to_string(), "POP_MESSAGE (200050)");
        assert_eq!(RequestCode::from_code(16), None);
        assert_eq!(RequestCode::from_code(-1), None);
    }

    #[test]
    fn an_unknown_language_is_read_as_other() {
        assert_eq!(Language::from_ordinal(9), Language::Go);
        assert_eq!(Language::from_ordinal(200), Language::Other);
        assert_eq!(Language::from_name("NODE_JS"), Language::NodeJs);
        assert_eq!(Language::from_name("KOTLIN"), Language::Other);
        assert!(Language::ALL.iter().enumerate().all(|(at, language)| usize::from(language.ordinal()) == at));
    }
}
