//! `tidegate sql`: one query, or a prompt.

use tidegate_sql::OutputFormat;

use super::Outcome;
use super::args::{Output, SqlArgs};

pub(super) async fn sql(args: SqlArgs) -> Outcome {
    // A typing mistake in --data must not look like an empty instance.
    if args.tables.is_none() && !args.data.is_dir() {
        let data = args.data.display();
        return Err(anyhow::anyhow!(
            "there is no folder {data}; name the data of an instance with --data, or start one \
             with `tidegate demo`"
        )
        .into());
    }
    let tables = match args.tables {
        Some(url) => url,
        None => args.data.join("tables").display().to_string(),
    };
    let format = match args.output {
        Output::Table => OutputFormat::Table,
        Output::Csv => OutputFormat::Csv,
        Output::Json => OutputFormat::Json,
        Output::Parquet => OutputFormat::Parquet,
    };
    match args.query {
        Some(query) => tidegate_sql::run_query(&tables, &query, format).await?,
        None => tidegate_sql::prompt(&tables, format).await?,
    }
    Ok(())
}
