//! `tidegate sql`: one query, or a prompt.

use tidegate_sql::{OutputFormat, QueryOptions};

use super::Outcome;
use super::args::{Output, SqlArgs};

pub(super) async fn sql(args: SqlArgs) -> Outcome {
    let place = args.place.find(&[])?;
    // What an instance noted in its folder is newer than what a file of settings says.
    let tables = args.tables.or_else(|| place.tables.filter(|_| !place.data.is_dir()));
    let mut options = QueryOptions { tables, ..QueryOptions::new(place.data) };
    if let Some(time) = args.timeout {
        options.time_max = Some(time).filter(|time| !time.is_zero());
    }
    options.memory_bytes_max = args.memory_max.unwrap_or(options.memory_bytes_max);
    let format = match args.output {
        Output::Table => OutputFormat::Table,
        Output::Csv => OutputFormat::Csv,
        Output::Json => OutputFormat::Json,
        Output::Parquet => OutputFormat::Parquet,
    };
    let outcome = match args.query {
        Some(query) => {
            // Not locked: the writer is held across awaits.
            let mut out = std::io::stdout();
            tidegate_sql::run_query(&options, &query, format, &mut out).await.map(drop)
        }
        None => tidegate_sql::prompt(&options).await,
    };
    outcome.map_err(|e| anyhow::Error::from(e).into())
}
