//! Every metric in one place: its name, type, labels and meaning. Names are a contract.

use std::fmt::Write as _;

/// One metric family.
#[derive(Debug)]
pub(super) struct Family {
    /// The name.
    pub(super) name: &'static str,
    /// The type.
    pub(super) kind: Kind,
    /// The names of the labels; [`OPEN_ALERTS`] has those of `group_by` as well.
    pub(super) labels: &'static [&'static str],
    /// The `HELP` text: one line, without backslashes.
    pub(super) help: &'static str,
}

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram,
}

const NO_LABELS: &[&str] = &[];
const ACCOUNT: &[&str] = &["account"];
const TENANT: &[&str] = &["account", "tenant"];
const SEARCH: &[&str] = &["account", "tenant", "search"];
const SINK: &[&str] = &["sink"];

macro_rules! catalog {
    ($($constant:ident = $kind:ident $name:literal $labels:expr, $help:expr;)*) => {
        $(pub(super) static $constant: Family = Family {
            name: $name,
            kind: Kind::$kind,
            labels: $labels,
            help: $help,
        };)*

        /// Every family, in the order of the exposition.
        pub(super) static ALL: &[&Family] = &[$(&$constant),*];
    };
}

/// Ends the help text of a value from the API, because the author of a rule must know how old the
/// value can be.
macro_rules! polled {
    ($text:literal) => {
        concat!($text, " From polling on a schedule, not from the scrape.")
    };
}

catalog! {
    UP = Gauge "opsramp_up" SEARCH,
        polled!("Whether the last poll of the search succeeded (1) or failed (0); 0 before the first one has ended, withheld where this replica does not poll the search.");
    SEARCH_TOTAL_RESULTS = Gauge "opsramp_search_total_results" SEARCH,
        polled!("Alerts that match the search, as totalResults of the last successful poll says; withheld while unknown or stale.");
    OPEN_ALERTS = Gauge "opsramp_open_alerts" SEARCH,
        polled!("Tracked alerts of the search by the labels of its group_by; withheld while unknown or stale.");
    OLDEST_OPEN_ALERT = Gauge "opsramp_oldest_open_alert_timestamp_seconds" SEARCH,
        polled!("When the oldest tracked alert of the search was created; absent where there is none.");
    SEARCH_COMPLETE = Gauge "opsramp_search_complete" SEARCH,
        polled!("Whether the tracked alerts are the whole result of the search (1) or a part of it (0).");
    POLLS = Counter "opsramp_polls_total" SEARCH,
        "Polls of the search that were begun.";
    POLL_FAILURES = Counter "opsramp_poll_failures_total" &["account", "tenant", "search", "reason"],
        "Polls of the search that failed, by reason.";
    POLL_DURATION = Histogram "opsramp_poll_duration_seconds" SEARCH,
        "How long polls of the search took, with the time they waited for the allowance.";
    POLL_INTERVAL = Gauge "opsramp_poll_interval_seconds" SEARCH,
        "Time between two polls of the search, as configured.";
    POLL_REQUESTS = Gauge "opsramp_poll_requests" SEARCH,
        polled!("API requests that the last poll of the search took, those for details and repeated ones included; token requests and those of full reads are not.");
    POLL_LAST_SUCCESS = Gauge "opsramp_poll_last_success_timestamp_seconds" SEARCH,
        polled!("When the last successful poll of the search ended; absent before the first one.");
    FULL_READ_LAST_SUCCESS = Gauge "opsramp_full_read_last_success_timestamp_seconds" SEARCH,
        polled!("When the result of the search was last read as a whole; absent before the first time.");
    ALERT_EVENTS = Counter "opsramp_alert_events_total" &["account", "tenant", "search", "event"],
        "Alerts that polls found opened, changed, or left.";
    DETECTION_DELAY = Histogram "opsramp_alert_detection_delay_seconds" SEARCH,
        "From the creation of an alert, on the server's clock, to the moment when a poll journalled it as opened; without alerts found before the result was first read as a whole.";
    LEASE_HELD = Gauge "opsramp_lease_held" SEARCH,
        "Whether this replica polls the search (1), or another one or none does (0).";
    DISCOVERY_UP = Gauge "opsramp_discovery_up" ACCOUNT,
        polled!("Whether the last look-up of the clients of all of the account's partners succeeded (1) or failed (0); 0 before the first one has ended, absent where none are looked up.");
    DISCOVERY_KNOWN = Gauge "opsramp_discovery_known" ACCOUNT,
        polled!("Whether the clients of all of the account's partners have been found since the start, or since a reload named the partner (1), or those of one are not known and not searched (0); absent where none are looked up.");
    AUTH_LATENCY = Gauge "opsramp_auth_latency_seconds" ACCOUNT,
        "How long the last successful token request took. Tokens are requested when they run out, not at the scrape.";
    AUTH_REQUESTS = Counter "opsramp_auth_requests_total" ACCOUNT,
        "Token requests.";
    AUTH_FAILURES = Counter "opsramp_auth_failures_total" &["account", "reason"],
        "Token requests that failed, by reason; rejected means that the credentials were, credentials that they could not be read, and nothing was requested.";
    TOKEN_EXPIRY = Gauge "opsramp_token_expiry_timestamp_seconds" ACCOUNT,
        "When the current token expires; absent while there is none.";
    API_REQUESTS = Counter "opsramp_api_requests_total" &["account", "endpoint", "code"],
        "Requests to the API by endpoint and HTTP status; the code is error where no answer came.";
    API_REQUEST_DURATION = Histogram "opsramp_api_request_duration_seconds" &["account", "endpoint"],
        "How long requests to the API took.";
    API_RATE_LIMIT_LIMIT = Gauge "opsramp_api_rate_limit_limit" TENANT,
        polled!("Requests a minute that the tenant may make, as the last X-RateLimit-Limit header said.");
    API_RATE_LIMIT_REMAINING = Gauge "opsramp_api_rate_limit_remaining" TENANT,
        polled!("Requests that the tenant had left, as the last X-RateLimit-Remaining header said.");
    API_RATE_LIMIT_RESET = Gauge "opsramp_api_rate_limit_reset_timestamp_seconds" TENANT,
        polled!("When the tenant's allowance is renewed, as the last X-RateLimit-Reset header said, on the exporter's clock.");
    API_THROTTLED = Counter "opsramp_api_throttled_seconds_total" TENANT,
        "Time that requests waited for the tenant's allowance, those of full reads included.";
    SINK_EVENTS = Counter "opsramp_sink_events_total" SINK,
        "Events that were delivered to the sink.";
    SINK_ERRORS = Counter "opsramp_sink_errors_total" SINK,
        "Tries to deliver to the sink that failed; they are repeated.";
    SINK_REJECTED = Counter "opsramp_sink_rejected_events_total" SINK,
        "Events that the sink's receiver refused for good; they are not repeated.";
    SINK_BACKLOG = Gauge "opsramp_sink_backlog_events" SINK,
        "Events that are journalled and not yet delivered to the sink; withheld while that is not known.";
    SINK_OLDEST_PENDING = Gauge "opsramp_sink_oldest_pending_timestamp_seconds" SINK,
        "When the oldest event that the sink has not yet got was journalled; absent where it has them all, or \
        that is not known.";
    LOG_MESSAGES = Counter "opsramp_exporter_log_messages_total" &["level"],
        "Messages of the exporter's own diagnostics by level; alert lines do not count.";
    BUILD_INFO = Gauge "opsramp_exporter_build_info" &["version", "revision", "rustversion"],
        "Always 1; its labels say what was built from what.";
    CONFIG_RELOAD_SUCCESSFUL = Gauge "opsramp_exporter_config_last_reload_successful" NO_LABELS,
        "Whether the last attempt to load the configuration succeeded (1) or failed (0).";
    CONFIG_RELOAD_TIMESTAMP = Gauge "opsramp_exporter_config_last_reload_success_timestamp_seconds" NO_LABELS,
        "When the configuration was last loaded successfully.";
    PROCESS_CPU = Counter "process_cpu_seconds_total" NO_LABELS,
        "Total user and system CPU time spent in seconds.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" NO_LABELS,
        "Number of open file descriptors.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" NO_LABELS,
        "Maximum number of open file descriptors.";
    PROCESS_VIRTUAL_MEMORY = Gauge "process_virtual_memory_bytes" NO_LABELS,
        "Virtual memory size in bytes.";
    PROCESS_RESIDENT_MEMORY = Gauge "process_resident_memory_bytes" NO_LABELS,
        "Resident memory size in bytes.";
    PROCESS_START_TIME = Gauge "process_start_time_seconds" NO_LABELS,
        "Start time of the process since the Unix epoch in seconds.";
    PROCESS_THREADS = Gauge "process_threads" NO_LABELS,
        "Number of threads of the process.";
}

/// Returns the catalogue as a Markdown table, as `docs/metrics.md` shows it.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from("| name | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    for family in ALL {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let mut labels = family.labels.join(", ");
        if family.name == OPEN_ALERTS.name {
            labels.push_str(", and those of `group_by`");
        }
        writeln!(
            text,
            "| `{}` | {kind} | {labels} | {} |",
            family.name, family.help
        )
        .expect("writing to a string does not fail");
    }
    text
}
