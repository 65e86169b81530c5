//! Lines of a file of users: `NAME:$argon2id$...`, one user each, made by `tidegate password`.

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use ring::rand::{SecureRandom, SystemRandom};

/// Most memory that checking one password may take, KiB. Three times the usual advice; a file from
/// elsewhere must not demand gigabytes.
const MEMORY_KIB_MAX: u32 = 64 * 1024;

/// Most passes over the memory.
const PASSES_MAX: u32 = 10;

/// Most lanes; they are worked on one after the other.
const LANES_MAX: u32 = 4;

/// Longest hash, bytes: twice what is usual.
const HASH_BYTES_MAX: usize = 64;

/// Longest user name, bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// Bytes of a salt.
const SALT_BYTES: usize = 16;

/// Why this cannot be the name of a user, if it cannot.
pub fn name_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("the name is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return Some("the name is too long");
    }
    let odd = |c: char| c == ':' || c.is_control();
    if name.contains(odd) || name.starts_with('#') || name.trim() != name {
        return Some(
            "a name has no `:`, no control characters, no `#` or space at its start, no space at \
             its end",
        );
    }
    None
}

/// The line of a user, with a new salt and the memory (19 MiB) and passes that OWASP advises.
///
/// # Errors
/// The name cannot be one, the password is empty or longer than MQTT can send, or the system has no
/// random numbers.
pub fn line(name: &str, password: &[u8]) -> Result<String, String> {
    if let Some(problem) = name_problem(name) {
        return Err(problem.to_owned());
    }
    if password.is_empty() || password.len() > usize::from(u16::MAX) {
        return Err("a password has 1 to 65535 bytes".to_owned());
    }
    Ok(format!("{name}:{}", hash(password, Params::DEFAULT)?))
}

pub(super) fn hash(password: &[u8], params: Params) -> Result<String, String> {
    let mut salt = [0; SALT_BYTES];
    let random = SystemRandom::new().fill(&mut salt);
    random.map_err(|_| "the system has no random numbers".to_owned())?;
    let salt = SaltString::encode_b64(&salt).map_err(|e| e.to_string())?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password(password, &salt).map_err(|e| e.to_string())?;
    Ok(hash.to_string())
}

/// Why this hash is not used, if it is not.
pub(super) fn hash_problem(text: &str) -> Option<String> {
    let hash = match PasswordHash::new(text) {
        Ok(hash) => hash,
        Err(error) => return Some(format!("no hash of a password: {error}")),
    };
    if hash.algorithm.as_str() != "argon2id" {
        return Some(format!("`{}` is not supported, only argon2id", hash.algorithm));
    }
    if hash.version != Some(19) {
        return Some("only version 19 (v=19) of argon2id is supported".to_owned());
    }
    for (name, max) in [("m", MEMORY_KIB_MAX), ("t", PASSES_MAX), ("p", LANES_MAX)] {
        let Some(value) = hash.params.get_decimal(name) else {
            return Some(format!("the parameter {name} is missing"));
        };
        // Zero is refused by the library, whose arithmetic the upper bounds protect.
        if value > max {
            return Some(format!("{name}={value} is more than {max}"));
        }
    }
    match (hash.salt, hash.hash) {
        (Some(_), Some(output)) if (16..=HASH_BYTES_MAX).contains(&output.len()) => {}
        _ => return Some("there is no salt, or the hash has not 16 to 64 bytes".to_owned()),
    }
    Params::try_from(&hash).err().map(|error| error.to_string())
}

/// Whether the password is that of the hash. Takes long by intention.
pub(super) fn is_right(password: &[u8], hash: &str) -> bool {
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::DEFAULT);
    PasswordHash::new(hash).is_ok_and(|hash| argon2.verify_password(password, &hash).is_ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_line_opens_with_its_password_only() {
        let text = line("gw 1", b"s3cret").unwrap();
        let (name, hash) = text.split_once(':').unwrap();
        assert_eq!(name, "gw 1");
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_eq!(hash_problem(hash), None);
        assert!(is_right(b"s3cret", hash) && !is_right(b"s3cre", hash));
        assert_ne!(line("gw 1", b"s3cret").unwrap(), text, "the salt must be new");
    }

    #[test]
    fn a_hash_of_another_program_is_understood() {
        // A test vector of the reference implementation.
        let hash = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ\
                    $nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        assert_eq!(hash_problem(hash), None);
        assert!(is_right(b"password", hash));
    }

    #[test]
    fn hostile_hashes_are_refused_before_they_cost_anything() {
        let good = hash(b"x", Params::new(8, 1, 1, None).unwrap()).unwrap();
        assert_eq!(hash_problem(&good), None);
        for (from, to) in [
            ("m=8,", "m=4194304,"),
            ("t=1,", "t=4294967295,"),
            ("p=1$", "p=4294967295$"),
            ("p=1$", "p=2$"),
            ("m=8,", "m=0,"),
            ("t=1,", "t=0,"),
            ("t=1,", ""),
            ("argon2id", "argon2i"),
            ("argon2id", "pbkdf2-sha256"),
            ("v=19", "v=16"),
            ("v=19$", ""),
            ("$argon2id", ""),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert!(hash_problem(&bad).is_some(), "{bad}");
        }
        let short = good.rsplit_once('$').unwrap().0;
        assert!(hash_problem(short).is_some() && hash_problem(&format!("{short}$AAAA")).is_some());
    }

    #[test]
    fn names_that_a_file_cannot_hold_are_refused() {
        for name in ["", "a:b", " a", "a ", "#a", "a\nb", &"x".repeat(257)] {
            assert!(line(name, b"x").is_err(), "{name:?}");
        }
        assert!(line("a", b"").is_err());
    }
}
