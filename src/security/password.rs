//! Password hashes as RabbitMQ keeps them: base64 of a salt of four bytes and the digest of salt and password.
//!
//! Owns: the three algorithms. Promises: comparing takes the same time whatever differs; nothing here can be printed.
//! Does not know: users.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;

const SALT: usize = 4;

/// How a digest is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hashing {
    /// `rabbit_password_hashing_sha256`: RabbitMQ's default.
    #[default]
    Sha256,
    /// `rabbit_password_hashing_sha512`
    Sha512,
    /// `rabbit_password_hashing_md5`: what RabbitMQ before 3.6 wrote.
    Md5,
}

impl Hashing {
    /// The algorithm of that name, as RabbitMQ's definitions say it or in short (`sha256`).
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name.strip_prefix("rabbit_password_hashing_").unwrap_or(name) {
            "sha256" => Some(Self::Sha256),
            "sha512" => Some(Self::Sha512),
            "md5" => Some(Self::Md5),
            _ => None,
        }
    }

    /// Its name in RabbitMQ's definitions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "rabbit_password_hashing_sha256",
            Self::Sha512 => "rabbit_password_hashing_sha512",
            Self::Md5 => "rabbit_password_hashing_md5",
        }
    }

    fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
            Self::Md5 => 16,
        }
    }

    fn digest(self, salt: [u8; SALT], password: &[u8]) -> Vec<u8> {
        fn of<D: Digest>(salt: [u8; SALT], password: &[u8]) -> Vec<u8> {
            D::new().chain_update(salt).chain_update(password).finalize().to_vec()
        }
        match self {
            Self::Sha256 => of::<Sha256>(salt, password),
            Self::Sha512 => of::<Sha512>(salt, password),
            Self::Md5 => of::<md5::Md5>(salt, password),
        }
    }
}

/// A password that can be checked and not read; `Debug` shows the algorithm alone.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    hashing: Hashing,
    salt: [u8; SALT],
    digest: Vec<u8>,
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordHash").field("hashing", &self.hashing).finish_non_exhaustive()
    }
}

impl PasswordHash {
    /// Reads a hash as RabbitMQ exports it. `None`: not base64, or of another length than the algorithm makes.
    #[must_use]
    pub fn parse(text: &str, hashing: Hashing) -> Option<Self> {
        let bytes = STANDARD.decode(text).ok()?;
        let (salt, digest) = bytes.split_first_chunk::<SALT>()?;
        (digest.len() == hashing.length()).then(|| Self { hashing, salt: *salt, digest: digest.to_vec() })
    }

    /// As [`PasswordHash::parse`] reads it.
    #[must_use]
    pub fn export(&self) -> String {
        STANDARD.encode([&self.salt[..], &self.digest].concat())
    }

    /// How it was made.
    #[must_use]
    pub fn hashing(&self) -> Hashing {
        self.hashing
    }

    /// Hashes a password. `salt` should be random.
    #[must_use]
    pub fn new(password: &[u8], salt: [u8; SALT]) -> Self {
        let hashing = Hashing::default();
        Self { hashing, salt, digest: hashing.digest(salt, password) }
    }

    /// Is it this password?
    #[must_use]
    pub fn is(&self, password: &[u8]) -> bool {
        self.hashing.digest(self.salt, password).ct_eq(&self.digest).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_of_a_password_is_that_passwords_alone() {
        let hash = PasswordHash::new(b"secret", [1, 2, 3, 4]);
        assert!(hash.is(b"secret"));
        assert!(!hash.is(b"Secret") && !hash.is(b"") && !hash.is(b"secret\0"));
    }

    #[test]
    fn hashes_made_by_rabbitmq_are_read() {
        // Exported by rabbitmqctl 3.10.8.
        for (hashing, hash, password) in [
            (
                "rabbit_password_hashing_sha256",
                "ncY8SgSulvQQlbxJhZ/rq7jwXyOX4EYsfXUYC/bEiR29Pi2q",
                "al1ce secret",
            ),
            (
                "rabbit_password_hashing_sha512",
                "wTyEePlg2icAyuKebF3/L8tGK8j2te6kKURVwqDBPvQY9ESa3i269lNCM/FfFO5Jc7ougDwvQiS55N1gflE57W/9XO0=",
                "π-pass",
            ),
            ("rabbit_password_hashing_md5", "FceloC5mMk1/Gfl90J2/JHgDkE0=", "dave5"),
        ] {
            let hash = PasswordHash::parse(hash, Hashing::named(hashing).unwrap()).unwrap();
            assert!(hash.is(password.as_bytes()), "{hashing}");
            assert!(!hash.is(b"guest"));
        }
        assert_eq!(Hashing::named("rabbit_password_hashing_plain"), None);
    }

    #[test]
    fn a_hash_of_the_wrong_length_is_refused() {
        for (text, hashing) in [
            ("", Hashing::Sha256),
            ("AQID", Hashing::Sha256),
            ("no base64!", Hashing::Md5),
            ("kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR", Hashing::Md5),
            ("kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR", Hashing::Sha512),
        ] {
            assert!(PasswordHash::parse(text, hashing).is_none(), "{text}");
        }
    }
}
