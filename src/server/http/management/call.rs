//! One request: who asks, for what, with which body.
//!
//! Owns: taking a request apart. Promises: names arrive decoded; what is no UTF-8 or no JSON is a 400. Does not know: what paths mean.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Answer, Answered, Asked, Problem};
use crate::security::{Action, Authorized, Principal, Realm, Resource, authorize};

/// Name and password of basic authentication.
pub(super) fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some((String::from_utf8(decoded[..colon].to_vec()).ok()?, decoded[colon + 1..].to_vec()))
}

/// Who asks.
pub(super) struct Caller {
    pub(super) principal: Principal,
    pub(super) tags: Vec<String>,
    vhosts: Vec<std::sync::Arc<str>>,
}

impl Caller {
    pub(super) fn new(principal: Principal, realm: &Realm) -> Self {
        let users = realm.users();
        let user = users.users.get(&principal.name);
        let tags = user.map_or_else(Vec::new, |user| user.tags.clone());
        let vhosts = user.map_or_else(Vec::new, |user| user.vhosts.keys().cloned().collect());
        Self { principal, tags, vhosts }
    }

    fn has(&self, wanted: &[&str]) -> bool {
        self.tags.iter().any(|tag| wanted.contains(&tag.as_str()))
    }

    /// Any of the tags that open this API.
    pub(super) fn may_look(&self) -> bool {
        self.has(&["administrator", "monitoring", "policymaker", "management"])
    }

    pub(super) fn is_administrator(&self) -> bool {
        self.has(&["administrator"])
    }

    pub(super) fn is_monitor(&self) -> bool {
        self.has(&["administrator", "monitoring"])
    }

    /// May it see what is in this vhost?
    pub(super) fn sees(&self, vhost: &str) -> bool {
        self.is_monitor() || self.vhosts.iter().any(|name| **name == *vhost)
    }
}

/// See the module.
pub(super) struct Call {
    pub(super) method: Method,
    /// Behind `/api`, decoded.
    pub(super) path: Vec<String>,
    /// Decoded.
    pub(super) query: Vec<(String, String)>,
    /// The header `X-Reason`.
    pub(super) reason: Option<String>,
    pub(super) caller: Caller,
    body: Bytes,
}

impl Call {
    pub(super) fn new(asked: Asked, caller: Caller) -> Result<Self, Problem> {
        let undecodable = || Problem::bad_request("the path or the query is no UTF-8");
        let rest = asked.path.strip_prefix("/api").unwrap_or_default();
        let path: Option<Vec<String>> =
            rest.split('/').filter(|part| !part.is_empty()).map(|part| decode(part, false)).collect();
        let pairs = asked.query.split('&').filter(|pair| !pair.is_empty());
        let query: Option<Vec<(String, String)>> = pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Some((decode(name, true)?, decode(value, true)?))
            })
            .collect();
        let reason =
            asked.headers.get("x-reason").map(|value| String::from_utf8_lossy(value.as_bytes()).into());
        let (path, query) = (path.ok_or_else(undecodable)?, query.ok_or_else(undecodable)?);
        Ok(Self { method: asked.method, path, query, reason, caller, body: asked.body })
    }

    /// The value of a query parameter.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn is_get(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }

    pub(super) fn only_get(&self) -> Result<(), Problem> {
        if self.is_get() { Ok(()) } else { Err(Problem::method("GET, HEAD")) }
    }

    /// A page that can be looked at only.
    pub(super) fn get(&self, view: impl FnOnce() -> Result<Value, Problem>) -> Answered {
        self.only_get()?;
        view().map(Answer::Json)
    }

    pub(super) fn monitor(&self) -> Result<(), Problem> {
        if self.caller.is_monitor() { Ok(()) } else { Err(Problem::not_authorised("Not monitor user")) }
    }

    pub(super) fn administrator(&self) -> Result<(), Problem> {
        let refused = || Problem::not_authorised("Not administrator user");
        if self.caller.is_administrator() { Ok(()) } else { Err(refused()) }
    }

    /// What is in a vhost is for those who may enter it.
    pub(super) fn sees(&self, vhost: &str) -> Result<(), Problem> {
        let refused = || Problem::not_authorised("User not authorised to access virtual host");
        if self.caller.sees(vhost) { Ok(()) } else { Err(refused()) }
    }

    /// The one decision over a wish (D19), in the vhost that [`Call::enter`] entered.
    pub(super) fn allow(
        &self,
        inside: &Principal,
        action: Action,
        resource: Resource<'_>,
    ) -> Result<Authorized, Problem> {
        authorize(inside, action, resource)
            .map_err(|denied| Problem::not_authorised(format!("ACCESS_REFUSED - {denied}")))
    }

    /// The body as it came.
    pub(super) fn bytes(&self) -> Bytes {
        self.body.clone()
    }

    /// The body as JSON; an empty one is an empty object.
    pub(super) fn body<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let text = if self.body.is_empty() { b"{}" } else { &self.body[..] };
        serde_json::from_slice(text).map_err(|error| Problem::bad_request(format!("bad JSON: {error}")))
    }
}

/// Undoes percent encoding. `None`: what comes out is no UTF-8.
fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = || {
            Some((
                char::from(*bytes.get(at + 1)?).to_digit(16)?,
                char::from(*bytes.get(at + 2)?).to_digit(16)?,
            ))
        };
        match bytes[at] {
            b'%' if let Some((high, low)) = hex() => {
                out.push(u8::try_from(high * 16 + low).ok()?);
                at += 3;
                continue;
            }
            b'+' if plus_is_space => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).ok()
}

/// Percent encoding of everything that is not unreserved.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn names_are_decoded_and_encoded() {
        assert_eq!(decode("%2F", false).as_deref(), Some("/"));
        assert_eq!(decode("a+b%20c%", true).as_deref(), Some("a b c%"));
        assert_eq!(decode("a+b", false).as_deref(), Some("a+b"));
        assert_eq!(decode("%FF", false), None);
        assert_eq!(decode(&encode("ü /%+~"), false).as_deref(), Some("ü /%+~"));
    }

    #[test]
    fn basic_credentials_may_hold_colons_in_the_password() {
        let mut headers = HeaderMap::new();
        assert_eq!(credentials(&headers), None);
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic dTpwOnE="));
        assert_eq!(credentials(&headers), Some(("u".to_owned(), b"p:q".to_vec())));
        for bad in ["Bearer dTpw", "Basic", "Basic ###", "Basic dQ=="] {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(bad));
            assert_eq!(credentials(&headers), None, "{bad}");
        }
    }
}
