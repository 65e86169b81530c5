//! `tidegate outbox`: webhooks that wait, those that were given up, and a second chance for them.

use std::fmt::Write as _;

use anyhow::Context;
use tidegate_runtime::outbox::{Letter, Resend, letters, request};

use super::args::{OutboxArgs, OutboxCommand, ResendArgs};
use super::{Outcome, print};

pub(super) fn outbox(args: OutboxArgs) -> Outcome {
    let dir = args.data.join("outbox");
    if !args.data.is_dir() {
        let data = args.data.display();
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
        let _infallible = write!(text, "{state}  {id}  {target}  {attempts} failed attempts");
        if !reason.is_empty() {
            let _infallible = write!(text, ": {reason}");
        }
        text.push('\n');
    }
    let dead = letters.iter().filter(|letter| letter.dead).count();
    text + &format!("{} wait, {dead} were given up", letters.len() - dead)
}
