//! Who may see what: principals, their scopes and prefixes, and how a bearer token is turned into
//! one.

mod jwt;
mod rate;
mod tokens;

use std::fmt;
use std::sync::Arc;

use ring::hmac;

use crate::config::{AuthConfig, Config, ConfigError, JwtConfig};

pub use self::jwt::JwtVerifier;
pub(crate) use self::rate::RateLimit;
pub use self::tokens::TokensFile;

/// What a principal may do beside reading names and figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Topics, groups, metrics.
    Read,
    /// Addresses, hosts and member ids too.
    Topology,
    /// The audit log and findings about configuration.
    Audit,
    /// Plans of changes.
    Plan,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 4] = [Self::Read, Self::Topology, Self::Audit, Self::Plan];

    /// Its name in a tokens file and in a JWT.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Topology => "topology",
            Self::Audit => "audit",
            Self::Plan => "plan",
        }
    }

    /// The scope called `name`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }
}

/// Names that a principal may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prefixes {
    /// All.
    All,
    /// Those that begin with one of these.
    Of(Vec<String>),
}

impl Prefixes {
    /// Whether `name` may be seen.
    pub fn covers(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Of(prefixes) => prefixes.iter().any(|p| name.starts_with(p.as_str())),
        }
    }

    /// Whether there is anything that may not be seen.
    pub fn is_limited(&self) -> bool {
        *self != Self::All
    }
}

/// Somebody who was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Its name, as audit and answers show it.
    pub name: Arc<str>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The topics that it may see.
    pub topics: Prefixes,
    /// The groups that it may see.
    pub groups: Prefixes,
    /// When its token ends, ms since 1970.
    pub expires_at_ms: Option<i64>,
}

impl Principal {
    /// Somebody who may do everything.
    pub fn operator(name: &str) -> Self {
        Self {
            name: name.into(),
            scopes: Scope::ALL.to_vec(),
            topics: Prefixes::All,
            groups: Prefixes::All,
            expires_at_ms: None,
        }
    }

    /// Whether it has this scope.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// Whether it sees a part of the cluster only.
    pub fn is_tenant(&self) -> bool {
        self.topics.is_limited() || self.groups.is_limited()
    }
}

/// Why somebody was not let in. The sentence is for the log, not for whoever tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There was no token.
    #[error("no token")]
    Missing,
    /// The token is nobody's.
    #[error("unknown token")]
    Unknown,
    /// The token was somebody's once.
    #[error("the token has expired")]
    Expired,
    /// It is no token that the issuer made for this server.
    #[error("{0}")]
    Invalid(String),
}

/// Turns bearer tokens into principals.
#[derive(Debug)]
pub enum Authenticator {
    /// Everybody is the same principal.
    Open(Arc<Principal>),
    /// There is one token.
    Token {
        /// Compares in constant time.
        expected: Sealed,
        /// Who has it.
        principal: Arc<Principal>,
    },
    /// There is a file of principals.
    File(TokensFile),
    /// There is an issuer.
    Jwt(Arc<JwtVerifier>),
}

impl Authenticator {
    /// As configured. `seal` keys the comparisons.
    pub fn new(config: &Config, seal: &Seal) -> Result<Self, ConfigError> {
        Ok(match &config.auth {
            AuthConfig::Open => Self::Open(Arc::new(Principal::operator("loopback"))),
            AuthConfig::Token(token) => Self::Token {
                expected: seal.seal(token.reveal().as_bytes()),
                principal: Arc::new(Principal::operator("token")),
            },
            AuthConfig::TokensFile(path) => Self::File(TokensFile::open(path.clone(), seal.clone())?),
            AuthConfig::Jwt(jwt) => Self::Jwt(Arc::new(JwtVerifier::new(jwt.clone())?)),
        })
    }

    /// Whose token this is.
    pub fn authenticate(&self, token: Option<&str>, now_ms: i64) -> Result<Arc<Principal>, Refusal> {
        if let Self::Open(principal) = self {
            return Ok(principal.clone());
        }
        let token = token.ok_or(Refusal::Missing)?;
        match self {
            Self::Open(principal) => Ok(principal.clone()),
            Self::Token { expected, principal } => {
                expected.is(token.as_bytes()).then(|| principal.clone()).ok_or(Refusal::Unknown)
            }
            Self::File(file) => file.find(token, now_ms),
            Self::Jwt(verifier) => verifier.verify(token, now_ms),
        }
    }

    /// What checks the issuer's tokens, if there is an issuer; its keys have to be kept fresh.
    pub fn verifier(&self) -> Option<&Arc<JwtVerifier>> {
        match self {
            Self::Jwt(verifier) => Some(verifier),
            Self::Open(_) | Self::Token { .. } | Self::File(_) => None,
        }
    }

    /// The JWT configuration, which RFC 9728 metadata are made from.
    pub fn jwt(&self) -> Option<&JwtConfig> {
        self.verifier().map(|verifier| verifier.config())
    }
}

/// A key of this process: what it seals can be compared in constant time, and cannot be made by
/// others.
#[derive(Clone)]
pub struct Seal(hmac::Key);

impl Seal {
    /// From random bytes.
    pub fn new(random: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, random))
    }

    /// Seals bytes.
    pub fn seal(&self, bytes: &[u8]) -> Sealed {
        Sealed { key: self.clone(), tag: hmac::sign(&self.0, bytes).as_ref().to_vec() }
    }

    /// The tag of bytes, to be sent out and to come back.
    pub fn tag(&self, bytes: &[u8]) -> Vec<u8> {
        hmac::sign(&self.0, bytes).as_ref().to_vec()
    }

    /// Whether a tag that came back is the one of these bytes, in constant time.
    pub fn is_tag(&self, bytes: &[u8], tag: &[u8]) -> bool {
        hmac::verify(&self.0, bytes, tag).is_ok()
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

/// Something secret that is compared and not kept.
#[derive(Clone)]
pub struct Sealed {
    key: Seal,
    tag: Vec<u8>,
}

impl Sealed {
    /// Whether these bytes are what was sealed, in constant time.
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.key.is_tag(bytes, &self.tag)
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// SHA-256 in hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n & 15)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_knows_its_own() {
        let seal = Seal::new(&[7; 32]);
        let sealed = seal.seal(b"secret");
        assert!(sealed.is(b"secret") && !sealed.is(b"secret ") && !sealed.is(b""));
        assert!(!Seal::new(&[8; 32]).is_tag(b"secret", &seal.tag(b"secret")));
        assert_eq!(format!("{sealed:?}{seal:?}"), "***Seal");
    }

    #[test]
    fn prefixes_hide_what_they_do_not_name() {
        let some = Prefixes::Of(vec!["team-a.".to_owned()]);
        assert!(some.covers("team-a.orders") && !some.covers("team-b.orders") && !some.covers("team-a"));
        assert!(Prefixes::All.covers("anything"));
        assert!(!Prefixes::Of(Vec::new()).covers("anything"));
    }

    #[test]
    fn sha256_is_what_sha256sum_prints() {
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
