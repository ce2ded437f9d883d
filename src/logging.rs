//! The daemon's own diagnostics, on standard error. Alert lines never come through here: they have
//! other readers and stronger promises.
//!
//! One event is one line, whatever its text holds. The order of the keys does not change:
//! `ts level msg`, the event's fields, those of the spans around it, `target`. A warning or an
//! error that repeats is printed once a minute, and once more after somebody has asked for a
//! reload. Nothing here can fail or hold up a caller: if standard error is closed, or nobody reads
//! it, the daemon runs on without a word.

use std::{
    error::Error,
    fmt,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
    subscriber::SetGlobalDefaultError,
};
use tracing_subscriber::{
    Layer, Registry,
    filter::Targets,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
};

use self::{
    line::{Line, Value},
    queue::Queue,
    repeats::{Repeats, Verdict},
};
use crate::{clock, error_chain::chain};

mod line;
mod queue;
mod repeats;

pub(crate) use queue::write;

/// How verbose the diagnostics are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Everything.
    Debug,
    /// What the daemon does.
    #[default]
    Info,
    /// What should not last.
    Warn,
    /// What failed.
    Error,
}

/// How the diagnostics look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `key=value` pairs.
    #[default]
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// A word that names no level or no format.
#[derive(Debug, thiserror::Error)]
#[error("not one of {0}")]
pub struct UnknownWord(&'static str);

/// The diagnostics are set up already.
#[derive(Debug, thiserror::Error)]
#[error("the diagnostics are set up already")]
pub struct AlreadyInitialised(#[source] SetGlobalDefaultError);

/// Turns events into lines and hands them to `write`.
struct Diagnostics<C, W> {
    format: Format,
    count: C,
    write: W,
    repeats: Arc<Mutex<Repeats>>,
}

/// The fields of an event or a span while they are collected.
#[derive(Debug, Default)]
struct Fields {
    message: Option<Value>,
    others: Vec<(&'static str, Value)>,
}

/// The lines to be written on standard error, once the diagnostics are set up.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// The texts that were printed lately, once the diagnostics are set up.
static REPEATS: OnceLock<Arc<Mutex<Repeats>>> = OnceLock::new();

/// How long the end of the process waits for a reader of standard error.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The target of this crate's events. Events of other crates are shown from `warn` on.
const OWN_TARGET: &str = "opsramp_exporter";

/// Sets up the diagnostics of the whole process. `count` is called for every event that `level`
/// lets through, repeated ones included; it must not log.
///
/// # Errors
/// If the diagnostics are set up already.
pub fn init(
    level: Level,
    format: Format,
    count: impl Fn(&tracing::Level) + Send + Sync + 'static,
) -> Result<(), AlreadyInitialised> {
    let diagnostics = Diagnostics::new(format, count, print_line);
    let repeats = Arc::clone(&diagnostics.repeats);
    tracing::subscriber::set_global_default(
        Registry::default().with(diagnostics.with_filter(filter(level))),
    )
    .map_err(AlreadyInitialised)?;
    // Nothing else sets this or the queue: the diagnostics are set up once.
    REPEATS.set(repeats).ok();
    // Without a thread, callers write their lines themselves.
    if let Ok(queue) = Queue::start(move |lost| loss(format, lost), write) {
        QUEUE.set(queue).ok();
    }
    Ok(())
}

/// Whether [`init`] was called.
pub fn is_set_up() -> bool {
    REPEATS.get().is_some()
}

/// Prints a message for the person who has called the program.
pub fn print_message(text: &str) {
    print_line(&format!("opsramp-exporter: {text}\n"));
}

/// Writes a line on standard error, as soon as its reader takes it.
pub fn print_line(line: &str) {
    match QUEUE.get() {
        Some(queue) => queue.push(line),
        None => write(line),
    }
}

/// Makes every warning and error be printed when it comes next, however lately it was printed:
/// somebody has asked for something, and looks here for the answer.
pub fn print_repeats_again() {
    if let Some(repeats) = REPEATS.get() {
        repeats.lock().print_all_again();
    }
}

/// Waits a moment until all lines are written. To be called at the end of the process.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(LAST_LINES);
    }
}

/// The line that says that `lost` lines were lost.
fn loss(format: Format, lost: u64) -> String {
    let message = Value::text("lines are missing here: nobody read standard error");
    let mut line = Line::new(tracing::Level::WARN, message, OWN_TARGET);
    line.extend([("lines", Value::Bare(lost.to_string()))]);
    line.render(format, clock::now(), 0)
}

fn filter(level: Level) -> Targets {
    let own = level.filter();
    Targets::new()
        .with_target(OWN_TARGET, own)
        .with_default(own.min(LevelFilter::WARN))
}

// === impl Level ===

impl Level {
    fn filter(self) -> LevelFilter {
        match self {
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warn => LevelFilter::WARN,
            Self::Error => LevelFilter::ERROR,
        }
    }
}

impl FromStr for Level {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "debug" => Ok(Self::Debug),
            "info" => Ok(Self::Info),
            "warn" => Ok(Self::Warn),
            "error" => Ok(Self::Error),
            _ => Err(UnknownWord("debug, info, warn, error")),
        }
    }
}

// === impl Format ===

impl FromStr for Format {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "logfmt" => Ok(Self::Logfmt),
            "json" => Ok(Self::Json),
            _ => Err(UnknownWord("logfmt, json")),
        }
    }
}

// === impl Diagnostics ===

impl<C, W> Diagnostics<C, W>
where
    C: Fn(&tracing::Level),
    W: Fn(&str),
{
    fn new(format: Format, count: C, write: W) -> Self {
        Self {
            format,
            count,
            write,
            repeats: Arc::default(),
        }
    }

    fn handle(&self, line: &Line, at: Timestamp, now: Instant) {
        let repeated = if line.level <= tracing::Level::WARN {
            let mut repeats = self.repeats.lock();
            match repeats.see(&line.identity(), now) {
                Verdict::Print { repeated } => repeated,
                Verdict::Suppress => return,
            }
        } else {
            0
        };
        (self.write)(&line.render(self.format, at, repeated));
    }
}

impl<S, C, W> Layer<S> for Diagnostics<C, W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    C: Fn(&tracing::Level) + 'static,
    W: Fn(&str) + 'static,
{
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, ctx: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = ctx.span(id) {
            span.extensions_mut().replace(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let metadata = event.metadata();
        (self.count)(metadata.level());
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = Line::new(
            *metadata.level(),
            fields.message.unwrap_or_default(),
            metadata.target(),
        );
        line.extend(fields.others);
        for span in ctx.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.extend(fields.others.iter().cloned());
            }
        }
        self.handle(&line, clock::now(), Instant::now());
    }
}

// === impl Fields ===

impl Fields {
    fn push(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = Some(value),
            // A field whose name is a keyword is spelt as a raw identifier.
            name => self
                .others
                .push((name.strip_prefix("r#").unwrap_or(name), value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Value::Bare(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Value::Bare(value.to_string()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::Bare(value.to_string()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, Value::text(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.push(field, Value::text(chain(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, Value::text(format_args!("{value:?}")));
    }
}

/// Captures what this thread prints for as long as the guard lives.
#[cfg(test)]
pub(crate) fn captured() -> (Arc<Mutex<Vec<String>>>, tracing::subscriber::DefaultGuard) {
    // Where there is one subscriber alone, `tracing` asks the thread that first comes to a place in
    // the code whether that is of interest, and takes the answer for all threads. A second one,
    // which wants nothing, makes it ask every subscriber.
    static SECOND: std::sync::LazyLock<tracing::Dispatch> = std::sync::LazyLock::new(|| {
        tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new())
    });
    std::sync::LazyLock::force(&SECOND);
    let (lines, subscriber) = collecting(Level::Info, Format::Logfmt, |_| {});
    (lines, tracing::subscriber::set_default(subscriber))
}

/// Returns a subscriber, and the lines that it prints.
#[cfg(test)]
fn collecting(
    level: Level,
    format: Format,
    count: impl Fn(&tracing::Level) + Send + Sync + 'static,
) -> (Arc<Mutex<Vec<String>>>, impl Subscriber + Send + Sync) {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let printed = Arc::clone(&lines);
    let print = move |line: &str| printed.lock().push(line.to_owned());
    let diagnostics = Diagnostics::new(format, count, print).with_filter(filter(level));
    (lines, Registry::default().with(diagnostics))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines that are printed and the levels that are counted for the events of
    /// `emit`.
    fn printed(level: Level, format: Format, emit: impl FnOnce()) -> (Vec<String>, Vec<String>) {
        let counted: Arc<Mutex<Vec<String>>> = Arc::default();
        let levels = Arc::clone(&counted);
        let count = move |level: &tracing::Level| levels.lock().push(level.to_string());
        let (lines, subscriber) = collecting(level, format, count);
        tracing::subscriber::with_default(subscriber, emit);
        let lines = lines.lock().clone();
        let counted = counted.lock().clone();
        (lines, counted)
    }

    /// The line without its timestamp, which is never the same.
    fn after_timestamp(line: &str) -> &str {
        let (timestamp, rest) = line.split_once(' ').unwrap();
        let timestamp: Timestamp = timestamp.strip_prefix("ts=").unwrap().parse().unwrap();
        assert!(timestamp > Timestamp::UNIX_EPOCH);
        rest
    }

    #[test]
    fn an_event_is_one_line_with_its_keys_in_order() {
        let (lines, counted) = printed(Level::Info, Format::Logfmt, || {
            tracing::info!(search = "open", alerts = 3, took = ?Duration::from_secs(2), "polled");
        });
        assert_eq!(
            lines
                .iter()
                .map(|line| after_timestamp(line))
                .collect::<Vec<_>>(),
            [
                "level=info msg=polled search=open alerts=3 took=2s target=opsramp_exporter::logging::tests\n"
            ]
        );
        assert_eq!(counted, ["INFO"]);
    }

    #[test]
    fn json_has_the_same_keys_and_real_numbers() {
        let (lines, _) = printed(Level::Info, Format::Json, || {
            tracing::warn!(
                ratio = 0.5,
                nothing = f64::NAN,
                good = true,
                "a \"quoted\"\nline"
            );
        });
        let [line] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        assert!(
            line.ends_with(
                ",\"level\":\"warn\",\"msg\":\"a \\\"quoted\\\"\\nline\",\"ratio\":0.5,\
                 \"nothing\":\"NaN\",\"good\":true,\
                 \"target\":\"opsramp_exporter::logging::tests\"}\n"
            ),
            "{line}"
        );
        assert!(line.starts_with("{\"ts\":\"2"), "{line}");
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }

    #[test]
    fn the_spans_around_an_event_lend_it_their_fields_and_a_key_is_given_once() {
        let (lines, _) = printed(Level::Info, Format::Logfmt, || {
            let outer = tracing::info_span!(
                "poll",
                search = "outer",
                tenant = "t",
                late = tracing::field::Empty
            );
            outer.record("late", true);
            let _outer = outer.enter();
            tracing::info!(search = "inner", ts = "mine", "polled");
        });
        assert_eq!(
            after_timestamp(&lines[0]),
            "level=info msg=polled search=inner tenant=t late=true target=opsramp_exporter::logging::tests\n"
        );
    }

    #[test]
    fn an_error_is_shown_with_its_causes() {
        let (lines, _) = printed(Level::Info, Format::Logfmt, || {
            let cause = std::io::Error::other("disk full");
            let error = crate::secret::SecretError::Read {
                path: "x".into(),
                source: cause,
            };
            let error: &dyn Error = &error;
            tracing::error!(error, "no token");
        });
        assert!(
            lines[0].contains("error=\"cannot read the secret file x: disk full\""),
            "{lines:?}"
        );
    }

    #[test]
    fn other_crates_are_shown_from_warnings_on_at_every_level() {
        for (level, expected) in [
            (Level::Debug, vec!["own", "warning", "failure"]),
            (Level::Info, vec!["warning", "failure"]),
            (Level::Error, vec!["failure"]),
        ] {
            let (lines, counted) = printed(level, Format::Logfmt, || {
                tracing::debug!("own");
                tracing::debug!(target: "hyper", "noise");
                tracing::info!(target: "hyper", "noise");
                tracing::warn!(target: "hyper", "warning");
                tracing::error!(target: "hyper", "failure");
            });
            let shown: Vec<&str> = lines
                .iter()
                .filter_map(|line| line.split("msg=").nth(1)?.split(' ').next())
                .collect();
            assert_eq!(shown, expected, "{level:?}");
            assert_eq!(counted.len(), expected.len(), "{level:?}");
        }
    }

    #[test]
    fn a_repeated_warning_is_printed_once_and_counted_every_time() {
        let (lines, counted) = printed(Level::Info, Format::Logfmt, || {
            for _ in 0..3 {
                tracing::warn!(search = "open", "poll failed");
                tracing::info!("polled");
            }
            tracing::warn!(search = "other", "poll failed");
        });
        let warnings = lines.iter().filter(|line| line.contains("level=warn"));
        assert_eq!(warnings.count(), 2, "{lines:?}");
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert_eq!(counted.len(), 7);
    }

    #[test]
    fn after_a_minute_a_repeated_warning_says_how_often_it_came() {
        let lines = Mutex::new(Vec::new());
        let diagnostics = Diagnostics::new(
            Format::Logfmt,
            |_: &tracing::Level| {},
            |line: &str| lines.lock().push(line.to_owned()),
        );
        let line = Line::new(tracing::Level::WARN, Value::text("no"), "t");
        let (at, start) = (Timestamp::UNIX_EPOCH, Instant::now());
        for seconds in [0, 30, 59, 60, 61] {
            diagnostics.handle(&line, at, start + Duration::from_secs(seconds));
        }
        assert_eq!(
            *lines.lock(),
            [
                "ts=1970-01-01T00:00:00.000Z level=warn msg=no target=t\n",
                "ts=1970-01-01T00:00:00.000Z level=warn msg=no repeated=2 target=t\n",
            ]
        );
    }

    #[test]
    fn an_error_that_quotes_another_request_each_time_is_a_repeated_one() {
        let lines = Mutex::new(Vec::new());
        let diagnostics = Diagnostics::new(
            Format::Logfmt,
            |_: &tracing::Level| {},
            |line: &str| lines.lock().push(line.to_owned()),
        );
        for (number, search) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
            let message = Value::text("poll failed");
            let mut line = Line::new(tracing::Level::WARN, message, "t");
            let error = format_args!(r#"search answered 500: {{"request":"{number}"}}"#);
            line.extend([
                ("search", Value::text(search)),
                ("error", Value::text(error)),
            ]);
            diagnostics.handle(&line, Timestamp::UNIX_EPOCH, Instant::now());
        }
        let lines = lines.lock();
        let [first, other] = &lines[..] else {
            panic!("{lines:#?}")
        };
        assert!(
            first.contains("search=a") && first.contains(r#"\"1\""#),
            "{first}"
        );
        assert!(
            other.contains("search=b") && other.contains(r#"\"3\""#),
            "{other}"
        );
    }

    #[test]
    #[ignore = "runs in a process of its own, started by the next test"]
    fn child_whose_standard_error_is_closed() {
        init(Level::Debug, Format::Logfmt, |_| {}).unwrap();
        assert!(init(Level::Debug, Format::Logfmt, |_| {}).is_err());
        // More than a pipe holds.
        for number in 0..5_000 {
            tracing::error!(number, "nobody reads this");
        }
        flush();
        println!("alive");
    }

    #[test]
    fn a_closed_standard_error_is_no_reason_to_stop() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "logging::tests::child_whose_standard_error_is_closed",
            ])
            .args(["--ignored", "--nocapture"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stderr.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.contains("alive"), "{output}");
    }

    #[test]
    fn a_loss_is_told_as_everything_is() {
        let line = loss(Format::Logfmt, 7);
        assert!(
            after_timestamp(&line).starts_with("level=warn msg=\"lines are missing here")
                && line.ends_with(" lines=7 target=opsramp_exporter\n"),
            "{line}"
        );
        serde_json::from_str::<serde_json::Value>(&loss(Format::Json, 7)).unwrap();
    }
}
