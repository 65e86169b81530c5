//! `tidegate demo`: a fleet, the example pipelines, a webhook receiver and the live summary.
//!
//! Nothing in here is special: the engine runs the examples as `tidegate run` would, and the fleet
//! reaches it over TCP like any device.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use tidegate_pipelines::examples;
use tidegate_runtime::engine::EngineOptions;
use tidegate_runtime::fleet::{Fleet, FleetOptions};
use tidegate_runtime::receiver::Receiver;
use tidegate_runtime::screen::Screen;
use tidegate_runtime::summary::Summary;

use super::args::{DATA_DEFAULT, DemoArgs};
use super::settings::written;
use super::stop::Stop;
use super::{Outcome, files, finish, start};

/// The secret of the demo's webhooks ("tidegate-demo-webhook-key"); it guards nothing.
const SECRET: &str = "whsec_dGlkZWdhdGUtZGVtby13ZWJob29rLWtleQ==";

pub(super) async fn demo(args: DemoArgs, screen: &Arc<Screen>) -> Outcome {
    let mut stop = Stop::new(args.engine.time)?;
    let (listen, moved) = choose_address(args.listen)?;
    let printer = Arc::clone(screen);
    let receiver = Receiver::start(SECRET, Arc::new(move |line| printer.print(line))).await?;
    let plan = files::resolve(&example_files(listen), &|kind, name| match (kind, name) {
        ("env", examples::WEBHOOK_VARIABLE) => Ok(receiver.url()),
        ("env", examples::SECRET_VARIABLE) => Ok(SECRET.to_owned()),
        _ => files::reference(kind, name),
    })?;
    let options =
        EngineOptions { workers: args.engine.workers(), ..EngineOptions::new(args.engine.data()) };
    let metrics = args.engine.metrics.as_deref();
    let mut started = start::start(plan, options, metrics, screen).await?;
    let engine = &mut started.engine;
    let address = engine.endpoint_addr().context("the demo's pipelines have no endpoint")?;
    screen.print(&introduction(&args, address, moved));
    stop.restart(args.engine.time);
    let fleet = Fleet::start(&fleet_options(&args, address));
    let stats = engine.stats();
    let totals = Box::new(fleet.totals_reader());
    let mut summary = Summary::new("tidegate demo", stats, Some(totals));
    let watched = finish::watch(engine, &mut summary, screen, &mut stop).await;
    stop.next_signal_exits();
    // The fleet first: its last messages are still acknowledged and then processed.
    fleet.stop().await;
    let stopped = started.shutdown().await;
    watched?;
    stopped?;
    let arrived = receiver.totals();
    if arrived.refused > 0 {
        screen.print(&format!("the webhook receiver refused {} requests", arrived.refused));
    }
    let hint = format!(
        "Everything stays in {}: run the demo again to go on, or ask\n  \
         {} \"SELECT rule, status, count(*) AS n FROM system.alerts GROUP BY ALL\"",
        args.engine.data().display(),
        sql_command(&args.engine.data())
    );
    finish::totals(screen, &summary.picture(), args.engine.json, &hint);
    Ok(())
}

/// The address to listen on, and whether it is not the usual one.
fn choose_address(asked: Option<SocketAddr>) -> anyhow::Result<(SocketAddr, bool)> {
    let usual: SocketAddr = examples::LISTEN.parse()?;
    let wanted = asked.unwrap_or(usual);
    // Port 0 stays: the engine says which one it got.
    match TcpListener::bind(wanted) {
        Ok(_) => Ok((wanted, false)),
        Err(e) if e.kind() == ErrorKind::AddrInUse && asked.is_none() => {
            Ok((SocketAddr::new(usual.ip(), 0), true))
        }
        Err(e) => Err(e).with_context(|| format!("cannot listen on {wanted}")),
    }
}

/// The example files, with the address to listen on.
fn example_files(listen: SocketAddr) -> Vec<(PathBuf, String)> {
    let at = |text: &str| text.replace(examples::LISTEN, &listen.to_string());
    examples::DEMO.iter().map(|(name, text)| (PathBuf::from(name), at(text))).collect()
}

fn fleet_options(args: &DemoArgs, address: SocketAddr) -> FleetOptions {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    FleetOptions {
        devices: args.devices,
        seed: args.seed,
        interval: Duration::from_secs_f64(1.0 / args.speed),
        ..FleetOptions::new(address, now.as_micros() as i64)
    }
}

fn introduction(args: &DemoArgs, address: SocketAddr, moved: bool) -> String {
    let taken = match moved {
        true => format!(" (port {} is taken)", examples::LISTEN.rsplit(':').next().unwrap_or("")),
        false => String::new(),
    };
    let sql = sql_command(&args.engine.data());
    format!(
        "{} simulated devices (cold rooms, pumps, energy meters) with the faults of real ones\n\
         publish by MQTT to {address}{taken}. Three pipelines make windows, findings, alerts\n\
         with webhooks, and tables below {}. Ctrl-C ends it.\n\n\
         Try from a second terminal, after some seconds:\n  \
         {sql} \"SELECT device, window_start, n, t_avg, t_max \
         FROM cold_chain.per_5s ORDER BY t_avg DESC LIMIT 8\"\n  \
         {sql} \"SELECT time, rule, status, summary \
         FROM system.alerts ORDER BY time DESC LIMIT 8\"\n  \
         {sql} \"SELECT pipeline, reason, count(*) AS n \
         FROM system.rejects GROUP BY ALL ORDER BY n DESC\"\n  \
         {sql}   (a prompt with history; \\d lists tables and columns)\n",
        args.devices,
        args.engine.data().join("tables").display(),
    )
}

/// How the person started this program, for a second terminal.
fn sql_command(data: &Path) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "tidegate".to_owned());
    // A file of settings here would have it ask another instance.
    let found = written(None, &[]).ok().flatten().and_then(|file| file.data());
    match data == found.as_deref().unwrap_or(Path::new(DATA_DEFAULT)) {
        true => format!("{program} sql"),
        false => format!("{program} sql --data {}", data.display()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_only_if_it_was_asked_for() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = choose_address(Some(address)).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot listen on {address}"));
        // Whoever holds the usual port, the demo has an address to listen on.
        let (address, moved) = choose_address(None).unwrap();
        assert_eq!(address.port() == 0, moved);
    }

    #[test]
    fn the_examples_listen_where_the_demo_wants() {
        let address = "127.0.0.1:4242".parse().unwrap();
        for (name, text) in example_files(address) {
            assert!(text.contains("listen = \"127.0.0.1:4242\""), "{}", name.display());
            assert!(!text.contains(examples::LISTEN));
        }
    }
}
