//! JSON Web Tokens of an issuer: checked against its keys, issuer, audience and times, nothing else
//! is believed.
//!
//! Signatures are checked by `ring`; only RS256, PS256, ES256 and EdDSA are known, so `none` and
//! secrets shared with the issuer cannot be talked into. A key that is not known makes the keys be
//! fetched again, at most once a minute.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::{Prefixes, Principal, Refusal, Scope};
use crate::config::{ConfigError, JwtConfig};

/// How often the keys are fetched.
const REFRESH: Duration = Duration::from_mins(10);
/// How often at most when an unknown key is met.
const REFRESH_AT_MOST: Duration = Duration::from_mins(1);
/// How often it is tried while there is no key at all.
const RETRY: Duration = Duration::from_secs(5);
/// How long the issuer has to send its keys.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// What clocks may differ by, in ms.
const LEEWAY_MS: i64 = 30_000;
/// The largest set of keys, in bytes.
const JWKS_BYTES: usize = 256 * 1024;
/// The longest token, in bytes.
const TOKEN_BYTES: usize = 16 * 1024;

/// A public key of the issuer.
#[derive(Clone, Debug)]
enum Key {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// Checks tokens of one issuer.
#[derive(Debug)]
pub struct JwtVerifier {
    config: JwtConfig,
    keys: RwLock<BTreeMap<String, Key>>,
    wanted: Notify,
}

impl JwtVerifier {
    /// Reads the keys if they are in a file; those of a URL are fetched by [`Self::run`]. It fails
    /// if the file cannot be read or has no key that can be used.
    pub fn new(config: JwtConfig) -> Result<Self, ConfigError> {
        let keys = if is_url(&config.jwks) {
            BTreeMap::new()
        } else {
            let path = &config.jwks;
            let text = std::fs::read(path).map_err(|e| ConfigError::new(format!("jwt_jwks {path}: {e}")))?;
            parse_keys(&text).map_err(|e| ConfigError::new(format!("jwt_jwks {path}: {e}")))?
        };
        Ok(Self { config, keys: RwLock::new(keys), wanted: Notify::new() })
    }

    /// Which tokens are accepted.
    pub fn config(&self) -> &JwtConfig {
        &self.config
    }

    /// What [`Self::run`] fetches the keys with. It follows no redirect: the configuration names
    /// the place.
    pub fn client(&self) -> Result<reqwest::Client, ConfigError> {
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(FETCH_TIMEOUT)
            .connect_timeout(FETCH_TIMEOUT);
        // Plain HTTP is for loopback, which no proxy reaches.
        let builder = if self.config.jwks.starts_with("http://") { builder.no_proxy() } else { builder };
        builder.build().map_err(|e| ConfigError::new(format!("jwt_jwks: {e}")))
    }

    /// Fetches the keys, now and again, until the end of the process.
    pub async fn run(self: Arc<Self>, http: reqwest::Client) {
        loop {
            match self.fetch(&http).await {
                Ok(keys) => {
                    info!(keys = keys.len(), "the issuer's keys were read");
                    *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
                }
                Err(error) => warn!(error, "the issuer's keys cannot be read; those known still count"),
            }
            if self.keys.read().unwrap_or_else(PoisonError::into_inner).is_empty() {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            tokio::time::sleep(REFRESH_AT_MOST).await;
            // A key that nobody knows, or time.
            let _ =
                tokio::time::timeout(REFRESH.saturating_sub(REFRESH_AT_MOST), self.wanted.notified()).await;
        }
    }

    async fn fetch(&self, http: &reqwest::Client) -> Result<BTreeMap<String, Key>, String> {
        if !is_url(&self.config.jwks) {
            let text = tokio::fs::read(&self.config.jwks).await.map_err(|e| e.to_string())?;
            return parse_keys(&text);
        }
        let mut response =
            http.get(&self.config.jwks).send().await.map_err(|e| e.without_url().to_string())?;
        if !response.status().is_success() {
            return Err(format!("status {}", response.status()));
        }
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| e.without_url().to_string())? {
            text.extend_from_slice(&chunk);
            if text.len() > JWKS_BYTES {
                return Err(format!("more than {JWKS_BYTES} bytes"));
            }
        }
        parse_keys(&text)
    }

    /// Whose token this is.
    pub fn verify(&self, token: &str, now_ms: i64) -> Result<Arc<Principal>, Refusal> {
        let invalid = |why: &str| Refusal::Invalid(format!("the JWT {why}"));
        if token.len() > TOKEN_BYTES {
            return Err(invalid("is too long"));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or_else(|| invalid("has no signature"))?;
        let (header, payload) = signed.split_once('.').ok_or_else(|| invalid("has no payload"))?;
        let json = |part: &str| -> Option<Value> {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
        };
        let header = json(header).ok_or_else(|| invalid("has no readable header"))?;
        let claims = json(payload).ok_or_else(|| invalid("has no readable payload"))?;
        let signature =
            URL_SAFE_NO_PAD.decode(signature).map_err(|_| invalid("has no readable signature"))?;
        let algorithm = header.get("alg").and_then(Value::as_str).unwrap_or_default();
        if header.get("crit").is_some() {
            return Err(invalid("demands an extension that is not known"));
        }
        let kid = header.get("kid").and_then(Value::as_str).unwrap_or_default();
        let key = self.keys.read().unwrap_or_else(PoisonError::into_inner).get(kid).cloned();
        let Some(key) = key else {
            self.wanted.notify_one();
            return Err(invalid("is signed by an unknown key"));
        };
        if !is_signed(&key, algorithm, signed.as_bytes(), &signature) {
            return Err(invalid("is not signed by the issuer"));
        }
        self.principal(&claims, now_ms)
    }

    fn principal(&self, claims: &Value, now_ms: i64) -> Result<Arc<Principal>, Refusal> {
        let invalid = |why: &str| Refusal::Invalid(format!("the JWT {why}"));
        if claims.get("iss").and_then(Value::as_str) != Some(self.config.issuer.as_str()) {
            return Err(invalid("has another issuer"));
        }
        let own = self.config.audience.as_str();
        let is_audience = match claims.get("aud") {
            Some(Value::String(one)) => one == own,
            Some(Value::Array(many)) => many.iter().any(|a| a.as_str() == Some(own)),
            _ => false,
        };
        if !is_audience {
            return Err(invalid("is meant for another audience"));
        }
        let time = |claim: &str| claims.get(claim).and_then(Value::as_i64).map(|s| s.saturating_mul(1000));
        let end = time("exp").ok_or_else(|| invalid("never expires"))?;
        if end.saturating_add(LEEWAY_MS) <= now_ms {
            return Err(Refusal::Expired);
        }
        if time("nbf").is_some_and(|start| start.saturating_sub(LEEWAY_MS) > now_ms) {
            return Err(invalid("is not valid yet"));
        }
        let subject = claims.get("sub").and_then(Value::as_str).filter(|s| !s.is_empty());
        let subject = subject.ok_or_else(|| invalid("has no subject"))?;
        let scopes = match claims.get("scope") {
            Some(Value::String(text)) => text.split(' ').filter_map(Scope::parse).collect(),
            _ => Vec::new(),
        };
        let prefixes = |claim: &str| match claims.get(claim) {
            None => Prefixes::All,
            Some(Value::Array(many)) => {
                Prefixes::Of(many.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            }
            // What cannot be understood allows nothing.
            Some(_) => Prefixes::Of(Vec::new()),
        };
        Ok(Arc::new(Principal {
            name: crate::foreign::clean(subject).into(),
            scopes,
            topics: prefixes("strandline_topic_prefixes"),
            groups: prefixes("strandline_group_prefixes"),
            expires_at_ms: Some(end),
        }))
    }
}

/// Whether the keys are to be fetched; otherwise they are in a file.
fn is_url(jwks: &str) -> bool {
    jwks.starts_with("https://") || jwks.starts_with("http://")
}

fn is_signed(key: &Key, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
    match (key, algorithm) {
        (Key::Rsa { n, e }, "RS256") => RsaPublicKeyComponents { n, e }
            .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
            .is_ok(),
        (Key::Rsa { n, e }, "PS256") => RsaPublicKeyComponents { n, e }
            .verify(&signature::RSA_PSS_2048_8192_SHA256, message, signature)
            .is_ok(),
        (Key::P256(point), "ES256") => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
            .verify(message, signature)
            .is_ok(),
        (Key::Ed25519(x), "EdDSA") => {
            UnparsedPublicKey::new(&signature::ED25519, x).verify(message, signature).is_ok()
        }
        _ => false,
    }
}

fn parse_keys(text: &[u8]) -> Result<BTreeMap<String, Key>, String> {
    let set: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let list = set.get("keys").and_then(Value::as_array).ok_or("there is no list of keys")?;
    let mut keys = BTreeMap::new();
    for jwk in list.iter().take(100) {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| text(name).and_then(|t| URL_SAFE_NO_PAD.decode(t).ok());
        if text("use").is_some_and(|u| u != "sig") {
            continue;
        }
        let key = match (text("kty"), text("crv")) {
            (Some("RSA"), _) => bytes("n").zip(bytes("e")).map(|(n, e)| Key::Rsa { n, e }),
            (Some("EC"), Some("P-256")) => {
                bytes("x").zip(bytes("y")).map(|(x, y)| Key::P256([&[4u8][..], &x, &y].concat()))
            }
            (Some("OKP"), Some("Ed25519")) => bytes("x").map(Key::Ed25519),
            _ => None,
        };
        if let Some(key) = key {
            keys.insert(text("kid").unwrap_or_default().to_owned(), key);
        }
    }
    if keys.is_empty() { Err("there is no key that can be used".to_owned()) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;

    const NOW_MS: i64 = 1_800_000_000_000;

    struct Issuer {
        pair: Ed25519KeyPair,
        _folder: tempfile::TempDir,
        verifier: JwtVerifier,
    }

    fn issuer() -> Issuer {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwks.json");
        let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let jwks = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": x}]});
        std::fs::write(&path, jwks.to_string()).unwrap();
        let config = JwtConfig {
            issuer: "https://issuer".to_owned(),
            audience: "strandline".to_owned(),
            jwks: path.to_str().unwrap().to_owned(),
            resource_url: "https://observer/mcp".to_owned(),
        };
        let verifier = JwtVerifier::new(config).unwrap();
        Issuer { pair, _folder: folder, verifier }
    }

    fn token(issuer: &Issuer, header: &Value, claims: &Value) -> String {
        let encode = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = issuer.pair.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    fn good() -> (Value, Value) {
        let header = json!({"alg": "EdDSA", "kid": "k1"});
        let claims = json!({"iss": "https://issuer", "aud": ["strandline"], "exp": NOW_MS / 1000 + 60, "sub": "ana",
            "scope": "read topology openid", "strandline_topic_prefixes": ["a."]});
        (header, claims)
    }

    #[test]
    fn a_token_of_the_issuer_names_a_principal() {
        let issuer = issuer();
        let (header, claims) = good();
        let principal = issuer.verifier.verify(&token(&issuer, &header, &claims), NOW_MS).unwrap();
        assert_eq!(&*principal.name, "ana");
        assert_eq!(principal.scopes, [Scope::Read, Scope::Topology]);
        assert!(principal.topics.covers("a.b") && !principal.topics.covers("b"));
    }

    #[test]
    fn every_other_token_is_refused() {
        let issuer = issuer();
        let (header, claims) = good();
        let with = |changes: Value| {
            let mut changed = claims.clone();
            for (key, value) in changes.as_object().unwrap() {
                changed[key] = value.clone();
            }
            token(&issuer, &header, &changed)
        };
        let good_token = token(&issuer, &header, &claims);
        let (signed, _) = good_token.rsplit_once('.').unwrap();
        for (bad, why) in [
            (with(json!({"iss": "https://other"})), "issuer"),
            (with(json!({"aud": "other"})), "audience"),
            (with(json!({"exp": NOW_MS / 1000 - 60})), "expired"),
            (with(json!({"exp": null})), "expires"),
            (with(json!({"nbf": NOW_MS / 1000 + 60})), "yet"),
            (with(json!({"sub": ""})), "subject"),
            (token(&issuer, &json!({"alg": "none", "kid": "k1"}), &claims), "signed"),
            (token(&issuer, &json!({"alg": "HS256", "kid": "k1"}), &claims), "signed"),
            (token(&issuer, &json!({"alg": "EdDSA", "kid": "k2"}), &claims), "unknown key"),
            (token(&issuer, &json!({"alg": "EdDSA", "kid": "k1", "crit": ["x"]}), &claims), "extension"),
            (format!("{signed}."), "signed"),
            (format!("{good_token}A"), ""),
            ("garbage".to_owned(), "signature"),
            ("a.b.c".to_owned(), "header"),
            ("x".repeat(TOKEN_BYTES + 1), "long"),
        ] {
            let said = issuer.verifier.verify(&bad, NOW_MS).unwrap_err().to_string();
            assert!(said.contains(why), "{said} instead of {why}");
        }
    }
}
