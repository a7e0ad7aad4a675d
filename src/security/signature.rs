//! Signatures of RocketMQ requests, as Apache's ACL makes them: base64 of the HMAC-SHA1 of the request's fields and body.
//!
//! Owns: a user's secret, and the check of one signature. Promises: comparing takes the same time whatever differs; a secret can not
//! be printed. SHA-1 is what every client has; as a keyed hash it is not broken.
//! Does not know: users, requests.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use subtle::ConstantTimeEq;

/// What a user signs with.
#[derive(Clone)]
pub struct SigningSecret(hmac::Key);

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret")
    }
}

impl SigningSecret {
    /// The secret with that text, in UTF-8 as clients take it.
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes()))
    }

    /// Is this the signature of these parts, one behind the other?
    #[must_use]
    pub fn signed<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>, signature: &str) -> bool {
        let Ok(expected) = STANDARD.decode(signature) else { return false };
        let mut context = hmac::Context::with_key(&self.0);
        parts.into_iter().for_each(|part| context.update(part));
        context.sign().as_ref().ct_eq(&expected).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_secrets_and_those_bytes_alone() {
        // RFC 2202, test case 2.
        let secret = SigningSecret::new("Jefe");
        let signature = STANDARD.encode([
            0xef, 0xfc, 0xdf, 0x6a, 0xe5, 0xeb, 0x2f, 0xa2, 0xd2, 0x74, 0x16, 0xd5, 0xf1, 0x84, 0xdf, 0x9c,
            0x25, 0x9a, 0x7c, 0x79,
        ]);
        let parts = || [&b"what do ya "[..], b"want for nothing?"];
        assert!(secret.signed(parts(), &signature));
        assert!(!SigningSecret::new("jefe").signed(parts(), &signature));
        assert!(!secret.signed([&b"what do ya want for nothing"[..]], &signature));
        for wrong in ["", "no base64", &signature[..8]] {
            assert!(!secret.signed(parts(), wrong), "{wrong}");
        }
    }
}
