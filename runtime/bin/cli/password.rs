//! `tidegate password`: a line for a file of users.

use std::io::{BufRead, IsTerminal, Read};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use tidegate_runtime::mqtt::security::password;

use super::args::PasswordArgs;
use super::{Outcome, print};

/// MQTT cannot send a longer password; with its line end.
const PASSWORD_BYTES_MAX: u64 = 65_535 + 2;

pub(super) fn password(args: &PasswordArgs) -> Outcome {
    let name = args.name.as_deref();
    if let Some(problem) = name.and_then(password::name_problem) {
        return Err(anyhow::anyhow!("{problem}").into());
    }
    let stdin = std::io::stdin();
    let secret = match stdin.is_terminal() {
        true => ask()?,
        false => read(&mut stdin.lock())?,
    };
    let line = password::line(name.unwrap_or(NOBODY), &secret).map_err(anyhow::Error::msg)?;
    let shown = match name {
        Some(_) => line.as_str(),
        None => line.split_once(':').map_or(line.as_str(), |(_, hash)| hash),
    };
    print(shown)
}

/// Stands for the name where only the hash is wanted.
const NOBODY: &str = "nobody";

/// Asks a person, twice, because nothing is seen of what is typed.
fn ask() -> anyhow::Result<Vec<u8>> {
    let silent = Silent::new();
    if silent.is_none() {
        eprintln!("(this terminal shows what you type)");
    }
    let mut answers = Vec::new();
    for prompt in ["Password: ", "Again: "] {
        eprint!("{prompt}");
        answers.push(read(&mut std::io::stdin().lock())?);
        if silent.is_some() {
            eprintln!();
        }
    }
    ensure!(answers[0] == answers[1], "the two are not the same");
    Ok(answers.swap_remove(0))
}

/// The first line, without its end.
fn read(input: &mut dyn BufRead) -> anyhow::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut limited = input.take(PASSWORD_BYTES_MAX);
    limited.read_until(b'\n', &mut line).context("cannot read the password")?;
    if line.ends_with(b"\n") {
        line.pop();
        if line.ends_with(b"\r") {
            line.pop();
        }
    }
    Ok(line)
}

/// Keeps the terminal from showing what is typed until it is dropped.
struct Silent;

impl Silent {
    fn new() -> Option<Self> {
        stty("-echo").then_some(Self)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        stty("echo");
    }
}

/// Every Unix has it; elsewhere the password is seen, and the person is told so.
fn stty(setting: &str) -> bool {
    let done = Command::new("stty").arg(setting).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_password_is_the_first_line_as_it_is() {
        for (text, wanted) in [
            ("secret", "secret"),
            ("secret\n", "secret"),
            ("secret\r\nmore\n", "secret"),
            (" a b \n", " a b "),
            ("\n", ""),
            ("", ""),
        ] {
            assert_eq!(read(&mut text.as_bytes()).unwrap(), wanted.as_bytes(), "{text:?}");
        }
        let long = "x".repeat(100_000);
        assert!(read(&mut long.as_bytes()).unwrap().len() <= PASSWORD_BYTES_MAX as usize);
    }
}
