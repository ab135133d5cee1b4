//! The process's own log on standard error: text for people at a terminal, lines of JSON for programs.
//!
//! A line of JSON has `timestamp`, `level`, `target`, `message` and the event's fields beside them, and `request_id` and
//! `trace_id` where it was caused by a request; `requests` and `request_ids` where by several that shared a statement.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::panic::{PanicHookInfo, set_hook};
use std::time::SystemTime;

use anstream::{AutoStream, ColorChoice};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::request::each_field;
use crate::config::{ConfigError, LogFormat};
use crate::domain::Timestamp;

/// What is told where `RUST_LOG` says nothing.
const DEFAULT_FILTER: &str = "info,poem=warn";

/// Begins the log. To be called once, before anything is told.
///
/// # Errors
///
/// [`ConfigError`] if `RUST_LOG` cannot be used.
pub fn install(format: LogFormat) -> Result<(), ConfigError> {
    let is_terminal = stderr().is_terminal();
    // As `NO_COLOR` and its like have it.
    let is_coloured = AutoStream::choice(&stderr()) != ColorChoice::Never;
    let is_text = match format {
        LogFormat::Auto => is_terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let filter = filter()?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(is_coloured);
    if is_text {
        let format = Format::default().with_ansi(is_coloured);
        log.event_format(Text { format, is_coloured }).init();
    } else {
        log.event_format(JsonLines).init();
        set_hook(Box::new(tell_panic));
    }
    Ok(())
}

/// What of all that is told is shown. Empty is the same as not set.
fn filter() -> Result<EnvFilter, ConfigError> {
    const VARIABLE: &str = "RUST_LOG";
    let asked = std::env::var_os(VARIABLE).unwrap_or_default();
    if asked.is_empty() {
        return Ok(EnvFilter::new(DEFAULT_FILTER));
    }
    let asked = asked.into_string().map_err(|_| ConfigError::NotUtf8 {
        variable: VARIABLE.to_owned(),
    })?;
    EnvFilter::try_new(&asked).map_err(|_| ConfigError::Invalid {
        variable: VARIABLE,
        value: asked,
        allowed: "levels for parts of the program, such as info,poem=warn",
    })
}

/// A panic as an event like any other, where a program reads the log.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let reason = panic.payload_as_str().unwrap_or_default();
    tracing::error!(location, reason, "a thread panicked");
}

/// The lines of tracing-subscriber, with what they are caused by at their ends.
struct Text {
    format: Format,
    is_coloured: bool,
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(line.trim_end_matches('\n'))?;
        let mut result = Ok(());
        each_field(|name, value| {
            if result.is_ok() {
                // As tracing-subscriber shows its own.
                let (italic, dim, plain) = if self.is_coloured {
                    ("\x1b[3m", "\x1b[2m", "\x1b[0m")
                } else {
                    ("", "", "")
                };
                result = match value {
                    Value::String(value) => write!(writer, " {italic}{name}{plain}{dim}={plain}{value}"),
                    value => write!(writer, " {italic}{name}{plain}{dim}={plain}{value}"),
                };
            }
        });
        result?;
        writeln!(writer)
    }
}

/// An event a line.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        writeln!(writer, "{}", Value::Object(line_of(event)))
    }
}

fn line_of(event: &Event<'_>) -> Map<String, Value> {
    let now = Timestamp::from(SystemTime::now()).to_rfc3339_microseconds();
    let (level, target) = (event.metadata().level(), event.metadata().target());
    let begin = [
        ("timestamp", now.as_str()),
        ("level", level.as_str()),
        ("target", target),
        ("message", ""),
    ];
    let mut line: Map<String, Value> = begin
        .map(|(name, value)| (name.to_owned(), value.into()))
        .into_iter()
        .collect();
    event.record(&mut Fields(&mut line));
    each_field(|name, value| {
        line.insert(name.to_owned(), value);
    });
    line
}

/// Puts an event's fields into its line.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        let name = match field.name() {
            // What every line has is not an event's to give.
            "timestamp" | "level" | "target" => format!("field.{}", field.name()),
            name => name.to_owned(),
        };
        self.0.insert(name, value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        // Beyond 64 bits JSON's readers differ.
        match i64::try_from(value) {
            Ok(value) => self.set(field, value),
            Err(_) => self.set(field, value.to_string()),
        }
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        match u64::try_from(value) {
            Ok(value) => self.set(field, value),
            Err(_) => self.set(field, value.to_string()),
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::telemetry::{RequestContext, TraceContext, caused_by};

    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Said {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    fn say() {
        tracing::warn!(count = 3_u128, share = 0.5, is_new = true, error = %"a \"b\"\n", level = "own", "it happened");
    }

    fn said(log: impl Subscriber + Send + Sync + 'static, said: &Said) -> String {
        let request = Arc::new(RequestContext::new(Some(b"r-1"), TraceContext::begun()));
        tracing::subscriber::with_default(log, || caused_by([Some(&request)], say));
        String::from_utf8(said.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_line_of_json_has_its_fields_flat_and_the_request_that_caused_it() {
        let to = Said::default();
        let log = tracing_subscriber::fmt()
            .with_writer(to.clone())
            .event_format(JsonLines)
            .finish();
        let text = said(log, &to);
        assert!(text.ends_with("}\n") && text.matches('\n').count() == 1, "{text}");
        let line: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let names: Vec<_> = line.keys().map(String::as_str).collect();
        let own = [
            "count",
            "share",
            "is_new",
            "error",
            "field.level",
            "request_id",
            "trace_id",
        ];
        assert_eq!(names, [&["timestamp", "level", "target", "message"][..], &own].concat());
        assert_eq!(line["message"], "it happened");
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["error"], "a \"b\"\n");
        assert_eq!(
            (&line["count"], &line["share"], &line["is_new"]),
            (&3.into(), &0.5.into(), &true.into())
        );
        assert_eq!(line["request_id"], "r-1");
    }

    #[test]
    fn a_line_of_text_ends_with_the_request_that_caused_it() {
        let to = Said::default();
        let format = Text {
            format: Format::default().with_ansi(false),
            is_coloured: false,
        };
        let log = tracing_subscriber::fmt()
            .with_writer(to.clone())
            .with_ansi(false)
            .event_format(format)
            .finish();
        let text = said(log, &to);
        assert!(
            text.contains("it happened count=3") && text.contains(" request_id=r-1 trace_id="),
            "{text}"
        );
        assert!(text.ends_with('\n') && !text.contains('\x1b'), "{text:?}");
    }
}
