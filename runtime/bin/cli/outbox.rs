//! `tidegate outbox`: webhooks that wait, those that were given up, and a second chance for them.

use std::fmt::Write as _;

use anyhow::Context;
use tidegate_runtime::outbox::{Letter, Resend, letters, request};

use super::args::{OutboxArgs, OutboxCommand, ResendArgs};
use super::{Outcome, print};

pub(super) fn outbox(args: OutboxArgs) -> Outcome {
    let data = args.place.find(&[])?.data;
    let dir = data.join("outbox");
    if !data.is_dir() {
        let data = data.display();
        return Err(anyhow::anyhow!("there is no data folder {data}; say which with --data").into());
    }
    let letters = letters(&dir).context("cannot read the outbox")?;
    match args.command {
        None | Some(OutboxCommand::List) => print(&list(&letters)),
        Some(OutboxCommand::Resend(wanted)) => {
            let wishes = wishes(&letters, &wanted)?;
            for wish in &wishes {
                request(&dir, wish).context("cannot leave the request in the outbox")?;
            }
            match wishes.is_empty() {
                true => print("nothing was given up: there is nothing to send again"),
                false => print("asked for: sent within a second, or at the next start"),
            }
        }
    }
}

/// What is to be asked for. Only what was given up can be sent again: the rest is on its way.
fn wishes(letters: &[Letter], wanted: &ResendArgs) -> anyhow::Result<Vec<Resend>> {
    let mut dead = letters.iter().filter(|letter| letter.dead);
    if wanted.all_dead {
        return Ok(dead.next().map(|_| Resend::All).into_iter().collect());
    }
    let dead: Vec<&str> = dead.map(|letter| letter.notification.id.as_str()).collect();
    for id in &wanted.ids {
        anyhow::ensure!(
            dead.contains(&id.as_str()),
            "no notification `{id}` was given up; `tidegate outbox` lists those that were"
        );
    }
    Ok(wanted.ids.iter().cloned().map(Resend::One).collect())
}

/// One line for each, and one that counts them.
fn list(letters: &[Letter]) -> String {
    let mut text = String::new();
    for Letter { notification, attempts, reason, dead } in letters {
        let state = if *dead { "given up" } else { "waits" };
        let (id, target) = (&notification.id, &notification.target);
        let failed = if *attempts == 1 { "failed attempt" } else { "failed attempts" };
        let _infallible = write!(text, "{state}  {id}  {target}  {attempts} {failed}");
        if !reason.is_empty() {
            let _infallible = write!(text, ": {reason}");
        }
        text.push('\n');
    }
    let dead = letters.iter().filter(|letter| letter.dead).count();
    let waiting = letters.len() - dead;
    let wait = if waiting == 1 { "waits" } else { "wait" };
    let were = if dead == 1 { "was" } else { "were" };
    text + &format!("{waiting} {wait}, {dead} {were} given up")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tidegate_runtime::outbox::Notification;

    use super::*;

    #[test]
    fn one_is_said_as_one() {
        let letter = |attempts, dead| {
            let (id, target, key) = ("i".into(), "p/t".into(), "k".into());
            let notification =
                Notification { id, target, body: Default::default(), created_us: 0, key };
            Letter { notification, attempts, reason: String::new(), dead }
        };
        let line = |state, attempts| format!("{state}  i  p/t  {attempts}\n");
        let one = line("waits", "1 failed attempt") + &line("given up", "2 failed attempts");
        let letters = [letter(1, false), letter(2, true)];
        assert_eq!(list(&letters), one + "1 waits, 1 was given up");
        assert_eq!(list(&[]), "0 wait, 0 were given up");
    }
}
