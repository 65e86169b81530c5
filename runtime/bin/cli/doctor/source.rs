//! `tidegate doctor source`: would this broker lose messages?

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::Plan;
use tidegate_pipelines::plan::SourceKind;
use tidegate_runtime::doctor::{FileText, Options, Report, examine, file_of};
use tidegate_runtime::engine::subscriber_config;
use tidegate_runtime::mqtt::SubscriberConfig;

use super::super::failure::Failure;
use super::super::files;

const SOURCE_HELP: &str = "\
An acknowledged message is only as safe as the broker that acknowledged it, and with their default
settings many brokers lose some: mosquitto keeps 1,000 messages for a subscriber that is away and
drops the rest without a word. The doctor tries it out, as a client with sessions of its own:

  connection  address, TLS, credentials, version of the protocol
  topics      are the filters of the pipeline granted; are there retained messages
  session     is it kept while we are away
  queue       does all that was published meanwhile come (--messages of them)
  window      how many messages may be on their way without acknowledgement
  redelivery  do unacknowledged messages come again with the same packet id and DUP
  latency, throughput, overlap, clock

Each row is ok, note, warn or FAIL, with what was measured and the lines to change; `check` marks
what cannot be tried from outside. It publishes to a topic of its own below --topic, never touches
the session of the running product, and leaves nothing behind.

Examples:
  tidegate doctor source pipelines/
  tidegate doctor source mqtt://broker:1883 --user me --password-env BROKER_PASSWORD
  tidegate doctor source mqtts://broker:8883 --ca-file ca.pem --json
  tidegate doctor source pipelines/ --broker-config /etc/mosquitto/mosquitto.conf

Exit code: 0 if nothing FAILed, 1 otherwise.";

#[derive(Args, Debug)]
#[command(after_help = SOURCE_HELP)]
pub(in super::super) struct SourceArgs {
    /// Pipeline files, folders of them, or URLs: mqtt://, mqtts://, ws://, wss://
    #[arg(required = true, value_name = "FILE|URL")]
    targets: Vec<String>,
    /// Below which topic the test messages go
    #[arg(long, value_name = "TOPIC", default_value = "tidegate/doctor", value_parser = topic)]
    topic: String,
    /// How many messages to queue for a session that is away
    #[arg(long, value_name = "N", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(10..=50_000))]
    messages: u32,
    /// For a URL: version of the protocol
    #[arg(long, value_enum, default_value_t = Version::Five)]
    mqtt: Version,
    /// For a URL: user name
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// For a URL: the environment variable that holds the password
    #[arg(long, value_name = "VARIABLE", requires = "user")]
    password_env: Option<String>,
    /// For a URL: certificates to trust (PEM)
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// For a URL: our own certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// For a URL: its key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// The broker's own configuration, if it is on this machine: then its lines are named
    #[arg(long, value_name = "FILE")]
    broker_config: Option<PathBuf>,
    /// Print the findings as one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Version {
    /// MQTT 3.1.1
    #[value(name = "3.1.1")]
    Three,
    /// MQTT 5
    #[value(name = "5")]
    Five,
}

fn topic(text: &str) -> Result<String, String> {
    let wrong = text.is_empty() || text.len() > 500 || text.contains(['+', '#', '\0']);
    if wrong { Err("a topic without wildcards is needed".to_owned()) } else { Ok(text.to_owned()) }
}

pub(super) async fn source(args: &SourceArgs) -> Result<Vec<Report>, Failure> {
    let brokers = brokers(args)?;
    if brokers.is_empty() {
        let text = "no pipeline there has a broker as its source (`type = \"mqtt\"`)";
        return Err(anyhow::anyhow!(text).into());
    }
    let broker = args.broker_config.clone().map(|path| -> anyhow::Result<FileText> {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(FileText { path, text })
    });
    let (topic, messages) = (args.topic.clone(), args.messages);
    let options = Options { topic, messages, broker: broker.transpose()? };
    let mut reports = Vec::new();
    for Broker { name, config, file } in &brokers {
        reports.push(examine(name, config, file.as_ref(), &options).await);
    }
    Ok(reports)
}

/// A broker to try out.
struct Broker {
    /// As people call it.
    name: String,
    config: SubscriberConfig,
    /// Of the first pipeline that reads it.
    file: Option<FileText>,
}

/// The brokers of a plan, with the usual options.
pub(super) async fn of_plan(plan: &Plan, files: &[FileText]) -> Vec<Report> {
    let mut reports = Vec::new();
    for Broker { name, config, file } in in_plan(plan, files) {
        reports.push(examine(&name, &config, file.as_ref(), &Options::default()).await);
    }
    reports
}

fn in_plan(plan: &Plan, files: &[FileText]) -> Vec<Broker> {
    let mut brokers = Vec::new();
    for (number, source) in plan.sources.iter().enumerate() {
        if let SourceKind::Mqtt(spec) = &source.kind {
            let name = format!("{} as {}", source.name, spec.client_id);
            let config = subscriber_config(spec, Path::new("."));
            let of = |p: &&PipelineSpec| usize::from(p.decode.source) == number;
            let pipeline = plan.pipelines.iter().find(of);
            let file = pipeline.and_then(|pipeline| file_of(files, &pipeline.name)).cloned();
            brokers.push(Broker { name, config, file });
        }
    }
    brokers
}

/// The brokers that are named.
fn brokers(args: &SourceArgs) -> Result<Vec<Broker>, Failure> {
    let (urls, paths): (Vec<&String>, Vec<&String>) =
        args.targets.iter().partition(|target| target.contains("://"));
    let mut brokers = Vec::new();
    for url in urls {
        brokers.push(Broker { name: url.clone(), config: from_url(args, url)?, file: None });
    }
    if !paths.is_empty() {
        let paths: Vec<PathBuf> = paths.into_iter().map(PathBuf::from).collect();
        let texts = files::read(&paths)?;
        let plan = files::resolve(&texts, &files::reference)?;
        let texts: Vec<FileText> =
            texts.into_iter().map(|(path, text)| FileText { path, text }).collect();
        brokers.extend(in_plan(&plan, &texts));
    }
    Ok(brokers)
}

fn from_url(args: &SourceArgs, url: &str) -> anyhow::Result<SubscriberConfig> {
    let password = args.password_env.as_ref().map(std::env::var).transpose();
    let password = password.context("cannot read the password from the environment")?;
    Ok(SubscriberConfig {
        url: url.to_owned(),
        version5: args.mqtt == Version::Five,
        user: args.user.clone(),
        password,
        ca_file: args.ca_file.clone(),
        cert_file: args.cert_file.clone(),
        key_file: args.key_file.clone(),
        ..SubscriberConfig::default()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::super::super::args::{Cli, Command};
    use super::super::{DoctorArgs, What};
    use super::*;

    fn parse(line: &str) -> Option<SourceArgs> {
        match Cli::try_parse_from(line.split(' ')).ok()?.command? {
            Command::Doctor(DoctorArgs { what: Some(What::Source(args)), .. }) => Some(args),
            _ => None,
        }
    }

    #[test]
    fn urls_and_options_become_settings() {
        let args =
            parse("tidegate doctor source mqtt://b --mqtt 3.1.1 --user u --topic a/b").unwrap();
        let brokers = brokers(&args).unwrap();
        let Broker { name, config, .. } = &brokers[0];
        assert_eq!(name, "mqtt://b");
        assert!(!config.version5 && config.user.as_deref() == Some("u"));
        for wrong in ["--topic a/#", "--messages 0", "--password-env X", "--cert-file x"] {
            assert!(
                parse(&format!("tidegate doctor source mqtt://b {wrong}")).is_none(),
                "{wrong}"
            );
        }
        assert!(parse("tidegate doctor source").is_none());
    }
}
