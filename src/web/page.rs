//! The page for people: one HTML document that needs no script.
//!
//! A pure function of what there is to see. Every value goes through [`Text`], which escapes it:
//! subjects and host names are written by whoever can raise an alert.

use std::fmt;

use jiff::Timestamp;

use super::{
    alerts::{AlertsError, OpenAlert},
    query::Query,
    view::{
        AccountView, ErrorView, GroupView, PollView, SearchState, SearchView, SinkView, StatusView,
    },
};

use show::{Span, Text, Thousands, When, utc};

mod show;

/// The page's whole style: it loads nothing.
const STYLE: &str = include_str!("page.css");

/// Tenants of an account whose allowance is shown at once; the others unfold.
const ALLOWANCES_SHOWN: usize = 8;

/// What the page shows.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) status: &'a StatusView,
    pub(super) alerts: &'a Result<Vec<OpenAlert>, AlertsError>,
    pub(super) query: &'a Query,
    pub(super) telemetry_path: &'a str,
}

// === impl Page ===

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <link rel=\"icon\" href=\"data:,\">\n<title>",
        )?;
        let troubled = self.troubled();
        if troubled > 0 {
            write!(f, "({troubled}) ")?;
        }
        write!(
            f,
            "opsramp-exporter</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        )?;
        self.header(f)?;
        f.write_str("<main>\n")?;
        self.searches(f)?;
        self.accounts(f)?;
        self.sinks(f)?;
        // Last, for there can be many.
        self.alerts(f)?;
        f.write_str("</main>\n")?;
        self.footer(f)?;
        f.write_str("</body>\n</html>\n")
    }
}

impl Page<'_> {
    fn troubled(&self) -> usize {
        let troubled = |search: &&SearchView| {
            matches!(search.state, SearchState::Stale | SearchState::Failing)
        };
        self.status.searches.iter().filter(troubled).count()
    }

    fn header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status;
        write!(
            f,
            "<header>\n<h1>opsramp-exporter</h1> <span class=\"muted\">{}</span>\n",
            Text(status.version)
        )?;
        let troubled = self.troubled();
        if troubled > 0 {
            let total = status.searches_total;
            writeln!(
                f,
                "<span class=\"badge critical\">{troubled} of {total} searches in trouble</span>"
            )?;
        } else if status.problems.is_empty() {
            writeln!(f, "<span class=\"badge good\">all well</span>")?;
        }
        write!(
            f,
            "<span class=\"when muted\">as of {} · <a href=\"\">refresh</a></span>\n</header>\n\
             <nav><a href=\"#searches\">searches</a> <a href=\"#accounts\">accounts</a> \
             <a href=\"#sinks\">sinks</a> <a href=\"#alerts\">open alerts</a></nav>\n",
            Text(utc(status.now))
        )?;
        if !status.problems.is_empty() {
            f.write_str("<div class=\"notice warning\" role=\"status\"><ul>\n")?;
            for problem in &status.problems {
                writeln!(f, "<li>{}</li>", Text(problem))?;
            }
            f.write_str("</ul></div>\n")?;
        }
        Ok(())
    }

    fn searches(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, total) = (self.status.searches.len(), self.status.searches_total);
        f.write_str("<h2 id=\"searches\">Searches <small>")?;
        if shown < total {
            write!(f, "{shown} of {total}, those in trouble first")?;
        } else {
            write!(f, "{total}")?;
        }
        f.write_str("</small></h2>\n")?;
        if total == 0 {
            return f.write_str("<p class=\"muted\">No search matches.</p>\n");
        }
        f.write_str("<div class=\"cards\">\n")?;
        for search in &self.status.searches {
            self.search(f, search)?;
        }
        f.write_str("</div>\n")
    }

    fn search(&self, f: &mut fmt::Formatter<'_>, search: &SearchView) -> fmt::Result {
        let now = self.status.now;
        let (class, word) = match search.state {
            SearchState::Up => ("good", "up"),
            SearchState::Failing => ("critical", "failing"),
            SearchState::Stale => ("critical", "stale"),
            SearchState::Pending => ("info", "first poll pending"),
            SearchState::Elsewhere => ("", "polled by another replica"),
        };
        write!(
            f,
            "<article class=\"card\">\n<div class=\"top\"><div><h3>{} / {}</h3>\
             <div class=\"where\">{}</div></div>\
             <span class=\"badge {class}\">{word}</span></div>\n<div class=\"total\">",
            Text(&search.tenant),
            Text(&search.search),
            Text(&search.account),
        )?;
        match search.total_results {
            Some(total) => write!(
                f,
                "<strong>{}</strong> <span class=\"muted\">open</span>",
                Thousands(total)
            )?,
            None => f.write_str("<strong>–</strong> <span class=\"muted\">not known</span>")?,
        }
        if let (Some(false), Some(tracked)) = (search.complete, search.tracked) {
            write!(f, " <small>{} tracked so far</small>", Thousands(tracked))?;
        }
        f.write_str("</div>\n")?;
        self.groups(f, &search.open_alerts)?;

        f.write_str("<dl>\n")?;
        let mut fact = |name: &str, at: Option<Timestamp>| match at {
            Some(at) => writeln!(f, "<dt>{name}</dt><dd>{}</dd>", When { at, now }),
            None => Ok(()),
        };
        fact("oldest alert", search.oldest_open_alert_at)?;
        fact("last success", search.last_success_at)?;
        fact("last full read", search.last_full_read_at)?;
        fact("next poll", search.next_poll_at)?;
        write!(
            f,
            "<dt>polled</dt><dd>every {}</dd>\n</dl>\n",
            Span(search.interval_seconds)
        )?;

        if let Some(error) = &search.last_error {
            let class = match search.state {
                SearchState::Failing | SearchState::Stale => "critical",
                _ => "muted",
            };
            last_error(f, error, class, now)?;
        }
        self.polls(f, &search.polls)?;
        f.write_str("</article>\n")
    }

    fn groups(&self, f: &mut fmt::Formatter<'_>, groups: &[GroupView]) -> fmt::Result {
        let mut groups: Vec<_> = groups.iter().filter(|group| group.count > 0).collect();
        if groups.is_empty() {
            return Ok(());
        }
        groups.sort_by_key(|group| {
            let severity = group
                .labels
                .get("state")
                .map_or(9, |state| severity(state).0);
            (severity, std::cmp::Reverse(group.count))
        });
        f.write_str("<div class=\"groups\">")?;
        const SHOWN: usize = 12;
        for group in groups.iter().take(SHOWN) {
            let class = group
                .labels
                .get("state")
                .map_or("", |state| severity(state).1);
            write!(
                f,
                "<span class=\"badge {class}\">{} ",
                Thousands(group.count)
            )?;
            for (place, value) in group.labels.values().enumerate() {
                let dot = if place == 0 { "" } else { " · " };
                write!(f, "{dot}{}", Text(value))?;
            }
            f.write_str("</span> ")?;
        }
        if groups.len() > SHOWN {
            write!(f, "<small>and {} more groups</small>", groups.len() - SHOWN)?;
        }
        f.write_str("</div>\n")
    }

    fn polls(&self, f: &mut fmt::Formatter<'_>, polls: &[PollView]) -> fmt::Result {
        if polls.is_empty() {
            return Ok(());
        }
        f.write_str("<details><summary>last polls <span class=\"bars\">")?;
        let longest = polls
            .iter()
            .map(|poll| poll.took_seconds)
            .fold(0.001, f64::max);
        for poll in polls.iter().rev() {
            let class = if poll.error.is_some() {
                " class=\"failed\""
            } else {
                ""
            };
            // Percent of the longest one, so that a slow poll stands out.
            write!(
                f,
                "<i{class} style=\"height:{:.0}%\"></i>",
                (poll.took_seconds / longest * 100.0).clamp(15.0, 100.0)
            )?;
        }
        f.write_str(
            "</span></summary>\n<table><thead><tr><th>began</th><th class=\"number\">took</th>\
             <th class=\"number\">requests</th><th>outcome</th></tr></thead><tbody>\n",
        )?;
        let now = self.status.now;
        for poll in polls {
            let at = poll.started_at;
            write!(
                f,
                "<tr><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td>",
                When { at, now },
                Span(poll.took_seconds),
                poll.requests,
            )?;
            match (&poll.error, poll.events) {
                (Some(error), _) => write!(
                    f,
                    "<span class=\"badge critical\">{}</span>",
                    Text(error.reason)
                )?,
                (None, Some(0)) => f.write_str("nothing new")?,
                (None, Some(1)) => f.write_str("1 event")?,
                (None, events) => write!(f, "{} events", Thousands(events.unwrap_or_default()))?,
            }
            f.write_str("</td></tr>\n")?;
        }
        f.write_str("</tbody></table></details>\n")
    }

    fn alerts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<h2 id=\"alerts\">Open alerts <small>")?;
        match self.alerts {
            Ok(alerts) if alerts.len() >= self.query.limit() => {
                write!(f, "the newest {}", alerts.len())?;
            }
            Ok(alerts) => write!(f, "{}", alerts.len())?,
            Err(_) => {}
        }
        f.write_str("</small></h2>\n")?;
        self.filter_form(f)?;
        let alerts = match self.alerts {
            Ok(alerts) => alerts,
            Err(error) => {
                return writeln!(
                    f,
                    "<div class=\"notice critical\">The open alerts cannot be shown now: {}.</div>",
                    Text(error)
                );
            }
        };
        if alerts.is_empty() {
            return f.write_str("<p class=\"muted\">None.</p>\n");
        }
        f.write_str(
            "<div class=\"scroll\"><table class=\"stack\"><thead><tr><th>state</th><th>alert</th>\
             <th>resource</th><th>search</th><th>status</th><th>created</th></tr></thead><tbody>\n",
        )?;
        for alert in alerts {
            self.alert(f, alert)?;
        }
        f.write_str("</tbody></table></div>\n")
    }

    fn alert(&self, f: &mut fmt::Formatter<'_>, alert: &OpenAlert) -> fmt::Result {
        let fields = &alert.fields;
        let or_empty = |value: &Option<String>| value.clone().unwrap_or_default();
        let state = fields.state.as_deref().unwrap_or("unknown");
        let subject = fields.message.as_deref().unwrap_or("(no subject)");
        write!(
            f,
            "<tr><td class=\"state\"><span class=\"badge {}\">{}</span></td>\
             <td class=\"wide\">{}<br><small>{}",
            severity(state).1,
            Text(state),
            Text(subject),
            Text(&alert.alert_id),
        )?;
        for part in [
            &fields.metric,
            &fields.component,
            &fields.priority,
            &fields.source,
        ]
        .into_iter()
        .flatten()
        {
            write!(f, " · {}", Text(part))?;
        }
        f.write_str("</small></td>")?;
        cell(f, "resource", &or_empty(&fields.resource_name))?;
        let place = format!("{} / {} / {}", alert.account, alert.tenant, alert.search);
        cell(f, "search", &place)?;
        cell_of(f, "status", "status", &or_empty(&fields.status))?;
        match fields.created_at {
            Some(at) => {
                let when = When {
                    at,
                    now: self.status.now,
                };
                write!(f, "<td data-label=\"created\">{when}</td>")?;
            }
            None => cell(f, "created", "")?,
        }
        f.write_str("</tr>\n")
    }

    fn filter_form(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<form method=\"get\" action=\"#alerts\">")?;
        let query = self.query;
        for (name, value) in [
            ("account", &query.account),
            ("tenant", &query.tenant),
            ("search", &query.search),
            ("state", &query.state),
        ] {
            write!(
                f,
                "<input name=\"{name}\" placeholder=\"{name}\" aria-label=\"{name}\" value=\"{}\" \
                 autocapitalize=\"none\" autocomplete=\"off\">",
                Text(value.as_deref().unwrap_or_default())
            )?;
        }
        f.write_str("<button>filter</button></form>\n")
    }

    fn accounts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.status.accounts.is_empty() {
            return Ok(());
        }
        f.write_str("<h2 id=\"accounts\">Accounts</h2>\n<div class=\"cards\">\n")?;
        for account in &self.status.accounts {
            self.account(f, account)?;
        }
        f.write_str("</div>\n")
    }

    fn account(&self, f: &mut fmt::Formatter<'_>, account: &AccountView) -> fmt::Result {
        let now = self.status.now;
        write!(
            f,
            "<article class=\"card\">\n<h3>{}</h3>\n<dl>\n<dt>token</dt><dd>",
            Text(&account.account)
        )?;
        match account.token_expires_at {
            Some(at) if at > now => write!(f, "expires {}", When { at, now })?,
            Some(at) => write!(f, "expired {}", When { at, now })?,
            None => f.write_str("none yet")?,
        }
        f.write_str("</dd>\n")?;
        if let Some(latency) = account.auth_latency_seconds {
            writeln!(f, "<dt>token request took</dt><dd>{}</dd>", Span(latency))?;
        }
        f.write_str("</dl>\n")?;
        let mut limits: Vec<_> = account.rate_limits.iter().collect();
        limits.sort_by_key(|seen| seen.remaining);
        let (first, others) = limits.split_at(limits.len().min(ALLOWANCES_SHOWN));
        allowances(f, first, now)?;
        if !others.is_empty() {
            let count = others.len();
            writeln!(f, "<details><summary>{count} more tenants</summary>")?;
            allowances(f, others, now)?;
            f.write_str("</details>\n")?;
        }
        f.write_str("</article>\n")
    }

    fn sinks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.status.sinks.is_empty() {
            return Ok(());
        }
        f.write_str(
            "<h2 id=\"sinks\">Sinks</h2>\n<div class=\"scroll\"><table class=\"stack\"><thead><tr>\
             <th>sink</th><th>type</th><th class=\"number\">delivered</th>\
             <th class=\"number\">waiting</th><th>oldest waiting</th><th>state</th></tr></thead>\
             <tbody>\n",
        )?;
        for sink in &self.status.sinks {
            self.sink(f, sink)?;
        }
        f.write_str("</tbody></table></div>\n")
    }

    fn sink(&self, f: &mut fmt::Formatter<'_>, sink: &SinkView) -> fmt::Result {
        let now = self.status.now;
        f.write_str("<tr>")?;
        cell(f, "sink", &sink.sink)?;
        cell(f, "type", sink.kind)?;
        write!(
            f,
            "<td class=\"number\" data-label=\"delivered\">{}</td>\
             <td class=\"number\" data-label=\"waiting\">{}</td>",
            Thousands(sink.delivered),
            Thousands(sink.backlog),
        )?;
        match sink.oldest_pending_at {
            Some(at) => write!(
                f,
                "<td data-label=\"oldest waiting\">{}</td>",
                When { at, now }
            )?,
            None => cell(f, "oldest waiting", "")?,
        }
        match &sink.error {
            Some(error) => write!(
                f,
                "<td data-label=\"state\"><span><span class=\"badge critical\">failing</span> {}</span></td>",
                Text(error)
            )?,
            None => f.write_str(
                "<td data-label=\"state\"><span class=\"badge good\">works</span></td>",
            )?,
        }
        f.write_str("</tr>\n")
    }

    fn footer(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "<footer>\n<a href=\"{}\">metrics</a>\n<a href=\"/-/healthy\">health</a>\n\
             <a href=\"/-/ready\">readiness</a>\n<a href=\"/api/v1/status\">status as JSON</a>\n\
             <a href=\"/api/v1/alerts\">alerts as JSON</a>\n\
             <span class=\"muted\">version {}, revision {}</span>\n</footer>\n",
            Text(self.telemetry_path),
            Text(self.status.version),
            Text(self.status.revision),
        )
    }
}

/// A cell that says what it is where the table's head is not shown, and vanishes there if empty.
fn cell(f: &mut fmt::Formatter<'_>, label: &str, value: &str) -> fmt::Result {
    cell_of(f, "", label, value)
}

fn cell_of(f: &mut fmt::Formatter<'_>, class: &str, label: &str, value: &str) -> fmt::Result {
    let empty = if value.is_empty() { " empty" } else { "" };
    write!(
        f,
        "<td class=\"{class}{empty}\" data-label=\"{label}\">{}</td>",
        Text(value)
    )
}

fn last_error(
    f: &mut fmt::Formatter<'_>,
    error: &ErrorView,
    class: &str,
    now: Timestamp,
) -> fmt::Result {
    writeln!(
        f,
        "<div class=\"error {class}\">last error, {}: <strong>{}</strong>, {}</div>",
        When { at: error.at, now },
        Text(error.reason),
        Text(&error.message),
    )
}

fn allowances(
    f: &mut fmt::Formatter<'_>,
    limits: &[&super::view::RateLimitView],
    now: Timestamp,
) -> fmt::Result {
    if limits.is_empty() {
        return Ok(());
    }
    f.write_str(
        "<table><thead><tr><th>tenant</th><th>requests left</th><th>renewed</th></tr></thead>\
         <tbody>\n",
    )?;
    for seen in limits {
        let at = seen.reset_at;
        writeln!(
            f,
            "<tr><td>{}</td><td><meter min=\"0\" max=\"{1}\" low=\"{2}\" optimum=\"{1}\" \
             value=\"{3}\"></meter> <span class=\"number\">{3} of {1}</span></td><td>{4}</td></tr>",
            Text(&seen.tenant),
            seen.limit,
            seen.limit / 5,
            seen.remaining,
            When { at, now },
        )?;
    }
    f.write_str("</tbody></table>\n")
}

/// The rank and the class of a state's word.
fn severity(state: &str) -> (u8, &'static str) {
    match state.to_ascii_lowercase().as_str() {
        "critical" => (0, "critical"),
        "warning" => (1, "warning"),
        "info" => (2, "info"),
        "ok" => (3, "good"),
        _ => (4, ""),
    }
}
