//! From settings to users: at the start, and again on SIGHUP.
//!
//! Owns: reading the definitions file that the configuration names. Promises: a file that is wrong at the start ends it; one that
//! is wrong later is logged and changes nothing. Does not know: what a password or a permission is.

use std::sync::Arc;

use tokio::signal::unix::Signal;

use crate::config::{self, Config, Invocation};
use crate::limits;
use crate::security::Realm;
use crate::security::definitions::{ConfiguredUser, Definitions, Sources};
use crate::security::users::Users;
use crate::server::Stop;

/// Reads what the configuration names.
///
/// # Errors
/// One line: the file can not be read, or is wrong, and where.
pub fn sources(config: &Config) -> Result<Sources, String> {
    let definitions = match config.definitions_file.as_str() {
        "" => None,
        path => Some((path.to_owned(), read(path)?)),
    };
    Ok(Sources {
        definitions,
        configured: config.users.iter().map(configured).collect::<Result<_, _>>()?,
        loopback: config.loopback_users.iter().cloned().collect(),
        anonymous: config.rocketmq.anonymous_user.clone(),
    })
}

/// One `[[users]]` table. What is wrong is said without the value: it may be a secret.
fn configured(table: &toml::Value) -> Result<ConfiguredUser, String> {
    table.clone().try_into().map_err(|error: toml::de::Error| {
        let name = table.get("name").and_then(toml::Value::as_str).unwrap_or_default();
        let cause = error.message().lines().next().unwrap_or("not a user").to_owned();
        format!("[[users]] table '{name}': {cause}")
    })
}

fn read(path: &str) -> Result<Definitions, String> {
    let fail = |cause: &dyn std::fmt::Display| format!("can not read definitions file '{path}': {cause}");
    let size = std::fs::metadata(path).map_err(|error| fail(&error))?.len();
    if size > limits::DEFINITIONS_MAX {
        return Err(fail(&format!("larger than {} bytes", limits::DEFINITIONS_MAX)));
    }
    let text = std::fs::read(path).map_err(|error| fail(&error))?;
    Definitions::parse(path, &text).map_err(|error| error.to_string())
}

/// The users of these sources.
///
/// # Errors
/// One line with the place of what is wrong.
pub fn users(sources: &Sources) -> Result<Users, String> {
    sources.users(&mut salt).map_err(|error| error.to_string())
}

/// Four random bytes, from the system's randomness that seeds hash maps.
fn salt() -> [u8; 4] {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let [a, b, c, d, ..] = RandomState::new().build_hasher().finish().to_le_bytes();
    [a, b, c, d]
}

/// Reads users again on every SIGHUP, until `stop`.
pub async fn keep_current(realm: Arc<Realm>, mut hangups: Signal, stop: Stop) {
    loop {
        tokio::select! {
            () = stop.requested() => return,
            Some(()) = hangups.recv() => match reload() {
                Ok(users) => {
                    tracing::info!("SIGHUP: {} users read again", users.users.len());
                    realm.load(users);
                }
                Err(error) => tracing::error!("SIGHUP: users stay as they were: {error}"),
            }
        }
    }
}

fn reload() -> Result<Users, String> {
    match config::load(std::env::args_os(), std::env::vars_os()).map_err(|error| error.to_string())? {
        Invocation::Run(config) => users(&sources(&config)?),
        Invocation::Print(_) => Err("the arguments ask for text".to_owned()),
    }
}
