//! The interactive prompt: SQL until `;`, a few backslash commands, history between sessions.
//!
//! Ctrl-C ends a running query or the line that is being typed, never the prompt.

use std::io::{self, Write};
use std::path::PathBuf;

use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::catalog::TableProvider;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::runtime::Builder;
use tokio::sync::watch;

use crate::query::{QueryOptions, execute, open};
use crate::session::parse;
use crate::{Error, OutputFormat, Result, Session, TableName};

const HISTORY_FILE: &str = ".sql_history";

const HELP: &str = "\
SQL ends with `;` and may span lines.
  \\d            tables with their rows
  \\d TABLE      columns of a table
  \\o FORMAT     output as table, csv or json
  \\?            this help
  \\q            leave (also Ctrl-D)
Ctrl-C stops a running query.";

/// What a finished line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Nothing,
    Quit,
    Help,
    Tables,
    Columns(String),
    Format(String),
    Unknown(String),
}

fn command(line: &str) -> Option<Command> {
    let line = line.trim().trim_end_matches(';').trim_end();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    Some(match word {
        "" => Command::Nothing,
        "\\q" | "quit" | "exit" => Command::Quit,
        "\\?" | "help" => Command::Help,
        "\\d" if rest.is_empty() => Command::Tables,
        "\\d" => Command::Columns(rest.into()),
        "\\o" => Command::Format(rest.into()),
        w if w.starts_with('\\') => Command::Unknown(w.into()),
        _ => return None,
    })
}

/// Whether `sql` ends with a `;` that is not inside a string, a quoted name or a comment.
fn is_complete(sql: &str) -> bool {
    let mut quote = None;
    let mut complete = false;
    let mut characters = sql.chars().peekable();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => {
                quote = Some(c);
                complete = false;
            }
            (None, '-') if characters.peek() == Some(&'-') => {
                for c in characters.by_ref() {
                    if c == '\n' {
                        break;
                    }
                }
            }
            (None, ';') => complete = true,
            (None, c) if c.is_whitespace() => {}
            (None, _) => complete = false,
        }
    }
    complete && quote.is_none()
}

/// The terminal side: reads statements, keeps the history.
struct Input {
    editor: Option<DefaultEditor>,
    history: PathBuf,
}

enum Read {
    Text(String),
    Interrupted,
    End,
}

impl Input {
    fn new(history: PathBuf) -> Result<Self> {
        let mut editor = DefaultEditor::new().map_err(io::Error::other)?;
        // The first session has none.
        let _ = editor.load_history(&history);
        Ok(Self { editor: Some(editor), history })
    }

    /// One line; the editor blocks, so it works on a thread of its own.
    async fn line(&mut self, prompt: &'static str) -> Result<Read> {
        let mut editor = self.editor.take().expect("put back below");
        let (editor, line) = tokio::task::spawn_blocking(move || {
            let line = editor.readline(prompt);
            (editor, line)
        })
        .await?;
        self.editor = Some(editor);
        match line {
            Ok(line) => Ok(Read::Text(line)),
            Err(ReadlineError::Interrupted) => Ok(Read::Interrupted),
            Err(ReadlineError::Eof) => Ok(Read::End),
            Err(e) => Err(io::Error::other(e).into()),
        }
    }

    fn remember(&mut self, text: &str) {
        let editor = self.editor.as_mut().expect("put back after every line");
        let one_line = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        // A history that cannot be kept is no reason to stop.
        let _ = editor.add_history_entry(one_line);
        let _ = editor.save_history(&self.history);
    }

    /// A command, or a statement that ends with `;`.
    async fn statement(&mut self) -> Result<Read> {
        let mut text = String::new();
        loop {
            let prompt = if text.is_empty() { "tidegate> " } else { "      ... " };
            match self.line(prompt).await? {
                Read::Text(line) => text.push_str(&line),
                Read::Interrupted if text.is_empty() => {
                    println!("\\q or Ctrl-D to leave");
                    return Ok(Read::Interrupted);
                }
                Read::Interrupted => return Ok(Read::Interrupted),
                Read::End if text.trim().is_empty() => return Ok(Read::End),
                // The last statement of piped input may lack its `;`.
                Read::End => return Ok(Read::Text(text)),
            }
            if command(&text).is_some() || is_complete(&text) {
                return Ok(Read::Text(text));
            }
            text.push('\n');
        }
    }
}

/// Counts Ctrl-C on a thread of its own: a busy query can hold every worker of the runtime.
fn interrupts() -> io::Result<watch::Receiver<u64>> {
    let (send, receive) = watch::channel(0);
    let (ready, is_ready) = std::sync::mpsc::channel();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let listen = async move {
        let mut next = Box::pin(tokio::signal::ctrl_c());
        // The first poll sets the handler. The editor saves handlers and puts them back after each
        // line, so ours has to be there before the editor is.
        let _ = futures::poll!(&mut next);
        let _ = ready.send(());
        while next.await.is_ok() && !send.is_closed() {
            next = Box::pin(tokio::signal::ctrl_c());
            send.send_modify(|n| *n += 1);
        }
    };
    let thread = std::thread::Builder::new().name("interrupts".into());
    thread.spawn(move || runtime.block_on(listen))?;
    is_ready.recv().map_err(io::Error::other)?;
    Ok(receive)
}

/// Runs the prompt on this terminal until the user leaves.
///
/// # Errors
/// There are no tables, or the terminal fails. Query errors are shown, not returned.
pub async fn prompt(options: &QueryOptions) -> Result<()> {
    let session = open(options).await?;
    let mut interrupts = interrupts()?;
    let mut input = Input::new(options.data.join(HISTORY_FILE))?;
    let mut format = OutputFormat::Table;
    println!("{}", greeting(&session));
    loop {
        let text = match input.statement().await? {
            Read::Text(text) => text,
            Read::Interrupted => continue,
            Read::End => return Ok(()),
        };
        if !text.trim().is_empty() {
            input.remember(&text);
        }
        let done = match command(&text) {
            Some(Command::Quit) => return Ok(()),
            Some(Command::Format(name)) => match name.parse() {
                Ok(OutputFormat::Parquet) => {
                    Err(Error::Query("Parquet is not for a terminal: use -o parquet".into()))
                }
                Ok(known) => {
                    format = known;
                    Ok(())
                }
                Err(text) => Err(Error::Query(text)),
            },
            Some(other) => show(&session, other, &mut io::stdout()).await,
            None => {
                interrupts.mark_unchanged();
                tokio::select! {
                    done = run(&session, &text, format, options) => done,
                    Ok(()) = interrupts.changed() => Err(Error::Query("stopped".into())),
                }
            }
        };
        if let Err(e) = done {
            eprintln!("error: {}", e.to_string().replace('\n', "\n       "));
        }
    }
}

fn greeting(session: &Session) -> String {
    let tables = session.tables().len() + session.empty().len();
    format!("{tables} tables: \\d lists them. \\? helps, \\q leaves. SQL ends with `;`.")
}

async fn run(
    session: &Session,
    text: &str,
    format: OutputFormat,
    options: &QueryOptions,
) -> Result<()> {
    for statement in parse(text)? {
        let mut out = io::stdout();
        let summary = execute(session, statement, format, options, &mut out).await?;
        let more = if summary.complete { "" } else { " or more" };
        let plural = if summary.rows == 1 { "row" } else { "rows" };
        println!("{} {plural}{more}, {:.3} s", summary.rows, summary.elapsed.as_secs_f64());
    }
    Ok(())
}

async fn show(session: &Session, command: Command, out: &mut dyn Write) -> Result<()> {
    match command {
        Command::Help => writeln!(out, "{HELP}")?,
        Command::Tables => show_tables(session, out).await?,
        Command::Columns(name) => show_columns(session, &name, out).await?,
        Command::Unknown(word) => {
            return Err(Error::Query(format!("unknown command `{word}`, \\?")));
        }
        Command::Nothing | Command::Quit | Command::Format(_) => {}
    }
    Ok(())
}

async fn show_tables(session: &Session, out: &mut dyn Write) -> Result<()> {
    session.refresh().await?;
    let (tables, empty) = (session.tables(), session.empty());
    let longest = tables.iter().chain(&empty).map(|t| t.to_string().len()).max().unwrap_or(0);
    let width = longest.max("table".len()) + "_revisions".len();
    writeln!(out, "{:width$} {:>14} {:>8}", "table", "rows", "files")?;
    for name in tables {
        let shown = name.to_string();
        // One that cannot be read must not hide the others.
        match session.table(&name)?.snapshot().await {
            Ok(Some(snapshot)) => {
                let rows = snapshot.rows().map_or_else(|| "?".into(), |r| r.to_string());
                writeln!(out, "{shown:width$} {rows:>14} {:>8}", snapshot.files().count())?;
                for (other, what) in session.others(&name).await? {
                    writeln!(out, "{:width$} {what:>14}", other.to_string())?;
                }
            }
            Ok(None) => writeln!(out, "{shown:width$} {:>14} {:>8}", "no commit", "")?,
            Err(error) => writeln!(out, "{shown:width$} {:>14} {:>8}  {error}", "?", "?")?,
        }
    }
    for name in empty {
        writeln!(out, "{:width$} {:>14} {:>8}", name.to_string(), 0, 0)?;
    }
    Ok(())
}

async fn show_columns(session: &Session, wanted: &str, out: &mut dyn Write) -> Result<()> {
    session.refresh().await?;
    let fits = |t: &TableName| t.name == wanted || t.to_string() == wanted;
    let found: Vec<TableName> = session.tables().into_iter().filter(fits).collect();
    if found.is_empty() {
        // All revisions of a table, or what a registry says now; else the planner's error knows
        // what is close.
        let frame = session.sql(&format!("SELECT * FROM {wanted}")).await?;
        columns_of(wanted, frame.schema().as_arrow(), out)?;
    }
    for name in found {
        let provider = session.table(&name)?.provider().await?;
        columns_of(&name.to_string(), &provider.schema(), out)?;
    }
    Ok(())
}

fn columns_of(name: &str, schema: &Schema, out: &mut dyn Write) -> Result<()> {
    let width = schema.fields().iter().map(|f| f.name().len()).max().unwrap_or(0);
    writeln!(out, "{name}")?;
    for field in schema.fields() {
        let unit = field.metadata().get("unit").map(|u| format!("  {u}")).unwrap_or_default();
        let kind = type_word(field.data_type());
        writeln!(out, "  {:width$}  {kind}{unit}", field.name())?;
    }
    Ok(())
}

/// A type as pipeline files write it.
fn type_word(kind: &DataType) -> String {
    match kind {
        DataType::Boolean => "bool".into(),
        DataType::Utf8 => "string".into(),
        DataType::Timestamp(_, _) => "time".into(),
        DataType::Date32 => "date".into(),
        DataType::List(item) => format!("list of {}", type_word(item.data_type())),
        DataType::Struct(parts) => {
            let part = |f: &FieldRef| format!("{} {}", f.name(), type_word(f.data_type()));
            format!("({})", parts.iter().map(part).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string().to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_statement_ends_at_a_semicolon_outside_of_quotes() {
        for whole in ["select 1;", "select ';' ; ", "select 1; -- done", "select \"a;\" ;\n"] {
            assert!(is_complete(whole), "{whole}");
        }
        for part in ["select 1", "select ';", "select 1; select", "select 1 -- ;", "select \"a;"] {
            assert!(!is_complete(part), "{part}");
        }
    }

    #[test]
    fn commands_are_told_from_sql() {
        assert_eq!(command("\\d"), Some(Command::Tables));
        assert_eq!(command(" \\d  a.b; "), Some(Command::Columns("a.b".into())));
        assert_eq!(command("\\o csv"), Some(Command::Format("csv".into())));
        assert_eq!(command("exit;"), Some(Command::Quit));
        assert_eq!(command("\\zz"), Some(Command::Unknown("\\zz".into())));
        assert_eq!(command("select 1;"), None);
    }

    #[tokio::test]
    async fn all_tables_of_the_folder_are_listed_whatever_files_of_pipelines_say() {
        let (folder, store) = crate::testing::local();
        let spec = crate::testing::spec("windows", &crate::testing::windows(&[("a", 0, 1, 0)]));
        let mut writer = crate::TableWriter::open(&store, &spec, "a".into()).await.unwrap();
        writer.append(crate::testing::windows(&[("a", 0, 1, 0)]), 1).await.unwrap();
        writer.commit(1).await.unwrap();
        std::fs::create_dir_all(folder.path().join("plant/begun")).unwrap();
        let log = folder.path().join("old/damaged/_delta_log");
        std::fs::create_dir_all(&log).unwrap();
        std::fs::write(log.join("00000000000000000000.json"), "no JSON").unwrap();
        let session = Session::over(store.clone(), 1 << 28).unwrap();
        let mut out = Vec::new();
        show(&session, Command::Tables, &mut out).await.unwrap();
        show(&session, Command::Columns("windows_revisions".into()), &mut out).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        let words: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(words[1][..3], ["old.damaged", "?", "?"]);
        assert!(words[1].len() > 3, "why: {text}");
        assert_eq!(words[2], ["plant.begun", "no", "commit"]);
        assert_eq!(words[3], ["plant.windows", "1", "1"]);
        assert_eq!(words[4], ["plant.windows_revisions", "all", "revisions"]);
        assert_eq!(words[5], ["windows_revisions"]);
        assert!(words.contains(&vec!["revision", "int64"]), "{text}");
        assert!(greeting(&session).starts_with("3 tables:"), "{}", greeting(&session));
        let shown = crate::testing::lines(&store, "SHOW TABLES").await;
        let listed: Vec<&str> = words[1..5].iter().map(|line| line[0]).collect();
        assert_eq!(shown, listed);
    }

    #[tokio::test]
    async fn tables_and_columns_are_listed() {
        let (_folder, store) = crate::testing::local();
        let spec = crate::testing::spec("t", &crate::testing::many(0, 1));
        let mut writer = crate::TableWriter::open(&store, &spec, "a".into()).await.unwrap();
        writer.append(crate::testing::many(0, 12), 1).await.unwrap();
        writer.commit(1).await.unwrap();
        let session = Session::over(store, 1 << 28).unwrap();
        let mut out = Vec::new();
        show(&session, Command::Tables, &mut out).await.unwrap();
        show(&session, Command::Columns("plant.t".into()), &mut out).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        let words: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["plant.t", "12", "1"]);
        assert!(words.contains(&vec!["time", "time"]) && words.contains(&vec!["day", "date"]));
        let mut out = Vec::new();
        show(&session, Command::Columns("tidegate.plant.t".into()), &mut out).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("tidegate.plant.t\n  device"), "{text}");
        let missing = show(&session, Command::Columns("tt".into()), &mut Vec::new()).await;
        assert!(missing.unwrap_err().to_string().contains("did you mean `t`?"));
    }

    #[tokio::test]
    async fn tables_of_the_engine_without_a_row_are_listed() {
        let (_folder, store) = crate::testing::local();
        let mut spec = crate::testing::spec("late", &crate::testing::many(0, 1));
        spec.namespace = "system".into();
        crate::TableWriter::open(&store, &spec, "a".into()).await.unwrap();
        let session = Session::over(store, 1 << 28).unwrap();
        let mut out = Vec::new();
        show(&session, Command::Tables, &mut out).await.unwrap();
        show(&session, Command::Columns("system.windows_kept".into()), &mut out).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        let words: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(words.iter().filter(|w| w[0] == "system.late").count(), 1, "{text}");
        assert!(words.contains(&vec!["system.windows_kept", "0", "0"]), "{text}");
        assert!(words.contains(&vec!["late_readings", "int64"]), "{text}");
        let shown = session.sql("SHOW TABLES").await.unwrap().collect().await.unwrap();
        assert_eq!(shown.iter().map(|rows| rows.num_rows()).sum::<usize>(), 10);
        assert!(greeting(&session).starts_with("10 tables:"), "{}", greeting(&session));
    }
}
