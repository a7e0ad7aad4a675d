//! What a client says when it logs in, and which user and password that is.
//!
//! Owns the two mechanisms that carry a password, as RabbitMQ reads them. Promises to look at bytes and
//! nothing else: no copy of a secret is made here. Does not know who may log in; EXTERNAL and ANONYMOUS carry
//! nothing to decode.

use crate::table::{RawTable, Value};
use crate::wire::Writer;

/// The mechanism of RFC 4616.
pub const PLAIN: &str = "PLAIN";

/// The mechanism of AMQP 0-8: a field table.
pub const AMQPLAIN: &str = "AMQPLAIN";

/// The mechanism of RFC 4422 that takes the login from the client's certificate; its response is not looked at.
pub const EXTERNAL: &str = "EXTERNAL";

/// A user name and a password, as bytes: nobody promises UTF-8.
///
/// There is no `Debug`: secrets do not belong in logs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// The user's name.
    pub user: &'a [u8],
    /// The password, or a token in its place.
    pub password: &'a [u8],
}

impl<'a> Credentials<'a> {
    /// Reads a PLAIN response: NUL, user, NUL, password. As with RabbitMQ there is no separate authorization
    /// identity in front, and no NUL inside.
    #[must_use]
    pub fn from_plain(response: &'a [u8]) -> Option<Self> {
        let mut parts = response.split(|&byte| byte == 0);
        let (Some([]), Some(user), Some(password), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        Some(Self { user, password })
    }

    /// Reads an AMQPLAIN response: the entries of a table with LOGIN and PASSWORD.
    #[must_use]
    pub fn from_amqplain(response: &'a [u8]) -> Option<Self> {
        let table = RawTable::parse(response).ok()?;
        let text = |name| match table.get(name)? {
            Value::LongStr(text) | Value::Bytes(text) => Some(text),
            _ => None,
        };
        Some(Self { user: text("LOGIN")?, password: text("PASSWORD")? })
    }

    /// Appends the PLAIN response of these credentials to `out`.
    pub fn encode_plain(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        for part in [self.user, self.password] {
            w.octet(0);
            w.raw(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::TableBuilder;

    fn is(credentials: Option<Credentials<'_>>, user: &[u8], password: &[u8]) -> bool {
        credentials.is_some_and(|seen| seen == Credentials { user, password })
    }

    #[test]
    fn plain_is_user_and_password_after_a_nul_each() {
        assert!(is(Credentials::from_plain(b"\0guest\0secret"), b"guest", b"secret"));
        assert!(is(Credentials::from_plain(b"\0\xff\0"), b"\xff", b""));
        let mut out = Vec::new();
        Credentials { user: b"guest", password: b"secret" }.encode_plain(&mut out);
        assert_eq!(out, b"\0guest\0secret");
    }

    #[test]
    fn plain_with_too_few_or_too_many_nuls_is_refused() {
        for response in
            [&b""[..], b"guest", b"\0", b"\0guest", b"guest\0secret", b"\0a\0b\0c", b"who\0guest\0secret"]
        {
            assert!(Credentials::from_plain(response).is_none(), "{response:?}");
        }
    }

    #[test]
    fn amqplain_is_a_table_with_login_and_password() {
        let mut table = TableBuilder::new();
        table.put("LOGIN", "guest").put("PASSWORD", "secret");
        let response = table.as_table().unwrap().as_bytes();
        assert!(is(Credentials::from_amqplain(response), b"guest", b"secret"));
    }

    #[test]
    fn amqplain_without_its_keys_or_with_numbers_in_them_is_refused() {
        let mut table = TableBuilder::new();
        assert!(Credentials::from_amqplain(b"").is_none());
        assert!(Credentials::from_amqplain(b"\x05LOGIN").is_none());
        table.put("LOGIN", "guest");
        assert!(Credentials::from_amqplain(table.as_table().unwrap().as_bytes()).is_none());
        table.put("PASSWORD", 5_i32);
        assert!(Credentials::from_amqplain(table.as_table().unwrap().as_bytes()).is_none());
    }
}
