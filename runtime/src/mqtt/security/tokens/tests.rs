//! Tokens that are signed here, by hand where a library would refuse to.
#![allow(clippy::unwrap_used)]

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use ring::hmac;
use serde_json::json;

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A moment in 2026, seconds.
const NOW_S: i64 = 1_790_000_000;

/// Made with openssl: `{"alg":"RS256","typ":"JWT"}`, `{"sub":"ann","exp":4102444800}`.
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbm4iLCJleHAiOjQxMDI0NDQ4MDB9.Zz\
     ZmdgHOcKCsWGC0UScGzrPAeHtGSer9orq4cInrTo7kDsa_VFIRcz4qrb8S-azWJQ_FNlUP66MFTxEgJl\
     bb7qE3rlsQTcgoeMXGT359D2nyKEeZugUDRSui91UgKGM3lE7q5NHVmT1CBbTUf7rXkdFYc1RrUfIz7_\
     YsQ5WkSJ3nQf1GG3-GsXNZKw_cqoTxAMdF8ToWB-0mWK8LgpyfTdoiy0MX-ywVSox9ZyKkpQiCJZZvN8\
     cGI-Md7nRD3e8uxY2OfuixLBkM3XT4W92F_DwifrY_upSfYyZyL1jcDiDtRjXY_zJ_eNsvrhY-dgAIwG\
     Evwyn-vIjf4FMekz4hpg";

const RSA_KEY: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAym2yLLvUHJ0blkcX6lca
AsV2Ug4uOHj8XTirLSrbaKPdZbPKkbjEJsM2urkU8Lui3x+gLZt1NpAcxLfiWd4X
TP+KbXXpKfjXeOSgZ6urOm51gmY1szDi/oJ6iQZYX3PERUGtaveSWtsA+GtrqvcD
jAmbGWTs/2aNTnI3o+OxpRheWRpI2QN2nBGnEEIiHxio5pyfn2AecUMETz/ot/iQ
lvw79QULMH8eHt55A8AIuAoCteRAO8efQ9oz4tDT4XZBwQREgMzBQjnjyE1Vi6Bb
oH23GLwBAeP+bZC9DnBjbjawosLpLemqU8dxYDZ6GXlVLt28AADwhCVmf4LH6cPD
CwIDAQAB
-----END PUBLIC KEY-----
";

/// A token signed with HMAC-SHA-256, whatever its header says.
pub(in super::super) fn signed(header: &Value, claims: &Value, secret: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hmac::sign(&key, text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn token(claims: &Value) -> String {
    signed(&json!({ "alg": "HS256" }), claims, SECRET)
}

fn config() -> TokenConfig {
    TokenConfig {
        secret: Some(SECRET.to_owned()),
        user_claim: "sub".to_owned(),
        ..TokenConfig::default()
    }
}

fn check(config: TokenConfig, token: &str) -> Result<Token, String> {
    Tokens::new(config).unwrap().check(token.as_bytes(), NOW_S * 1_000_000)
}

#[test]
fn a_good_token_names_its_user_and_its_end() {
    let good = check(config(), &token(&json!({ "sub": "ann", "exp": NOW_S + 60 }))).unwrap();
    assert_eq!(good.user, "ann");
    assert_eq!(good.until_us, (NOW_S + 60 + LEEWAY_S) * 1_000_000);
    let other = TokenConfig { user_claim: "device".to_owned(), ..config() };
    let claims = json!({ "sub": "ann", "device": "d1", "exp": NOW_S as f64 + 60.5 });
    assert_eq!(check(other, &token(&claims)).unwrap().user, "d1");
    let far = json!({ "sub": "ann", "exp": 1e300 });
    assert_eq!(check(config(), &token(&far)).unwrap().until_us, i64::MAX);
}

#[test]
fn claims_that_are_not_good_are_refused() {
    let exp = NOW_S + 60;
    for (claims, word) in [
        (json!({ "sub": "ann", "exp": NOW_S - LEEWAY_S }), "expired"),
        (json!({ "sub": "ann", "exp": 0 }), "expired"),
        (json!({ "sub": "ann", "exp": -1 }), "expired"),
        (json!({ "sub": "ann" }), "no `exp`"),
        (json!({ "sub": "ann", "exp": "never" }), "no `exp`"),
        (json!({ "sub": "ann", "exp": null }), "no `exp`"),
        (json!({ "sub": "ann", "exp": exp, "nbf": NOW_S + LEEWAY_S + 1 }), "not valid yet"),
        (json!({ "sub": "ann", "exp": exp, "nbf": "soon" }), "no time"),
        (json!({ "sub": "ann", "exp": exp, "aud": "others" }), "aud"),
        (json!({ "exp": exp }), "names no user"),
        (json!({ "sub": "", "exp": exp }), "names no user"),
        (json!({ "sub": 7, "exp": exp }), "names no user"),
        (json!({ "sub": "a\nb", "exp": exp }), "names no user"),
        (json!({ "sub": "x".repeat(300), "exp": exp }), "names no user"),
    ] {
        let error = check(config(), &token(&claims)).unwrap_err();
        assert!(error.contains(word), "{claims}: {error}");
    }
}

#[test]
fn issuer_and_audience_are_checked_where_they_are_configured() {
    let strict = TokenConfig {
        audience: vec!["plant".to_owned(), "site".to_owned()],
        issuer: vec!["us".to_owned()],
        ..config()
    };
    let exp = NOW_S + 60;
    for (claims, good) in [
        (json!({ "sub": "a", "exp": exp, "iss": "us", "aud": "plant" }), true),
        (json!({ "sub": "a", "exp": exp, "iss": "us", "aud": ["x", "site"] }), true),
        (json!({ "sub": "a", "exp": exp, "iss": "us", "aud": ["x"] }), false),
        (json!({ "sub": "a", "exp": exp, "iss": "us", "aud": [["plant"]] }), false),
        (json!({ "sub": "a", "exp": exp, "iss": "us" }), false),
        (json!({ "sub": "a", "exp": exp, "iss": "them", "aud": "plant" }), false),
        (json!({ "sub": "a", "exp": exp, "iss": ["us"], "aud": "plant" }), false),
        (json!({ "sub": "a", "exp": exp, "aud": "plant" }), false),
    ] {
        assert_eq!(check(strict.clone(), &token(&claims)).is_ok(), good, "{claims}");
    }
}

#[test]
fn signatures_are_checked_with_our_algorithm_and_never_with_the_tokens() {
    let claims = json!({ "sub": "ann", "exp": NOW_S + 60 });
    let good = token(&claims);
    let mut changed = good.clone().into_bytes();
    let at = good.find('.').unwrap() + 5;
    changed[at] ^= 1;
    let unsigned = signed(&json!({ "alg": "none" }), &claims, SECRET);
    let cut = format!("{}.", good.rsplit_once('.').unwrap().0);
    for bad in [
        signed(&json!({ "alg": "HS256" }), &claims, &SECRET.replace('0', "1")),
        signed(&json!({ "alg": "HS512" }), &claims, SECRET),
        signed(&json!({ "alg": "RS256" }), &claims, SECRET),
        String::from_utf8(changed).unwrap(),
        format!("{}.", unsigned.rsplit_once('.').unwrap().0),
        unsigned,
        cut,
        "eyJ.eyJ.x".to_owned(),
        "a.b.c.d".to_owned(),
        String::new(),
    ] {
        assert!(check(config(), &bad).is_err(), "{bad}");
    }
    assert!(check(config(), &good).is_ok());
}

#[test]
fn public_keys_of_every_kind_work_and_are_no_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let with_key = TokenConfig { secret: None, key_file: Some(path.clone()), ..config() };
    fs::write(&path, RSA_KEY).unwrap();
    assert_eq!(check(with_key.clone(), RSA_TOKEN).unwrap().user, "ann");
    let claims = json!({ "sub": "ann", "exp": NOW_S + 60 });
    // The old trick: the public key as the secret.
    let trick = signed(&json!({ "alg": "HS256" }), &claims, RSA_KEY);
    assert!(check(with_key.clone(), &trick).is_err());
    for (kind, algorithm) in
        [(&PKCS_ECDSA_P256_SHA256, Algorithm::ES256), (&PKCS_ED25519, Algorithm::EdDSA)]
    {
        let pair = KeyPair::generate_for(kind).unwrap();
        fs::write(&path, pair.public_key_pem()).unwrap();
        let pem = pair.serialize_pem();
        let key = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(),
            _ => EncodingKey::from_ed_pem(pem.as_bytes()).unwrap(),
        };
        let token = encode(&Header::new(algorithm), &claims, &key).unwrap();
        assert_eq!(check(with_key.clone(), &token).unwrap().user, "ann");
        assert!(check(with_key.clone(), RSA_TOKEN).is_err());
        let other = KeyPair::generate_for(kind).unwrap();
        fs::write(&path, other.public_key_pem()).unwrap();
        assert!(check(with_key.clone(), &token).is_err());
        fs::write(&path, pem).unwrap();
        let error = Tokens::new(with_key.clone()).err().unwrap().to_string();
        assert!(error.contains("private key"), "{error}");
    }
}

#[test]
fn settings_that_cannot_work_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    fs::write(&path, RSA_KEY).unwrap();
    let file = TokenConfig { secret: None, key_file: Some(path.clone()), ..config() };
    let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    for (config, word) in [
        (TokenConfig { secret: Some("short".to_owned()), ..config() }, "32 bytes"),
        (TokenConfig { secret: None, ..config() }, "either"),
        (TokenConfig { key_file: Some(path), ..config() }, "either"),
        (TokenConfig { algorithms: names(&["HS256"]), ..file.clone() }, "RS256"),
        (TokenConfig { algorithms: names(&["none"]), ..config() }, "HS256"),
        (TokenConfig { user_claim: String::new(), ..config() }, "user_claim"),
        (TokenConfig { key_file: Some(folder.path().join("none")), ..file }, "key_file"),
    ] {
        let error = Tokens::new(config).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(!format!("{:?}", config()).contains(SECRET));
}
